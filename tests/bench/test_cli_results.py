"""Commands on stored runs: results, rm, verify and diff."""

import csv
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from bench import store
from bench.cli import verify
from bench.config import RunConfig
from bench.definition import Definition
from bench.execute import FAILURE
from bench.locks import lock_of
from tests.bench.test_store import keep, make_run

ROOT = Path(__file__).parents[2]
PARTS = {"data": "d", "suites": "", "model": "m", "harness": "h", "method": "m", "task": "t"}


@pytest.fixture
def quick(tmp_path):
    """Two methods of the reference results, 24 runs."""
    for method in ("linear_probe", "zero_shot"):
        shutil.copytree(ROOT / "results/reference/quick/digits" / method, tmp_path / "quick/digits" / method)
    return tmp_path / "quick"


@pytest.fixture
def whole(tmp_path):
    """One run as `run` leaves it, and the path of its run.json."""
    old = store.load_run(sorted((ROOT / "results/reference/quick").glob("digits/flora/*/run.json"))[0])
    config = RunConfig.read({**old["config"], "device": "cpu"})
    folder = tmp_path / "whole"
    path = store.run_path(folder, old["config"], config.hash)
    source = ROOT / "results/reference/quick/digits/flora" / old["config_hash"]
    run = {**old, "config_hash": config.hash, "config": config.model_dump(mode="json"), "weights": None}
    run["definition"] = Definition(config=config.hash, **PARTS).to_dict()
    with store.staged(path) as staged:
        for name in ("ledger.csv", "clients.csv"):
            shutil.copy(source / name, staged.with_name(name))
        run["rounds_table"] = store.save_rounds(staged, run)
        store.save_run(staged, run)
    return path


def change(path: Path, **fields) -> None:
    store.save_run(path, {**store.load_run(path), **fields})


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


# --- results -------------------------------------------------------------------------------------------


def test_a_row_a_run_with_what_tells_them_apart_and_the_figures(run_cli, quick):
    code, out, err = run_cli("results", str(quick))
    header, *lines = out.splitlines()
    assert (code, len(lines)) == (0, 24)
    assert header.split() == [
        "config_hash", "method", "split", "shots", "seed",
        "accuracy", "train_seconds", "bytes", "peak_memory_bytes", "payload_bytes",
    ]  # fmt: skip
    assert all(len(line) <= len(header) + 1 for line in lines)
    assert "mixed" not in err


def test_an_option_within_a_method_is_shown_once_it_differs(run_cli, tmp_path):
    keep(tmp_path, make_run(rank=2, config_hash="a"), make_run(rank=4, config_hash="b"))
    _, out, _ = run_cli("results", str(tmp_path))
    assert rows(out)[0][:2] == ["config_hash", "method.rank"]
    assert [row[1] for row in rows(out)[1:]] == ["2", "4"]


def test_one_run_alone_is_named_in_full(run_cli, tmp_path):
    keep(tmp_path, make_run())
    _, out, _ = run_cli("results", str(tmp_path))
    assert rows(out)[1][:5] == ["h0", "digits", "tiny", "flora", "dirichlet"]


@pytest.mark.parametrize(
    ("where", "count"),
    [
        (["method=linear_probe"], 12),
        (["method != linear_probe"], 12),
        (["method=linear_probe", "seed=1"], 6),
        (["seed>=1"], 12),
        (["seed<1"], 12),
        (["seed=1.0"], 12),
        (["accuracy>0.8", "accuracy<=0.9"], 7),
        (["shots=none"], 12),
        (["shots!=none"], 12),
        (["shots=4"], 12),
        (["data.base_to_new=False"], 24),
        (["optimizer.betas=0.9+0.98"], 24),
        (["task=nothing"], 0),
        (["new_accuracy>0"], 0),
        (["bytes=0"], 12),
    ],
)
def test_only_runs_that_meet_the_conditions_are_shown(run_cli, quick, where, count):
    options = [part for condition in where for part in ("--where", condition)]
    code, out, err = run_cli("results", str(quick), *options, "--json")
    assert code == 0
    assert len(json.loads(out)) == count
    assert ("none of 24 runs" in err) == (count == 0)


