"""What MLflow's registry holds, and a registration in a process of its own."""

import subprocess
import sys
from typing import Any

import mlflow

from nbs_lib.registry.mlflow_client import tracking_uri


def client() -> Any:
    return mlflow.MlflowClient(tracking_uri(), tracking_uri())


def versions() -> list[Any]:
    return client().search_model_versions("name = 'nbs'")


def aliases() -> dict[str, str]:
    return {name: str(version) for name, version in client().get_registered_model("nbs").aliases.items()}


def register_alone(approval: str = "none") -> subprocess.CompletedProcess[str]:
    """Register the bundle of the last run; it fails where a library is imported for that."""
    code = (
        "import sys; from nbs_lib.registry.model_registry import register;"
        f"print(register('models/bundle', {{'decision': 'PROMOTE', 'champion': 'net'}}, approval={approval!r}));"
        "assert not {'mlflow', 'pandas', 'onnxruntime'} & set(sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
