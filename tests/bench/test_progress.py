"""How a matrix gets on: plain lines, the live view at several widths, and the time left in closed forms."""

import io
import threading
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
from rich.console import Console

import bench.measure.nvml
from bench.cli.progress import (
    Headway,
    LiveProgress,
    PlainProgress,
    TimeLeft,
    duration,
    facts_text,
    progress,
    rate_text,
    short_names,
    shortened,
    time_left_text,
)
from bench.config import RunConfig
from bench.execute import Outcome
from flora.events import Phase, RoundRecord

FEATURES = Phase("features")
NAME = "digits · flora · iid · seed 0"


def cell(method="flora", seed=0, **fields):
    return RunConfig.read({"method": method, "seed": seed, "device": "cpu", **fields})


def outcome(config, status="ran", reason=""):
    has_result = status in ("ran", "kept")
    summary = {"accuracy": 0.75, "zero_shot_accuracy": 0.5, "refused_uploads": 0} if has_result else {}
    return Outcome(config, status, Path("run.json"), summary, reason)


@pytest.fixture
def now(monkeypatch):
    """The time that progress goes by, in seconds: a list of one."""
    moment = [0.0]
    monkeypatch.setattr("bench.cli.progress.time", SimpleNamespace(monotonic=lambda: moment[0]))
    return moment


# --- plain lines ---------------------------------------------------------------------------------------


def test_results_that_no_longer_stand_are_counted_with_what_has_changed():
    stream = io.StringIO()
    cells = [cell(seed=seed) for seed in range(4)]
    with progress(stream) as watcher:
        for config in cells[:2]:
            watcher.found_stale(config, ["method flora changed", "images changed"])
        watcher.matrix_started(cells, cells[:3])
    said = "4 cells, 1 kept from before, 2 to be replaced: method flora changed; images changed"
    assert stream.getvalue().splitlines() == [said]


def test_plain_progress_is_a_line_a_cell_however_long():
    stream = io.StringIO()
    cells = [cell(seed=0), cell(seed=1)]
    with progress(stream) as watcher:
        assert type(watcher) is PlainProgress
        watcher.matrix_started([*cells, cell(seed=2)], cells)
        running = watcher.cell_started(cells[0])
        running.phase_started(Phase("load"))
        running.round_ended(RoundRecord(1, 0.5))
        watcher.cell_ended(outcome(cells[0]))
        watcher.cell_started(cells[1])
        watcher.cell_ended(outcome(cells[1], "failed", "RuntimeError: [red] " + "x" * 200))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "3 cells, 1 kept from before"
    assert lines[1].startswith("[1/2] digits · flora · iid · seed 0: accuracy 75.0%, zero-shot 50.0% (")
    assert lines[2].startswith("[2/2] digits · flora · iid · seed 1: failed: RuntimeError: [red] xxx")
    assert "left" not in lines[2]
    assert len(lines) == 3
    assert "\x1b" not in stream.getvalue()


def test_cells_that_run_side_by_side_have_a_clock_each(now):
    stream = io.StringIO()
    cells = [cell(seed=0), cell(seed=1), cell(seed=2)]
    with progress(stream, jobs=2) as watcher:
        watcher.matrix_started(cells, cells)
        watcher.cell_started(cells[0])
        now[0] = 10.0
        watcher.cell_started(cells[1])
        now[0] = 30.0
        watcher.cell_ended(outcome(cells[1]))
        watcher.cell_started(cells[2])
        watcher.cell_ended(outcome(cells[0]))
        watcher.cell_ended(outcome(cells[2], "refused", "there is no such image"))
    assert stream.getvalue().splitlines()[1:] == [
        # two cells of 20 s each are left, and two run at once
        "[1/3] digits · flora · iid · seed 1: accuracy 75.0%, zero-shot 50.0% (20.0 s, about 0:00:20 left)",
        "[2/3] digits · flora · iid · seed 0: accuracy 75.0%, zero-shot 50.0% (30.0 s, about 0:00:25 left)",
        "[3/3] digits · flora · iid · seed 2: refused: there is no such image (0.0 s)",
    ]


