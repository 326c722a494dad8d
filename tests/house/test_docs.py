"""The documentation: all of it is there, every link leads somewhere, nothing is fetched, nothing shown is live."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from conftest import ROOT
from helpers.chromium import Chromium
from helpers.hostile_notebook import HOSTILE, hostile_notebook, live

from nbs_lib.cli import app, log_app
from nbs_lib.docs.api import api_page, read_module
from nbs_lib.docs.links import page_anchors
from nbs_lib.docs.page import Page, read_page
from nbs_lib.docs.site import build_site, render_pages

pytestmark = pytest.mark.xdist_group("docs")  # one process builds it once

GUIDE = sorted((ROOT / "notebooks/guide").glob("*.md"))
MANUALS = [ROOT / "README.md", ROOT / "AGENTS.md", ROOT / ".github/CONTRIBUTING.md", *GUIDE]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "site"
    build_site(out, ROOT)
    return out


class Tags(HTMLParser):
    """The start tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))


@pytest.fixture(scope="module")
def tags(site: Path) -> dict[Path, list[tuple[str, dict[str, str]]]]:
    return {path: Tags(path.read_text()).found for path in site.rglob("*.html")}


def test_all_of_it_is_there(site: Path) -> None:
    for notebook in (ROOT / "notebooks").rglob("[0-9]*.ipynb"):
        if ".ipynb_checkpoints" not in notebook.parts:
            assert (site / notebook.relative_to(ROOT / "notebooks").with_suffix(".html")).exists(), notebook
    assert len(GUIDE) >= 12
    for guide in GUIDE:
        assert (site / f"guide/{guide.stem}.html").exists()
    for module in (ROOT / "nbs_lib").rglob("*.py"):
        package, *inside = module.relative_to(ROOT / "nbs_lib").with_suffix("").parts
        if not module.name.startswith("_"):
            assert (name := ".".join(inside) or "nbs_lib.cli") in page_anchors(
                (site / f"api/{package}.html").read_text()
            ), name


def test_results_that_are_stored_are_shown(site: Path) -> None:
    book = json.loads((ROOT / "notebooks/lib/docs/01_page.ipynb").read_text())
    stored = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    page = (site / "lib/docs/01_page.html").read_text()
    assert "when-not-to-use-this" in "".join(stored[0]["data"]["text/plain"])
    assert "<pre>&#39;when-not-to-use-this&#39;</pre>" in page


def test_every_link_of_a_finished_site_leads_somewhere(tags: dict[Path, list[tuple[str, dict[str, str]]]]) -> None:
    """As a browser sees it, the navigation included; the build checks files, this checks what it wrote."""
    anchors = {path: {attributes.get("id") for _, attributes in found} for path, found in tags.items()}
    links = 0
    for path, found in tags.items():
        for address in {attributes["href"] for tag, attributes in found if tag == "a"}:
            parts = urlsplit(address)
            if not parts.scheme:
                target = (path.parent / parts.path).resolve() if parts.path else path
                assert target in tags, f"{path}: {address}"
                assert not parts.fragment or parts.fragment in anchors[target], f"{path}: {address}"
                links += 1
    assert links > 10_000


