"""Experiments: what they leave, their verdicts, their figures; the roofline's formulas against torch's."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import store
from bench.cli import main
from bench.cli.verify import check
from bench.matrix import Matrix
from bench.perf import cells_together, crowds, footprint, jobs, many_cells, shortcuts
from bench.perf.apart import with_suite_on_path
from bench.perf.catalogue import EXPERIMENTS, chosen
from bench.perf.costs import PASSES, Sizes, Step, Work, step_cost
from bench.perf.experiment import Check, Experiment, Measured, Record, Setting, Skipped, Target
from bench.states import states
from flora import client
from flora.clip import ENCODED
from flora.errors import BadInput
from flora.features import Samples
from tests.flora import toy

CONFIG = {"embed_dim": toy.DIM, "vision_cfg": toy.VISION, "text_cfg": toy.TEXT}
QUICK = Setting(quick=True)


# --- the roofline's formulas ---------------------------------------------------------------------------


def counted(method, acceleration):
    """What torch counts in one step of a client, on 12 samples of 5 classes."""
    options = {"name": method, **toy.SIZES.get(method, {})}
    built = toy.method(options, acceleration, torch.float32)
    samples = toy.samples(12, torch.float32)
    if acceleration == "exact" and not built.trains_vision:
        samples = Samples(samples.images, samples.labels, torch.randn(12, toy.DIM), ENCODED)
    state = client.start(built, built.trainable, toy.TRAINING, None)
    batch = samples.batch(torch.arange(12))
    client.step(state, batch)  # what is kept from step to step is made in the first
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        client.step(state, batch)
    return counter.get_total_flops()


@pytest.mark.parametrize("acceleration", ["exact", "none"])
@pytest.mark.parametrize("method", PASSES)
def test_the_roofline_counts_what_torch_counts(method, acceleration):
    prompts, passed = toy.prompts(), 12
    if method == "prompt_tuning":
        prompts, passed = prompts.with_room(toy.SIZES[method]["context"]), toy.CLASSES
    rows = [row[row != 0].tolist() for row in prompts.tokens]
    exact = acceleration == "exact"
    texts = Work.tree(rows) if exact else Work.sequences(passed, toy.TEXT["context_length"])
    cost = step_cost(method, Sizes.of(CONFIG), Step(12, toy.CLASSES, texts, exact))
    assert cost.flops == pytest.approx(counted(method, acceleration), rel=0.01)


def test_bytes_of_a_step_grow_with_what_trains_and_fall_with_what_is_kept():
    sizes = Sizes.of(CONFIG)
    exact, none = (Step(12, 5, Work.sequences(12, 12), kept) for kept in (True, False))
    cost = {name: step_cost(name, sizes, exact).bytes for name in PASSES}
    assert cost["linear_probe"] < cost["flora"] < cost["vision_finetune"] < cost["full_finetune"]
    assert all(step_cost(name, sizes, none).bytes >= cost[name] for name in PASSES)


def test_a_tree_of_prompts_has_each_beginning_once():
    assert Work.tree([(1, 2, 3), (1, 2, 4), (1, 5)]) == Work(tokens=5, pairs=25, pooled=3)


# --- verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "value", "holds"),
    [
        (Target("x", at_least=50), 50, True),
        (Target("x", at_least=50), 49.9, False),
        (Target("x", at_most=1.2), 1.2, True),
        (Target("x", at_most=1.2), 1.21, False),
        (Target("x", at_least=1), float("nan"), False),
    ],
)
def test_a_target_holds_up_to_its_bound(target, value, holds):
    assert target.check({"x": value}, quick=False).holds is holds
    assert target.check({"x": value}, quick=True).holds is None


def test_margins_are_times_better_in_either_direction():
    assert Check(figure="x", value=100, at_least=50).margin == 2
    assert Check(figure="x", value=0.6, at_most=1.2).margin == 2
    assert Check(figure="x", value=-1, at_most=1).margin == float("inf")


def planted(monkeypatch, figures, targets, **more):
    """An experiment whose function gives `figures`, or raises."""

    def measure(setting):
        if isinstance(figures, Exception):
            raise figures
        return Measured(figures, samples=3, **more)

    monkeypatch.setattr("bench.perf.shortcuts.planted", measure, raising=False)
    return Experiment("planted", "What.", 1, "shortcuts", targets)


def test_an_experiment_holds_if_all_of_its_targets_do(monkeypatch):
    targets = (Target("a", at_least=1), Target("b", at_most=1))
    assert planted(monkeypatch, {"a": 2, "b": 1}, targets).run(Setting()).holds is True
    assert planted(monkeypatch, {"a": 2, "b": 2}, targets).run(Setting()).holds is False
    assert planted(monkeypatch, {"a": 2, "b": 2}, targets).run(QUICK).holds is None
    assert planted(monkeypatch, {"a": 2}, ()).run(Setting()).holds is None


def test_a_skipped_experiment_says_why_and_decides_nothing(monkeypatch):
    record = planted(monkeypatch, Skipped("no GPU"), (Target("a", at_least=1),)).run(Setting())
    assert (record.skipped, record.holds, record.checks) == ("no GPU", None, [])


def test_a_record_is_the_same_after_a_round_trip(monkeypatch, tmp_path):
    record = planted(monkeypatch, {"a": 2, "series": [1, 2]}, (Target("a", at_least=1),)).run(Setting())
    path = record.write(tmp_path)
    assert Record.read(path) == record
    stored = json.loads(path.read_text())
    assert stored["schema"] == 1
    assert stored["command"] == "flora-bench perf planted"
    assert stored["checks"] == [{"figure": "a", "value": 2, "at_least": 1, "at_most": None, "holds": True}]
    assert stored["environment"]["packages"]["torch"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["{}", "nonsense", '{"schema": 2}'])
def test_a_file_that_is_no_experiment_is_refused_by_name(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=r"x\.json"):
        Record.read(path)


# --- the experiments, at sizes that decide nothing -----------------------------------------------------


@pytest.fixture
def here(monkeypatch):
    """Cells that would run in a process of their own run in this one."""

    def run(values):
        return jobs.Apart(jobs.run(values), 1.0)

    for module in ("shortcuts", "footprint", "crowds"):
        monkeypatch.setattr(f"bench.perf.{module}.run_apart", run)


# Of two measurements: at such sizes noise decides their sign.
DIFFERENCES = (
    "growth_over_rounds_megabytes",
    "growth_with_clients_over_model",
    "large_cost",
    "false_alarms",
    "false_steps_in_1000_constant_series",
    "memory_over_budget",
    "tiny_cost",
    "tiny_extra_ms_per_client",
)


# asks for a GPU; for minutes; those of the gate have tests of their own (tests/bench/regress)
APART = ("gpu", "roofline", "slowdowns_idle", "slowdowns_busy", "same_idle", "same_busy")
SLOW = ("planted_accuracy",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in EXPERIMENTS
        if name not in APART
    ],
)
def test_every_experiment_runs_and_gives_what_its_targets_ask_for(here, name):
    experiment = EXPERIMENTS[name]
    record = experiment.run(QUICK)
    assert record.quick
    assert [check.figure for check in record.checks] == [target.figure for target in experiment.targets]
    assert all(math.isfinite(check.value) and check.holds is None for check in record.checks)
    assert all(check.value > 0 for check in record.checks if check.figure not in DIFFERENCES)
    assert json.loads(record.model_dump_json())["figures"] == record.figures


def a_result(seconds=1.0, peak=0, start=0, seen=1, **config):
    """A cell's result with rounds of training of so many seconds, after one that warms up."""
    rounds = [
        {"seconds": {"train": 0.75 * wall, "evaluate": 0.25 * wall}, "samples_seen": seen}
        for wall in (0.0, 100.0, seconds, seconds)
    ]
    summary = {
        "round_seconds": seconds, "total_seconds": seconds, "features_seconds": 6.0,
        "peak_memory_bytes": peak, "resident_at_start_bytes": start, "peak_gpu_memory_bytes": None,
        "clients_together": 1, "payload_bytes": 8,
    }  # fmt: skip
    return {"rounds": rounds, "summary": summary, "config": config}


