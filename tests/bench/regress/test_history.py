"""The store of a history: what is kept of a revision, in which order it is read, what damaged lines give."""

import json
import math
import os
import subprocess

import pytest

from bench.config import RunConfig
from bench.regress.findings import judged, worst_first
from bench.regress.gate import Gate
from bench.regress.history import Revision, add, in_order, line_of, read_history, read_lines, repository_of
from bench.regress.measurements import Benchmark, CellMeasures, Measurements
from bench.regress.worktrees import Repository
from flora.errors import BadInput

EPYC = {"cpu": "AMD EPYC 7763 64-Core Processor", "cores": 4, "packages": {"torch": "2.5"}}
XEON = {**EPYC, "cpu": "Intel(R) Xeon(R) CPU"}
PROBE = "tests/perf/test_steps.py::test_step[flora]"


def commit_of(number):
    return f"{number:x}".rjust(3, "0").ljust(40, "a")


def day(number):
    return f"2026-{1 + number // 28:02d}-{1 + number % 28:02d}T12:00:00+00:00"


def measured(number, *, seconds=(1.0,), extra=None, cells=(), machine=EPYC, commit=None, **revision):
    told = {"commit": commit or commit_of(number), "dirty": False, "time": day(number), **revision}
    benchmarks = [Benchmark(PROBE, list(seconds), extra or {})]
    return Measurements(f"source {number}", cells, benchmarks, told, machine)


def cell(seed, metrics, **fields):
    config = {"method": "flora", "split": "iid", "seed": seed, "device": "cpu", **fields}
    return CellMeasures(RunConfig.read(config).model_dump(mode="json"), metrics)


def only(history, metric, machine=None):
    (found,) = [
        x for x in history.series if x.metric.name == metric and (machine is None or x.machine == machine)
    ]
    return found


