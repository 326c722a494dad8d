"""The folder that production loads. Models registered with MLflow name this package as their loader."""

from typing import Any


def _load_pyfunc(path: str) -> Any:
    """Open a bundle for `mlflow.pyfunc.load_model`."""
    from .bundle import _load_pyfunc

    return _load_pyfunc(path)