def test_rows_are_sorted_either_way_what_is_missing_last(run_cli, quick):
    for sort, wanted in (("accuracy", sorted), ("-accuracy", lambda x: sorted(x, reverse=True))):
        _, out, _ = run_cli("results", str(quick), "--sort", sort, "--json", "--columns", "accuracy")
        found = [row["accuracy"] for row in json.loads(out)]
        assert found == wanted(found)
    _, out, _ = run_cli("results", str(quick), "--sort", "-shots", "--json", "--columns", "shots")
    assert [row["shots"] for row in json.loads(out)] == [4] * 12 + [None] * 12


def test_seeds_of_two_kinds_are_sorted_too(run_cli, tmp_path):
    mixed = {"split": 1, "participation": 2, "init": 3, "order": 4}
    keep(tmp_path, *(make_run(seed=seed, config_hash=f"h{i}") for i, seed in enumerate((mixed, 3, 12))))
    _, out, _ = run_cli("results", str(tmp_path), "--sort", "seed", "--columns", "seed")
    assert rows(out)[1:] == [["3"], ["12"], ["1-2-3-4"]]


def test_groups_have_mean_deviation_and_range(run_cli, tmp_path):
    runs = [make_run(seed=seed, config_hash=f"h{seed}") for seed in range(3)]
    for run, accuracy in zip(runs, (0.5, 0.6, 0.7), strict=True):
        run["summary"]["accuracy"] = accuracy
    keep(tmp_path, *runs, make_run("zero_shot", config_hash="z"))
    given = ("results", str(tmp_path), "--by", "method", "--columns", "accuracy", "--sort", "-accuracy")
    _, out, _ = run_cli(*given, "--json")
    first, second = json.loads(out)
    assert [first[f"accuracy.{what}"] for what in ("mean", "std", "min", "max")] == pytest.approx(
        [0.6, 0.1, 0.5, 0.7]
    )
    assert (first["method"], first["n"]) == ("flora", 3)
    assert (second["n"], second["accuracy.std"]) == (1, None)
    _, out, _ = run_cli(*given)
    assert out.splitlines()[1].split(maxsplit=2) == ["flora", "3", "60.00 % ± 10.00 % (50.00 % to 70.00 %)"]
    assert rows(out)[2] == ["zero_shot", "1", "50.00", "%"]


