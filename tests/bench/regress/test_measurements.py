"""Results, pytest-benchmark's JSON and measurements files are read into one form, and refused by name."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from bench import store
from bench.regress import measurements
from bench.regress.measurements import (
    Benchmark,
    CellMeasures,
    Measurements,
    join,
    read_measurements,
    write_measurements,
)
from bench.regress.metrics import METRICS, metric_of
from flora.errors import BadInput

BENCHMARK = "tests/perf/test_steps.py::test_step[flora]"
KERNELS = {"seconds": {"copy": 0.25}, "unit_seconds": 0.25, "machine": {"cpu": "some processor", "cores": 4}}


def make_run(method="flora", *, seed=0, config_hash="h0", commit="a" * 40, **fields):
    return {
        "schema": store.SCHEMA,
        "status": "complete",
        "config": {
            "task": "digits",
            "model": {"name": "tiny", "dtype": "float32"},
            "method": {"name": method},
            "split": {"name": "iid", "shots": None},
            "seed": dict.fromkeys(("split", "participation", "init", "order"), seed),
            "data": {"root": None},
            "evaluation": {"set": "test", "retention": None},
            "tuning": None,
            "device": "cpu",
        },
        "config_hash": config_hash,
        "definition": {},
        "sittings": [{"host": "a-machine-with-a-name"}],
        "summary": {"accuracy": 0.5, "payload_bytes": 1200, "train_flops": 30, "total_seconds": 1.5},
        "rounds": [
            {"round": 0, "accuracy": 0.25, "loss": None},
            {"round": 1, "accuracy": 0.5, "loss": 1.75},
        ],
        "split": {"fingerprint": "of the split"},
        "data": {"fingerprint": "of the images", "test": 40},
        "model": {"fingerprint": "of the weights"},
        "flops": {"train": 30, "evaluate": 12},
        "memory": {"by_phase": {"train": 700, "send": 500}, "by_cause": {}},
        "invariants": {"losses_finite": {"holds": True}},
        "environment": {
            "cpu": "some processor",
            "logical_cores": 4,
            "gpu": None,
            "python": "3.11.7",
            "packages": {"torch": "2.15.0"},
            "git_commit": commit,
            "git_dirty": False,
            "counts_reason": None,
        },
        **fields,
    }


def save(folder, *runs):
    for run in runs:
        store.save_run(store.run_path(folder, run["config"], run["config_hash"]), run)
    return folder


def benchmark_entry(name=BENCHMARK, data=(0.5, 0.25, 1.0), **fields):
    stats = {"median": 0.5, "mean": 0.583, "ops": math.inf, "data": list(data)}
    return {"fullname": name, "name": name.rpartition("::")[2], "stats": stats, "extra_info": {}, **fields}


def pytest_benchmarks(*entries):
    return {
        "machine_info": {
            "node": "a-machine-with-a-name",
            "python_version": "3.11.7",
            "cpu": {"brand_raw": "some processor", "count": 4},
        },
        "commit_info": {"id": "b" * 40, "time": "2026-11-20T10:00:00+01:00", "dirty": True, "branch": "main"},
        "benchmarks": list(entries),
        "version": "5.3.1",
    }


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def measurements_file(**fields):
    cell = {"config": {"task": "digits"}, "metrics": {"payload_bytes": 1}}
    return {"format": measurements.FORMAT, "schema": 1, "cells": [cell], "benchmarks": [], **fields}


# --- results -------------------------------------------------------------------------------------------


def test_a_run_gives_each_metric_by_its_name(tmp_path):
    found = read_measurements(save(tmp_path, make_run()))
    (cell,) = found.cells
    known = {name: value for name, value in cell.metrics.items() if value is not None}
    assert known == {
        "accuracy": 0.5,
        "payload_bytes": 1200,
        "train_flops": 30,
        "total_seconds": 1.5,
        "split_fingerprint": "of the split",
        "data_fingerprint": "of the images",
        "model_fingerprint": "of the weights",
        "broken_invariants": 0,
        "flops.train": 30,
        "flops.evaluate": 12,
        "peak_tensor_bytes.train": 700,
        "peak_tensor_bytes.send": 500,
    }
    told_apart_by = {"resident_at_start_bytes", "clients_together"}
    assert all(metric_of(name) for name in cell.metrics.keys() - told_apart_by)
    assert told_apart_by <= cell.metrics.keys()
    assert set(METRICS) - {"learning", "seconds"} <= set(cell.metrics)
    assert (cell.losses, cell.accuracies, cell.test_images) == ([None, 1.75], [0.25, 0.5], 40)
    assert found.revision == {"commit": "a" * 40, "dirty": False}
    assert found.machine == {
        "cpu": "some processor",
        "cores": 4,
        "python": "3.11.7",
        "packages": {"torch": "2.15.0"},
    }
    assert found.name == str(tmp_path)


def test_one_run_is_read_by_its_file(tmp_path):
    save(tmp_path, make_run(), make_run(seed=1, config_hash="h1"))
    path = store.run_path(tmp_path, make_run()["config"], "h1")
    (cell,) = read_measurements(path).cells
    assert cell.config["seed"]["split"] == 1


def test_invariants_that_broke_are_counted_and_named(tmp_path):
    invariants = {
        "frozen_unchanged": {"holds": False, "reason": "logit_scale moved"},
        "losses_finite": {"holds": False},
        "trained_moved": {"holds": True},
    }
    (cell,) = read_measurements(save(tmp_path, make_run(invariants=invariants))).cells
    assert cell.metrics["broken_invariants"] == 2
    assert cell.broken == "frozen unchanged: logit_scale moved; losses finite"


def test_invariants_that_were_not_looked_at_do_not_count_as_held(tmp_path):
    (cell,) = read_measurements(save(tmp_path, make_run(invariants={}))).cells
    assert cell.metrics["broken_invariants"] is None


def test_operations_that_do_not_follow_from_sizes_are_not_compared(tmp_path):
    run = make_run()
    run["environment"]["counts_reason"] = "a step's operations do not follow from the sizes of its batch"
    (cell,) = read_measurements(save(tmp_path, run)).cells
    assert not any(name.startswith("flops.") for name in cell.metrics)
    assert cell.metrics["peak_tensor_bytes.train"] == 700


def test_the_kernels_around_a_run_are_kept(tmp_path):
    kernels = {**KERNELS, "drift": 0.125}
    (cell,) = read_measurements(save(tmp_path, make_run(kernels=kernels))).cells
    assert cell.kernels == kernels


def test_results_of_an_earlier_schema_are_read(tmp_path):
    run = {key: value for key, value in make_run().items() if key not in ("definition", "sittings")}
    path = store.run_path(tmp_path, run["config"], "h0")
    path.parent.mkdir(parents=True)
    write(path, {**run, "schema": 1})
    assert read_measurements(tmp_path).cells[0].metrics["payload_bytes"] == 1200


def test_runs_of_two_commits_are_of_no_revision(tmp_path):
    other = make_run(seed=1, config_hash="h1", commit="b" * 40)
    other["environment"]["cpu"] = "another processor"
    found = read_measurements(save(tmp_path, make_run(), other))
    assert found.revision == {}
    assert "cpu" not in found.machine
    assert found.machine["python"] == "3.11.7"


def test_one_run_of_uncommitted_changes_makes_all_of_them_so(tmp_path):
    other = make_run(seed=1, config_hash="h1")
    other["environment"]["git_dirty"] = True
    found = read_measurements(save(tmp_path, make_run(), other))
    assert found.revision == {"commit": "a" * 40, "dirty": True}


def test_the_time_of_a_commit_is_that_of_the_commit(tmp_path):
    here = measurements.Path(__file__).parent
    asked = [
        subprocess.run(
            ["git", *command], cwd=here, capture_output=True, text=True, check=False
        ).stdout.strip()
        for command in (["rev-parse", "HEAD"], ["log", "-1", "--format=%cI"])
    ]
    if not all(asked):
        pytest.skip("the tests do not run from a checkout")
    commit, time = asked
    found = read_measurements(save(tmp_path, make_run(commit=commit)))
    assert found.revision["time"] == time


def test_a_commit_that_is_none_reaches_no_command(tmp_path):
    written = tmp_path / "written"
    found = read_measurements(save(tmp_path / "runs", make_run(commit=f"--output={written}")))
    assert "time" not in found.revision
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_cells_come_in_one_order_however_they_are_stored(tmp_path):
    runs = [
        make_run(method, config_hash=f"h{i}") for i, method in enumerate(["zero_shot", "flora", "bitfit"])
    ]
    there = read_measurements(save(tmp_path / "a", *runs))
    hashed_otherwise = [{**run, "config_hash": f"x{9 - i}"} for i, run in enumerate(runs)]
    here = read_measurements(save(tmp_path / "b", *hashed_otherwise))
    assert [cell.config["method"]["name"] for cell in there.cells] == ["bitfit", "flora", "zero_shot"]
    assert there.cells == here.cells


def test_where_files_lie_is_no_part_of_a_cell(tmp_path):
    def placed(root, device):
        run = make_run()
        run["config"] |= {
            "task": f"folder:{root}/pets",
            "model": {"name": f"ViT-B-32:{root}/weights.safetensors", "dtype": "float32"},
            "data": {"root": root},
            "evaluation": {"set": "test", "retention": f"folder:{root}/cars/"},
            "tuning": {"grid": "what was tried"},
            "device": device,
        }
        return run

    one, other = (
        read_measurements(save(tmp_path / name, placed(f"/{name}/data", device))).cells[0].config
        for name, device in (("home", "cuda:0"), ("mnt", "cuda:1"))
    )
    assert one == other
    assert one["task"] == "folder:pets"
    assert one["model"]["name"] == "ViT-B-32:weights.safetensors"
    assert one["evaluation"]["retention"] == "folder:cars"
    assert one["device"] == "cuda"


@pytest.mark.parametrize(
    "name", ["digits", "folder:pets/here", "hf:OWNER/NAME@CONFIG", "ViT-B-32:openai", "synthetic:10x8x8"]
)
def test_a_name_that_is_no_absolute_path_stays(tmp_path, name):
    run = make_run()
    run["config"]["task"] = name
    assert read_measurements(save(tmp_path, run)).cells[0].config["task"] == name


# --- pytest-benchmark ----------------------------------------------------------------------------------


def test_benchmarks_are_read_with_their_rounds_and_figures(tmp_path):
    entry = benchmark_entry(extra_info={"payload_bytes": 1200})
    found = read_measurements(write(tmp_path / "b.json", pytest_benchmarks(entry)))
    assert found.benchmarks == [Benchmark(BENCHMARK, [0.5, 0.25, 1.0], {"payload_bytes": 1200})]
    assert found.revision == {"commit": "b" * 40, "dirty": True, "time": "2026-11-20T10:00:00+01:00"}
    assert found.machine == {"cpu": "some processor", "cores": 4, "python": "3.11.7"}


def test_of_a_benchmark_without_rounds_the_median_is_taken(tmp_path):
    entry = benchmark_entry(stats={"median": 0.5})
    (found,) = read_measurements(write(tmp_path / "b.json", pytest_benchmarks(entry))).benchmarks
    assert found.seconds == [0.5]


@pytest.mark.parametrize(
    ("data", "median", "seconds"),
    [
        ([0.5, math.nan, 1.0], 0.5, [0.5, 1.0]),
        ([math.inf], 0.5, []),
        ([], math.nan, []),
    ],
)
def test_what_is_not_finite_is_missing(tmp_path, data, median, seconds):
    entry = benchmark_entry(stats={"median": median, "data": data}, extra_info={"x": math.nan, "y": math.inf})
    (found,) = read_measurements(write(tmp_path / "b.json", pytest_benchmarks(entry))).benchmarks
    assert found.seconds == seconds
    assert found.extra == {"x": None, "y": None}


def test_benchmarks_of_no_checkout_are_of_no_revision(tmp_path):
    unversioned = {"id": "unversioned", "time": None, "dirty": False, "error": "no git"}
    content = {**pytest_benchmarks(benchmark_entry()), "commit_info": unversioned}
    assert read_measurements(write(tmp_path / "b.json", content)).revision == {}


def test_what_pytest_benchmark_writes_is_read(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "def test_sum(benchmark):\n"
        "    benchmark.extra_info['payload_bytes'] = 7\n"
        "    benchmark.pedantic(sum, args=([1, 2],), rounds=5)\n",
        encoding="utf-8",
    )
    plain = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    subprocess.run(
        [sys.executable, "-m", "pytest", *plain, "test_it.py", "--benchmark-json=out.json"],
        cwd=tmp_path,
        # by which it would take itself for a worker that shares the machine, and time nothing
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},
        check=True,
        capture_output=True,
    )
    found = read_measurements(tmp_path / "out.json")
    (benchmark,) = found.benchmarks
    assert benchmark.name.endswith("test_it.py::test_sum")
    assert len(benchmark.seconds) == 5
    assert benchmark.extra == {"payload_bytes": 7}
    assert found.machine["python"]


# --- files ---------------------------------------------------------------------------------------------


def both(tmp_path):
    """Measurements with cells and benchmarks, one of them interleaved."""
    extra = {
        "kernels": {**KERNELS, "drift": -0.125},
        "interleaved": {"session": "of this session", "rounds": [[0.5, 0.25], [0.5, 0.5]]},
        "payload_bytes": 1200,
    }
    cells = read_measurements(save(tmp_path / "runs", make_run(), make_run(seed=1, config_hash="h1")))
    return replace(cells, benchmarks=[Benchmark(BENCHMARK, [0.5, 0.25], extra)])


def test_what_is_written_is_read_back(tmp_path):
    whole = both(tmp_path)
    write_measurements(whole, tmp_path / "sub" / "gate.json")
    assert read_measurements(tmp_path / "sub" / "gate.json") == replace(
        whole, name=str(tmp_path / "sub" / "gate.json")
    )


def test_a_file_names_neither_machine_nor_folder(tmp_path):
    write_measurements(both(tmp_path), tmp_path / "gate.json")
    text = (tmp_path / "gate.json").read_text()
    assert str(tmp_path) not in text
    assert "a-machine-with-a-name" not in text
    benchmarks = write(tmp_path / "b.json", pytest_benchmarks(benchmark_entry()))
    write_measurements(read_measurements(benchmarks), tmp_path / "gate.json")
    assert "a-machine-with-a-name" not in (tmp_path / "gate.json").read_text()


@pytest.mark.parametrize("rounds", [102, 5000, 5001])
def test_many_rounds_are_kept_as_quantiles_of_the_same_median_and_range(tmp_path, rounds):
    seconds = np.random.default_rng(0).lognormal(size=rounds).tolist()
    path = tmp_path / "b.json"
    write_measurements(Measurements("x", benchmarks=[Benchmark("one", seconds)]), path)
    (kept,) = read_measurements(path).benchmarks
    assert len(kept.seconds) == measurements.KEPT_SECONDS
    assert np.median(kept.seconds) == pytest.approx(np.median(seconds), rel=1e-12)
    assert (min(kept.seconds), max(kept.seconds)) == (min(seconds), max(seconds))
    entry = json.loads(path.read_text())["benchmarks"][0]
    assert entry["stats"]["median"] == np.median(kept.seconds)


def test_numbers_that_are_larger_than_any_float_are_missing(tmp_path):
    cells = [{"config": {}, "metrics": {"payload_bytes": 10**400, "bytes_up": 10**30}}]
    (found,) = read_measurements(write(tmp_path / "x.json", measurements_file(cells=cells))).cells
    assert found.metrics == {"payload_bytes": None, "bytes_up": 10**30}


def test_numbers_that_are_not_finite_are_written_as_missing(tmp_path):
    cell = CellMeasures({"task": "digits"}, {"accuracy": math.nan}, losses=[None, math.inf])
    write_measurements(Measurements("x", cells=[cell]), tmp_path / "x.json")
    (found,) = read_measurements(tmp_path / "x.json").cells
    assert found.metrics == {"accuracy": None}
    assert found.losses == [None, None]


def test_a_folder_in_the_files_place_is_one_line(tmp_path):
    with pytest.raises(BadInput, match="is a folder; name the file to write"):
        write_measurements(both(tmp_path), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


# --- several -------------------------------------------------------------------------------------------


def test_several_sources_make_one(tmp_path):
    cells = read_measurements(save(tmp_path / "runs", make_run(commit="b" * 40)))
    path = write(tmp_path / "b.json", pytest_benchmarks(benchmark_entry()))
    found = join([cells, read_measurements(path)], "both")
    assert (len(found.cells), len(found.benchmarks), found.name) == (1, 1, "both")
    assert found.revision["commit"] == "b" * 40
    assert found.revision["dirty"]
    assert found.machine["packages"] == {"torch": "2.15.0"}


def test_sources_of_two_revisions_are_of_none(tmp_path):
    cells = read_measurements(save(tmp_path / "runs", make_run(commit="a" * 40)))
    path = write(tmp_path / "b.json", pytest_benchmarks(benchmark_entry()))
    assert join([cells, read_measurements(path)], "both").revision == {}


def test_a_cell_that_is_there_twice_is_named_with_both_places(tmp_path):
    save(tmp_path / "runs", make_run(), make_run(config_hash="h1"))
    with pytest.raises(BadInput, match=r"digits, flora, iid: is measured in .*h0/run\.json and in .*h1/"):
        read_measurements(tmp_path / "runs")


def test_a_source_that_is_given_twice_is_refused(tmp_path):
    found = read_measurements(save(tmp_path, make_run()))
    with pytest.raises(BadInput, match="digits, flora, iid: is measured twice in "):
        join([found, found], "both")


def test_a_benchmark_that_is_there_twice_is_named(tmp_path):
    path = write(tmp_path / "b.json", pytest_benchmarks(benchmark_entry(), benchmark_entry()))
    with pytest.raises(BadInput, match=r"test_step\[flora\]: is measured twice in .*b\.json"):
        read_measurements(path)


# --- what cannot be used -------------------------------------------------------------------------------


def refusal(path):
    with pytest.raises(BadInput) as refused:
        read_measurements(path)
    message = str(refused.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is no JSON, or was cut short"),
        ("# not JSON", "is no JSON, or was cut short"),
        (json.dumps(measurements_file())[:-20], "is no JSON, or was cut short"),
        ("[" * 100_000, "is no JSON, or was cut short"),
        ([1, 2], "holds a list and no measurements"),
        ({}, "holds neither runs nor benchmarks"),
        ({"cells": []}, "holds neither runs nor benchmarks"),
        (pytest_benchmarks(), "holds neither cells nor benchmarks"),
        (measurements_file(cells=[]), "holds neither cells nor benchmarks"),
        (measurements_file(schema=2), "has schema 2, this suite reads up to 1; update flora-bench"),
        (measurements_file(schema="1"), "schema: Input should be a valid integer"),
        ({"format": measurements.FORMAT}, "schema: Field required"),
        (measurements_file(revision={"commit": 5}), "revision.commit: Input should be a valid string"),
        (measurements_file(revision={"commit": ["a"]}), "revision.commit: Input should be a valid string"),
        (measurements_file(machine={"packages": "many"}), "machine.packages"),
        (
            measurements_file(cells=[{"config": {"seed": [1]}, "metrics": {}}]),
            "cells.0: config: Value error, seed must be a whole number",
        ),
        (
            {**pytest_benchmarks(benchmark_entry()), "commit_info": {"id": 5}},
            "commit: Input should be a valid string",
        ),
        (measurements_file(cells=[{"config": {}}]), "cells.0: metrics: Field required"),
        (measurements_file(cells=["x"]), "cells.0: Input should be a valid dictionary"),
        (
            measurements_file(cells=[{"config": {}, "metrics": {"payload_bytes": [1]}}]),
            "cells.0: metrics.payload_bytes",
        ),
        (
            measurements_file(cells=[{"config": {}, "metrics": {}, "kernels": {"seconds": {}}}]),
            "cells.0: kernels.unit_seconds: Field required",
        ),
        (pytest_benchmarks({"stats": {}}), "benchmarks.0.fullname: Field required"),
        (pytest_benchmarks(benchmark_entry(stats=None)), "benchmarks.0.stats"),
        (pytest_benchmarks(benchmark_entry(data=["fast"])), "benchmarks.0.stats.data.0"),
        (
            pytest_benchmarks(benchmark_entry(extra_info={"interleaved": {"rounds": []}})),
            "benchmarks.0.extra_info.interleaved.session: Field required",
        ),
    ],
)
def test_a_file_that_is_something_else_is_refused_in_one_line(tmp_path, content, said):
    assert said in refusal(write(tmp_path / "x.json", content))


def test_what_is_not_there_is_refused(tmp_path):
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "nothing.json")
    assert "holds no <task>/<method>/<hash>/run.json" in refusal(tmp_path)


def test_a_part_of_a_results_folder_is_refused_with_the_whole_one(tmp_path):
    save(tmp_path, make_run())
    assert f"is a part of {str(tmp_path)!r}" in refusal(tmp_path / "digits")


def test_a_run_cut_short_is_named(tmp_path):
    save(tmp_path, make_run(), make_run(seed=1, config_hash="h1"))
    path = store.run_path(tmp_path, make_run()["config"], "h1")
    path.write_text(path.read_text()[:-200], encoding="utf-8")
    with pytest.raises(BadInput, match=r"h1/run\.json: damaged or cut short"):
        read_measurements(tmp_path)
    assert "is no JSON, or was cut short" in refusal(path)


def test_a_run_of_a_schema_to_come_is_named(tmp_path):
    save(tmp_path, make_run())
    path = store.run_path(tmp_path, make_run()["config"], "h0")
    write(path, {**make_run(), "schema": store.SCHEMA + 1})
    with pytest.raises(
        BadInput, match=rf"h0/run\.json: has schema {store.SCHEMA + 1}, this suite reads up to"
    ):
        read_measurements(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data": [1]}, "is no whole result"),
        ({"environment": {"git_commit": 5}}, "commit: Input should be a valid string"),
        ({"environment": {"packages": [1]}}, "packages: Input should be a valid dictionary"),
    ],
)
def test_a_run_that_is_damaged_within_is_named(tmp_path, fields, said):
    with pytest.raises(BadInput, match=rf"h0/run\.json: {said}"):
        read_measurements(save(tmp_path, make_run(**fields)))


def test_a_run_whose_metrics_are_no_numbers_is_named(tmp_path):
    save(tmp_path, make_run(summary={"payload_bytes": [1, 2]}))
    with pytest.raises(BadInput, match=r"h0/run\.json: metrics\.payload_bytes"):
        read_measurements(tmp_path)