def git(folder, *arguments):
    who = {f"GIT_{x}_{y}": "a" for x in ("AUTHOR", "COMMITTER") for y in ("NAME", "EMAIL")}
    env = {**os.environ, **who, "GIT_COMMITTER_DATE": day(0), "GIT_AUTHOR_DATE": day(0)}
    command = ["git", "-C", folder, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of eight commits of one time, which is worked in."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commits = []
    for number in range(8):
        git(folder, "commit", "-q", "--allow-empty", "-m", f"Change {number}")
        commits.append(git(folder, "rev-parse", "HEAD"))
    monkeypatch.chdir(folder)
    return folder, commits


# --- what is kept --------------------------------------------------------------------------------------


def test_a_line_holds_medians_quartiles_and_units():
    kernels = {"seconds": {}, "unit_seconds": 0.5, "machine": {}}
    extra = {"payload_bytes": 7, "unheard_of": 3, "kernels": kernels}
    line = line_of(measured(1, seconds=[4.0, 1.0, 2.0, 3.0], extra=extra))
    assert line.values == {PROBE: {"payload_bytes": 7, "unheard_of": 3, "seconds": 2.5}}
    assert line.units == {PROBE: {"seconds": 5.0}}
    assert line.spread == {PROBE: {"seconds": [1.75, 3.25]}}


def test_seeds_of_a_cell_become_one_value_each():
    cells = [
        cell(0, {"accuracy": 0.8, "train_seconds": 1.0, "payload_bytes": 10, "split_fingerprint": "ab"}),
        cell(1, {"accuracy": 0.9, "train_seconds": 3.0, "payload_bytes": 10, "split_fingerprint": "cd"}),
    ]
    values = line_of(measured(1, seconds=(), cells=cells)).values
    own = values["digits, flora, iid, seeds 0, 1"]
    assert own["accuracy"] == pytest.approx(0.85)
    assert (own["train_seconds"], own["payload_bytes"]) == (2.0, 10)
    changed = [cells[0], cell(1, {"split_fingerprint": "ce"})]
    others = line_of(measured(1, seconds=(), cells=changed)).values["digits, flora, iid, seeds 0, 1"]
    assert others["split_fingerprint"] != own["split_fingerprint"]
    assert "accuracy" not in others  # one of the two has none


def test_cells_are_named_by_what_most_have_otherwise():
    fields = [{}, {"codec": "int8"}, {"batch_size": 5}]
    cells = [cell(0, {"accuracy": 1.0}, **{"rounds": 3, **own}) for own in fields]
    assert list(line_of(measured(1, seconds=(), cells=cells)).values) == [
        "digits, flora, iid, seed 0",
        "digits, flora, iid, codec int8, seed 0",
        "digits, flora, iid, batch_size 5, seed 0",
    ]


UNLIKE = [
    {},
    {"codec": "fp16"},
    {"codec": "bf16"},
    {"codec": "int8"},
    {"codec": {"name": "int8", "direction": "up"}},
    {"optimizer": "sgd"},
    {"optimizer": "adamw"},
    {"optimizer": {"name": "adamw", "lr": 0.5}},
    {"compute": {"threads": 2}},
    {"model": {"name": "tiny", "dtype": "float64"}},
]


def test_cells_that_differ_in_one_field_are_never_made_one(tmp_path):
    for number in range(2):
        cells = [
            cell(seed, {"payload_bytes": 100 * place + seed + number * (place == 3)}, **fields)
            for place, fields in enumerate(UNLIKE)
            for seed in (0, 1)
        ]
        add(tmp_path, measured(number, seconds=(), cells=cells))
    history = read_history(tmp_path)
    assert len({x.subject for x in history.series}) == len(history.series) == len(UNLIKE)
    values = sorted(x.points[0].value for x in history.series)
    assert values == [100 * place + 0.5 for place in range(len(UNLIKE))]
    (found,) = worst_first(judged(history, history.series))
    assert (found.series.subject[-11:], found.before, found.after) == (" seeds 0, 1", 300.5, 301.5)


def test_a_cell_is_known_again_whatever_is_measured_beside_it(tmp_path):
    fp16, int8 = (cell(0, {"payload_bytes": 5}, codec=codec) for codec in ("fp16", "int8"))
    add(tmp_path, measured(0, seconds=(), cells=[fp16]))
    add(tmp_path, measured(1, seconds=(), cells=[fp16, int8]))
    assert {line.revision.name: [*line.values] for line in read_lines(tmp_path)} == {
        commit_of(0)[:7]: ["digits, flora, iid, seed 0"],
        commit_of(1)[:7]: [
            "digits, flora, iid, codec fp16, seed 0",
            "digits, flora, iid, codec int8, seed 0",
        ],
    }
    places = {x.subject: [point.place for point in x.points] for x in read_history(tmp_path).series}
    assert places == {
        "digits, flora, iid, codec fp16, seed 0": [0, 1],
        "digits, flora, iid, codec int8, seed 0": [1],
    }


def test_what_an_early_result_lacks_is_at_its_default(tmp_path):
    whole = cell(0, {"payload_bytes": 5})
    early = {x: y for x, y in whole.config.items() if x not in ("codec", "optimizer", "engine")}
    early["method"] = {"name": "flora"}
    add(tmp_path, measured(0, seconds=(), cells=[CellMeasures(early, whole.metrics)]))
    add(tmp_path, measured(1, seconds=(), cells=[whole]))
    assert len(only(read_history(tmp_path), "payload_bytes").points) == 2


def test_cells_of_a_method_that_is_no_more_are_kept(tmp_path):
    config = {**cell(0, {}).config, "method": {"name": "forgotten", "depth": 3}}
    for number in range(2):
        add(tmp_path, measured(number, seconds=(), cells=[CellMeasures(config, {"payload_bytes": 5})]))
    series = only(read_history(tmp_path), "payload_bytes")
    assert (series.subject, len(series.points)) == ("digits, forgotten, iid, seed 0", 2)


def test_a_figure_of_ones_own_is_kept_and_judged_where_a_budget_declares_it(tmp_path):
    for number in range(4):
        extra = {"tokens": 7 + number // 2, "note": "warm", "flag": True}
        add(tmp_path, measured(number, extra=extra))
    plain = read_history(tmp_path)
    assert [x.metric.name for x in plain.series] == ["seconds", "tokens"]
    assert [point.value for point in only(plain, "tokens").points] == [7, 7, 8, 8]
    assert worst_first(judged(plain, plain.series)) == []
    gate = Gate.read({"metrics": {"tokens": {"kind": "exact", "better": "higher"}}}, "here")
    declared = read_history(tmp_path, gate)
    (found,) = worst_first(judged(declared, declared.series))
    assert (found.verdict, found.series.metric.name, found.bad.commit) == ("better", "tokens", commit_of(2))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        # as early results have them: names alone, and no section that came later
        ({"task": "digits", "method": "flora", "split": "iid"}, "digits, flora, iid, seed 0"),
        ({"task": "digits"}, "digits, seed 0"),
        ({"method": {"name": "flora"}, "rounds": 3, "seed": 1}, "flora, seed 1"),
    ],
)
def test_cells_that_lack_a_section_are_named_by_the_others(config, name):
    values = line_of(measured(1, seconds=(), cells=[CellMeasures(config, {"accuracy": 1.0})])).values
    assert list(values) == [name]