def test_grouped_is_held_against_one_by_one():
    together = a_result(2.0, peak=900, start=400)
    alone = a_result(8.0, peak=500, start=300)
    together["rounds"][2]["seconds"]["rest"] = 50.0  # no part of a round's cost
    found = crowds._compared(together, alone)
    assert (found["speedup"], found["grouped_round_seconds"]) == (4.0, 2.0)
    less = {"grouped_memory_bytes": 100, "one_by_one_memory_bytes": 90}
    assert crowds._extra_memory({"flora": found, "other": less}) == 500 - 200
    assert crowds._largest_rise([4.0, 2.0, 1.0, 1.5]) == 1.5
    assert crowds._largest_rise([4.0, 2.0, 1.0]) == 0.5


def test_growth_with_clients_leaves_out_what_was_there_before():
    few, many = a_result(peak=500, start=300), a_result(peak=900, start=400)
    assert footprint._growth(few, many, model_bytes=1200) == 0.25


def test_shortcuts_divide_the_unaccelerated_by_the_accelerated(monkeypatch):
    walls = {"exact": 2.0, "none": 120.0}
    passes = iter([99.0, 4.0, 5.0, 50.0])  # the first is cold and left out
    monkeypatch.setattr(shortcuts, "warm_up", lambda setting: None)
    monkeypatch.setattr(shortcuts, "_forward_pass", lambda values: lambda: next(passes))
    monkeypatch.setattr(
        shortcuts, "run", lambda values, cache=None: a_result(walls[values.get("acceleration", "exact")])
    )
    figures = shortcuts.shortcuts(Setting()).figures
    assert (figures["round_speedup"], figures["features_over_forward"]) == (60.0, 6.0 / 5.0)
    assert next(passes, None) is None