def test_json_and_csv_have_all_fields_with_all_their_digits(run_cli, quick):
    _, out, _ = run_cli("results", str(quick), "--json")
    records = json.loads(out)
    _, out, _ = run_cli("results", str(quick), "--csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert list(records[0]) == list(lines[0])
    for record, line in zip(records, lines, strict=True):
        kept = store.load_run(record["path"])
        assert record["train_seconds"] == kept["summary"]["train_seconds"] == float(line["train_seconds"])
        assert record["optimizer.betas"] == [0.9, 0.98]
        assert (record["new_accuracy"], line["new_accuracy"]) == (None, "")


def test_columns_and_limit_say_what_is_shown(run_cli, quick):
    _, out, err = run_cli("results", str(quick), "--columns", "seed, method", "--limit", "2")
    assert rows(out) == [["seed", "method"], ["0", "linear_probe"], ["1", "linear_probe"]]
    assert "2 of 24 runs are shown" in err


def test_on_a_terminal_it_is_a_table(run_cli, quick, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _, out, _ = run_cli("results", str(quick), "--columns", "seed,method", "--limit", "1")
    assert "─" in out
    assert "linear_probe" in out


def test_a_damaged_result_is_named_and_the_others_are_shown(run_cli, quick):
    path = next(quick.glob("*/*/*/run.json"))
    path.write_text("{")
    code, out, err = run_cli("results", str(quick))
    assert (code, len(out.splitlines())) == (0, 24)
    assert err.count("\n") == 1
    assert str(path) in err


def test_versions_of_a_methods_code_are_named(run_cli, quick):
    method, *_ = sorted(quick.glob("*/*/"))
    first, second, *_ = sorted(method.glob("*/run.json"))
    for path, version in ((first, "aaa"), (second, "bbb")):
        parts = {**PARTS, "method": version}
        change(path, definition=Definition(config=path.parent.name, **parts).to_dict())
    _, _, err = run_cli("results", str(quick))
    assert f"Of method {method.name} there are several versions of the code." in err


def test_mixed_machines_schemas_and_versions_are_named(run_cli, quick, tmp_path):
    first, second, third, *others = sorted(quick.glob("*/*/*/run.json"))
    for path in others[:2]:
        written = json.loads(path.read_text())
        old = {name: part for name, part in written.items() if name not in ("definition", "sittings")}
        path.write_text(json.dumps({**old, "schema": 1}))
    run = store.load_run(first)
    change(first, environment={**run["environment"], "cpu": "another processor"})
    for path, harness in ((second, "aaa"), (third, "bbb")):
        change(
            path, definition=Definition(config=path.parent.name, **{**PARTS, "harness": harness}).to_dict()
        )
    _, _, err = run_cli("results", str(quick))
    lines = err.splitlines()
    assert any("2 kinds of machine" in line and "another processor" in line for line in lines)
    assert any("2 of 24 are of an older schema" in line for line in lines)
    assert any("3 versions of the harness" in line and "aaa, bbb" in line for line in lines)


def test_the_index_is_rebuilt_on_demand(run_cli, quick):
    run_cli("results", str(quick))
    assert not (quick / "results.parquet").exists()
    code, _, _ = run_cli("results", str(quick), "--rebuild")
    assert code == 0
    assert (quick / "results.parquet").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--where", "metod=flora"], ["no field 'metod'", "did you mean 'method'"]),
        (["--where", "lr=1"], ["'lr'", "did you mean 'optimizer.lr'"]),
        (["--where", "zzzzzz=1"], ["'zzzzzz'", "--json"]),
        (["--where", "accuracy~0.5"], ["accuracy~0.5", "FIELD=VALUE"]),
        (["--where", "accuracy"], ["'accuracy'", "FIELD=VALUE"]),
        (["--where", "accuracy==0.5"], ["FIELD=VALUE"]),
        (["--where", "method>2"], ["no number"]),
        (["--where", "accuracy>high"], ["no number"]),
        (["--sort", "seeed"], ["--sort", "'seed'"]),
        (["--by", "methods"], ["--by", "'method'"]),
        (["--by", ","], ["--by", "separated by commas"]),
        (["--by", "method", "--columns", "split"], ["'split'", "no number"]),
        (["--columns", "acuracy"], ["--columns", "accuracy"]),
        (["--json", "--csv"], ["exclude each other"]),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(run_cli, quick, given, words):
    code, out, err = run_cli("results", str(quick), *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in words), err


@pytest.mark.parametrize("command", ["results", "verify", "rm"])
@pytest.mark.parametrize("name", ["none", "file", "empty"])
def test_where_there_are_no_results_it_is_said(run_cli, tmp_path, command, name):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    code, _, err = run_cli(command, str(tmp_path / name))
    assert (code, err.count("\n")) == (2, 1)
    assert name in err


# --- rm ------------------------------------------------------------------------------------------------


def test_chosen_runs_are_removed_and_others_stay(run_cli, quick):
    code, out, _ = run_cli("rm", str(quick), "--where", "method=linear_probe", "--where", "seed=0", "--yes")
    assert code == 0
    assert "6 runs removed" in out
    left = store.load_results(quick)
    assert left.groupby("method").size().to_dict() == {"linear_probe": 6, "zero_shot": 12}
    assert len(list(quick.glob("*/*/*"))) == 18


@pytest.mark.parametrize("by", ["folder", "file"])
def test_one_run_is_removed_by_its_folder_or_file(run_cli, quick, by):
    path = next(quick.glob("*/*/*/run.json"))
    assert run_cli("rm", str(path if by == "file" else path.parent), "--yes")[0] == 0
    assert not path.parent.exists()
    assert len(store.run_files(quick)) == 23


def test_without_a_terminal_nothing_is_removed_unasked(run_cli, quick):
    code, _, err = run_cli("rm", str(quick))
    assert code == 2
    assert "24 runs" in err
    assert "--yes" in err
    assert len(store.run_files(quick)) == 24


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("n\n", 24), ("\n", 24)])
def test_on_a_terminal_it_is_asked(run_cli, quick, monkeypatch, answer, left):
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    code, _, err = run_cli("rm", str(quick))
    assert "Remove 24 runs?" in err
    assert code == (0 if left == 0 else 1)
    assert len(store.run_files(quick)) == left


