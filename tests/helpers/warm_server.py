"""The fork server of the tests: it has what `nbs` itself imports too, and MLflow migrates its first database once."""

import contextlib
import importlib.util
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock

LIBRARIES = (
    "evidently.presets",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "pandera.pandas",
    "typer",
)


def load_server() -> Any:
    """The module, not by its name: a fork has the project's own."""
    path = Path(__file__).resolve().parents[2] / "nbs_lib/pipeline/fork_server.py"
    spec = importlib.util.spec_from_file_location("warm_server", path)
    assert spec
    assert spec.loader
    server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server)
    return server


def keep_first_database(kept: Path) -> None:
    """Copy the database that MLflow's migrations, 3 s, have made for the first project that needed one."""
    from mlflow.store.db import utils

    migrate = utils._initialize_tables

    def initialize(engine: Any) -> None:
        if engine.dialect.name != "sqlite" or not utils._is_empty_database(engine):
            return migrate(engine)
        with FileLock(f"{kept}.lock"), contextlib.closing(engine.raw_connection()) as raw:
            if kept.exists():
                with contextlib.closing(sqlite3.connect(kept)) as copy:
                    return copy.backup(raw.driver_connection)
            migrate(engine)
            made = kept.with_suffix(f".{os.getpid()}")
            with contextlib.closing(sqlite3.connect(made)) as copy:
                raw.driver_connection.backup(copy)
            made.replace(kept)
        return None

    utils._initialize_tables = initialize


if __name__ == "__main__":
    server = load_server()
    server._OF_EVERY_STAGE += (*server._OF_LATER_STAGES, *LIBRARIES)
    server._OF_LATER_STAGES = ()
    prepare_first = server._prepare_first

    def prepare_all() -> None:
        prepare_first()
        keep_first_database(Path(sys.argv[1]).with_name("mlflow.sqlite"))

    server._prepare_first = prepare_all
    sys.exit(server._main())
