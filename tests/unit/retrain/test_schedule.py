"""The scheduler runs the cycle when it is due, once for all that was missed, and survives being killed."""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from helpers.services import make_empty
from helpers.waiting import until

from nbs_lib.retrain import schedule as module
from nbs_lib.retrain.schedule import EXIT_CODE_TEXTS, SCHEDULE_RECORD, missed_run, next_run

CYCLE = """
import pathlib, sys, time
log = pathlib.Path("cycles").open("a", buffering=1)
print("begin", file=log)
try:
    time.sleep(float(pathlib.Path("seconds").read_text()))
    print("end", file=log)
except KeyboardInterrupt:
    print("interrupted", file=log)
    sys.exit(1)
sys.exit(int(pathlib.Path("code").read_text()))
"""
SCHEDULE = "import sys; from nbs_lib.retrain.schedule import run_scheduler; run_scheduler([sys.executable, 'cycle.py'])"


class Scheduler:
    """`nbs schedule` in a project whose cycle takes as long as it is told."""

    def __init__(self, root: Path) -> None:
        self.root = make_empty(root)
        (root / "cycle.py").write_text(CYCLE)
        self.process: subprocess.Popen[bytes] | None = None
        self.set()

    def set(self, seconds: float = 0, code: int = 0) -> None:
        (self.root / "seconds").write_text(str(seconds))
        (self.root / "code").write_text(str(code))

    def environment(self) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("NBS_", "COV_"))}
        return env | {"PYTHONPATH": str(ROOT), "NBS_SCHEDULE_CRON": "0 0 * * *"}

    def start(self) -> subprocess.Popen[bytes]:
        with (self.root / "said").open("ab") as said:
            command = [sys.executable, "-c", SCHEDULE]
            self.process = subprocess.Popen(command, cwd=self.root, env=self.environment(), stdout=said, stderr=said)
        return self.process

    def nbs(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nbs_lib.cli", *arguments]
        env = self.environment() | more
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, timeout=60)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def said(self) -> str:
        return (self.root / "said").read_text()

    def cycles(self) -> list[str]:
        path = self.root / "cycles"
        return path.read_text().split() if path.exists() else []

    def record(self) -> dict[str, str]:
        return json.loads((self.root / SCHEDULE_RECORD).read_text())

    def days_pass(self, days: float) -> None:
        """As if the last cycle had been so long ago."""
        record = self.record()
        last = datetime.datetime.fromisoformat(record["last"]) - datetime.timedelta(days=days)
        (self.root / SCHEDULE_RECORD).write_text(json.dumps(record | {"last": last.isoformat()}))


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Scheduler]:
    made = Scheduler(tmp_path / "a project")
    yield made
    if made.process and made.process.poll() is None:
        made.kill()


def test_what_was_missed_runs_once_however_often_it_is_killed(scheduler: Scheduler) -> None:
    scheduler.start()
    until(lambda: "next: " in scheduler.said())
    scheduler.kill()
    assert scheduler.cycles() == []
    scheduler.days_pass(3)

    scheduler.set(seconds=60)
    assert "missed: " in scheduler.nbs("schedule", "--next").stdout
    process = psutil.Process(scheduler.start().pid)
    until(lambda: scheduler.cycles() == ["begin"])
    (cycle,) = process.children()
    scheduler.kill()  # in the middle of the cycle, which ends with it
    until(lambda: not cycle.is_running() or cycle.status() == psutil.STATUS_ZOMBIE)

    scheduler.set()
    before = scheduler.record()
    scheduler.start()
    until(lambda: scheduler.said().count("next: ") == 2)
    assert scheduler.cycles() == ["begin", "begin", "end"]
    assert scheduler.record()["last"] > before["last"]
    scheduler.kill()

    scheduler.start()  # nothing is missing any more
    until(lambda: scheduler.said().count("next: ") == 3)
    time.sleep(1)
    assert scheduler.cycles() == ["begin", "begin", "end"]
    assert scheduler.said().count("; the cycle runs now\n") == 2
    assert "missed: " not in scheduler.nbs("schedule", "--next").stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_interrupts_the_cycle(scheduler: Scheduler, number: signal.Signals) -> None:
    scheduler.start()
    until(lambda: "next: " in scheduler.said())
    started = time.monotonic()
    assert scheduler.kill(number) == 0
    scheduler.days_pass(3)
    before = scheduler.record()
    scheduler.set(seconds=60)
    process = psutil.Process(scheduler.start().pid)
    until(lambda: scheduler.cycles() == ["begin"])
    (cycle,) = process.children()
    assert scheduler.kill(number) == 0
    assert time.monotonic() - started < 20
    assert not cycle.is_running()
    assert scheduler.cycles() == ["begin", "interrupted"]
    assert "the cycle was interrupted; the next start runs it again" in scheduler.said()
    assert "Traceback" not in scheduler.said()
    assert scheduler.record() == before


