"""Pages are inert, self-contained, legible and the same bytes each time, whatever a table holds."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT, Project
from helpers.chromium import CHROMIUM, Chromium
from helpers.hostile_notebook import HOSTILE, figure_of, hostile_notebook, live, notebook, output
from nbformat import NotebookNode, v4

from nbs_lib.core.files import write_json, write_table
from nbs_lib.core.findings import FINDINGS_PATH, Finding, findings_json
from nbs_lib.data.roles import Roles
from nbs_lib.evaluation import report_page as report
from nbs_lib.evaluation import run_results as findings
from nbs_lib.evaluation.gate import decide_gate
from nbs_lib.pages import plots
from nbs_lib.pages.page import CONTENT_SECURITY_POLICY, escape_markdown, render_page
from nbs_lib.pages.theme import COLORS

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")


def test_nothing_in_a_hostile_notebook_is_live() -> None:
    page = render_page(hostile_notebook(), "train", ROOT / "notebooks/pipeline")
    assert live(page) == []
    assert page.count("http-equiv") == 1
    assert BeautifulSoup(page, "html.parser").title.string == HOSTILE[0]  # shown as text


def test_the_sanitizer_finds_what_is_live() -> None:
    assert len(live("".join(HOSTILE))) > 4


def test_a_value_in_markdown_is_only_words() -> None:
    plain = {"h1", "blockquote", "p", "strong", "details", "summary", "div", "pre", "span"}
    for value in HOSTILE:
        page = render_page(
            notebook(output({"text/markdown": f"The value **{escape_markdown(value)}** is text."})), "train"
        )
        body = BeautifulSoup(page, "html.parser").main
        assert {tag.name for tag in body.find_all(True)} <= plain
        words = body.find_all("p")[-1].get_text()
        assert words.startswith("The value ")
        assert words.endswith(" is text.")


def test_a_large_table_is_cut_with_a_sentence() -> None:
    table = pd.DataFrame({"x": np.arange(5000), "text": "a"})
    with pd.option_context("display.max_rows", None):
        page = render_page(notebook(output({"text/html": table._repr_html_()})), "train")
    assert "The first 30 of 5,000 rows." in page
    assert page.count("<tr>") == 31


def test_no_trace_of_the_run() -> None:
    noisy = [
        v4.new_output("stream", name="stderr", text="100 % 00:12"),
        v4.new_output("stream", name="stdout", text=f"<object object at 0x7fee> {Path.cwd()}/data {Path.home()}/x\n"),
        output({"text/html": "<style>#T_ab12c{}</style><table id=T_ab12c><tr><td id=T_ab12c_row0>1</td></tr></table>"}),
        v4.new_output("execute_result", data={"text/plain": "<Axes at 0x7f>"}, execution_count=12),
    ]
    node = notebook(*noisy)
    node.metadata["papermill"] = {"start_time": "2026-11-22T10:00:00", "duration": 12.5}
    node.cells[1].metadata["execution"] = {"iopub.status.busy": "2026-11-22T10:00:00"}
    page = render_page(node, "train")
    for trace in ("0x7f", "00:12", "2026", "12.5", "T_ab12c", str(Path.cwd()), str(Path.home()), "Out[", "papermill"):
        assert trace not in page, trace


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from nbs_lib.pages.page import render_page; "
        "from helpers.hostile_notebook import hostile_notebook; "
        "sys.stdout.buffer.write(render_page(hostile_notebook(), 'train').encode())"
    )
    pages = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed, "HOME": home}, capture_output=True
        )
        for seed, home in [("1", "/nowhere"), ("2", str(tmp_path))]
    ]
    assert pages[0].stdout == pages[1].stdout
    assert len(pages[0].stdout) > 10_000, pages[0].stderr


def test_pages_link_to_each_other_and_nowhere_else(tmp_path: Path) -> None:
    for name in ("10_first", "20_second_one", "60_report"):
        (tmp_path / f"{name}.ipynb").touch()
    soup = BeautifulSoup(render_page(notebook(), "second_one", tmp_path), "html.parser")
    links = [(a["href"], a.get_text(), a.get("aria-current")) for a in soup.header("a")]
    assert links == [
        ("index.html", "Overview", None),
        ("first.html", "First", None),
        ("second_one.html", "Second one", "page"),
    ]
    assert [a["href"] for a in soup.footer("a")] == ["first.html"]
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert policy == CONTENT_SECURITY_POLICY


# The first page


def write_run(
    folder: Path, task: str, decision: str = "PROMOTE", value: Callable[[int], str] = lambda i: f"v{i}"
) -> Path:
    """What the stages before the report leave, with names from `value`."""
    random = np.random.default_rng(0)
    classes = {"binary": [value(1), value(2)], "multiclass": [value(1), value(2), value(3)], "regression": []}[task]
    columns = {value(0): {"role": "target", "why": value(4), "description": value(5)}}
    columns |= {
        f"{value(i)}{i}": {"role": role, "why": value(i)} for i, role in enumerate(["numeric", "dropped", "later"], 6)
    }
    roles = Roles(value(0), value(0), task, classes, columns=columns, notes=[value(i) for i in range(11)])
    roles.save(folder / "data/contract/features.yaml")
    target = random.normal(size=100) if task == "regression" else random.integers(0, len(classes), 100)
    splits = np.repeat(["train", "valid", "test"], [60, 20, 20])
    rows = pd.DataFrame({"_split": splits, "_target": target, "_block": np.arange(100)})
    found = [Finding(code, (value(1),), value(2), value(3)) for code in ("NBS010", "NBS031")]
    write_json(findings_json(found, {"NBS010": []}), folder / FINDINGS_PATH)
    write_table(rows, folder / "data/training_set.parquet")
    known = {"binary": ["auc", "log_loss"], "multiclass": ["log_loss", "accuracy"], "regression": ["rmse", "mae"]}[task]
    lead = 0.1 if decision != "REJECT" else -0.1
    scores = {metric: {"value": 0.6, "lo": 0.5, "hi": 0.7} for metric in known}
    leads = {metric: {"diff": lead, "lo": lead - 0.05, "hi": lead + 0.05} for metric in known}
    candidate = {"valid": dict.fromkeys(known, 0.6), "test": scores, "vs_dummy": leads, "vs_linear": leads}
    slices = [{"column": value(1), "level": value(2), "rows": 10, **scores}]
    metrics = {"task": task, "primary": known[0], "best": "net", "slices": slices}
    same = candidate | {"valid": dict.fromkeys(known, 0.5 if task == "binary" else 0.7)}
    metrics["candidates"] = {"dummy": same, "linear": candidate, "net": candidate}
    models = folder / "models"
    models.mkdir(parents=True)
    groups = {"predicted": [0.2] * 2, "observed": [0.3] * 2, "lo": [0.1] * 2, "hi": [0.4] * 2, "rows": [9] * 2}
    pd.DataFrame({"candidate": ["linear", "net"], **groups}).to_csv(models / "reliability.csv", index=False)
    write_json(metrics, models / "metrics.json")
    told = {"within": True, "bytes": 9000, "p99_ms": None, "seen": "0.009 MB", "sentence": "It is within the budget."}
    judged = {"budget": {"p99_ms": 5, "size_mb": 1}, "candidates": dict.fromkeys(metrics["candidates"], told)}
    write_json(judged, models / "frontier.json")
    write_json(decide_gate(metrics, 1e-7, 0.5 if decision == "HOLD" else 1.0), models / "gate.json")
    facts = {name: {"description": value(3), "refit": name == "net"} for name in metrics["candidates"]}
    write_json(facts, models / "candidates/candidates.json")
    write_json(
        {"inputs": {value(0): "0" * 64}, "params": "1", "code": "2", "lock": "3"}, models / "bundle/lineage.json"
    )
    write_json({"id": "4" * 64}, models / "bundle/manifest.json")
    return folder


TRUSTED = {"trust": "good", "why": []}


def overview(folder: Path, monkeypatch: pytest.MonkeyPatch, explained: dict[str, Any] = TRUSTED) -> str:
    """The report notebook, run in this process, as a page."""
    shown: list[NotebookNode] = []

    def collect(fig: Any, caption: str = "") -> None:
        shown.append(figure_of(fig, caption))

    monkeypatch.setattr(plots, "show_figure", collect)
    cells = json.loads((ROOT / "notebooks/pipeline/60_report.ipynb").read_text())["cells"]
    executed = []
    found = findings.load_run_results(folder)
    names: dict[str, Any] = {"found": found, "explained": explained, "report": report, "plots": plots}
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            executed.append(v4.new_markdown_cell(source))
        elif "chdir_root" not in source and source.strip() and not source.startswith("#"):
            shown.clear()
            value = eval(source, names)
            if value is not None:
                shown.append(output({"text/html": value._repr_html_()}))
            executed.append(v4.new_code_cell(source, outputs=list(shown)))
    return render_page(v4.new_notebook(cells=executed), "report", ROOT / "notebooks/pipeline")


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize(
    ("decision", "words"),
    [("PROMOTE", "The model is ready to use."), ("HOLD", "nothing is promoted"), ("REJECT", "No model is good enough")],
)
def test_the_first_page(task: str, decision: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = overview(write_run(tmp_path, task, decision), monkeypatch)
    first = BeautifulSoup(page, "html.parser").select_one("main h2")
    assert words in first.get_text()
    assert first.find_previous(class_="badge").get_text() == decision
    assert live(page) == []
    assert "snapshot.html" in page
    tables = BeautifulSoup(page, "html.parser").select("main table")
    listed = next(table for table in tables if "NBS010" in table.get_text())
    assert "A column tells the target alone" in listed.get_text()
    assert [badge.get_text() for badge in listed.select(".badge")] == ["acknowledged", "note"]
    assert 'href="training_set.html"' in page


def test_the_first_page_is_as_careful_as_the_managers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    care = {"trust": "warn", "why": ["Take it as a <i>risk</i>."]}
    page = BeautifulSoup(overview(write_run(tmp_path, "binary"), monkeypatch, care), "html.parser")
    box = page.select_one(".verdict")
    assert "warn" in box["class"]
    assert "ready to use." not in box.get_text()
    assert "Take it as a <i>risk</i>." in box.get_text()
    assert box.select_one("a")["href"] == "explain.html"
    assert box.select_one(".next code").get_text() == ".venv/bin/nbs predict TABLE", "what can be typed"


def test_the_first_page_says_who_won_and_who_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = " ".join(overview(write_run(tmp_path, "binary", "REJECT"), monkeypatch).split())
    assert "The champion is linear. net does not beat linear in AUC beyond noise. linear does not beat dummy" in page
    assert "because net, which was chosen before the test, is not shown to beat it here" in page
    assert "net (chosen before the test, but not the champion) is weakest where" in page


def test_the_first_page_of_a_run_without_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = write_run(tmp_path, "binary") / "models"
    metrics = json.loads((models / "metrics.json").read_text())
    for found in metrics["candidates"].values():
        for side in ("test", "vs_dummy", "vs_linear"):
            found[side] = {metric: ends | {"lo": None, "hi": None} for metric, ends in found[side].items()}
    write_json(metrics, models / "metrics.json")
    write_json(decide_gate(metrics, 1e-7, 1.0), models / "gate.json")
    curve = {"candidate": ["linear"], "predicted": [0.9], "observed": [0.3], "lo": [None], "hi": [None], "rows": [9]}
    pd.DataFrame(curve).to_csv(models / "reliability.csv", index=False)
    page = BeautifulSoup(overview(tmp_path, monkeypatch), "html.parser").get_text()
    assert "Too little was measured: nothing is promoted." in page
    assert "evaluate.resamples" in page
    assert "Without intervals, nothing tells chance from a fault" in page
    for unmeasured in ("Take care", "agrees with what happened", "does not beat", "likely no interval"):
        assert unmeasured not in page


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_first_page_of_a_hostile_table(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name.replace("\x00", "").replace("\x1b", "") for name in HOSTILE]  # YAML refuses control characters
    page = overview(write_run(tmp_path, task, value=lambda i: names[i]), monkeypatch)
    assert live(page) == []


# In a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    profile = tmp_path_factory.mktemp("chromium")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    quiet += [
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=3000",
    ]
    quiet += ["--allow-file-access-from-files", "--hide-scrollbars"]

    def open_page(path: Path, *flags: str) -> str:
        command = [str(CHROMIUM), *quiet, *flags, path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return open_page


@pytest.fixture(scope="module")
def requests() -> Iterator[tuple[int, list[str]]]:
    """A server that notes what it is asked for."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, seen
    server.shutdown()


