"""`flora-bench snapshot` joins what was measured into one file."""

from dataclasses import replace

import pytest

from bench.regress.measurements import read_measurements
from tests.bench.regress.test_measurements import (
    KERNELS,
    benchmark_entry,
    make_run,
    pytest_benchmarks,
    save,
    write,
)


@pytest.fixture
def sources(tmp_path):
    """A results folder of two runs, and a pytest-benchmark file."""
    runs = save(
        tmp_path / "runs", make_run(commit="b" * 40), make_run(seed=1, config_hash="h1", commit="b" * 40)
    )
    return str(runs), str(write(tmp_path / "bench.json", pytest_benchmarks(benchmark_entry())))


def test_a_snapshot_holds_all_of_its_sources(run_cli, sources, tmp_path):
    out = tmp_path / "new" / "gate.json"
    code, printed, errors = run_cli("snapshot", *sources, "--out", str(out))
    assert (code, errors) == (0, "")
    of = "commit bbbbbbbbbbbb, with changes that are not committed"
    assert printed == f"{out}: 2 cells and 1 benchmark; {of}; {out.stat().st_size:,} bytes\n"
    found = read_measurements(out)
    assert (len(found.cells), len(found.benchmarks)) == (2, 1)


def test_a_snapshot_may_be_a_source(run_cli, sources, tmp_path):
    runs, benchmarks = sources
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    run_cli("snapshot", runs, "--out", str(first))
    code, printed, _ = run_cli("snapshot", str(first), benchmarks, "--out", str(second))
    assert code == 0
    assert "2 cells and 1 benchmark" in printed


def test_an_exact_snapshot_leaves_out_what_another_machine_gives_otherwise(run_cli, tmp_path):
    extra = {"kernels": KERNELS, "payload_bytes": 1200}
    runs = save(tmp_path / "runs", make_run(kernels=KERNELS))
    benchmarks = write(tmp_path / "b.json", pytest_benchmarks(benchmark_entry(extra_info=extra)))
    kept, left_out = tmp_path / "kept.json", tmp_path / "left_out.json"
    run_cli("snapshot", str(runs), str(benchmarks), "--out", str(kept))
    run_cli("snapshot", str(runs), str(benchmarks), "--out", str(left_out), "--exact")
    whole, found = read_measurements(kept), read_measurements(left_out)
    assert whole.cells[0].kernels == KERNELS
    own = {"train_seconds", "round_seconds", "total_seconds", "peak_memory_bytes", "peak_gpu_memory_bytes"}
    own.add("resident_at_start_bytes")
    exact = {name: value for name, value in whole.cells[0].metrics.items() if name not in own}
    assert own < whole.cells[0].metrics.keys()
    assert found.cells == [replace(whole.cells[0], kernels=None, metrics=exact)]
    assert [benchmark.seconds for benchmark in found.benchmarks] == [[]]
    assert [benchmark.extra for benchmark in found.benchmarks] == [{"payload_bytes": 1200}]


def test_sources_of_two_commits_are_said_to_be(run_cli, sources, tmp_path):
    other = save(tmp_path / "others", make_run("bitfit", commit="c" * 40))
    _, printed, _ = run_cli("snapshot", sources[0], str(other), "--out", str(tmp_path / "x.json"))
    assert "3 cells; commit unknown, or several; " in printed


def test_a_source_that_is_given_twice_leaves_the_file_as_it_was(run_cli, sources, tmp_path):
    out = write(tmp_path / "gate.json", "what was there")
    code, printed, errors = run_cli("snapshot", sources[0], sources[0], "--out", str(out))
    assert (code, printed) == (2, "")
    assert errors == f"flora-bench: digits, flora, iid: is measured twice in {sources[0]}; give each once\n"
    assert out.read_text() == "what was there"


def test_what_cannot_be_read_is_one_line(run_cli, tmp_path):
    source = write(tmp_path / "x.json", "{")
    code, _, errors = run_cli("snapshot", str(source), "--out", str(tmp_path / "gate.json"))
    assert code == 2
    assert errors.startswith(f"flora-bench: {source}: is no JSON, or was cut short")
    assert errors.count("\n") == 1
    assert not (tmp_path / "gate.json").exists()


def test_a_folder_is_no_file_to_write(run_cli, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, errors = run_cli("snapshot", sources[0], "--out", ".")
    assert (code, errors) == (2, "flora-bench: .: is a folder; name the file to write\n")
