"""Whether `ab` finds planted slowdowns, and none where there is none: many trials of less than a minute."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import bench
from bench.measure.load import usable_cores
from bench.perf.experiment import Measured, Setting, Skipped
from bench.regress.ab import Session, measure
from bench.regress.ab import Setting as Trial
from bench.regress.judgement import Verdict
from bench.regress.worktrees import Repository, Revision

TRIAL_SECONDS = 55.0
PROBES, SELECT = "tests/perf", "test_aggregation[100] or test_split[dirichlet] or test_encode[flora]"
PLANTED = "tests/perf/test_splits.py::test_split[dirichlet]"

# Trials by planted share; 5 % is the smallest slowdown that counts, so that either verdict is right.
TRIALS = {0.20: 10, 0.10: 20, 0.05: 10}
SAME_TRIALS = 25

_SLOWED_FILE = "bench/splits.py"
# at the end of the file: the call takes so much longer as a share of what it took, whatever the machine does
_SLOWED = """

def _slowed(work, share):
    import time

    def slowed(*args, **kwargs):
        began = time.perf_counter()
        result = work(*args, **kwargs)
        now = time.perf_counter()
        end = now + share * (now - began)
        while time.perf_counter() < end:
            pass
        return result

    return slowed


make_split = _slowed(make_split, {share})
"""
# ends with who started it, however that ends
_BUSY = """
import os, sys

while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


def slowdowns_idle(setting: Setting) -> Measured:
    """Plant slowdowns in one of three probes, the machine otherwise idle."""
    return _slowdowns(setting, busy=False)


def slowdowns_busy(setting: Setting) -> Measured:
    """The same with one core of two kept busy."""
    return _slowdowns(setting, busy=True)


def same_idle(setting: Setting) -> Measured:
    """Compare a revision with itself, the machine otherwise idle."""
    return _same(setting, busy=False)


def same_busy(setting: Setting) -> Measured:
    """The same with one core of two kept busy."""
    return _same(setting, busy=True)


def _slowdowns(setting: Setting, busy: bool) -> Measured:
    figures: dict[str, Any] = {}
    false_alarms = 0
    with _bench(busy) as repository:
        base = repository.revision("HEAD", "--base")
        for share, trials in TRIALS.items():
            head = _planted(repository, share)
            found = [_trial(repository, base, head, setting) for _ in range(1 if setting.quick else trials)]
            false_alarms += sum(trial.others_alarmed for trial in found)
            figures |= _figures(f"planted_{100 * share:.0f}", found)
    return Measured({**figures, "false_alarms": false_alarms}, sum(TRIALS.values()), _notes(busy))


def _same(setting: Setting, busy: bool) -> Measured:
    with _bench(busy) as repository:
        revision = repository.revision("HEAD", "--base")
        trials = 1 if setting.quick else SAME_TRIALS
        found = [_trial(repository, revision, revision, setting) for _ in range(trials)]
    alarms = sum(trial.alarmed + trial.others_alarmed for trial in found)
    return Measured({"false_alarms": alarms, **_figures("same", found)}, trials, _notes(busy))


@dataclass(frozen=True)
class _Found:
    """What a trial gave.

    Attributes:
        alarmed: whether the planted probe was called slower.
        others_alarmed: how many others were called slower or faster.
        verdict, ratio, low, high, seen, rounds: of the planted probe, see `bench.regress.decision.Decision`.
        seconds: that the trial took.
    """

    alarmed: bool
    others_alarmed: int
    verdict: str
    ratio: float
    low: float
    high: float
    seen: float
    rounds: int
    seconds: float


def _trial(repository: Repository, base: Revision, head: Revision, setting: Setting) -> _Found:
    asked = Trial(PROBES, SELECT, TRIAL_SECONDS / 3 if setting.quick else TRIAL_SECONDS)
    session: Session | None = None
    for session in measure(repository, base, head, asked):  # noqa: B007 - what it is in the end
        pass
    assert session is not None
    decisions = {probe: session.decision(probe, asked) for probe in session.times}
    one = decisions.pop(PLANTED)
    others = sum(decision.verdict in (Verdict.WORSE, Verdict.BETTER) for decision in decisions.values())
    alarmed = one.verdict is Verdict.WORSE
    found = _Found(
        alarmed, others, one.verdict, one.ratio, one.low, one.high, one.seen, one.rounds, session.seconds
    )
    print(found, file=sys.stderr, flush=True)  # noqa: T201 - progress, a line a minute
    return found


def _figures(name: str, found: Sequence[_Found]) -> dict[str, Any]:
    return {
        f"{name}_found_share": sum(trial.alarmed for trial in found) / len(found),
        f"{name}_trials": len(found),
        f"{name}_median_ratio": median(trial.ratio for trial in found),
        f"{name}_median_seen": median(trial.seen for trial in found),
        f"{name}_median_rounds": median(trial.rounds for trial in found),
        f"{name}_longest_seconds": max(trial.seconds for trial in found),
        f"{name}_verdicts": [trial.verdict for trial in found],
        f"{name}_ratios": [trial.ratio for trial in found],
        f"{name}_intervals": [[trial.low, trial.high] for trial in found],
    }


def _notes(busy: bool) -> list[str]:
    cores = len(usable_cores())
    return [
        f"on {cores} cores, {'one of them kept busy by a loop that may move' if busy else 'otherwise idle'}",
        f"planted: a loop after each call of make_split, in {PLANTED}; the two other probes must stay silent",
    ]


@contextmanager
def _bench(busy: bool) -> Iterator[Repository]:
    """Give a clone of this suite's repository to plant in, with a core kept busy if asked for."""
    root = Path(bench.__file__).parents[1]
    if not (root / ".git").exists():
        raise Skipped("the suite does not run from a checkout of its repository")
    with tempfile.TemporaryDirectory(prefix="flora-bench-planted-") as folder:
        subprocess.run(["git", "clone", "--quiet", "--shared", str(root), folder], check=True)
        command = [sys.executable, "-c", _BUSY, str(os.getpid())]
        occupied = subprocess.Popen(command) if busy else None
        try:
            time.sleep(1 if busy else 0)
            yield Repository(Path(folder))
        finally:
            if occupied:
                occupied.kill()
                occupied.wait()


def _planted(repository: Repository, share: float) -> Revision:
    """Commit, on top of HEAD, the slowdown; HEAD stays where it is."""
    with repository.checked_out([repository.revision("HEAD", "--base")]) as (tree,):
        file = tree / _SLOWED_FILE
        file.write_text(
            file.read_text(encoding="utf-8") + _SLOWED.replace("{share}", str(share)), encoding="utf-8"
        )
        own = Repository.at(tree)
        own.git("commit", "--quiet", "--no-verify", "--all", "--message", f"planted {share}")
        return own.revision("HEAD", "--head")
