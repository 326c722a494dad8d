"""The fork server of the tests: it has imported what `nbs` itself needs too, and has written one page."""

import gc
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

LIBRARIES = ("evidently.presets", "ipykernel.debugger", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store")
LIBRARIES += ("pandera", "sqlglot", "typer")


def load_server() -> Any:
    """The module, not by its name: a fork has the project's own."""
    path = Path(__file__).resolve().parents[2] / "nbs_lib/pipeline/fork_server.py"
    spec = importlib.util.spec_from_file_location("warm_server", path)
    assert spec
    assert spec.loader
    server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server)
    return server


def write_page() -> None:
    """Compile what a notebook is checked, shown and highlighted by."""
    from nbconvert.exporters import HTMLExporter
    from nbformat import reads, v4, writes

    cells = [v4.new_markdown_cell("# One"), v4.new_code_cell("two = 2  # three")]
    HTMLExporter().from_notebook_node(reads(writes(v4.new_notebook(cells=cells)), 4))


def warm(import_libraries: Callable[[], None]) -> Callable[[], None]:
    @cache
    def once() -> None:
        import_libraries()
        write_page()
        gc.freeze()

    return once


if __name__ == "__main__":
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # the debugger would warn of what it is not used for
    server = load_server()
    server._LIBRARIES += LIBRARIES
    server._import_libraries = warm(server._import_libraries)
    sys.exit(server._main())