def test_headline_divides_full_fine_tuning_by_flora(monkeypatch):
    results = {
        ("flora", "exact"): a_result(2.0, peak=100),
        ("full_finetune", "exact"): a_result(80.0, peak=300),
        ("flora", "none"): a_result(10.0, peak=200),
        ("full_finetune", "none"): a_result(90.0, peak=400),
    }
    monkeypatch.setattr(
        shortcuts, "run_apart", lambda v: jobs.Apart(results[v["method"], v["acceleration"]], 1.0)
    )
    figures = shortcuts.headline(Setting()).figures
    assert (figures["round_speedup"], figures["memory_ratio"]) == (40.0, 3.0)
    assert (figures["none_round_speedup"], figures["none_memory_ratio"]) == (9.0, 2.0)


def test_fifty_rounds_extrapolate_from_rounds_and_not_from_start_up(monkeypatch):
    plain = a_result(4.0)
    plain["rounds"] = plain["rounds"][1:]  # round 0, then two of 4 s
    apart = {"exact": jobs.Apart({}, 20.0), "none": jobs.Apart(plain, 30.0)}
    monkeypatch.setattr(shortcuts, "run_apart", lambda v: apart[v.get("acceleration", "exact")])
    measured = shortcuts.fifty_rounds(Setting())
    assert measured.extrapolated
    assert measured.figures["none_total_seconds"] == 30 + 45 * 4
    assert measured.figures["total_speedup"] == 210 / 20


def test_cells_that_were_not_run_lie_on_the_line_through_those_that_were():
    def cell(seen, seconds, acceleration):
        return a_result(seconds, seen=seen, method={"name": "flora"}, acceleration=acceleration, shots=seen)

    none = [cell(1, 10.0, "none"), cell(5, 50.0, "none")]
    exact = [cell(seen, 1.0, "exact") for seen in (1, 2, 5)]
    assert cells_together._predicted(exact, none) == [10.0, 20.0, 50.0]


def test_overhead_is_what_neither_rounds_nor_features_took(monkeypatch):
    seconds = {"send": 1.0, "train": 2.0, "count": 5.0, "evaluate": 1.0}
    result = {"rounds": [{"seconds": seconds}], "summary": {"features_seconds": 1.0, "total_seconds": 9.0}}
    clock = iter([100.0, 130.0])
    monkeypatch.setattr(many_cells, "_run", lambda matrix, folder: [result] * len(matrix))
    monkeypatch.setattr(many_cells.time, "perf_counter", lambda: next(clock))
    figures = many_cells.cells(QUICK).figures
    assert (figures["cells"], figures["wall_seconds_per_cell"]) == (3, 10.0)
    assert figures["overhead_seconds_per_cell"] == 10.0 - 4.0 - 1.0
    assert figures["outside_of_cells_seconds_per_cell"] == 1.0


