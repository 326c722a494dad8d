"""The fork server of the tests: it has imported what `nbs` itself needs too."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

LIBRARIES = ("evidently.presets", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "pandera", "typer")


def load_server() -> Any:
    """The module, not by its name: a fork has the project's own."""
    path = Path(__file__).resolve().parents[2] / "nbs_lib/pipeline/fork_server.py"
    spec = importlib.util.spec_from_file_location("warm_server", path)
    assert spec
    assert spec.loader
    server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server)
    return server


if __name__ == "__main__":
    server = load_server()
    server._OF_EVERY_STAGE += (*server._OF_LATER_STAGES, *LIBRARIES)
    server._OF_LATER_STAGES = ()
    sys.exit(server._main())