@needs_browser
@pytest.mark.parametrize("guarded", [True, False], ids=["as written", "without its policy"])
def test_a_browser_runs_and_fetches_nothing(
    guarded: bool, tmp_path: Path, chromium: Callable[..., str], requests: tuple[int, list[str]]
) -> None:
    port, seen = requests
    page = render_page(hostile_notebook(), "train", ROOT / "notebooks/pipeline").replace(
        "127.0.0.1:1/", f"127.0.0.1:{port}/"
    )
    if not guarded:
        page = page.replace('http-equiv="Content-Security-Policy"', "")
    path = tmp_path / "page.html"
    path.write_text(page)
    dumped = chromium(path, "--dump-dom")
    assert "<main" in dumped
    assert 'pwned="1"' not in dumped
    assert live(dumped) == []
    assert seen == []


@needs_browser
def test_the_browser_test_would_notice(
    tmp_path: Path, chromium: Callable[..., str], requests: tuple[int, list[str]]
) -> None:
    port, seen = requests
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html>{HOSTILE[1]}<img src=http://127.0.0.1:{port}/p.png>")
    assert 'pwned="1"' in chromium(path, "--dump-dom")
    assert seen.pop() == "/p.png"


@needs_browser
def test_a_phone_shows_it_without_scrolling_sideways(
    tmp_path: Path, chromium: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {
        "report.html": overview(write_run(tmp_path, "binary"), monkeypatch),
        "hostile.html": render_page(hostile_notebook(), "train", ROOT / "notebooks/pipeline"),
    }
    for name, page in pages.items():
        (tmp_path / name).write_text(page)
        frame = tmp_path / f"frame-{name}"
        frame.write_text(
            f'<iframe id=f src="{name}" style="width:360px;height:640px;border:0"></iframe><script>onload=()=>'
            '{document.title="w="+document.getElementById("f").contentDocument.documentElement.scrollWidth}</script>'
        )
        assert "<title>w=360</title>" in chromium(frame, "--dump-dom"), name


WIDTHS = pytest.mark.parametrize("width", [1280, 390], ids=["laptop", "phone"])


def cut_boxes(browser: Chromium, pages: list[Path], width: int) -> dict[str, list[str]]:
    """What of some pages is not to be seen on a screen of some width, by page."""
    found = {}
    for page in pages:
        browser.open(page.as_uri(), width)
        found[page.name] = browser.cut()
    return {name: boxes for name, boxes in found.items() if boxes}


@WIDTHS
def test_no_page_of_a_run_is_cut(width: int, finished: Project, browser: Chromium) -> None:
    pages = sorted((finished.root / "reports").glob("*.html"))
    assert len(pages) > 10
    assert cut_boxes(browser, pages, width) == {}


@WIDTHS
@pytest.mark.parametrize("name", ["monitor/11_page", "retrain/05_page", "evaluation/07_report_page", "pages/05_blocks"])
def test_no_example_of_a_page_is_cut(name: str, width: int, browser: Chromium, tmp_path: Path) -> None:
    """What the cycle's pages are made of, as its notebooks store it."""
    cells = json.loads((ROOT / f"notebooks/lib/{name}.ipynb").read_text())["cells"]
    shown = [
        of["data"]["text/html"] for cell in cells for of in cell.get("outputs", ()) if "text/html" in of.get("data", {})
    ]
    path = tmp_path / "page.html"
    path.write_text(render_page(notebook(*[output({"text/html": "".join(html)}) for html in shown]), "monitor"))
    assert len(shown) > 2
    assert cut_boxes(browser, [path], width) == {}


def test_a_laptop_has_all_links_on_one_line_and_a_wide_table_in_the_middle(browser: Chromium, tmp_path: Path) -> None:
    wide = pd.DataFrame({name * 20: ["n" * 20] for name in "abcdef"})
    path = tmp_path / "page.html"
    path.write_text(render_page(notebook(output({"text/html": wide.to_html(index=False)})), "train"))
    browser.open(path.as_uri(), 1100)
    tops = "new Set([...document.querySelectorAll('header a')].map(link => link.offsetTop)).size"
    assert browser.see(tops) == 1
    sides = "(({left, right}) => [left, innerWidth - right])(document.querySelector('.scroll').getBoundingClientRect())"
    left, right = browser.see(sides)
    assert 0 < left == pytest.approx(right, abs=1)
    assert left < browser.see("document.querySelector('header a').getBoundingClientRect().left"), "wider than the text"


def test_a_row_of_a_wide_table_is_a_list_on_a_phone(browser: Chromium, tmp_path: Path) -> None:
    wide = pd.DataFrame({name: ["a few words", ""] for name in ("name", "what", "why", "when")})
    narrow = pd.DataFrame({"left": ["n" * 40], "right": ["n" * 40]})
    path = tmp_path / "page.html"
    tables = [output({"text/html": table.to_html(index=False, na_rep="")}) for table in (wide, narrow)]
    path.write_text(render_page(notebook(*tables), "train"))
    label = "getComputedStyle(document.querySelector('[data-label=what]'), '::before').content"
    shadow = "getComputedStyle(document.querySelectorAll('.scroll')[1]).backgroundImage.includes('gradient')"
    browser.open(path.as_uri(), 1280)
    assert (browser.see(label), browser.cut()) == ("none", [])
    browser.open(path.as_uri(), 390)
    assert browser.see(label) in ('"what: "', '"what" ": "')
    assert browser.see("document.querySelector('thead').clientHeight") == 0, "the labels say what the head said"
    assert [box.split()[0] for box in browser.cut()] == ["DIV"]
    assert browser.see(shadow), "what is too wide for a phone scrolls, and a shadow says so"


@needs_browser
@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_light_and_dark_reach_the_figures(mode: int, tmp_path: Path, chromium: Callable[..., str]) -> None:
    from PIL import Image

    path = tmp_path / "page.html"
    path.write_text(render_page(notebook(figure_of(plots.bar_plot(["a", "b"], [1, 2]))), "train"))
    picture = tmp_path / "page.png"
    chromium(
        path, f"--blink-settings=preferredColorScheme={1 - mode}", "--window-size=900,700", f"--screenshot={picture}"
    )
    with Image.open(picture) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 20)}
    paper, blue = (tuple(bytes.fromhex(COLORS[name][mode][1:])) for name in ("paper", "blue"))
    assert {paper, blue} <= colors
    other = tuple(bytes.fromhex(COLORS["blue"][1 - mode][1:]))
    assert other not in colors