def test_a_cell_of_another_process_is_told_of_once_and_not_done_before_it_is(now):
    stream = io.StringIO()
    config = cell()
    with progress(stream) as watcher:
        watcher.matrix_started([config], [config])
        for _ in range(3):
            watcher.cell_started(config)
            watcher.cell_ended(outcome(config, "busy", "another process is on it"))
        watcher.cell_started(config)
        watcher.cell_ended(outcome(config, "kept"))
    assert stream.getvalue().splitlines()[1:] == [
        f"{NAME}: another process is on it; its result will be waited for",
        f"[1/1] {NAME}: accuracy 75.0%, zero-shot 50.0%, by another process (0.0 s)",
    ]


def test_a_cell_that_ends_before_it_could_start_is_told_of_too():
    stream = io.StringIO()
    with progress(stream) as watcher:
        watcher.matrix_started([cell()], [cell()])
        watcher.cell_ended(outcome(cell(), "failed", "its machine is gone"))
    assert stream.getvalue().splitlines()[1] == f"[1/1] {NAME}: failed: its machine is gone (0.0 s)"


def test_plain_progress_tells_of_long_work_now_and_then(now):
    stream = io.StringIO()
    config = cell()
    with progress(stream) as watcher:
        watcher.matrix_started([config], [config])
        running = watcher.cell_started(config)
        for second in range(0, 13):
            now[0] = float(second)
            running.advanced(FEATURES, 1000 + 100 * second, 2200)
    assert stream.getvalue().splitlines()[1:] == [
        f"{NAME}: features, 1,200 of 2,200 images, 100/s, about 0:00:10 left",
        f"{NAME}: features, 1,700 of 2,200 images, 100/s, about 0:00:05 left",
        f"{NAME}: features, 2,200 of 2,200 images, 100/s, took 0:00:12",
    ]


