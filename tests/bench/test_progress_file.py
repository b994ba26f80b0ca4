"""What a running cell says of itself: whole at any moment, seldom written, gone at the end."""

import json
import os
from datetime import datetime

import pytest

from bench import progress_file
from bench.config import RunConfig
from bench.progress_file import PROGRESS, ProgressFile, read_progress
from flora.events import Events, Phase, RoundRecord, Work

CONFIG = RunConfig.read({"method": "flora", "device": "cpu", "rounds": 5000})


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def writes(monkeypatch):
    """What was written, in order: every file that took the place of the last."""
    written = []

    def replace(source, target):
        written.append(json.loads(source.read_text()))
        os.rename(source, target)

    monkeypatch.setattr(progress_file.os, "replace", replace)
    return written


def test_it_says_what_runs_where_and_how_far_it_is(tmp_path, clock):
    with ProgressFile(tmp_path, CONFIG, clock=clock) as file:
        assert read_progress(tmp_path)["phase"] == "starting"
        file.resumed(12)
        file.phase_started(Phase("resume"))
        begun = read_progress(tmp_path)
        assert (begun["phase"], begun["round"], begun["resumed_from"]) == ("resume", 12, 12)
        for number, seconds in ((13, 2.0), (14, 0.5), (15, 0.5)):
            clock.now += seconds
            file.round_ended(RoundRecord(number, number / 100))
        clock.now += 1.0
        file.phase_started(Phase("evaluate", 16))
        found = read_progress(tmp_path)
    assert found["pid"] == os.getpid()
    assert found["host"]
    assert (found["phase"], found["round"], found["rounds"]) == ("evaluate", 15, 5000)
    assert (found["accuracy"], found["rounds_per_second"], found["seconds"]) == (0.15, 2.0, 4.0)
    assert 0 < found["memory_bytes"] <= found["peak_memory_bytes"]
    for moment in ("began", "updated"):
        assert datetime.fromisoformat(found[moment]).utcoffset().total_seconds() == 0
    assert list(tmp_path.iterdir()) == []


def test_thousands_of_tiny_rounds_write_once_a_second(tmp_path, clock, writes):
    with ProgressFile(tmp_path, CONFIG, clock=clock) as file:
        events = Events([file])
        for number in range(1, 1025):
            with events.phase("train", number), events.work(Work("step")):
                clock.now += 1 / 256
            events.round(RoundRecord(number, 0.5))
    assert [at["round"] for at in writes] == [None, 255, 511, 767, 1023]


def test_a_phase_outside_of_rounds_is_written_at_once_and_long_work_in_it_now_and_then(
    tmp_path, clock, writes
):
    with ProgressFile(tmp_path, CONFIG, clock=clock) as file, Events([file]).phase("features"):
        for done in range(0, 101):
            clock.now += 0.1
            file.advanced(Phase("features"), done, 100)
    assert [at["phase"] for at in writes[:2]] == ["starting", "features"]
    assert len(writes) == pytest.approx(12, abs=1)
    assert (writes[-1]["done"], writes[-1]["total"]) == (pytest.approx(100, abs=10), 100)


def test_steps_of_a_round_that_takes_minutes_are_a_sign_of_life(tmp_path, clock, writes):
    with ProgressFile(tmp_path, CONFIG, clock=clock) as file, Events([file]).phase("train", 1, 0):
        for _ in range(3):
            clock.now += 20.0
            file.work_ended(Work("step"))
    assert [at["seconds"] for at in writes[1:]] == [20, 40, 60]
    assert writes[-1]["phase"] == "train"


def test_a_disk_without_room_disturbs_no_run(tmp_path, clock, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with ProgressFile(tmp_path, CONFIG, clock=clock) as file:
        monkeypatch.setattr(progress_file.os, "replace", full)
        clock.now += 2.0
        file.round_ended(RoundRecord(1, 0.5))
        assert read_progress(tmp_path)["round"] is None
        monkeypatch.undo()
        clock.now += 2.0
        file.round_ended(RoundRecord(2, 0.5))
        assert read_progress(tmp_path)["round"] == 2
    with ProgressFile(tmp_path / "gone", CONFIG, clock=clock) as file:
        file.phase_started(Phase("load"))


def test_what_a_killed_process_left_is_replaced(tmp_path, clock):
    (tmp_path / f".{PROGRESS}.tmp").write_text('{"half":')
    (tmp_path / PROGRESS).write_text('{"pid": 1}')
    with ProgressFile(tmp_path, CONFIG, clock=clock):
        assert read_progress(tmp_path)["pid"] == os.getpid()
        assert [path.name for path in tmp_path.iterdir()] == [PROGRESS]


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "[" * 100_000, "\xff"])
def test_a_file_that_is_missing_or_damaged_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / PROGRESS).write_bytes(content.encode("latin-1"))
    assert read_progress(tmp_path) is None