def test_failed_and_interrupted_runs_are_chosen_by_their_state(run_cli, quick):
    failed, partial = quick / "digits/flora/000000000001", quick / "digits/flora/000000000002"
    for folder in (failed, partial / "checkpoints/round-00001"):
        folder.mkdir(parents=True)
    (failed / FAILURE).write_text("{}")
    assert run_cli("rm", str(quick), "--state", "failed", "--yes")[0] == 0
    assert not failed.exists()
    assert partial.exists()
    assert run_cli("rm", str(quick), "--state", "partial", "--yes")[0] == 0
    assert not partial.exists()
    assert len(store.run_files(quick)) == 24


def test_stale_runs_are_those_made_from_something_else(run_cli, quick):
    """The reference results are from before versions of the code were kept."""
    _, out, _ = run_cli("rm", str(quick), "--state", "stale", "--yes")
    assert "24 runs removed" in out


def test_a_running_run_is_refused_and_nothing_is_removed(run_cli, quick):
    folder = next(quick.glob("*/*/*"))
    with lock_of(folder).acquire():
        code, _, err = run_cli("rm", str(quick), "--yes")
    assert code == 2
    assert "is being run" in err
    assert len(store.run_files(quick)) == 24


def test_links_are_not_followed(run_cli, quick, tmp_path):
    outside = tmp_path / "outside" / "flora" / "0123456789ab"
    outside.mkdir(parents=True)
    (outside / "run.json").write_text("{}")
    (quick / "linked").symlink_to(tmp_path / "outside")
    (quick / "digits" / "flora").mkdir()
    (quick / "digits" / "flora" / "0123456789ab").symlink_to(outside)
    code, _, err = run_cli("rm", str(quick), "--yes")
    assert code == 0
    assert (outside / "run.json").exists()
    assert err.count("behind a link") == 2
    code, _, err = run_cli("rm", str(quick / "digits" / "flora" / "0123456789ab"), "--yes")
    assert (code, "link" in err) == (2, True)
    assert (outside / "run.json").exists()


def test_what_is_no_run_is_never_removed(run_cli, tmp_path):
    model = tmp_path / "project" / "training" / "model"
    (model / "checkpoints").mkdir(parents=True)
    for target in (tmp_path, model, model.parent):
        code, _, err = run_cli("rm", str(target), "--yes")
        assert (code, err.count("\n")) == (2, 1)
    assert (model / "checkpoints").exists()


def test_a_state_that_there_is_not_is_refused(run_cli, quick):
    code, _, err = run_cli("rm", str(quick), "--state", "fail")
    assert (code, "'failed'" in err) == (2, True)
    run = str(next(quick.glob("*/*/*")))
    assert run_cli("rm", run, "--state", "done", "--yes")[0] == 2


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_changed_is_named(run_cli, quick):
    (quick / "digits" / "zero_shot").chmod(0o555)
    code, _, err = run_cli("rm", str(quick), "--yes")
    (quick / "digits" / "zero_shot").chmod(0o755)
    assert (code, err.count("\n")) == (2, 1)


# --- verify --------------------------------------------------------------------------------------------


def test_sound_results_are_found_sound(run_cli, quick, whole):
    code, out, _ = run_cli("verify", str(quick))
    assert (code, out.splitlines()[-1]) == (0, f"{quick}: 24 runs, nothing wrong")
    assert "weights.safetensors is not kept (12 of 24 runs)" in out
    code, out, _ = run_cli("verify", str(whole.parents[3]))
    assert (code, out) == (0, f"{whole.parents[3]}: 1 run, nothing wrong\n")


