"""Changes to the stage notebooks of a project."""

import json

from conftest import Project


def notebook_with(project: Project, stage: str, source: str) -> None:
    """Add a code cell to a stage notebook."""
    path = next((project.root / "notebooks/pipeline").glob(f"*_{stage}.ipynb"))
    nb = json.loads(path.read_text())
    cell = {
        "cell_type": "code",
        "id": "added",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
        "source": source,
    }
    nb["cells"].append(cell)
    path.write_text(json.dumps(nb))