def test_progress_is_quiet_about_short_work_and_each_work_has_its_own_clock(now):
    stream = io.StringIO()
    config = cell()
    with progress(stream) as watcher:
        watcher.matrix_started([config], [config])
        running = watcher.cell_started(config)
        for start, total in ((0.0, 50), (2.5, 50), (5.0, 20)):
            for done in (0, total // 2, total):
                now[0] = start + 1.9 * done / total
                running.advanced(FEATURES, done, total)
    assert len(stream.getvalue().splitlines()) == 1


def test_progress_of_work_that_does_not_move_foretells_nothing(now):
    stream = io.StringIO()
    config = cell()
    with progress(stream) as watcher:
        watcher.matrix_started([config], [config])
        running = watcher.cell_started(config)
        running.advanced(FEATURES, 5, 10)
        now[0] = 3.0
        running.advanced(FEATURES, 5, 10)
    assert stream.getvalue().splitlines()[1].endswith("5 of 10 images, time left unknown")


def test_what_a_resumed_cell_took_is_no_measure_of_the_others(now):
    stream = io.StringIO()
    cells = [cell(seed=0), cell(seed=1)]
    with progress(stream) as watcher:
        watcher.matrix_started(cells, cells)
        running = watcher.cell_started(cells[0])
        running.resumed(8)
        running.round_ended(RoundRecord(9, 0.5))
        now[0] = 1.0
        watcher.cell_ended(outcome(cells[0]))
    assert "time left unknown" in stream.getvalue()


def test_off_a_terminal_a_cell_says_every_five_minutes_where_it_is(now):
    stream = io.StringIO()
    watcher = PlainProgress(Console(file=stream))
    cells = [cell(seed=0, rounds=100), cell(seed=1)]
    watcher.matrix_started(cells, cells)
    first = watcher.cell_started(cells[0])
    for second in range(0, 901, 10):
        now[0] = float(second)
        first.round_ended(RoundRecord(second // 10, 0.125))
        watcher.tell_of_long_cells()
        if second == 500:
            watcher.cell_started(cells[1])
    assert stream.getvalue().splitlines()[1:] == [
        f"{NAME}: round 30/100, accuracy 12.5%, about 0:11:40 left",
        f"{NAME}: round 60/100, accuracy 12.5%, about 0:06:40 left",
        "digits · flora · iid · seed 1: starting, about 0:16:40 left",
        f"{NAME}: round 90/100, accuracy 12.5%, about 0:01:40 left",
    ]


def test_who_looks_after_long_cells_is_there_for_as_long_as_the_matrix_runs(monkeypatch):
    monkeypatch.setattr("bench.cli.progress.SECONDS_BETWEEN_LOOKS", 0.001)
    monkeypatch.setattr("bench.cli.progress.SECONDS_A_CELLS_LINE", 0.0)
    told, before = Event(), threading.active_count()
    stream = io.StringIO()
    with progress(stream) as watcher:
        watcher.matrix_started([cell()], [cell()])
        monkeypatch.setattr(watcher, "_write", lambda line: told.set())
        watcher.cell_started(cell())
        assert told.wait(60)
    assert threading.active_count() == before


# --- the live view -------------------------------------------------------------------------------------


def live(width=100, **options):
    console = Console(force_terminal=True, file=io.StringIO(), width=width, height=50)
    return LiveProgress(console, **options)


def drawn(watcher):
    """The view as lines of text, each at most as wide as the console, trailing blanks removed."""
    console = Console(file=io.StringIO(), width=watcher.console.width)
    console.print(watcher.render())
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= console.width
    return lines


def test_the_live_view_shows_cells_rounds_accuracy_and_time_left(now):
    watcher = live(width=160, jobs=2)
    cells = [cell(seed=seed) for seed in range(4)]
    watcher.matrix_started(cells, cells)
    first = watcher.cell_started(cells[0])
    now[0] = 30.0
    watcher.cell_ended(outcome(cells[0]))
    watcher.cell_started(cells[1])
    watcher.cell_ended(outcome(cells[1], "failed", "boom"))
    second, third = watcher.cell_started(cells[2]), watcher.cell_started(cells[3])
    second.phase_started(Phase("zero_shot"))
    for number in range(4):
        now[0] += 1.0
        third.round_ended(RoundRecord(number, 0.5))
    third.phase_started(Phase("train", 4, 0))  # too many to show
    bar, facts, *rows = drawn(watcher)
    assert bar.endswith("1/4 cells")  # one failed
    assert facts.startswith("2 running · 1 failed · 0 waiting · 0:00:34 so far, about 0:00:")
    assert " · 3.53 cells/min · 1 rounds/s · memory " in facts
    assert facts.endswith(" GB")
    assert [row.split() for row in rows] == [
        ["seed", "2", "zero-shot", "0:00:04"],
        ["seed", "3", "━━━━╸", "round", "3/10", "50.0%", "0:00:04"],
    ]
    assert first is not second
    assert "[1/4] digits · flora · iid · seed 0: accuracy 75.0%" in watcher.console.file.getvalue()


def test_the_bar_counts_the_cells_that_have_a_result_and_no_others(now):
    watcher = live()
    cells = [cell(seed=seed) for seed in range(6)]
    watcher.matrix_started(cells, cells[2:])
    assert drawn(watcher)[0].endswith("2/6 cells")
    for config, status in zip(cells[2:], ("ran", "kept", "failed", "refused"), strict=True):
        watcher.cell_ended(outcome(config, status, "" if status in ("ran", "kept") else "boom"))
    assert drawn(watcher)[0].endswith("4/6 cells")
    assert " 2 failed · 0 waiting · " in drawn(watcher)[1]


@pytest.mark.parametrize("width", [20, 40, 60, 100, 160])
def test_the_live_view_fits_however_narrow_and_stays_low_with_hundreds_of_cells(now, width):
    watcher = live(width, jobs=200)
    cells = [
        cell(method, seed, split={"name": "dirichlet", "beta": 0.1, "shots": 4})
        for method in ("flora", "full_finetune")
        for seed in range(100)
    ]
    watcher.matrix_started(cells, cells)
    for config in cells:
        now[0] += 0.01
        watcher.cell_started(config).advanced(FEATURES, 5, 10_000)
    lines = drawn(watcher)
    assert lines[-1] == "and 192 more"
    rows = [line for line in lines if "starting" in line]
    assert len(rows) == 8 if width >= 40 else len(lines) < 30
    assert all("seed" in row for row in rows if width >= 60)  # the end of a name tells cells apart


def test_long_work_has_a_bar_of_its_own_while_it_lasts(now):
    watcher = live(width=160)
    config = cell()
    watcher.matrix_started([config], [config])
    running = watcher.cell_started(config)
    running.phase_started(FEATURES)
    running.advanced(FEATURES, 0, 80)
    now[0] = 1.0
    running.advanced(FEATURES, 10, 80)
    assert drawn(watcher)[2].split()[-2:] == ["features", "0:00:01"]
    now[0] = 4.0
    running.advanced(FEATURES, 40, 80)
    assert drawn(watcher)[2].endswith("━━━━━━━━          features 40/80  about 0:00:04 left  10/s")
    running.phase_ended(Phase("load"))
    assert "40/80" in drawn(watcher)[2]
    running.phase_ended(FEATURES)
    assert "40/80" not in drawn(watcher)[2]
    assert watcher.console.file.getvalue().splitlines()[1:] == []  # and no lines besides


def test_a_terminal_shows_the_view_and_the_lines(now, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    config, other = cell(), cell(seed=1)
    with progress(stream) as watcher:
        assert type(watcher) is LiveProgress
        watcher.matrix_started([config, other], [config, other])
        watcher.cell_started(config)
        watcher.cell_ended(outcome(config))
        watcher.cell_started(other)
    written = stream.getvalue()
    assert "1/2 cells" in written
    assert "[1/2] digits · flora · iid · seed 0: accuracy 75.0%" in written
    assert "starting" in written


def test_the_live_view_of_nothing_left_is_empty():
    watcher = live()
    watcher.matrix_started([cell()], [])
    assert drawn(watcher) == [""]


def test_memory_of_gpus_is_shown_where_cells_run_on_them(now, monkeypatch):
    class NVML:
        NVMLError = RuntimeError

        def nvmlDeviceGetCount(self):  # noqa: N802
            return 2

        def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
            return index

        def nvmlDeviceGetMemoryInfo(self, gpu):  # noqa: N802
            return SimpleNamespace(used=3e9 + gpu, total=80e9)

    def missing():
        raise bench.measure.nvml.NvmlUnavailable("no driver")

    watcher = live(width=160)
    on_cpu = cell()
    on_gpu = on_cpu.model_copy(update={"device": "cuda:0", "rounds": 7})
    watcher.matrix_started([on_cpu, on_gpu], [on_cpu, on_gpu])
    monkeypatch.setattr(bench.measure.nvml, "library", NVML)
    watcher.cell_started(on_cpu)
    assert "GPU" not in drawn(watcher)[1]
    watcher.cell_started(on_gpu)
    assert drawn(watcher)[1].endswith("GPUs 6.0 of 160.0 GB")
    monkeypatch.setattr(bench.measure.nvml, "library", missing)
    assert "GPU" not in drawn(watcher)[1]


def test_names_lose_what_all_share_and_then_their_middle():
    names = {"a": "digits · flora · iid · seed 0", "b": "digits · zero_shot · iid · seed 0"}
    assert short_names(names) == {"a": "flora · iid · seed 0", "b": "zero_shot · iid · seed 0"}
    assert short_names({"a": "digits · flora", "b": "digits · flora · seed 1"}) == {
        "a": "flora",
        "b": "seed 1",
    }
    assert short_names({"a": "digits · flora"}) == {"a": "digits · flora"}
    assert shortened("zero_shot · iid · seed 0", 12) == "zero_…seed 0"
    assert shortened("short", 5) == "short"


def test_a_line_of_figures_breaks_between_two_of_them():
    assert facts_text(["2 running", "3 waiting", "about 0:01:00 left"], 22).plain.split("\n") == [
        "2 running · 3 waiting",
        "about 0:01:00 left",
    ]


def test_rates_and_durations_are_written_as_people_say_them():
    assert rate_text(30, "cells", 10) == "3 cells/s"
    assert rate_text(30, "cells", 600) == "3 cells/min"
    assert rate_text(30, "cells", 36000) == "3 cells/h"
    assert rate_text(30, "cells", 360000) == "0.3 cells/h"
    assert rate_text(12345, "rounds", 1) == "12,345 rounds/s"
    assert duration(-5) == "0:00:00"  # as after a clock was set back
    assert time_left_text(None) == "time left unknown"
    assert time_left_text(3725.2) == "about 1:02:05 left"


# --- the time left -------------------------------------------------------------------------------------


def test_without_predictions_the_time_left_is_foretold_by_method():
    methods = {"a": "flora", "b": "zero_shot", "c": "flora", "d": "zero_shot", "e": "linear_probe"}
    left = TimeLeft(methods)
    assert left.seconds() is None
    for key, seconds, expected in (("a", 100, 400), ("b", 20, 180), ("c", 200, 105)):
        left.cell_ended(key)
        left.cell_took(key, methods[key], seconds)
        # in turn: all four as the only one known; 100 + 20 + the mean of both; 20 + the mean of 150 and 20
        assert left.seconds() == expected


def test_predictions_are_corrected_by_the_median_of_what_was_measured_over_predicted():
    methods = dict.fromkeys("abcd", "flora") | {"x": "zero_shot", "y": "zero_shot"}
    left = TimeLeft(methods, {"a": 10, "b": 10, "c": 10, "d": 20, "x": 1, "y": 3})
    assert left.seconds() == 54  # as foretold
    left.cell_ended("a")
    left.cell_took("a", "flora", 20)
    assert left.seconds() == 2 * 44  # zero_shot by the only ratio known
    left.cell_ended("x")
    left.cell_took("x", "zero_shot", 0.5)
    assert left.seconds() == 2 * 40 + 0.5 * 3
    for key, seconds in (("b", 40), ("c", 30)):
        left.cell_ended(key)
        left.cell_took(key, "flora", seconds)
    assert left.seconds() == 3 * 20 + 0.5 * 3  # the median of 2, 4 and 3


def test_a_cell_without_a_prediction_among_others_takes_the_mean_of_those():
    left = TimeLeft({"a": "flora", "b": "flora", "x": "zero_shot"}, {"a": 10, "b": 30})
    assert left.seconds() == 10 + 30 + 20
    left.cell_ended("a")
    left.cell_took("a", "flora", 20)
    assert left.seconds() == 2 * 30 + 20


def test_cells_that_run_at_once_share_the_time_and_the_longest_takes_its_own():
    left = TimeLeft(dict.fromkeys("abcd", "flora"), dict.fromkeys("abcd", 10.0), jobs=2)
    assert left.seconds() == 20
    assert left.seconds({"a": Headway(0.5), "b": Headway(0.1)}) == (5 + 9 + 20) / 2
    for key in "cd":
        left.cell_ended(key)
    assert left.seconds({"a": Headway(0.5), "b": Headway(0.1)}) == 9
    left.cell_ended("b")
    assert left.seconds({"a": Headway(0.5), "b": Headway(0.1)}) == 5
    assert left.seconds() == 10  # no two jobs for one cell
    left.cell_ended("a")
    left.cell_ended("a")
    assert left.seconds() == 0


def test_as_many_cells_share_the_time_as_ever_ran_at_once_and_the_number_of_jobs_only_before():
    left = TimeLeft(dict.fromkeys("abcdef", "flora"), dict.fromkeys("abcdef", 10.0), jobs=6)
    assert left.seconds() == 10
    for number in (1, 3, 2):
        left.cells_run(number)
    assert left.seconds() == 20


def test_cells_that_a_cluster_runs_at_once_share_the_time_though_nobody_said_how_many(now):
    stream = io.StringIO()
    cells = [cell(seed=seed) for seed in range(6)]
    with progress(stream, {config.hash: 10.0 for config in cells}) as watcher:
        watcher.matrix_started(cells, cells)
        for config in cells[:3]:
            watcher.cell_started(config)
        now[0] = 10.0
        watcher.cell_ended(outcome(cells[0]))
    assert stream.getvalue().splitlines()[1].endswith("(10.0 s, about 0:00:17 left)")


def test_the_more_rounds_a_cell_has_timed_the_more_its_own_pace_counts():
    left = TimeLeft({"a": "flora"}, {"a": 100.0})
    left.cell_took("z", "flora", 1.0)  # of no prediction: no ratio
    assert left.seconds({"a": Headway.of(0, 10, 0, 0.0)}) == 100
    assert left.seconds({"a": Headway.of(3, 10, 3, 60.0)}) == pytest.approx(0.7 * (0.5 * 200 + 0.5 * 100))
    assert left.seconds({"a": Headway.of(9, 10, 9, 180.0)}) == pytest.approx(0.1 * (0.75 * 200 + 0.25 * 100))
    assert left.seconds({"a": Headway.of(10, 10, 10, 200.0)}) == 0


def test_a_method_of_which_none_has_ended_is_judged_by_its_running_cells():
    methods = {"a": "flora", "b": "flora", "x": "zero_shot"}
    left = TimeLeft(methods)
    left.cell_ended("x")
    left.cell_took("x", "zero_shot", 1.0)
    assert left.seconds() == 2
    assert left.seconds({"a": Headway.of(5, 10, 5, 50.0)}) == 50 + 100
    alone = TimeLeft({"a": "flora"})
    assert alone.seconds({"a": Headway.of(5, 10, 5, 50.0)}) == 50
    assert alone.seconds({"a": Headway()}) is None
    assert alone.seconds({"a": Headway(), "gone": Headway(0.5, 1, 10.0)}) is None
