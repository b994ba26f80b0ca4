"""Two measurements set against each other: what is paired, and what is said of each metric."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from bench.regress.compare import compare_measurements
from bench.regress.gate import Gate
from bench.regress.judgement import Comparison, Judgement, Verdict
from bench.regress.measurements import Benchmark, CellMeasures, Measurements, read_measurements
from flora.errors import BadInput

ROOT = Path(__file__).parents[3]
TODAY = date(2026, 11, 21)
METRICS = {
    "split_fingerprint": "a" * 64,
    "data_fingerprint": "b" * 64,
    "model_fingerprint": "c" * 64,
    "broken_invariants": 0,
    "trainable_parameters": 33024,
    "payload_bytes": 132400,
    "bytes_up": 13240000,
    "train_flops": 2698864640,
    "flops.train": 2698864640,
    "peak_tensor_bytes": 15660264,
    "peak_memory_bytes": 1_000_000_000,
    "resident_at_start_bytes": 700_000_000,
    "accuracy": 0.8,
    "train_seconds": 0.33,
}
KERNELS = {
    "seconds": {"product": 0.001, "copy": 0.001, "launch": 0.001},
    "unit_seconds": 0.001,
    "machine": {"cpu": "a processor", "cores": 4, "torch": "2.4", "threads": 1, "device": "cpu"},
}
PROBE = "tests/perf/test_steps.py::test_local_step[flora]"


def cell(seed: int = 0, method: str = "flora", config: dict | None = None, **changes) -> CellMeasures:
    whole = {
        "task": "digits",
        "method": {"name": method, "rank": 8},
        "split": {"name": "dirichlet", "shots": None, "beta": 0.1},
        "seed": dict.fromkeys(("split", "participation", "init", "order"), seed),
        "compute": {"threads": None},
        "device": "cpu",
        **(config or {}),
    }
    fields = {name: changes.pop(name) for name in list(changes) if name in CellMeasures.__dataclass_fields__}
    curves = {"losses": [None, 0.7, 0.5], "accuracies": [0.5, 0.7, 0.8], "test_images": 450}
    return CellMeasures(whole, {**METRICS, **changes}, **{**curves, **fields})


def side(*cells: CellMeasures, benchmarks: tuple[Benchmark, ...] = (), **more) -> Measurements:
    return Measurements("a side", cells, benchmarks, **more)


def compared(base, new, gate: Gate | None = None) -> Comparison:
    sides = [side(x) if isinstance(x, CellMeasures) else x for x in (base, new)]
    return compare_measurements(*sides, gate or Gate(), TODAY)


def of(comparison: Comparison, metric: str) -> Judgement:
    (found,) = [x for x in comparison.judgements if x.metric.name == metric]
    return found


def not_the_same(comparison: Comparison) -> dict[str, Verdict]:
    quiet = (Verdict.SAME, Verdict.UNJUDGED)
    return {x.metric.name: x.verdict for x in comparison.judgements if x.verdict not in quiet}


def budget(**limits: float) -> Gate:
    return Gate.read({"metrics": {"payload_bytes": limits}}, "test")


# --- planted growth ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "grown"),
    [
        ("payload_bytes", 132401),
        ("trainable_parameters", 33025),
        ("peak_tensor_bytes", round(1.02 * 15660264)),
        ("train_flops", round(1.01 * 2698864640)),
        ("flops.train", 2698864641),
        ("peak_memory_bytes", 1_020_000_000),
        ("broken_invariants", 1),
    ],
)
def test_growth_is_found_in_one_run_and_nothing_else_is_flagged(metric, grown):
    assert not_the_same(compared(cell(), cell(**{metric: grown}))) == {metric: Verdict.WORSE}
    assert not_the_same(compared(cell(**{metric: grown}), cell())) == {metric: Verdict.BETTER}


@pytest.mark.parametrize("part", ["split", "data", "model"])
def test_another_split_images_or_weights_are_a_change_and_what_rests_on_them_is_not_judged(part):
    comparison = compared(
        cell(), cell(**{f"{part}_fingerprint": "d" * 64, "accuracy": 0.1, "losses": [9, 9, 9]})
    )
    assert not_the_same(comparison) == {f"{part}_fingerprint": Verdict.CHANGED}
    rests = {x.metric.name for x in comparison.judgements if x.note.startswith("not like with like")}
    work = {"train_flops", "flops.train", "peak_tensor_bytes", "peak_memory_bytes", "train_seconds"}
    assert rests == {"accuracy", "learning"} | (set() if part == "model" else work)


def real_runs() -> Measurements:
    every = read_measurements(ROOT / "results/reference/quick")
    return replace(every, cells=[x for x in every.cells if x.config["method"]["name"] == "flora"])


def test_a_real_run_is_the_same_as_itself():
    runs = real_runs()
    comparison = compared(runs, runs)
    assert not_the_same(comparison) == {}
    assert comparison.count(Verdict.SAME) > 100
    assert not comparison.fails
    assert not comparison.only_base
    assert not comparison.only_new


def test_one_byte_is_found_among_real_runs_of_several_seeds():
    runs = real_runs()
    first = runs.cells[0]
    grown = replace(first, metrics={**first.metrics, "bytes_up": first.metrics["bytes_up"] + 1})
    comparison = compared(runs, replace(runs, cells=[grown, *runs.cells[1:]]))
    assert not_the_same(comparison) == {"bytes_up": Verdict.WORSE}
    (found,) = [x for x in comparison.judgements if x.verdict.fails]
    assert found.subject.endswith("2 seeds")
    assert found.new - found.base == 1
    assert found.note.endswith("alone")


# --- values --------------------------------------------------------------------------------------------


def test_memory_may_grow_by_a_hundredth():
    found = of(compared(cell(), cell(peak_memory_bytes=1_010_000_001)), "peak_memory_bytes")
    assert (found.verdict, found.note) == (Verdict.WORSE, "1 % allowed")
    assert (
        of(compared(cell(), cell(peak_memory_bytes=1_009_999_999)), "peak_memory_bytes").verdict
        is Verdict.SAME
    )


def test_memory_of_processes_that_were_not_alike_is_not_judged():
    grown = {"peak_memory_bytes": 2_000_000_000}
    unlike = of(compared(cell(), cell(resident_at_start_bytes=710_000_000, **grown)), "peak_memory_bytes")
    unknown = of(compared(cell(), cell(resident_at_start_bytes=None, **grown)), "peak_memory_bytes")
    assert (unlike.verdict, unknown.verdict) == (Verdict.UNJUDGED, Verdict.UNJUDGED)
    assert "were not alike" in unlike.note


def test_an_exact_metric_that_new_lacks_is_lost_and_one_that_base_lacks_is_not_judged():
    assert of(compared(cell(), cell(payload_bytes=None)), "payload_bytes").verdict is Verdict.LOST
    lacking = of(compared(cell(payload_bytes=None), cell()), "payload_bytes")
    assert (lacking.verdict, lacking.note) == (Verdict.UNJUDGED, "BASE lacks it")


def test_nan_is_missing():
    assert of(compared(cell(), cell(payload_bytes=float("nan"))), "payload_bytes").verdict is Verdict.LOST
    assert of(compared(cell(payload_bytes=float("inf")), cell()), "payload_bytes").verdict is Verdict.UNJUDGED


@pytest.mark.parametrize("huge", [10**400, -(10**400)])
def test_a_number_beyond_all_floats_is_missing(huge):
    assert of(compared(cell(), cell(payload_bytes=huge)), "payload_bytes").verdict is Verdict.LOST


def test_a_ratio_beyond_all_floats_is_none():
    found = of(compared(cell(payload_bytes=1e-300), cell(payload_bytes=1e300)), "payload_bytes")
    assert (found.verdict, found.change) == (Verdict.WORSE, None)


def test_memory_that_new_lacks_is_said_to_be_lacking():
    new = cell(peak_memory_bytes=None, resident_at_start_bytes=None)
    found = of(compared(cell(), new), "peak_memory_bytes")
    assert (found.verdict, found.note) == (Verdict.UNJUDGED, "NEW lacks it")


def test_what_is_called_as_no_metric_is_named():
    (caveat,) = compared(cell(payload_size=5), cell()).caveats
    assert caveat == "not compared, as no metric is called so: payload_size"


def test_what_neither_side_measured_is_not_mentioned():
    comparison = compared(cell(payload_bytes=None), cell(payload_bytes=None))
    assert "payload_bytes" not in {x.metric.name for x in comparison.judgements}


def test_growth_from_zero_is_worse_without_a_ratio():
    found = of(compared(cell(bytes_up=0), cell(bytes_up=1)), "bytes_up")
    assert (found.verdict, found.change) == (Verdict.WORSE, None)
    assert of(compared(cell(bytes_up=0), cell(bytes_up=0)), "bytes_up").verdict is Verdict.SAME


def test_a_broken_invariant_is_named():
    new = cell(broken_invariants=1, broken="weights sum to one: 0.9")
    assert of(compared(cell(), new), "broken_invariants").note == "weights sum to one: 0.9"


def test_a_budget_allows_so_much_and_no_more():
    gate = budget(absolute=8)
    within, beyond = (
        of(compared(cell(), cell(payload_bytes=132400 + n), gate), "payload_bytes") for n in (8, 9)
    )
    assert (within.verdict, beyond.verdict) == (Verdict.SAME, Verdict.WORSE)
    assert within.note == beyond.note == "8 B allowed"


def test_a_cap_fails_even_where_base_is_as_bad():
    gate = budget(at_most=100_000)
    found = of(compared(cell(), cell(), gate), "payload_bytes")
    assert (found.verdict, found.note) == (Verdict.WORSE, "above the budget of 100,000 B")


def test_a_cap_holds_for_what_base_lacks_and_what_cannot_be_compared():
    gate = Gate.read(
        {"metrics": {"peak_memory_bytes": {"at_most": 1e9}, "payload_bytes": {"at_most": 1e5}}}, "test"
    )
    new = cell(resident_at_start_bytes=None, peak_memory_bytes=1_000_000_001, payload_bytes=1)
    assert of(compared(cell(), new, gate), "peak_memory_bytes").verdict is Verdict.WORSE
    added = compared(side(cell()), side(cell(payload_bytes=1), cell(method="bitfit")), gate)
    failing = [(x.subject, x.metric.name) for x in added.judgements if x.verdict.fails]
    assert failing == [("digits, bitfit, dirichlet, seed 0", "payload_bytes")]


def test_a_cap_holds_in_a_seed_that_cannot_be_compared_beside_others_that_can():
    gate = Gate.read({"metrics": {"peak_memory_bytes": {"at_most": 1.5e9}}}, "test")
    grown = cell(1, resident_at_start_bytes=1_400_000_000, peak_memory_bytes=1_600_000_000)
    found = of(compared(side(cell(0), cell(1)), side(cell(0), grown), gate), "peak_memory_bytes")
    assert (found.verdict, found.new) == (Verdict.WORSE, 1_600_000_000)


def test_what_is_accepted_does_not_fail():
    entry = {"metric": "payload_bytes", "where": ["method=flora"], "reason": "r", "until": date(2026, 12, 31)}
    gate = Gate.read({"accepted": [entry]}, "test")
    comparison = compared(cell(), cell(payload_bytes=132401), gate)
    assert not_the_same(comparison) == {"payload_bytes": Verdict.ACCEPTED}
    assert not comparison.fails
    later = compare_measurements(side(cell()), side(cell(payload_bytes=132401)), gate, date(2027, 1, 1))
    assert not_the_same(later) == {"payload_bytes": Verdict.EXPIRED}
    assert later.fails


# --- seeds ---------------------------------------------------------------------------------------------


def test_of_several_seeds_the_one_that_differs_most_is_given():
    base = side(*(cell(seed) for seed in range(3)))
    new = side(*(cell(seed, payload_bytes=132400 + n) for seed, n in enumerate((1, 5, 0))))
    found = of(compared(base, new), "payload_bytes")
    assert (found.subject, found.new) == ("digits, flora, dirichlet, 3 seeds", 132405)
    assert found.note == "in 2 of 3 seeds, most in 1"


def test_a_seed_that_got_worse_counts_more_than_others_that_got_better():
    base = side(cell(0), cell(1))
    new = side(cell(0, payload_bytes=1), cell(1, payload_bytes=132401))
    found = of(compared(base, new), "payload_bytes")
    assert (found.verdict, found.note) == (Verdict.WORSE, "in seed 1 alone")


def test_accuracy_is_judged_over_seeds():
    base = side(*(cell(seed, accuracy=0.80 + seed / 1000) for seed in range(5)))
    new = side(*(cell(seed, accuracy=0.75 + seed / 900) for seed in range(5)))
    assert of(compared(base, new), "accuracy").verdict is Verdict.WORSE
    gate = Gate.read({"metrics": {"accuracy": {"absolute": 0.06}}}, "test")
    assert of(compared(base, new, gate), "accuracy").verdict is Verdict.SAME


def test_an_image_less_in_most_seeds_is_no_alarm():
    def accuracies(*fewer: int) -> Measurements:
        return side(*(cell(seed, accuracy=(360 - n) / 450) for seed, n in enumerate(fewer)))

    base = accuracies(0, 0, 0, 0, 0)
    assert of(compared(base, accuracies(1, 1, 1, 0, 1)), "accuracy").verdict is Verdict.SAME
    assert of(compared(base, accuracies(9, 9, 9, 9, 9)), "accuracy").verdict is Verdict.WORSE


def test_accuracies_that_did_not_change_do_not_weaken_the_judgement_of_one_that_did():
    lower = (0.01, 0.02, 0.015, 0.012)

    def cells(drop: float) -> list[CellMeasures]:
        others = [cell(seed, method=f"method {n}") for n in range(30) for seed in range(4)]
        return [*others, *(cell(seed, accuracy=0.8 - drop * x) for seed, x in enumerate(lower))]

    found = not_the_same(compared(side(*cells(0)), side(*cells(1))))
    assert found == {"accuracy": Verdict.WORSE}


def test_an_accuracy_that_new_lacks_in_any_seed_is_lost():
    base = side(*(cell(seed, new_accuracy=0.5 + seed / 100) for seed in range(5)))
    new = side(*(cell(seed, new_accuracy=None if seed == 3 else 0.5 + seed / 100) for seed in range(5)))
    found = of(compared(base, new), "new_accuracy")
    assert (found.verdict, found.note) == (Verdict.LOST, "NEW lacks it in 1 of 5 seeds")
    assert of(compared(new, base), "new_accuracy").verdict is Verdict.SAME


def test_cells_of_one_name_are_judged_each_by_its_own_accuracies():
    # named alike, though JSON tells them apart
    def cells(drop: float) -> Measurements:
        changed = [
            cell(seed, accuracy=0.8 - drop * (1 + seed / 10), config={"rounds": 5}) for seed in range(4)
        ]
        other = [cell(seed, config={"rounds": "5"}) for seed in range(4)]
        return side(*changed, *other)

    assert [
        x.verdict for x in compared(cells(0), cells(0.1)).judgements if x.metric.name == "accuracy"
    ].count(Verdict.WORSE) == 1


def test_losses_that_differ_beyond_rounding_are_a_change():
    assert not_the_same(compared(cell(), cell(losses=[None, 0.7, 0.4]))) == {"learning": Verdict.CHANGED}
    assert not_the_same(compared(cell(), cell(losses=[None, 0.7, 0.5 + 1e-9]))) == {}


# --- pairing -------------------------------------------------------------------------------------------


def test_what_overlaps_is_compared_and_the_rest_is_named():
    base = side(cell(0), cell(1), cell(0, "bitfit"))
    new = side(cell(1), cell(2), cell(3), cell(0, "linear_probe"))
    comparison = compared(base, new)
    assert {x.subject for x in comparison.judgements} == {"digits, flora, dirichlet, seed 1"}
    assert comparison.only_base == ["digits, bitfit, dirichlet, seed 0", "digits, flora, dirichlet, seed 0"]
    assert comparison.only_new == [
        "digits, flora, dirichlet, 2 seeds",
        "digits, linear_probe, dirichlet, seed 0",
    ]


def test_nothing_in_common_is_bad_input_that_says_what_there_is():
    with pytest.raises(
        BadInput, match=r"no cell and no benchmark in common: the first has digits, flora, dirichlet"
    ):
        compared(cell(), cell(method="bitfit"))
    with pytest.raises(BadInput, match=r"the second tests/perf"):
        compared(side(cell()), side(benchmarks=(Benchmark(PROBE, [1.0]),)))


@pytest.mark.parametrize("nothing", [{}, {"task": "digits"}, {"method": {"name": "flora"}}])
def test_what_has_no_task_or_no_method_is_no_cell_of_another(nothing):
    with pytest.raises(BadInput, match="in common"):
        compared(cell(), CellMeasures(nothing, METRICS))


def test_a_field_that_one_side_does_not_know_is_left_out_and_named():
    comparison = compared(
        cell(), cell(config={"codec": {"name": "fp32"}, "method": {"name": "flora", "rank": 8, "a": 1}})
    )
    assert comparison.count(Verdict.SAME)
    (caveat,) = comparison.caveats
    assert caveat == "NEW alone knows codec fp32; method.a 1: cells were paired without"


def test_an_option_of_another_method_is_no_field_that_one_side_does_not_know():
    linear = {"method": {"name": "linear_probe"}}
    comparison = compared(side(cell(), cell(config=linear)), side(cell()))
    assert comparison.caveats == []
    assert comparison.only_base == ["digits, linear_probe, dirichlet, seed 0"]


def test_an_option_is_known_of_the_method_that_has_it_and_not_of_another():
    of_another = cell(config={"method": {"name": "bitfit", "alpha": 1}})
    comparison = compared(
        side(cell(config={"method": {"name": "flora", "alpha": 1}}), of_another),
        side(cell(config={"method": {"name": "flora"}}), of_another),
    )
    assert comparison.only_base == []
    assert comparison.caveats == ["BASE alone knows method.alpha 1: cells were paired without"]


def test_a_split_that_is_a_name_alone_is_the_split_of_that_name():
    early = cell(config={"split": "iid"})
    assert compared(early, cell(config={"split": {"name": "iid"}})).count(Verdict.SAME)
    with pytest.raises(BadInput, match="in common"):
        compared(early, cell())


def test_cells_that_one_side_cannot_tell_apart_are_not_compared():
    methods = [{"method": {"name": "flora", "rank": 8, "alpha": x}} for x in (1, 2)]
    base = side(*(cell(config=method) for method in methods), cell(method="bitfit"))
    new = side(cell(config={"method": {"name": "flora", "rank": 8}}), cell(method="bitfit"))
    comparison = compared(base, new)
    assert {x.subject for x in comparison.judgements} == {"digits, bitfit, dirichlet, seed 0"}
    assert comparison.caveats == [
        "not compared, as they differ in nothing that both sides know: digits, flora, dirichlet"
    ]
    named = {f"digits, flora, dirichlet, {x}, seed 0" for x in ("method.alpha 1", "method.alpha 2")}
    assert set(comparison.only_base) == named, "a gate that asks for all of them must fail"
    assert comparison.only_new == ["digits, flora, dirichlet, seed 0"]


def test_cells_of_one_name_are_told_apart_by_what_they_differ_in():
    cells = side(*(cell(config={"method": {"name": "flora", "rank": rank}}) for rank in (4, 8)))
    subjects = {x.subject for x in compared(cells, cells).judgements}
    assert subjects == {f"digits, flora, dirichlet, method.rank {rank}, seed 0" for rank in (4, 8)}


def test_a_cell_is_told_by_what_it_has_other_than_most_of_its_name_and_by_no_more():
    adam, sgd = {"name": "adam", "lr": 0.1, "eps": 1e-6}, {"name": "sgd", "lr": 0.1, "momentum": 0}
    wide = {"name": "flora", "rank": 8, "places": ["text.out", "text.head"]}
    unlike = {
        "": {},
        "optimizer sgd, ": {"optimizer": sgd},
        "method.places text.out+text.head, ": {"method": wide},
        "rounds 9, ": {"rounds": 9},
        "extra a, ": {"extra": "a"},
        "codec int8, codec.direction up, ": {"codec": {"name": "int8", "direction": "up"}},
        "codec int8, codec.direction both, ": {"codec": {"name": "int8", "direction": "both"}},
    }
    usual = {
        "optimizer": adam,
        "method": {"name": "flora", "rank": 8, "places": ["text.out"]},
        "rounds": 5,
        "codec": {"name": "fp32"},
    }
    cells = [cell(config={**usual, **config}) for config in unlike.values()]
    early = cell(config={name: x for name, x in usual.items() if name != "rounds"})
    unranked = cell(config={**usual, "method": {"name": "flora", "places": ["text.out"]}})
    sides = side(*cells, early, unranked)
    assert {x.subject for x in compared(sides, sides).judgements} == {
        f"digits, flora, dirichlet, {name}seed 0" for name in (*unlike, "no rounds, ", "no method.rank, ")
    }


def test_a_field_that_one_side_alone_knows_is_in_no_name():
    newer = [cell(config={"codec": {"name": "fp32"}, "rounds": n}) for n in (5, 6, 7)]
    comparison = compared(side(*(cell(config={"rounds": n}) for n in (4, 5))), side(*newer))
    assert comparison.only_base == ["digits, flora, dirichlet, rounds 4, seed 0"]
    assert comparison.only_new[0] == "digits, flora, dirichlet, rounds 6, seed 0"


def test_the_machines_settings_are_a_caveat_and_not_another_cell():
    comparison = compared(
        cell(clients_together=10), cell(clients_together=1, config={"compute": {"threads": 2}})
    )
    assert comparison.caveats == [
        "threads differ in 1 of 1 runs: default -> 2",
        "clients trained together differ in 1 of 1 runs: 10 -> 1",
    ]


def test_what_one_side_does_not_know_is_no_difference():
    early = cell(config={"compute": {}})
    later = cell(clients_together=4, config={"compute": {"threads": 2}})
    (caveat,) = compared(early, later).caveats
    assert caveat == "NEW alone knows compute.threads 2: cells were paired without"
    assert compared(cell(clients_together=4), cell(clients_together=None)).caveats == []


def test_runs_of_two_devices_are_paired_by_device_where_both_sides_have_them():
    cells = side(*(cell(config={"device": device}) for device in ("cpu", "cuda")))
    comparison = compared(cells, cells)
    assert len({x.subject for x in comparison.judgements}) == 2
    assert comparison.caveats == []


def test_work_on_another_device_is_not_judged():
    comparison = compared(cell(), cell(config={"device": "cuda"}, train_flops=1, losses=[9, 9, 9]))
    assert not_the_same(comparison) == {}
    assert of(comparison, "train_flops").note == "not like with like: cpu beside cuda"
    assert of(comparison, "payload_bytes").verdict is Verdict.SAME


def test_a_configuration_and_a_machine_of_anything_are_taken_as_they_are():
    strange = {"a.b": 1, "compute": 5, "seed": {"split": [1]}, "method": {"name": ["x"], "rank": {}}}
    odd = side(cell(config=strange), machine={"packages": "torch", "cpu": {"a": []}})
    assert compared(odd, odd).count(Verdict.SAME)


def test_unlike_machines_and_dirty_worktrees_are_caveats():
    machines = [{"cpu": "one", "cores": 4, "packages": {"torch": torch}} for torch in ("2.4", "2.5")]
    base, new = (side(cell(), machine=machine, revision={"dirty": True}) for machine in machines)
    assert compared(base, new).caveats == [
        "BASE was measured in a worktree with changes that are not committed",
        "NEW was measured in a worktree with changes that are not committed",
        "measured on unlike machines: torch 2.4 -> 2.5",
    ]


# --- times ---------------------------------------------------------------------------------------------


def bench(seconds: float, **extra) -> Measurements:
    return side(benchmarks=(Benchmark(PROBE, [seconds] * 5, extra),))


def in_turn(factor: float, session: str = "a", rounds: int = 12, **more) -> Measurements:
    # each round a little other than the last, the same on both sides
    times = [[factor * (1 + n / 500), factor * (1 + n / 500 + 0.001)] * 2 for n in range(rounds)]
    return bench(factor, interleaved={"session": session, "rounds": times, **more})


def test_plain_times_are_never_judged():
    cells = of(compared(cell(), cell(train_seconds=99)), "train_seconds")
    probes = of(compared(bench(1.0), bench(99.0)), "seconds")
    assert (cells.verdict, probes.verdict) == (Verdict.UNJUDGED, Verdict.UNJUDGED)
    assert "plain times" in cells.note
    assert (probes.base, probes.new, probes.change) == (1.0, 99.0, 98.0)


def test_times_measured_in_turn_are_decided():
    assert of(compared(in_turn(1.0), in_turn(1.2)), "seconds").verdict is Verdict.WORSE
    assert of(compared(in_turn(1.2), in_turn(1.0)), "seconds").verdict is Verdict.BETTER
    assert of(compared(in_turn(1.0), in_turn(1.0)), "seconds").verdict is Verdict.SAME


def test_a_benchmark_that_was_not_timed_on_one_side_is_not_judged():
    found = of(compared(bench(1.0), side(benchmarks=(Benchmark(PROBE, []),))), "seconds")
    assert (found.verdict, found.base, found.note) == (Verdict.UNJUDGED, 1.0, "NEW lacks it")


def test_a_budget_says_which_slowdown_counts():
    gate = Gate.read(
        {"cells": [{"where": ["probe=*test_local_step*"], "metrics": {"seconds": {"relative": 0.3}}}]}, "t"
    )
    assert of(compared(in_turn(1.0), in_turn(1.2), gate), "seconds").verdict is Verdict.SAME


def test_the_noise_of_the_machine_and_the_number_of_probes_count():
    spread = {"spread": {"deviation": 0.2, "degrees": 50}}
    sides = [{}, spread, {**spread, "comparisons": 1000}]
    notes = {of(compared(in_turn(1.0), in_turn(1.2, **more)), "seconds").note for more in sides}
    assert len(notes) == 3


@pytest.mark.parametrize("nothing", [None, {}])
def test_an_empty_session_is_none(nothing):
    sides = bench(1.0, interleaved=nothing), bench(9.0, interleaved=nothing)
    assert of(compared(*sides), "seconds").verdict is Verdict.UNJUDGED


def test_rounds_that_spread_beyond_all_floats_are_not_judged():
    def wild(*rounds: float) -> Measurements:
        times = [[seconds] * 2 for seconds in rounds * 4]
        return bench(1.0, interleaved={"session": "a", "rounds": times})

    found = of(compared(wild(1e-100, 1e100), wild(1e100, 1e-100)), "seconds")
    assert found.verdict is Verdict.UNJUDGED
    assert "cannot be compared" in found.note


def test_times_of_two_sessions_and_of_too_few_rounds_are_not_judged():
    assert of(compared(in_turn(1.0), in_turn(1.2, session="b")), "seconds").verdict is Verdict.UNJUDGED
    assert of(compared(in_turn(1.0, rounds=2), in_turn(1.2, rounds=2)), "seconds").verdict is Verdict.UNJUDGED
    assert (
        of(compared(in_turn(1.0, rounds=12), in_turn(1.2, rounds=9)), "seconds").verdict is Verdict.UNJUDGED
    )


def slower_machine(factor: float, **machine) -> dict:
    seconds = {name: factor * value for name, value in KERNELS["seconds"].items()}
    return {
        "seconds": seconds,
        "unit_seconds": factor * KERNELS["unit_seconds"],
        "machine": {**KERNELS["machine"], **machine},
    }


def test_calibrated_times_are_given_in_units_of_the_kernel_set():
    base = bench(1.0, kernels=KERNELS)
    as_fast = of(compared(base, bench(2.0, kernels=slower_machine(2.0))), "seconds")
    slower = of(compared(base, bench(4.0, kernels=slower_machine(2.0))), "seconds")
    faster = of(compared(base, bench(1.0, kernels=slower_machine(2.0))), "seconds")
    assert (as_fast.verdict, slower.verdict, faster.verdict) == (Verdict.SAME, Verdict.UNSURE, Verdict.UNSURE)
    assert [x.change for x in (as_fast, slower, faster)] == pytest.approx([0.0, 1.0, -0.5])


def test_calibrated_times_stop_nothing_whatever_agrees():
    slow = [cell(seed, kernels=KERNELS, train_seconds=33.0) for seed in range(5)]
    base = side(
        *(cell(seed, kernels=KERNELS) for seed in range(5)), benchmarks=bench(1.0, kernels=KERNELS).benchmarks
    )
    new = side(*slow, benchmarks=bench(100.0, kernels=KERNELS).benchmarks)
    comparison = compared(base, new)
    assert not_the_same(comparison) == {"train_seconds": Verdict.UNSURE, "seconds": Verdict.UNSURE}
    assert not comparison.fails
    assert comparison.caveats[0].startswith("times: 2 compared in units of the kernel set")


def test_the_fastest_round_counts():
    interrupted = side(benchmarks=(Benchmark(PROBE, [1.0, 1.0, 9.0], {"kernels": KERNELS}),))
    found = of(compared(bench(1.0, kernels=KERNELS), interrupted), "seconds")
    assert (found.verdict, found.change) == (Verdict.SAME, 0.0)


def test_a_machine_that_grew_slower_while_it_was_measured_says_nothing():
    drifted = {**KERNELS, "drift": 0.5}
    found = of(compared(bench(1.0, kernels=KERNELS), bench(9.0, kernels=drifted)), "seconds")
    assert (found.verdict, found.note) == (
        Verdict.UNJUDGED,
        "the machine's speed changed while it was measured",
    )


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [([0.66], Verdict.UNSURE), ([0.66, 0.66, 0.33], Verdict.UNSURE), ([0.66, 0.33, 0.33], Verdict.SAME)],
)
def test_of_calibrated_times_of_several_runs_the_middle_one_counts(seconds, verdict):
    base = side(*(cell(seed, kernels=KERNELS) for seed in range(len(seconds))))
    new = side(*(cell(seed, kernels=KERNELS, train_seconds=x) for seed, x in enumerate(seconds)))
    assert of(compared(base, new), "train_seconds").verdict is verdict


def test_times_of_two_kinds_of_machine_are_not_judged():
    other = slower_machine(1.0, cpu="another processor")
    found = of(compared(bench(1.0, kernels=KERNELS), bench(9.0, kernels=other)), "seconds")
    assert (found.verdict, found.note) == (
        Verdict.UNJUDGED,
        "times of machines of two kinds are not compared",
    )


def test_a_time_of_zero_is_not_judged():
    found = of(compared(cell(train_seconds=0.0), cell(train_seconds=1.0)), "train_seconds")
    assert found.verdict is Verdict.UNJUDGED


# --- a benchmark's figures -----------------------------------------------------------------------------


def test_figures_that_a_benchmark_leaves_are_compared_if_they_are_metrics():
    comparison = compared(bench(1.0, payload_bytes=8, mine=1), bench(1.0, payload_bytes=9, mine=2))
    assert not_the_same(comparison) == {"payload_bytes": Verdict.WORSE}
    assert of(comparison, "payload_bytes").subject == PROBE


def test_figures_of_ones_own_are_compared_as_they_are_declared():
    gate = Gate.read(
        {"metrics": {"mine": {"kind": "exact", "better": "higher"}, "rate": {"kind": "noisy"}}}, "test"
    )
    comparison = compared(bench(1.0, mine=2, rate=1), bench(1.0, mine=1, rate=2), gate)
    assert not_the_same(comparison) == {"mine": Verdict.WORSE}
    assert of(comparison, "rate").verdict is Verdict.UNJUDGED


def test_benchmarks_of_one_side_are_named():
    base = side(benchmarks=(Benchmark("a.py::one", [1.0]), Benchmark("a.py::two", [1.0])))
    new = side(benchmarks=(Benchmark("a.py::two", [1.0]), Benchmark("a.py::three", [1.0])))
    comparison = compared(base, new)
    assert (comparison.only_base, comparison.only_new) == (["a.py::one"], ["a.py::three"])
