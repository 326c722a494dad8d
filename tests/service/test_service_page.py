"""The page at / in a real browser: it is filled in, answers in words, and nothing that a table holds comes alive."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.bundles import ladder_cases
from helpers.chromium import Chromium
from helpers.services import ROW, SCRIPT, TOLD, Running, make_empty, make_project, promote
from helpers.services import service as serve
from helpers.waiting import until

from nbs_lib.pages.theme import COLORS

OPEN = "!document.querySelector('#form').hidden"
ANSWER = "document.querySelector('#answer .facts')"
HEADING = "document.querySelector('#answer h2').textContent"
TEXT = "document.querySelector('#answer').innerText"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(make_project(tmp_path_factory.mktemp("a project"), TOLD, cases=ladder_cases())) as running:
        yield running


def field(name: str) -> str:
    """The selector of a field."""
    return f"[name='{name}']"


def ask(browser: Chromium) -> None:
    browser.see("document.querySelector('#answer').replaceChildren()")
    browser.click("#send")
    browser.wait("document.querySelector('#answer .verdict')")


def test_a_form_is_filled_in_and_answered(service: Running, browser: Chromium) -> None:
    browser.open(service.url)
    browser.wait(OPEN)
    browser.type(field("width"), "-3.5")
    browser.type(field("place"), "7")
    ask(browser)
    wanted = service.call("/predict", ROW | {"width": -3.5})[1]
    assert browser.see(HEADING) == f"sold: {wanted['class']}"
    said = browser.see(TEXT)
    assert "FULL ANSWER" in said
    assert f"{100 * wanted['probability']:.3g}\u00a0%" in said
    assert "Answered by the model, with all its features." in said
    assert "width is outside of what training saw" in said
    assert f"{wanted['history']:g}" in said
    assert browser.complaints == []
    hosts = {address.split("/")[2] for address in browser.asked if address.startswith("http")}
    assert hosts == {service.url.split("/")[2]}


def test_a_label_is_told(service: Running, browser: Chromium) -> None:
    browser.open(service.url)
    browser.wait(OPEN)
    ask(browser)
    browser.click("#answer .next button")
    browser.wait("document.querySelector('#answer .next p').textContent")
    assert "Noted" in browser.see(TEXT)


WHY = "document.querySelector('#answer .why').innerText"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_why_is_told_in_words_and_fits_a_phone(dark: bool, service: Running, browser: Chromium) -> None:
    browser.open(service.url, width=360, height=640, dark=dark)
    browser.wait(OPEN)
    select = f'document.querySelector("{field("maker")}")'
    browser.see(f"{select}.value = {json.dumps(SCRIPT)}")
    ask(browser)
    browser.click("#answer .why button")
    browser.wait("document.querySelector('#answer .caveat')", 40)
    told = browser.see(WHY)
    for title in ("Why", "How far to trust it", "Cases like it", "What would change it"):
        assert title in browser.see("[...document.querySelectorAll('.why h3')].map(each => each.textContent)")
    assert "Reasons describe the model, not causes." in told
    assert browser.see("document.querySelectorAll('.why li').length") in range(1, 5)
    browser.see("document.querySelectorAll('.why details').forEach(each => { each.open = true })")
    assert SCRIPT in browser.see(WHY)  # a value
    assert browser.see("document.title") == "Predict sold"
    assert browser.see("document.documentElement.scrollWidth") == 360
    assert browser.see("document.querySelector('.why [role=status]') !== null")
    assert browser.complaints == []


def test_another_model_that_explains_is_named(tmp_path: Path, browser: Chromium) -> None:
    root = make_project(tmp_path / "a project", TOLD, cases=ladder_cases())
    with serve(root, SERVE_LOG="") as running:  # nothing is written down, so an answer can't be asked for again
        browser.open(running.url)
        browser.wait(OPEN)
        ask(browser)
        before = running.call("/predict", ROW)[1]["model"]
        now = promote(root, TOLD, cases=ladder_cases(), takes_over=True)[:12]
        browser.click("#answer .why button")
        browser.wait("document.querySelector('#answer .caveat')", 40)
        told = browser.see(WHY)
    assert f"The answer above came from the model {before}." in told
    assert f"This is what {now} says." in told


def test_answers_that_are_not_logged_are_said(tmp_path: Path, browser: Chromium) -> None:
    root = make_project(tmp_path / "a project", TOLD)
    (root / "served/log").touch()  # a file where the folder should be
    with serve(root) as running:
        running.call("/predict", ROW)
        until(lambda: running.call("/form")[1]["log"])
        browser.open(running.url)
        browser.wait("document.querySelector('#answer .badge')")
        told = browser.see("document.querySelector('#answer').innerText")
    assert "NOT LOGGED" in told
    assert "served/log can't be written" in told


def test_less_than_the_best_answer_is_said(service: Running, browser: Chromium) -> None:
    browser.open(service.url)
    browser.wait(OPEN)
    browser.see(f"document.querySelector(\"{field('maker')}\").value = 'b'")  # a maker that the store doesn't know
    ask(browser)
    said = browser.see(TEXT)
    assert "NOT THE BEST ANSWER" in said
    assert "Take it with care: answered by the model, with some features left empty: missing" in said


def test_another_level_can_be_typed(service: Running, browser: Chromium) -> None:
    browser.open(service.url)
    browser.wait(OPEN)
    select = f'document.querySelector("{field("maker")}")'
    browser.see(f"{select}.value = [...{select}.options].at(-1).value; {select}.dispatchEvent(new Event('change'))")
    browser.type(field("maker"), SCRIPT + "?")
    ask(browser)
    assert "training saw no such maker" in browser.see(TEXT)
    assert "pwned" not in browser.see("document.title")


@pytest.mark.parametrize(
    ("name", "typed"), [("width", "1e400"), ("width", "1,5"), ("place", "7.5"), ("spot_rain", "x")]
)
def test_an_error_stands_at_its_field(name: str, typed: str, service: Running, browser: Chromium) -> None:
    browser.open(service.url)
    browser.wait(OPEN)
    browser.type(field(name), typed)
    ask(browser)
    assert "One field is not right." in browser.see(TEXT)
    assert browser.see("document.activeElement.name") == name
    assert browser.see("document.activeElement.getAttribute('aria-invalid')") == "true"
    assert "must be" in browser.see("document.activeElement.parentElement.querySelector('.wrong').innerText")


def test_a_view_can_be_sent(service: Running, browser: Chromium) -> None:
    browser.open(service.url)
    browser.wait(OPEN)
    browser.type(field("spot_rain"), "0.5")
    ask(browser)
    assert "as sent: spot" in browser.see(TEXT)


def test_every_field_has_a_label_and_a_hint(service: Running, browser: Chromium) -> None:
    browser.open(service.url)
    browser.wait(OPEN)
    controls = "[...document.querySelectorAll('#form input, #form select')]"
    assert browser.see(f"{controls}.every(c => c.labels.length === 1 && document.getElementById(c.id + '-hint'))")
    assert browser.see("document.querySelector('#answer').getAttribute('aria-live')") == "polite"
    assert "0.5 to 12 in training" in browser.see("document.querySelector('#fields').innerText")


def test_values_of_a_table_are_only_words(service: Running, browser: Chromium) -> None:
    browser.open(service.url)
    browser.wait(OPEN)
    assert SCRIPT in browser.see("document.querySelector('#fields').innerText")  # a description
    assert browser.see("document.querySelectorAll('script').length") == 1
    assert browser.see("document.title") == "Predict sold"
    browser.see("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    browser.see("document.body.append(Object.assign(document.createElement('script'), {text: 'document.title=2'}))")
    assert browser.see("document.title") == "Predict sold"  # nor would they run if they were written as HTML
    assert any("Content Security Policy" in said for said in browser.complaints)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_it_in_light_and_dark(dark: bool, service: Running, browser: Chromium) -> None:
    browser.open(service.url, width=360, height=640, dark=dark)
    browser.wait(OPEN)
    ask(browser)
    browser.see("document.querySelector('details').open = true")
    assert browser.see("document.documentElement.scrollWidth") == 360
    red, green, blue = bytes.fromhex(COLORS["paper"][dark][1:])
    assert browser.see("getComputedStyle(document.body).backgroundColor") == f"rgb({red}, {green}, {blue})"


def test_many_classes_are_drawn(tmp_path: Path, browser: Chromium) -> None:
    with serve(make_project(tmp_path, TOLD, classes=["a", "b", SCRIPT])) as running:
        browser.open(running.url)
        browser.wait(OPEN)
        ask(browser)
        assert browser.see("document.querySelectorAll('#answer .bar').length") == 3
        assert SCRIPT in browser.see(TEXT)
        assert browser.see("document.title") == "Predict sold"


def test_nothing_is_served_and_then_it_is(tmp_path: Path, browser: Chromium) -> None:
    with serve(make_empty(tmp_path), ready="/livez") as running:
        browser.open(running.url)
        browser.wait("document.querySelector('#answer .verdict')")
        assert "No model is served yet." in browser.see(TEXT)
        assert "make run" in browser.see("document.querySelector('#answer code').textContent")
        promote(tmp_path, TOLD)
        browser.wait(OPEN, 30)
        assert browser.see(TEXT) == ""


def test_a_token_is_typed_and_kept_in_memory(tmp_path: Path, browser: Chromium) -> None:
    with serve(make_project(tmp_path, TOLD), TOKEN="secret") as running:
        browser.open(running.url)
        browser.wait("!document.querySelector('#locked').hidden")
        for token in ("wrong", "secret"):
            browser.type("#token", token)
            browser.click("#locked button")
            browser.wait(OPEN if token == "secret" else "!document.querySelector('#wrong-token').hidden")
        ask(browser)
        assert browser.see(f"Boolean({ANSWER})")
        assert browser.see("localStorage.length + sessionStorage.length + document.cookie.length") == 0


def test_the_docs_draw_and_answer(service: Running, browser: Chromium) -> None:
    browser.open(f"{service.url}/docs")
    browser.wait("document.querySelectorAll('.opblock').length === 7")
    browser.click(".opblock-post .opblock-summary-control")
    browser.wait("document.querySelector('.opblock-post textarea')?.value.includes('width')")
    browser.click(".opblock-post button.execute")
    browser.wait("document.querySelector('.live-responses-table')")
    assert "probability" in browser.see("document.querySelector('.live-responses-table').innerText")
    assert browser.complaints == []
