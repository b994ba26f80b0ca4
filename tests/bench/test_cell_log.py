"""The log of a cell: a line an event over all attempts, modest for long runs, never in the way of one."""

import re

import pytest

from bench.cell_log import CellLog
from bench.config import RunConfig
from flora.errors import BadInput
from flora.events import Events, Phase, Refusal, RoundRecord


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def config(rounds=3):
    return RunConfig.read({"method": "flora", "device": "cpu", "rounds": rounds})


def lines(path):
    """The events, their times checked and cut off."""
    written = path.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S", line) for line in written)
    return [line.partition(" ")[2] for line in written]


def test_it_tells_of_phases_rounds_refusals_and_the_end(tmp_path, clock):
    path = tmp_path / "log.txt"
    with CellLog(path, config(), clock=clock) as log:
        events = Events([log])
        with events.phase("load"):
            clock.now += 1.5
            with events.phase("count"):
                clock.now += 0.25
        with events.phase("train", 1, 0):
            clock.now += 1.0
        events.round(RoundRecord(1, 0.5, loss=1.25))
        events.round(RoundRecord(2, 0.625, refused=(Refusal(4, "not finite"), Refusal(7, "too large"))))
        assert len(lines(path)) == 5  # at once, so that they are there after a death
    started, *rest = lines(path)
    assert re.fullmatch(
        r"started: digits · flora · iid · seed 0 \([0-9a-f]{12}\) on .+, process \d+; "
        r"flora-bench \S+( at [0-9a-f]{12}( changed)?)?, Python 3\.\S+, torch 2\.\S+",
        started,
    )
    assert rest == [
        "count: 0.250 s",
        "load: 1.750 s",
        "round 1 of 3: accuracy 50.00%, loss 1.25",
        "round 2 of 3: accuracy 62.50%, 2 uploads refused, the last of client 7: too large",
        "ended with accuracy 62.50% after 2.8 s",
    ]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyboardInterrupt(), "interrupted after 0.0 s"),
        (BadInput("no such image"), "refused: no such image, after 0.0 s"),
        (RuntimeError("several\n  lines"), "failed: RuntimeError: several lines, after 0.0 s"),
        (SystemExit(1), "failed: SystemExit: 1, after 0.0 s"),
    ],
)
def test_it_says_how_a_run_ended_and_the_next_attempt_goes_below(tmp_path, clock, error, line):
    path = tmp_path / "log.txt"
    with pytest.raises(type(error)), CellLog(path, config(), clock=clock):
        raise error
    assert lines(path)[-1] == line
    with CellLog(path, config(), clock=clock) as log:
        log.resumed(2)
    assert lines(path)[1] == line
    assert lines(path)[3:] == ["resumed from round 2 of 3", "ended after 0.0 s"]


def test_of_thousands_of_rounds_one_a_second_is_written_and_the_last_and_no_refusal_is_lost(tmp_path, clock):
    path = tmp_path / "log.txt"
    with CellLog(path, config(rounds=1000), clock=clock) as log:
        for number in range(1, 1001):
            clock.now += 0.005
            log.round_ended(RoundRecord(number, 0.5, refused=(Refusal(1, "not finite"),) * (number == 300)))
    rounds = [line for line in lines(path) if line.startswith("round ")]
    assert len(rounds) == 6
    assert rounds[-1] == "round 1000 of 1000: accuracy 50.00%"
    assert [line.partition(", ")[2] for line in rounds] == ["", "", "1 upload refused before", "", "", ""]


def test_all_of_a_hundred_rounds_are_written(tmp_path, clock):
    with CellLog(tmp_path / "log.txt", config(rounds=100), clock=clock) as log:
        for number in range(101):
            log.round_ended(RoundRecord(number, 0.5))
    assert len(lines(tmp_path / "log.txt")) == 1 + 101 + 1


def test_a_log_that_cannot_be_written_disturbs_no_run(tmp_path, clock):
    with CellLog(tmp_path / "gone" / "log.txt", config(), clock=clock) as log:
        log.round_ended(RoundRecord(1, 0.5))
    with CellLog(tmp_path, config(), clock=clock) as log:  # a folder
        log.phase_started(Phase("load"))
        log.phase_ended(Phase("load"))


def test_a_disk_without_room_disturbs_no_run(clock):
    from pathlib import Path

    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with CellLog(full, config(), clock=clock) as log:
        log.round_ended(RoundRecord(1, 0.5))