def tampered(name):
    def tamper(path: Path) -> None:  # noqa: PLR0912
        run = store.load_run(path)
        folder, config, rounds = path.parent, run["config"], run["rounds"]
        ledger = store.load_table(path, "ledger")
        match name:
            case "cut short":
                path.write_text(path.read_text()[:100])
            case "newer":
                path.write_text(json.dumps({**run, "schema": store.SCHEMA + 1}))
            case "moved":
                shutil.move(folder, folder.with_name("0" * 12))
            case "configuration":
                change(path, config={**config, "local_epochs": 7})
            case "definition":
                change(path, definition={**run["definition"], "model": "another"})
            case "another's definition":
                change(path, definition=Definition(config="0" * 12, **PARTS).to_dict())
            case "table":
                (folder / "clients.csv").write_text((folder / "clients.csv").read_text() + "1,1,1,1,1,1\n")
            case "table gone":
                (folder / "clients.csv").unlink()
            case "ledger":
                ledger.loc[3, "payload_bytes"] += 1
                change(path, ledger=store.save_table(path, "ledger", ledger))
            case "ledger's rounds":
                ledger["round"] = ledger["round"].replace({1: 2, 2: 1}).where(ledger["direction"] == "up", 1)
                change(path, ledger=store.save_table(path, "ledger", ledger))
            case "rounds":
                change(path, rounds=[*rounds[:3], *rounds[4:]])
            case "last round":
                change(path, rounds=rounds[:-1])
            case "accuracy":
                change(path, summary={**run["summary"], "accuracy": 0.99})
            case "bytes":
                change(path, summary={**run["summary"], "bytes_up": 1})
            case "accuracies":
                last = {**rounds[-1], "accuracy": 0.99}
                change(path, rounds=[*rounds[:-1], last], summary={**run["summary"], "accuracy": 0.99})
            case "time":
                change(path, summary={**run["summary"], "train_seconds": 1e-5})
            case "memory":
                change(path, summary={**run["summary"], "peak_memory_bytes": 10})
            case "rounds.csv":
                (folder / "rounds.csv").write_text("round\n0\n")
            case "another's rounds.csv":
                change(path, rounds_table=store.save_rounds(path, {"rounds": rounds[:2]}))
            case "invariant":
                broken = {"holds": False, "reason": "NaN"}
                change(path, invariants={**run["invariants"], "losses_finite": broken})
            case "staging":
                (folder / store.FINISHED).mkdir()
            case "temporary":
                (folder / ".run.json.0.tmp").touch()
            case "temporary index":
                (folder.parents[2] / ".results.parquet.0.tmp").touch()
            case "checkpoints":
                (folder / "checkpoints" / "round-00003").mkdir(parents=True)

    return tamper