def test_stored_results_stand_for_their_cells(tmp_path):
    matrix = Matrix(**many_cells._fields(QUICK, seed=[0, 1, 2])).cells()
    many_cells._run(matrix[:1], tmp_path / "one")
    results = tmp_path / "results"
    many_cells._store(matrix, tmp_path / "one" / "results", results)
    assert [state.kind for state in states(matrix, results)] == ["done"] * 3
    assert set(store.load_results(results)["config_hash"]) == {cell.hash for cell in matrix}
    assert all(not list(check(path, results)) for path in store.run_files(results))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_experiment_is_skipped_with_a_reason():
    assert "no CUDA device" in EXPERIMENTS["gpu"].run(Setting()).skipped


# --- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def run_cli(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["flora-bench", "perf", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run


def test_names_choose_experiments_in_their_own_order():
    assert [e.name for e in chosen(["loop", "shortcuts"])] == ["shortcuts", "loop"]
    assert [e.name for e in chosen([])] == list(EXPERIMENTS)


def test_an_unknown_name_is_one_line_and_exit_2(run_cli, tmp_path):
    code, out, err = run_cli("headlin", "--out", str(tmp_path))
    assert (code, out) == (2, "")
    assert err == "flora-bench: perf: there is no experiment 'headlin'; did you mean 'headline'?\n"


@pytest.mark.parametrize("name", ["figures", "list"])
def test_what_is_no_experiment_goes_alone(run_cli, tmp_path, name):
    code, out, err = run_cli("shortcuts", name, "--out", str(tmp_path))
    assert (code, out) == (2, "")
    assert err == f"flora-bench: perf: `{name}` goes alone; leave the other names out\n"


@pytest.mark.parametrize(
    ("flags", "folder"), [(["--quick"], "results/performance-quick"), ([], "results/reference/performance")]
)
def test_quick_runs_do_not_go_where_those_that_decide_are(run_cli, monkeypatch, tmp_path, flags, folder):
    places = []

    def run_apart(experiment, setting, out):
        places.append(out)
        return with_verdict(experiment.name, None)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.perf.apart.run_apart", run_apart)
    assert run_cli("loop", *flags)[0] == 0
    assert places == [Path(folder)]


def test_list_names_every_experiment_with_its_targets(run_cli):
    code, out, _ = run_cli("list")
    assert code == 0
    assert all(name in out for name in EXPERIMENTS)
    assert "round_speedup at least 34.72" in out
    assert json.loads(run_cli("list", "--json")[1]).keys() == EXPERIMENTS.keys()


def with_verdict(name, holds, **figures):
    check = {"figure": "x", "value": 2.0, "at_least": 1.0, "holds": holds}
    environment = {"cpu": "Made-up CPU", "packages": {"torch": "2"}}
    return Record(
        name=name, what="What.", command="c", environment=environment, checks=[check], holds=holds,
        figures={"x": 2.0, **figures}, samples=1,
    )  # fmt: skip


@pytest.mark.parametrize(("verdicts", "expected"), [((True, True), 0), ((True, False), 1), ((None, True), 0)])
def test_the_exit_code_says_whether_all_hold(run_cli, monkeypatch, tmp_path, verdicts, expected):
    verdict = dict(zip(("shortcuts", "loop"), verdicts, strict=True))
    monkeypatch.setattr(
        "bench.perf.apart.run_apart", lambda e, setting, out: with_verdict(e.name, verdict[e.name])
    )
    code, out, err = run_cli("shortcuts", "loop", "--out", str(tmp_path))
    assert code == expected
    assert [line.partition(":")[0] for line in out.splitlines()] == ["shortcuts", "loop"]
    assert "x 2 (at least 1)" in out
    assert "[2/2] loop" in err


def test_an_experiment_that_breaks_fails_the_command_and_not_the_others(run_cli, monkeypatch, tmp_path):
    from bench.perf.apart import ExperimentFailed

    def run_apart(experiment, setting, out):
        if experiment.name == "shortcuts":
            raise ExperimentFailed("shortcuts: ended with 1")
        return with_verdict(experiment.name, True)

    monkeypatch.setattr("bench.perf.apart.run_apart", run_apart)
    code, out, err = run_cli("shortcuts", "loop", "--out", str(tmp_path))
    assert code == 1
    assert out.startswith("loop: holds")
    assert "flora-bench: shortcuts: ended with 1" in err


