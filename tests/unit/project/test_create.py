"""What can't be made is one sentence, and leaves nothing; plain copier and `nbs new` make the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from copier._jinja_ext import YieldExtension, get_yield_context
from helpers.templates import make_template
from jinja2 import Environment

from nbs_lib.core.errors import UserError
from nbs_lib.project import create
from nbs_lib.project import template as template_module
from nbs_lib.project.create import begin, new_project
from nbs_lib.project.template import ANSWERS_FILE, git


@pytest.fixture
def table(tmp_path: Path) -> str:
    (tmp_path / "shop.csv").write_text("visits,again\n" + "1,yes\n2,no\n" * 9)
    return str(tmp_path / "shop.csv")


def refuses(place: Path, sentence: str, **given: str) -> None:
    before = sorted(place.parent.rglob("*"))
    with pytest.raises(UserError) as error:
        new_project(place, **given)  # type: ignore[arg-type]
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(place.parent.rglob("*")) == before


def test_jinja_compiles_as_before() -> None:
    plain = Environment.from_string
    with template_module._compiled_once():
        jinja = Environment()
        assert jinja.from_string("{{ name }}") is jinja.from_string("{{ name }}")
        assert jinja.from_string("{{ name }}").render(name="one") == "one"
        assert jinja.from_string("{{ name }}").render(name="two") == "two"
        assert Environment(variable_start_string="<<").from_string("{{ name }}").render() == "{{ name }}"
        yielding = Environment(extensions=[YieldExtension])
        for _ in range(2):  # a second rendering of the same text is one of its own
            text = yielding.from_string("{% yield item from names %}{{ item }}{% endyield %}")
            assert text.render(names=["one"]) == ""
            assert get_yield_context(yielding).yield_name == "item"
    assert Environment.from_string is plain
    with pytest.raises(UserError), template_module._compiled_once():
        raise UserError("no answer")
    assert Environment.from_string is plain


def test_a_folder_that_is_not_empty(table: str) -> None:
    refuses(Path(table).parent, "is not empty: name a new folder")


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refuses(tmp_path / "new", "git is not installed")


@pytest.mark.parametrize("name", ["my shop", "1st", "a-b", "", "é"])
def test_a_name_that_is_no_identifier(tmp_path: Path, name: str) -> None:
    refuses(tmp_path / "new", "begin with a letter", name=name)


def test_a_table_that_cannot_be_read(tmp_path: Path, table: str) -> None:
    refuses(tmp_path / "new", "there is no file", table=str(tmp_path / "none.csv"), target="again")
    Path(table).write_bytes(b"PAR1 and nothing else")
    refuses(tmp_path / "new", "shop.csv", table=table, target="again")


def test_a_target_that_is_not_there(tmp_path: Path, table: str) -> None:
    refuses(tmp_path / "new", "did you mean 'again'?", table=table, target="agian")
    refuses(tmp_path / "new", "--target is missing", table=table)


def test_a_failure_in_the_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path) -> None:
        raise UserError("the library can't be exported")

    monkeypatch.setattr(create, "begin", fail)
    refuses(tmp_path / "new", "can't be exported")


def tracked(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in git("ls-files", cwd=root).splitlines()}


def test_plain_copier_makes_the_same(tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = make_template(tmp_path / "template")
    monkeypatch.setattr(create, "_LIBRARY_ROOT", template)
    (tmp_path / "two").mkdir()
    shutil.copy(table, tmp_path / "two")
    monkeypatch.setattr(create, "_first_report", lambda folder: None)
    new_project(tmp_path / "one/shop", table, "again", license="MIT")
    command = [Path(sys.executable).parent / "copier", "copy", "--defaults", "--quiet", "--data", "license=MIT"]
    command += ["--data", "table=shop.csv", "--data", "target=again"]  # as seen from where it is typed
    subprocess.run([*command, str(template), str(tmp_path / "two/shop")], check=True, capture_output=True)
    monkeypatch.chdir(tmp_path / "two/shop")  # as `make` does
    begin()
    one, two = tracked(tmp_path / "one/shop"), tracked(tmp_path / "two/shop")
    assert list(one) == list(two)
    assert {name for name in one if one[name] != two[name]} == {ANSWERS_FILE}  # the table's name, as it was typed
    assert b'source: "data/raw/shop.csv"' in two["params.yaml"]
    assert b"the demo" not in two["params.yaml"]
    assert b"`nbs` in the guide is `.venv/bin/nbs`" in two["README.md"]
    assert (tmp_path / "two/shop/data/raw/shop.csv").read_bytes() == Path(table).read_bytes()
    assert b"MIT License" in one["LICENSE"]
    assert one["nbs_lib/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert os.access(tmp_path / "one/shop/.ci/check", os.X_OK)
    with pytest.raises(UserError, match="begun before"):
        begin(tmp_path / "two/shop")


def test_a_token_in_the_address_of_the_template_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that the branch follows is committed with each new project."""
    git("init", "--quiet", "--initial-branch", "main", cwd=tmp_path)
    (tmp_path / "copier.yml").touch()
    monkeypatch.setattr(create, "_LIBRARY_ROOT", tmp_path)
    git("remote", "add", "fork", "https://host/fork.git", cwd=tmp_path)
    git("config", "branch.main.remote", "origin", cwd=tmp_path)
    git("remote", "add", "origin", "https://me:t0ken@host/nbs.git", cwd=tmp_path)
    assert create._template_address() == (str(tmp_path), "https://host/nbs.git")
    (tmp_path / "copier.yml").unlink()
    (tmp_path / ANSWERS_FILE).write_text("_src_path: https://t0ken@host/nbs.git\n")
    assert create._template_address() == ("https://t0ken@host/nbs.git", "https://host/nbs.git")
    (tmp_path / "copier.yml").touch()
    git("remote", "set-url", "origin", "git@host:me/nbs.git", cwd=tmp_path)
    assert create._template_address() == (str(tmp_path), "git@host:me/nbs.git")