def test_what_tells_processes_apart_is_no_series(tmp_path):
    metrics = {"accuracy": 0.5, "resident_at_start_bytes": 3e8, "clients_together": 4}
    add(tmp_path, measured(1, cells=[cell(0, metrics)]))
    assert {x.metric.name for x in read_history(tmp_path).series} == {"accuracy", "seconds"}


@pytest.mark.parametrize("seconds", [0.0, -1.0, "soon"])
def test_times_that_are_none_have_no_units(tmp_path, seconds):
    kernels = {"seconds": {}, "unit_seconds": 0.5, "machine": {}}
    for number in range(2):
        config = cell(0, {}).config
        add(
            tmp_path,
            measured(number, cells=[CellMeasures(config, {"train_seconds": seconds}, kernels=kernels)]),
        )
    series = only(read_history(tmp_path), "train_seconds")
    assert ([x.value for x in series.points], series.calibrated) == ([seconds] * 2, False)


def test_adding_the_same_twice_keeps_one_file_and_another_measurement_lies_beside(tmp_path):
    first = add(tmp_path, measured(1))
    assert add(tmp_path, measured(1)) is None
    second = add(tmp_path, measured(1, seconds=[1.2]))
    third = add(tmp_path, measured(1, machine=XEON))
    assert len({first, second, third}) == 3
    assert sorted(tmp_path.rglob("*.*")) == sorted([first, second, third])
    series = only(read_history(tmp_path), "seconds", "AMD EPYC 7763, 4 cores")
    (point,) = series.points
    assert (point.value, point.low, point.high) == (1.1, 1.0, 1.2)


def test_jobs_that_add_at_once_merge_without_a_conflict(repository):
    folder, _ = repository
    jobs = [(1, 1.0, EPYC), (1, 1.1, EPYC), (1, 1.0, XEON), (2, 1.0, EPYC)]
    for job, (number, seconds, machine) in enumerate(jobs):
        git(folder, "checkout", "-q", "-b", f"job{job}", "main")
        add(folder / "h", measured(number, seconds=[seconds], machine=machine))
        git(folder, "add", "h")
        git(folder, "commit", "-q", "-m", f"Job {job}")
    git(folder, "checkout", "-q", "main")
    for job in range(len(jobs)):
        git(folder, "merge", "-q", "-m", f"Merge {job}", f"job{job}")
    assert len(read_lines(folder / "h")) == len(jobs)


@pytest.mark.parametrize("newest", [5, 6])
def test_of_what_is_exact_the_newest_measurement_counts(tmp_path, newest):
    for payload in (5, 6):
        path = add(tmp_path, measured(1, extra={"payload_bytes": payload}))
        if payload != newest:
            older = json.loads(path.read_text()) | {"measured": "2020-01-01T00:00:00+00:00"}
            path.write_text(json.dumps(older))
    assert only(read_history(tmp_path), "payload_bytes").points[0].value == newest


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.store.os.replace", fail)
    with pytest.raises(BadInput, match="No space left"):
        add(tmp_path, measured(1))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("revision", "complaint"),
    [
        ({"commit": None}, "revision: is unknown, or of several commits"),
        ({"commit": "unversioned"}, "revision.commit: 'unversioned'"),
        ({"commit": "--all"}, "revision.commit: '--all'"),
        ({"time": None}, "revision.time: 'None'"),
        ({"time": "yesterday"}, "revision.time: 'yesterday'"),
    ],
)
def test_measurements_of_no_commit_are_refused(tmp_path, revision, complaint):
    told = {"commit": commit_of(1), "time": day(1), **revision}
    with pytest.raises(BadInput, match=complaint):
        add(tmp_path, Measurements("here", [], [Benchmark(PROBE, [1.0])], told, EPYC))