def test_the_command_runs_an_experiment_in_a_process_with_the_threads_it_asks_for(tmp_path):
    command = [sys.executable, "-m", "bench", "perf", "thousand_probes", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        command, env=with_suite_on_path(), capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    record = Record.read(tmp_path / "thousand_probes.json")
    assert record.environment["torch_threads"] == record.figures["threads"] == 1
    assert done.stdout.startswith("thousand_probes: decides nothing: ms_per_client")
    assert "linear_probe" in done.stderr


# --- figures and the page ------------------------------------------------------------------------------

PHASES = {"send": 0.1, "train": 1.0, "receive": 0.1, "aggregate": 0.1, "evaluate": 0.5}
RUNS = [
    f"{method}_{acceleration}" for method in ("flora", "full_finetune") for acceleration in ("exact", "none")
]
COSTS = ("exact_ms_per_sample", *(
    f"{acceleration}_{quantity}_per_sample"
    for acceleration in ("exact", "none")
    for quantity in ("megaflops", "kilobytes", "floor_ms")
))  # fmt: skip
FIGURES = {
    "headline": {"phase_seconds": dict.fromkeys(RUNS, PHASES), "peak_memory_bytes": dict.fromkeys(RUNS, 1e9)},
    "memory": {"resident_bytes_by_round": [4e8, 5e8, 5e8]},
    "grouped": {
        "clients": [10, 100],
        "grouped_ms_per_sample": [1.0, 0.5],
        "one_by_one_ms_per_sample": [4.0, 4.0],
    },
    "scaling": {"axes": {"clients": {"values": [2, 4], "seconds": {"flora": [0.1, 0.2]}}}},
    "roofline": {"methods": {name: dict.fromkeys(COSTS, 3.0) for name in PASSES}},
}


@pytest.fixture
def stored(tmp_path):
    folder = tmp_path / "stored"
    folder.mkdir()
    for name, figures in FIGURES.items():
        with_verdict(name, name != "memory", **figures).write(folder)
    skipped = with_verdict("gpu", None).model_copy(update={"checks": [], "figures": {}, "skipped": "no GPU"})
    skipped.write(folder)
    return folder


def keep_only(folder, name):
    for path in folder.iterdir():
        if path.stem != name:
            path.unlink()


def test_figures_and_page_are_made_from_the_files_alone(run_cli, stored, tmp_path):
    out = tmp_path / "drawn"
    code, printed, _ = run_cli("figures", "--from", str(stored), "--out", str(out))
    assert (code, printed) == (0, f"summary: {out / 'summary.md'}\n")
    stems = {"targets", "rounds", "memory", "clients", "scaling", "roofline"}
    assert {path.name for path in out.iterdir()} == {
        "summary.md", *(f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf"))
    }  # fmt: skip
    page = (out / "summary.md").read_text()
    assert all(f"({stem}.png)" in page for stem in stems)
    assert "| memory | x | 2.00 | at least 1 | **falls short** |" in page
    assert "skipped: no GPU" in page
    assert "Made-up CPU" in page
    assert "| FLoRA | 3.00 |" in page


def test_figures_are_the_same_bytes_each_time(run_cli, stored, tmp_path):
    keep_only(stored, "grouped")
    first, second = tmp_path / "1", tmp_path / "2"
    for out in (first, second):
        run_cli("figures", "--from", str(stored), "--out", str(out))
    assert all(path.read_bytes() == (second / path.name).read_bytes() for path in first.iterdir())


def test_figures_of_what_is_not_there_are_left_out(run_cli, stored, tmp_path):
    keep_only(stored, "grouped")
    run_cli("figures", "--from", str(stored), "--out", str(tmp_path / "drawn"))
    drawn = {path.stem for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {"summary", "targets", "clients"}


def test_figures_of_an_empty_folder_are_refused(run_cli, tmp_path):
    code, _, err = run_cli("figures", "--from", str(tmp_path))
    assert code == 2
    assert err.startswith("flora-bench: --from:")