def test_no_page_fetches_from_elsewhere(site: Path, tags: dict[Path, list[tuple[str, dict[str, str]]]]) -> None:
    fetching = {"script": "src", "link": "href", "img": "src", "source": "srcset", "iframe": "src"}
    for path, found in tags.items():
        for tag, attributes in found:
            if tag in fetching:
                address = attributes.get(fetching[tag], "")
                assert re.match(r"data:image/|(\.\./)*site\.(css|js)$", address), f"{path}: {address[:80]}"
    assert "url(" not in (site / "site.css").read_text()
    assert "http" not in (site / "site.js").read_text()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one guide page, one notebook and one module."""
    root = tmp_path_factory.mktemp("tiny") / "project"
    kept = ["params.yaml", "dvc.yaml", "CHANGELOG.md", ".github", "notebooks/cycle/dvc.yaml"]
    kept += ["notebooks/studies/dvc.yaml", "notebooks/lib/core/01_errors.ipynb", "nbs_lib/core/errors.py"]
    for name in kept:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    (root / "nbs_lib/core/__init__.py").touch()
    (root / "README.md").write_text("# A project\n\n[The guide](notebooks/guide/01_first.md#begin-here)\n")
    (root / "AGENTS.md").write_text("# For agents\n\nSee [the gate](params.yaml).\n")
    (root / "notebooks/README.md").write_text("## lib\n\n### core\n\n- [Errors](lib/core/01_errors.ipynb): One tree.\n")
    (root / "notebooks/guide").mkdir()
    (root / "notebooks/guide/01_first.md").write_text(
        "# First\n\n## Begin here\n\n[Errors](../lib/core/01_errors.ipynb)\n"
    )
    return root


def nbs_docs(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from nbs_lib.cli import main; main()", "docs", *arguments]
    return subprocess.run(command, cwd=root, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def test_a_small_project_has_its_documentation_too(tiny: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny, tmp_path / "project")
    done = nbs_docs(root)
    assert done.returncode == 0, done.stderr
    assert "site/index.html" in done.stdout
    assert 'href="guide/01_first.html#begin-here"' in (root / "site/index.html").read_text()
    assert nbs_docs(root).returncode == 0  # an earlier site is replaced
    (root / "mine").mkdir()
    (root / "mine/thesis.txt").touch()
    done = nbs_docs(root, "--out", "mine")
    assert done.returncode == 1
    assert "mine holds something else than a site" in done.stderr
    assert [path.name for path in (root / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("holder", "link"),
    [
        ("README.md", "notebooks/guide/02_gone.md"),
        ("README.md", "notebooks/guide/01_first.md#nowhere"),
        ("AGENTS.md", "settings.ini"),
        *[("README.md", odd) for odd in ("gone/", "/gone.md", "gone%20file.md", "gone+1.md")],
        (".github/PULL_REQUEST_TEMPLATE.md", "../CONTRIBUTORS.md"),
        ("notebooks/guide/01_first.md", "../lib/core/02_paths.ipynb"),
        ("notebooks/guide/01_first.md", "#end-here"),
        ("notebooks/guide/01_first.md", "../../../outside.md"),
        ("notebooks/lib/core/01_errors.ipynb", "../../guide/01_first.md#nowhere"),
    ],
)
def test_a_broken_link_stops_the_build_and_names_both_ends(tiny: Path, tmp_path: Path, holder: str, link: str) -> None:
    root = shutil.copytree(tiny, tmp_path / "project")
    if holder.endswith(".ipynb"):
        book = nbformat.read(root / holder, 4)
        book.cells.append(nbformat.v4.new_markdown_cell(f"[x]({link})"))
        nbformat.write(book, root / holder)
    else:
        with (root / holder).open("a") as file:
            file.write(f"\n[x]({link})\n")
    done = nbs_docs(root)
    assert done.returncode == 1
    assert done.stderr.startswith(f"nbs: {holder} links to {link}, "), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (root / "site").exists()


def test_a_missing_picture_is_named(tiny: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny, tmp_path / "project")
    (root / "README.md").write_text("# A project\n\n![x](reports/none.png)\n")
    assert "README.md shows the picture reports/none.png" in nbs_docs(root).stderr


def test_nothing_that_is_shown_is_live(tmp_path: Path) -> None:
    nbformat.write(hostile_notebook(), tmp_path / "a.ipynb")
    (tmp_path / "b.md").write_text("# " + "\n\n".join(HOSTILE))
    (tmp_path / "nbs_lib/bad").mkdir(parents=True)
    module = tmp_path / "nbs_lib/bad/module.py"
    module.write_text(
        f"NAME = {HOSTILE[0]!r}  # {HOSTILE[1]}\n\n\ndef run(x={HOSTILE[0]!r}):  # {HOSTILE[1]}\n    {HOSTILE[1]!r}\n"
    )
    pages = [read_page("a.ipynb", "a.html", "Guide", tmp_path), read_page("b.md", "b.html", "Guide", tmp_path)]
    pages.append(api_page("nbs_lib/bad", tmp_path))
    pages.append(Page("c.md", "c.html", HOSTILE[1], HOSTILE[0], "<p>c</p>"))
    for page in pages:
        assert live(page.body) == []
    for _, document in render_pages(pages, {page.path: page.body for page in pages}):
        scripts = [attributes for tag, attributes in Tags(document).found if tag == "script"]
        assert len(scripts) == 1
        assert scripts[0]["src"].endswith("site.js")
        assert not [name for _, attributes in Tags(document).found for name in attributes if name.startswith("on")]


def test_the_reference_has_what_the_source_says() -> None:
    entries = {entry.name: entry for entry in read_module("nbs_lib/core/files.py", ROOT).entries}
    assert "_private" not in entries
    written = entries["write_json"]
    assert written.signature.startswith("def write_json(")
    assert written.doc
    assert all(parameter.kind for parameter in written.parameters)
    tree = {entry.name: entry for entry in read_module("nbs_lib/evaluation/gate.py", ROOT).entries}
    wanted = next(each for each in tree["deciding_metric"].parameters if each.name == "wanted")
    assert (wanted.kind, wanted.default) == ("str", "AUTO")
    assert wanted.comment == "`gate.metric`; `auto`: the primary metric"


def entries(site: Path) -> list[list[str]]:
    script = (site / "search.js").read_text()
    return json.loads(script.removeprefix("window.searchIndex = ").rstrip(";\n"))


def test_the_index_has_titles_headings_names_and_text(site: Path) -> None:
    found = entries(site)
    for address, page, heading in (
        ("lib/evaluation/04_gate.html#gate", "Gate", "Gate"),
        ("api/evaluation.html#gate.decide_gate", "nbs_lib.evaluation", "decide_gate"),
        ("guide/06_serve.html#the-log", "Serve it", "The log"),
    ):
        assert [address, page, heading] in [entry[:3] for entry in found]
    assert any("REJECT" in text for address, _, _, text in found if address.startswith("guide/12_words.html"))
    for address, *_ in found:
        assert (site / address.partition("#")[0]).exists()


def test_a_person_searches(site: Path, browser: Chromium) -> None:
    browser.open(f"file://{site}/guide/06_serve.html")
    browser.see("document.dispatchEvent(new KeyboardEvent('keydown', {key: '/'}))")
    assert browser.see("document.activeElement.id") == "search"
    browser.type("#search", "gate")
    browser.wait("document.querySelector('#found a')")
    first = browser.see("document.querySelector('#found a').href")
    assert first.endswith("lib/evaluation/04_gate.html#gate"), first
    browser.type("#search", "decide_gate")
    browser.wait("document.querySelector('#found a').href.endsWith('api/evaluation.html#gate.decide_gate')")
    browser.type("#search", "xyzzy gate")
    browser.wait("document.querySelector('#found').textContent === 'Nothing was found.'")
    assert browser.complaints == []
    assert [address for address in browser.asked if not address.startswith((f"file://{site}/", "data:image/"))] == []


PAGES = ("index", "guide/08_watch_and_retrain", "lib/features/01_views", "lib/evaluation/04_gate", "api/serve")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_fits(site: Path, browser: Chromium, page: str, width: int) -> None:
    browser.open(f"file://{site}/{page}.html", width=width)
    assert browser.see("document.documentElement.scrollWidth") <= width
    shown = "getComputedStyle(document.querySelector('#pages')).display !== 'none'"
    assert browser.see(shown) is (width > 900)
    if width < 900:
        browser.click("#menu")
        assert browser.see(shown)
        assert browser.see("document.documentElement.scrollWidth") <= width


def commands(text: str, tool: str) -> set[str]:
    """The verbs that a text uses in code: `make run`, or a line of a block that begins so."""
    code = re.sub(r"\s#.*", "", "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.S)))
    return set(re.findall(rf"(?:^|[\s`/]){tool} ([a-z]+)\b", code))


@pytest.mark.parametrize("manual", MANUALS, ids=lambda path: path.name)
def test_a_manual_names_verbs_and_files_that_exist(manual: Path) -> None:
    text = manual.read_text()
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    assert commands(text, "make") <= targets
    verbs = {command.name for command in app.registered_commands} | {"log"}
    assert commands(text, "nbs") <= verbs
    assert set(re.findall(r"nbs log (\w+)", text)) <= {command.name for command in log_app.registered_commands}
    for name in re.findall(r"`((?:notebooks|deploy|tests|data/contract|\.ci)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


def test_the_verbs_are_found_in_manuals() -> None:
    assert commands("run `make run`, and\n```bash\n.venv/bin/nbs parity # x\nmake fly\n```\nmake do", "make") == {
        "run",
        "fly",
    }
    assert commands("```bash\n.venv/bin/nbs parity # x\n```", "nbs") == {"parity"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