@pytest.mark.parametrize("code", [*EXIT_CODE_TEXTS, 7])
def test_it_says_what_came_of_it_and_when_the_next_is_due(scheduler: Scheduler, code: int) -> None:
    scheduler.set(code=code)
    scheduler.start()
    until(lambda: "next: " in scheduler.said())
    scheduler.kill()
    scheduler.days_pass(1)
    scheduler.start()
    until(lambda: scheduler.said().count("next: ") == 2)
    assert f"cycle: {EXIT_CODE_TEXTS.get(code, EXIT_CODE_TEXTS[1])} (exit code {code}, 0 s)\n" in scheduler.said()


def test_a_cycle_that_can_not_be_started_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended: list[Any] = []
    module._CycleRunner(["/nothing/there"], tmp_path, ended.append).run()
    assert not ended
    assert "the cycle could not be run: " in capsys.readouterr().out


def test_there_is_one_scheduler(scheduler: Scheduler) -> None:
    scheduler.start()
    until(lambda: "next: " in scheduler.said())
    second = scheduler.nbs("schedule")
    assert (second.returncode, second.stdout) == (1, "")
    assert second.stderr == "nbs: `nbs schedule` runs in this project already: end that one first.\n"


def test_one_that_is_still_at_work_is_not_joined_by_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from apscheduler.triggers.cron import CronTrigger

    command = [sys.executable, "-c", "import time; print(end='.', file=open('cycles', 'a')); time.sleep(2.5)"]
    ended: list[datetime.datetime] = []
    cycles = module._CycleRunner(command, tmp_path, ended.append)
    every_second = module._scheduler(cycles, CronTrigger(second="*", timezone="UTC"), module._now())
    every_second.start()
    until(lambda: len(ended) == 2, 20)
    cycles.end()
    every_second.shutdown()
    assert 2 <= len((tmp_path / "cycles").read_text()) <= 3
    assert ended[1] - ended[0] > datetime.timedelta(seconds=2.5)
    said = capsys.readouterr().out
    assert "the last cycle is still at work, this one is left out; next: " in said


def test_next_says_when(scheduler: Scheduler) -> None:
    assert scheduler.nbs("schedule", "--next", NBS_SCHEDULE_CRON="").stdout == (
        "nothing is scheduled: cron in [schedule] of settings.ini is empty\n"
    )
    said = scheduler.nbs("schedule", "--next", NBS_SCHEDULE_CRON="30 2 * * *", NBS_SCHEDULE_TIMEZONE="Asia/Tokyo")
    assert said.stdout.startswith("next: ")
    assert said.stdout.endswith(" 02:30 JST\n")
    assert not (scheduler.root / SCHEDULE_RECORD).exists()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"NBS_SCHEDULE_CRON": "15 6"}, "cron in [schedule] is '15 6': Wrong number of fields"),
        ({"NBS_SCHEDULE_CRON": "15 6 * * 1-5"}, "write the days of the week as mon to sun"),
        ({"NBS_SCHEDULE_CRON": "15 6 * * funday"}, "cron in [schedule] is '15 6 * * funday'"),
        ({"NBS_SCHEDULE_CRON": "0 0 31 feb *"}, "there is no such day"),
        ({"NBS_SCHEDULE_TIMEZONE": "Europe/Bonn"}, "timezone in [schedule] is 'Europe/Bonn'"),
        ({"NBS_SCHEDULE_TIMEZONE": "Europe"}, "timezone in [schedule] is 'Europe'"),
        ({"NBS_SCHEDULE_TIMEZONE": "../etc"}, "timezone in [schedule] is '../etc'"),
        ({"NBS_SCHEDULE_CRON": ""}, "is empty, so nothing is scheduled"),
        ({"NBS_SCHEDULE_CORN": "x"}, "did you mean 'cron'?"),
    ],
)
def test_a_wrong_setting_is_one_sentence(scheduler: Scheduler, settings: dict[str, str], problem: str) -> None:
    done = scheduler.nbs("schedule", **settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nbs: ")
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("day", "offset"), [("2026-03-28", "+02:00"), ("2026-10-24", "+01:00")])
def test_the_clocks_are_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, day: str, offset: str) -> None:
    root = make_empty(tmp_path)
    monkeypatch.setenv("NBS_SCHEDULE_CRON", "15 6 * * *")
    monkeypatch.setenv("NBS_SCHEDULE_TIMEZONE", "Europe/Berlin")
    due = next_run(root, datetime.datetime.fromisoformat(f"{day}T12:00:00+00:00"))
    assert due is not None
    assert due.isoformat().endswith(f"T06:15:00{offset}")
    assert due.date() == datetime.date.fromisoformat(day) + datetime.timedelta(days=1)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"last": 1}', '{"cron": "0 0 * * *", "timezone": "UTC", "last": "x"}']
)
def test_a_damaged_record_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    root = make_empty(tmp_path)
    monkeypatch.setenv("NBS_SCHEDULE_CRON", "0 0 * * *")
    (root / SCHEDULE_RECORD).parent.mkdir()
    (root / SCHEDULE_RECORD).write_text(content)
    assert missed_run(root) is None