def test_the_commits_message_and_time_are_gits(repository, tmp_path):
    _, commits = repository
    add(tmp_path / "h", measured(5, commit=commits[2]))
    (revision,) = read_history(tmp_path / "h").revisions
    assert (revision.subject, revision.time[:10]) == ("Change 2", day(0)[:10])


# --- order ---------------------------------------------------------------------------------------------


def test_revisions_are_in_the_order_of_git_whatever_their_times_say(repository, tmp_path):
    _, commits = repository
    for number in (6, 1, 4, 0):
        add(tmp_path / "h", measured(20 - number, commit=commits[number]))
    assert [x.commit for x in read_history(tmp_path / "h").revisions] == [commits[n] for n in (0, 1, 4, 6)]


def test_what_git_does_not_know_goes_by_its_time(repository):
    folder, commits = repository
    known = [Revision(commit=commits[n], time=day(n)) for n in (1, 5)]
    unknown = [Revision(commit=commit_of(n), time=day(n)) for n in (0, 3, 9)]
    ordered = in_order([*unknown[::-1], *known[::-1]], Repository(folder))
    assert [x.time for x in ordered] == [day(n) for n in (0, 1, 3, 5, 9)]


def test_without_git_times_decide_and_then_commits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    revisions = [Revision(commit=commit_of(n), time=day(n // 2)) for n in (3, 2, 1, 0)]
    assert repository_of([x.commit for x in revisions], tmp_path) is None
    assert [x.commit for x in in_order(revisions)] == [commit_of(n) for n in range(4)]
    zones = [
        Revision(commit=commit_of(1), time="2026-01-01T12:00:00+02:00"),
        Revision(commit=commit_of(2), time="2026-01-01T11:00:00Z"),
    ]
    assert [x.commit for x in in_order(zones[::-1])] == [commit_of(1), commit_of(2)]


# --- series --------------------------------------------------------------------------------------------


def test_kinds_of_machines_are_never_mixed(tmp_path):
    for number in range(20):
        add(tmp_path, measured(number, seconds=[1.0], machine=EPYC))
        add(tmp_path, measured(number, seconds=[2.0], machine=XEON))
    history = read_history(tmp_path)
    assert history.machines == ["AMD EPYC 7763, 4 cores", "Intel Xeon, 4 cores"]
    assert {point.value for point in only(history, "seconds", history.machines[0]).points} == {1.0}


def test_calibrated_times_count_where_all_are(tmp_path):
    def kernels(unit):
        return {"kernels": {"seconds": {}, "unit_seconds": unit, "machine": {}}}

    for number in range(6):  # a host twice as slow every other time
        slow = 1 + number % 2
        add(tmp_path, measured(number, seconds=[3.0 * slow], extra=kernels(0.1 * slow)))
    series = only(read_history(tmp_path), "seconds")
    assert series.calibrated
    assert [point.value for point in series.points] == pytest.approx([4.5] * 6)
    add(tmp_path, measured(7, seconds=[3.0]))
    assert not only(read_history(tmp_path), "seconds").calibrated


def test_a_metric_that_appears_midway_and_what_is_missing_have_no_points(tmp_path):
    for number in range(6):
        extra = {"payload_bytes": math.nan if number == 4 else 5} if number > 2 else {}
        add(tmp_path, measured(number, extra=extra))
    assert [x.place for x in only(read_history(tmp_path), "payload_bytes").points] == [3, 5]


def test_uncommitted_changes_are_kept_apart_and_decide_nothing(tmp_path):
    for number in range(6):
        add(tmp_path, measured(number, extra={"payload_bytes": 5}))
    add(tmp_path, measured(3, extra={"payload_bytes": 9}, dirty=True))
    history = read_history(tmp_path)
    assert [x.name for x in history.revisions if x.dirty] == [f"{commit_of(3)[:7]}+"]
    series = only(history, "payload_bytes")
    assert ([x.value for x in series.points], len(series.committed)) == ([5, 5, 5, 5, 9, 5, 5], 6)
    assert worst_first(judged(history, history.series)) == []


def test_findings_say_between_which_commits_and_what_else_changed(repository, tmp_path):
    _, commits = repository
    for number in (0, 2, 3, 6):
        machine = {**EPYC, "packages": {"torch": "2.5" if number < 6 else "2.6"}}
        payload = {
            "payload_bytes": 100 if number < 3 else 101,
            "split_fingerprint": "ab" if number < 6 else "cd",
        }
        add(tmp_path / "h", measured(number, extra=payload, commit=commits[number], machine=machine))
    history = read_history(tmp_path / "h")
    worse, changed = worst_first(judged(history, history.series))
    assert (worse.verdict, worse.good.commit, worse.bad.commit) == ("worse", commits[2], commits[3])
    assert (worse.commits, worse.change, worse.software) == (1, pytest.approx(0.01), "")
    assert (changed.verdict, changed.range) == ("changed", f"{commits[3][:10]}..{commits[6][:10]}")
    assert (changed.commits, changed.software) == (3, "torch 2.5 -> 2.6")


def test_what_is_exact_is_told_to_the_last_digit(tmp_path):
    for number in range(2):
        add(tmp_path, measured(number, cells=[cell(0, {"total_flops": 12_345_678_901 + number})]))
    history = read_history(tmp_path)
    (found,) = worst_first(judged(history, history.series))
    assert "(12,345,678,901 FLOP -> 12,345,678,902 FLOP)" in found.change_text


def test_lower_accuracy_is_worse_and_less_time_is_better(tmp_path):
    for number in range(24):
        slow = 1.0 if number < 12 else 0.8
        cells = [cell(0, {"accuracy": 0.9 if number < 12 else 0.87})]
        add(tmp_path, measured(number, seconds=[slow * (1 + 0.002 * (number % 3))], cells=cells))
    history = read_history(tmp_path)
    found = {
        x.series.metric.name: (x.verdict, x.bad.commit) for x in worst_first(judged(history, history.series))
    }
    assert found == {"accuracy": ("worse", commit_of(12)), "seconds": ("better", commit_of(12))}


# --- damage --------------------------------------------------------------------------------------------


def test_joined_renamed_and_nested_files_are_read_alike(tmp_path):
    paths = [add(tmp_path, measured(number)) for number in range(3)]
    text = "\n".join(path.read_text() for path in paths)
    for path in paths:
        path.unlink()
    (tmp_path / "deeper" / "still").mkdir(parents=True)
    (tmp_path / "deeper" / "still" / "all.jsonl").write_text(text)
    assert len(read_history(tmp_path).revisions) == 3


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda text: text[:50], "line 1: is no JSON, or was cut short"),
        (lambda _: "[1]", "line 1: is no line of a history"),
        (lambda _: '{"format": "flora-bench measurements"}', "line 1: is no line of a history"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "line 1: has schema 2, this suite reads 1"),
        (lambda text: text.replace('"commit": "0', '"commit": "-'), "line 1: revision.commit"),
        (lambda text: text.replace('{"seconds": 1.0}', '{"seconds": [1]}'), "line 1: values"),
        (lambda text: text.replace('"spread": {}', f'"spread": {{"{PROBE}": {{"seconds": [1]}}}}'), "spread"),
        (lambda text: text.replace('"cells": {}', '"cells": {"a": {}}'), "line 1: cells: .*a: seed: must be"),
        (lambda text: text + text[:50], "line 2: is no JSON"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, damage, complaint):
    path = add(tmp_path, measured(1))
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    with pytest.raises(BadInput, match=complaint) as error:
        read_history(tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_not_a_number_in_a_line_is_missing(tmp_path):
    path = add(tmp_path, measured(1, extra={"payload_bytes": 5}))
    whole = path.read_text()
    for missing in ("NaN", "null", "1e999", "1" + "0" * 400):
        path.write_text(whole.replace('"seconds": 1.0', f'"seconds": {missing}'))
        assert [x.metric.name for x in read_history(tmp_path).series] == ["payload_bytes"]


def test_a_folder_that_is_not_there_or_empty_is_said(tmp_path):
    with pytest.raises(BadInput, match="is no folder"):
        read_history(tmp_path / "absent")
    with pytest.raises(BadInput, match="holds no measurements yet"):
        read_history(tmp_path)
