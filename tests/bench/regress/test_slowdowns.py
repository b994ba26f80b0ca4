"""The trials that show what `ab` finds: what they plant, and how they count."""

import subprocess
import sys
from contextlib import suppress

import numpy as np
import psutil
import pytest

from bench.perf import slowdowns, trials_figure
from bench.perf.catalogue import EXPERIMENTS
from bench.perf.experiment import Setting, Skipped
from bench.perf.trials_figure import PLANTED, draw_trials
from bench.regress.ab import Session
from bench.regress.worktrees import Repository
from tests.bench.regress.project import make_project
from tests.bench.regress.test_decision import rounds

OTHER = "tests/perf/test_aggregation.py::test_aggregation[100]"
QUICK = Setting(quick=True)

SPLITS = '''"""A stand-in."""

import time


def make_split(seconds):
    """Take so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return seconds
'''


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A repository with a module like the one that is slowed, in the place of the suite's own."""
    folder = tmp_path / "suite"
    make_project(folder)
    (folder / "bench").mkdir()
    (folder / "bench" / "__init__.py").write_text("")
    (folder / "bench" / "splits.py").write_text(SPLITS)
    for step in (["add", "--all"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "more"]):
        subprocess.run(["git", "-C", str(folder), *step], check=True)
    monkeypatch.setattr(slowdowns.bench, "__file__", str(folder / "bench" / "__init__.py"))
    return folder


@pytest.fixture
def measured(monkeypatch):
    """Trials whose rounds are made up, slower by what was planted; gives what each was asked for."""
    asked = []
    generator = np.random.default_rng(0)

    def measure(repository, base, head, setting):
        code = repository.git("show", f"{head.commit}:bench/splits.py")
        found = code.rpartition("_slowed(make_split, ")[2].partition(")")[0] if "_slowed" in code else "0"
        asked.append((base.commit == head.commit, float(found)))
        session = Session(base, head, [slowdowns.PLANTED, OTHER], rounds=10, seconds=3.0)
        session.times[slowdowns.PLANTED] = rounds(generator, slower=float(found))
        session.times[OTHER] = rounds(generator)
        yield session

    monkeypatch.setattr(slowdowns, "measure", measure)
    return asked


def test_what_is_planted_makes_the_call_so_much_longer_and_gives_the_same(suite):
    repository = Repository(suite)
    planted = slowdowns._planted(repository, 1.0)
    assert repository.revision("HEAD", "--base").commit != planted.commit
    with repository.checked_out([planted]) as (tree,):
        script = (
            "import time; from bench.splits import make_split; began = time.perf_counter(); "
            "assert make_split(0.05) == 0.05; print(time.perf_counter() - began)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tree, capture_output=True, text=True, check=True
        )
    assert float(done.stdout) >= 0.1  # that it is no more is told by `ab`, not by one call on a busy machine


def test_what_keeps_a_core_busy_ends_with_who_started_it():
    script = (
        "import os, subprocess, sys; command = [sys.executable, '-c', sys.argv[1], str(os.getpid())]; "
        "print(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, slowdowns._BUSY], stdout=subprocess.PIPE, text=True, check=True
    )
    with suppress(psutil.NoSuchProcess):
        busy = psutil.Process(int(done.stdout))
        try:
            busy.wait(timeout=20)
        finally:
            busy.kill()


def test_each_share_is_planted_as_often_as_it_says_and_counted(suite, measured):
    found = slowdowns.slowdowns_idle(Setting())
    assert [share for _, share in measured] == [0.20] * 10 + [0.10] * 20 + [0.05] * 10
    assert found.samples == 40
    assert found.figures["planted_20_found_share"] == found.figures["planted_10_found_share"] == 1
    assert 0 <= found.figures["planted_5_found_share"] < 1
    assert found.figures["planted_10_median_ratio"] == pytest.approx(1.1, rel=0.02)
    assert found.figures["false_alarms"] == 0


def test_the_same_revision_is_compared_with_itself(suite, measured):
    found = slowdowns.same_busy(QUICK)
    assert measured == [(True, 0.0)]
    assert found.figures["false_alarms"] == 0
    assert found.figures["same_found_share"] == 0
    assert "one of them kept busy" in found.notes[0]


def test_an_alarm_where_nothing_was_planted_is_counted(suite, measured, monkeypatch):
    monkeypatch.setattr(slowdowns, "PLANTED", OTHER)

    def measure(repository, base, head, setting):
        generator = np.random.default_rng(1)
        session = Session(base, head, [OTHER, "another"], rounds=10, seconds=3.0)
        session.times[OTHER] = rounds(generator, slower=0.3)
        session.times["another"] = rounds(generator, slower=-0.3)
        yield session

    monkeypatch.setattr(slowdowns, "measure", measure)
    assert slowdowns.same_idle(QUICK).figures["false_alarms"] == 2


def test_without_a_repository_there_are_no_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(slowdowns.bench, "__file__", str(tmp_path / "bench" / "__init__.py"))
    with pytest.raises(Skipped, match="does not run from a checkout"):
        slowdowns.same_idle(QUICK)


@pytest.mark.parametrize("name", ["slowdowns_idle", "slowdowns_busy", "same_idle", "same_busy"])
def test_their_targets_are_of_figures_that_there_are(suite, measured, name):
    record = EXPERIMENTS[name].run(QUICK)
    assert all(check.holds is None for check in record.checks)
    assert not record.skipped


def test_each_trial_is_drawn_where_it_was_measured_by_what_was_said_of_it(suite, measured):
    names = ("same_idle", "slowdowns_idle", "same_busy", "slowdowns_busy")
    records = {name: EXPERIMENTS[name].run(Setting()) for name in names}
    figure = draw_trials(records)
    found = records["slowdowns_busy"].figures
    drawn = {
        (round(x), round(y, 6), line.get_color())
        for line in figure.axes[1].lines
        if line.get_marker() not in ("None", "")
        for x, y in zip(*line.get_data(), strict=True)
    }
    for place, name in enumerate(PLANTED):
        of_name = found if name != "same" else records["same_busy"].figures
        for ratio, verdict in zip(of_name[f"{name}_ratios"], of_name[f"{name}_verdicts"], strict=True):
            assert (place, round(100 * (ratio - 1), 6), trials_figure._LOOKS[verdict][0]) in drawn
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["0 %", "5 %", "10 %", "20 %"]