FAULTS = {
    "cut short": "cut short",
    "newer": "schema 3",
    "moved": "its own place is",
    "configuration": "has the hash",
    "definition": "does not have the hash",
    "another's definition": "of another configuration",
    "table": "is not what its run.json was saved with",
    "table gone": "clients.csv is missing",
    "ledger": "adds up to",
    "ledger's rounds": "in round 1",
    "rounds": "not numbered",
    "last round": "last round is 9 of 10",
    "accuracy": "not that of its last round",
    "bytes": "bytes_up, not to 1",
    "accuracies": "has not the rounds",
    "time": "not for 1e-05 s",
    "memory": "its peak memory is 10 bytes",
    "rounds.csv": "is not what its run.json was saved with",
    "another's rounds.csv": "has not the rounds",
    "invariant": "losses finite: NaN",
    "staging": "left of a process",
    "temporary": "left of a process",
    "temporary index": "was being written",
    "checkpoints": "left of a process",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(run_cli, whole, fault):
    tampered(fault)(whole)
    code, out, _ = run_cli("verify", str(whole.parents[3]))
    assert code == 1
    assert FAULTS[fault] in out
    code, out, _ = run_cli("verify", str(whole.parents[3]), "--json")
    found = json.loads(out)
    assert code == 1
    assert any(FAULTS[fault] in finding["what"] and finding["wrong"] for finding in found["findings"])


def test_files_that_a_running_process_writes_are_not_left(run_cli, whole):
    (whole.parent / "checkpoints").mkdir()
    with lock_of(whole.parent).acquire():
        assert run_cli("verify", str(whole.parents[3]))[0] == 0


def test_a_configuration_of_an_earlier_version_is_a_note(run_cli, whole):
    run = store.load_run(whole)
    shutil.rmtree(whole.parent)
    fewer = {name: value for name, value in run["config"].items() if name != "acceleration"}
    for config, note in ((fewer, "earlier version"), ({**fewer, "vanished": 1}, "another version")):
        definition = Definition(config="0" * 12, **PARTS).to_dict()
        old = {**run, "config": config, "config_hash": "0" * 12, "definition": definition, "ledger": None}
        path = whole.parent.with_name("0" * 12) / "run.json"
        store.save_run(path, {**old, "clients": None, "rounds_table": None})
        code, out, _ = run_cli("verify", str(whole.parents[3]))
        assert (code, note in out) == (0, True)


def test_a_gpu_that_is_not_here_is_no_reason_to_doubt_a_hash(whole):
    run = store.load_run(whole)
    config = RunConfig.read(run["config"]).model_copy(update={"device": "cuda:3"})
    moved = {**run, "config": config.model_dump(mode="json"), "config_hash": config.hash}
    assert list(verify._config(whole, moved)) == []


def test_a_complete_result_that_is_not_in_its_place_is_named(run_cli, whole):
    other = whole.parent.with_name("0" * 12) / store.FINISHED / "run.json"
    store.save_run(other, store.load_run(whole))
    code, out, _ = run_cli("verify", str(whole.parents[3]))
    assert (code, "not in its place" in out) == (1, True)


# --- diff ----------------------------------------------------------------------------------------------


def test_a_run_does_not_differ_from_itself(run_cli, quick):
    path = sorted(quick.glob("digits/linear_probe/*/run.json"))[0]
    for run in (str(path), str(path.parent), path.parent.name[:8]):
        code, out, _ = run_cli("diff", run, str(path), "--results", str(quick))
        assert (code, out) == (0, "accuracies, losses and bytes are the same\n")


def test_the_same_figures_in_another_time_are_the_same(run_cli, tmp_path):
    one, other = make_run(config_hash="aaa"), make_run(config_hash="aab")
    other["summary"]["train_seconds"] = 5.0
    other["environment"]["cpu"] = "another"
    keep(tmp_path, one, other)
    code, out, _ = run_cli("diff", "aaa", "aab", "--results", str(tmp_path))
    assert code == 0
    assert "train_seconds  2.5 -> 5 (+2.5, +100 %)" in out
    assert "cpu  some processor -> another" in out
    assert out.endswith("are the same\n")


def test_what_differs_is_said_part_by_part(run_cli, tmp_path):
    one, other = make_run(config_hash="aaa", rounds=4), make_run(config_hash="bbb", rounds=4, rank=4)
    other["rounds"][2]["loss"] = 1.25
    other["rounds"][3] |= {"loss": 1.5, "accuracy": 0.75}
    other["summary"]["accuracy"] = 0.75
    keep(tmp_path, one, other)
    given = ("diff", "a", "b", "--results", str(tmp_path))
    code, out, _ = run_cli(*given)
    assert code == 1
    for line in (
        "method.rank  none -> 4",
        "accuracy  0.5 -> 0.75 (+0.25, +50 %)",
        "loss      first in round 2",
    ):
        assert line in out
    code, out, _ = run_cli(*given, "--json")
    found = json.loads(out)
    assert (code, found["same_figures"]) == (1, False)
    assert found["rounds"] == {"loss": 2, "accuracy": 3}
    assert found["summary"] == {"accuracy": [0.5, 0.75]}
    assert found["config"] == {"method.rank": [None, 4]}


def test_a_missing_round_differs(run_cli, tmp_path):
    keep(tmp_path, make_run(config_hash="aaa", rounds=4), make_run(config_hash="bbb", rounds=3))
    code, out, _ = run_cli("diff", "aaa", "bbb", "--results", str(tmp_path))
    assert (code, "accuracy    first in round 3" in out) == (1, True)


def test_figures_that_differ_far_behind_are_written_out(run_cli, tmp_path):
    one, other = make_run(config_hash="aaa"), make_run(config_hash="bbb")
    other["summary"]["accuracy"] = 0.5 + 1e-12
    keep(tmp_path, one, other)
    _, out, _ = run_cli("diff", "aaa", "bbb", "--results", str(tmp_path))
    assert "0.5 -> 0.500000000001" in out


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("zzz", "there is no 'zzz'"),
        ("", "there is no ''"),
        ("ffff", "no hash in"),
        ("a", "2 hashes begin with 'a'"),
        ("empty", "cannot be read"),
        ("newer.json", "schema 99"),
    ],
)
def test_a_run_that_cannot_be_found_is_refused(run_cli, tmp_path, monkeypatch, run, words):
    monkeypatch.chdir(tmp_path)
    keep(tmp_path / "results", make_run(config_hash="aaa"), make_run(config_hash="aab"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "newer.json").write_text('{"schema": 99}')
    code, out, err = run_cli("diff", "aaa", run)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
