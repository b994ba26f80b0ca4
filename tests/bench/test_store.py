"""Results are written whole or not at all, and read back as tidy tables."""

import hashlib
import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bench
from bench import store
from flora.errors import BadInput


def make_run(method="flora", *, seed=0, shots=None, task="digits", config_hash="h0", rounds=2, **options):
    config = {
        "task": task,
        "model": {"name": "tiny"},
        "method": {"name": method, **options},
        "split": {"name": "dirichlet", "beta": 0.1, "shots": shots},
        "clients": 10,
        "optimizer": {"name": "adam", "lr": 5e-5, "betas": [0.9, 0.98]},
        "seed": seed
        if isinstance(seed, dict)
        else dict.fromkeys(("split", "participation", "init", "order"), seed),
        "data": {"root": None},
    }
    record = {"accuracy": 0.5, "loss": 1.0, "bytes_up": 7, "bytes_down": 5}
    seconds = {"send": 1.0, "train": 2.0, "receive": 3.0, "aggregate": 4.0, "evaluate": 100.0, "rest": 50.0}
    first = {"round": 0, "accuracy": 0.25, "loss": None, "bytes_up": 0, "bytes_down": 0}
    return {
        "schema": store.SCHEMA,
        "definition": {"hash": "0123456789abcdef", "config": config_hash},
        "sittings": [],
        "status": "complete",
        "config": config,
        "config_hash": config_hash,
        "summary": {"accuracy": 0.5, "train_seconds": 2.5, "peak_gpu_memory_bytes": None},
        "rounds": [
            {**first, "seconds": {"evaluate": 9.0}, "peak_memory_bytes": {"evaluate": 90}},
            *(
                {"round": n, **record, "seconds": seconds, "peak_memory_bytes": {"train": 70}}
                for n in range(1, rounds)
            ),
        ],
        "split": {"fingerprint": "abc", "client_sizes": [3, 4], "label_skew": 0.75},
        "environment": {"cpu": "some processor", "packages": {"torch": "2.4"}},
        "invariants": {},
    }


def keep(folder: Path, *runs: dict) -> None:
    for run in runs:
        store.save_run(store.run_path(folder, run["config"], run["config_hash"]), run)


@pytest.mark.parametrize(
    ("task", "folder"),
    [
        ("digits", "digits"),
        ("folder:/a/b c", "folder-b_c"),
        ("folder:/a/b c/", "folder-b_c"),
        ("folder:C:\\data\\pets", "folder-pets"),
        ("hf:owner/name", "hf-name"),
        ("..", "_."),
        ("../../etc", "_._.._etc"),
    ],
)
def test_path_of_a_run_is_safe(tmp_path, task, folder):
    path = store.run_path(tmp_path, {"task": task, "method": {"name": "flora"}}, "0a1b")
    assert path == tmp_path / folder / "flora" / "0a1b" / "run.json"


def test_saved_run_is_loaded_as_it_was(tmp_path):
    run = make_run()
    keep(tmp_path, run)
    path = store.run_path(tmp_path, run["config"], "h0")
    assert store.load_run(path) == run
    assert store.stored(path) == run
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_no_file_is_no_result(tmp_path):
    assert store.stored(tmp_path / "run.json") is None


def test_numpy_scalars_become_plain_and_what_is_not_finite_null(tmp_path):
    run = make_run()
    run["summary"] = {
        "count": np.int64(3),
        "single": np.float32(0.5),
        "flag": np.bool_(True),
        "nan": math.nan,
        "infinite": np.float64("inf"),
        "pair": (1, 2),
    }
    store.save_run(tmp_path / "run.json", run)
    assert store.load_run(tmp_path / "run.json")["summary"] == {
        "count": 3,
        "single": 0.5,
        "flag": True,
        "nan": None,
        "infinite": None,
        "pair": [1, 2],
    }


@pytest.mark.parametrize("alien", [np.zeros(2), object(), {1: 2}, b"bytes", {3}])
def test_what_is_not_plain_is_refused_by_its_field(tmp_path, alien):
    run = make_run()
    run["summary"]["odd"] = alien
    with pytest.raises(TypeError, match=r"result\.summary\.odd"):
        store.save_run(tmp_path / "deep" / "run.json", run)
    assert not (tmp_path / "deep").exists()


def test_a_result_that_could_not_be_read_is_not_written(tmp_path):
    run = make_run()
    del run["summary"]
    with pytest.raises(ValueError, match="summary"):
        store.save_run(tmp_path / "run.json", run)
    assert list(tmp_path.iterdir()) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(extra=st.dictionaries(st.text(min_size=1), json_values, max_size=4))
def test_any_plain_value_makes_the_round_trip(tmp_path_factory, extra):
    path = tmp_path_factory.mktemp("store") / "run.json"
    run = {**make_run(), "notes": extra}
    store.save_run(path, run)
    assert store.load_run(path) == run


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_failure_while_writing_leaves_the_old_result_whole(tmp_path, monkeypatch, step):
    path = tmp_path / "run.json"
    old = make_run()
    store.save_run(path, old)

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(store.os, step, fail)
        with pytest.raises(OSError, match="disk full"):
            store.save_run(path, make_run(config_hash="h1"))
    assert store.load_run(path) == old
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_interrupt_while_writing_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(*_):
        assert [file.suffix for file in tmp_path.iterdir()] == [".tmp"]
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save_run(tmp_path / "run.json", make_run())
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_flushed_before_it_takes_its_name_and_the_folder_after(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(store.os, "fsync", lambda descriptor: steps.append("flush") or fsync(descriptor))
    monkeypatch.setattr(store.os, "replace", lambda *names: steps.append("rename") or replace(*names))
    store.save_run(tmp_path / "run.json", make_run())
    assert steps == ["flush", "rename", "flush"]


@pytest.mark.skipif(os.name == "nt", reason="no umask")
def test_a_result_is_readable_by_those_the_umask_allows(tmp_path):
    store.save_run(tmp_path / "run.json", make_run())
    (tmp_path / "other").touch()
    assert (tmp_path / "run.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def assert_refused(path: Path, *words: str) -> None:
    with pytest.raises(BadInput) as caught:
        store.load_run(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_result_cut_short_anywhere_is_refused_by_name(tmp_path):
    path = tmp_path / "run.json"
    store.save_run(path, make_run())
    whole = path.read_bytes()
    closed = len(whole.rstrip())  # without its last newline it is still whole
    for length in (*range(0, closed, 7), closed - 1):
        path.write_bytes(whole[:length])
        assert_refused(path, "delete it")


@pytest.mark.parametrize("text", ["[]", "null", '"run"', "{}", "\udcff", "NaN", "[" * 100_000])
def test_what_is_no_result_is_refused_by_name(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text, errors="surrogateescape")
    assert_refused(path, "delete it")


@pytest.mark.parametrize("field", ["schema", "status", "config", "config_hash", "summary", "rounds"])
def test_a_missing_field_is_named(tmp_path, field):
    run = make_run()
    del run[field]
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run))
    assert_refused(path, field)


def test_nan_and_a_field_of_the_wrong_type_are_refused(tmp_path):
    path = tmp_path / "run.json"
    run = make_run()
    run["summary"]["accuracy"] = math.nan
    path.write_text(json.dumps(run))
    assert_refused(path, "NaN")
    run = make_run()
    run["rounds"][1]["bytes_up"] = "many"
    path.write_text(json.dumps(run))
    assert_refused(path, "rounds.1.bytes_up")


def test_a_newer_schema_asks_for_a_newer_suite(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"schema": store.SCHEMA + 1}))
    assert_refused(path, f"schema {store.SCHEMA + 1}", "update")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "run.json").mkdir()
    assert_refused(tmp_path / "run.json")


def test_check_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    store.check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_check_writable_refuses_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadInput, match="file") as caught:
            store.check_writable(folder)
        assert "\n" not in str(caught.value)


def test_check_writable_refuses_a_folder_that_takes_no_file(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(BadInput, match="Read-only"):
        store.check_writable(tmp_path)


def test_results_of_different_methods_share_one_tidy_table(tmp_path):
    mixed_seed = {"split": 1, "participation": 2, "init": 3, "order": 4}
    keep(
        tmp_path,
        make_run("flora", seed=10, config_hash="d", rank=2, places=["text.out"]),
        make_run("flora", seed=9, config_hash="c", rank=4, places=["text.q"]),
        make_run("flora", seed=mixed_seed, config_hash="e", rank=2, places=["text.out"]),
        make_run("fedlc", shots=4, config_hash="b"),
        make_run("fedlc", shots=None, config_hash="a"),
    )
    frame = bench.load_results(tmp_path)
    assert list(frame["config_hash"]) == ["a", "b", "c", "d", "e"]
    assert list(frame["seed"]) == [0, 0, 9, 10, "1-2-3-4"]
    assert frame["shots"].dtype == "Int64"
    assert frame["shots"].isna().tolist() == [True, False, True, True, True]
    assert frame["shots"][1] == 4
    assert list(frame["method"]) == ["fedlc"] * 2 + ["flora"] * 3
    assert list(frame["method.rank"][2:]) == [4, 2, 2]
    assert frame["method.rank"][:2].isna().all()
    assert frame["method.places"][3] == ("text.out",)
    first = frame.iloc[0]
    expected = {
        "task": "digits",
        "model": "tiny",
        "split": "dirichlet",
        "clients": 10,
        "split.beta": 0.1,
        "optimizer.name": "adam",
        "optimizer.lr": 5e-5,
        "optimizer.betas": (0.9, 0.98),
        "status": "complete",
        "accuracy": 0.5,
        "train_seconds": 2.5,
        "split.fingerprint": "abc",
        "split.label_skew": 0.75,
        "environment.cpu": "some processor",
        "environment.packages.torch": "2.4",
    }
    assert first[list(expected)].to_dict() == expected
    assert store.load_run(first["path"])["config_hash"] == "a"
    assert frame["peak_gpu_memory_bytes"].dtype == float
    assert frame.columns.is_unique
    assert not {"method.name", "split.name", "model.name", "split.shots", "seed.init"} & set(frame.columns)
    assert list(frame.groupby(["method", "method.rank", "method.places"]).size()) == [2, 1]


def test_seeds_that_agree_are_numbers(tmp_path):
    keep(tmp_path, make_run(seed=1, config_hash="a"), make_run(seed=2, config_hash="b"))
    assert bench.load_results(tmp_path)["seed"].dtype == np.int64


def test_a_bare_model_and_a_bare_seed_will_do(tmp_path):
    run = make_run()
    run["config"] |= {"model": "ViT-B-32:openai", "seed": 3, "split": "iid"}
    keep(tmp_path, run)
    row = bench.load_results(tmp_path).iloc[0]
    assert (row["model"], row["seed"], row["split"]) == ("ViT-B-32:openai", 3, "iid")
    assert pd.isna(row["shots"])


def test_order_of_rows_does_not_hang_on_the_order_of_writing(tmp_path):
    runs = [make_run(seed=seed, config_hash=f"h{seed}") for seed in range(4)]
    keep(tmp_path / "one", *runs)
    keep(tmp_path / "two", *reversed(runs))
    one, two = (bench.load_results(tmp_path / name).drop(columns="path") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)


def test_rounds_accumulate_within_a_run(tmp_path):
    keep(tmp_path, make_run(seed=0, rounds=4), make_run(seed=1, config_hash="h1", rounds=2, shots=8))
    frame = bench.load_rounds(tmp_path)
    assert list(frame["seed"]) == [0] * 4 + [1] * 2
    assert list(frame["round"]) == [0, 1, 2, 3, 0, 1]
    assert list(frame["cumulative_bytes"]) == [0, 12, 24, 36, 0, 12]
    assert list(frame["cumulative_seconds"]) == [0.0, 10.0, 20.0, 30.0, 0.0, 10.0]
    assert list(frame["seconds.evaluate"]) == [9.0, 100.0, 100.0, 100.0, 9.0, 100.0]
    assert frame["peak_memory_bytes.train"].isna().tolist() == [True, False, False, False, True, False]
    assert frame["loss"].isna().tolist() == [True, False, False, False, True, False]
    assert frame["shots"].dtype == "Int64"
    assert frame["shots"][4] == 8


@pytest.mark.parametrize("name", ["there", "missing"])
@pytest.mark.parametrize("reader", ["load_results", "load_rounds"])
def test_a_folder_without_results_is_said_so(tmp_path, reader, name):
    (tmp_path / "there").mkdir()
    with pytest.raises(BadInput, match=name) as caught:
        getattr(bench, reader)(tmp_path / name)
    assert "flora-bench run" in str(caught.value)


def test_a_table_with_a_broken_result_names_it(tmp_path):
    keep(tmp_path, make_run(), make_run(config_hash="broken"))
    path = tmp_path / "digits" / "flora" / "broken" / "run.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(BadInput, match="broken"):
        bench.load_results(tmp_path)


def test_results_kept_apart_below_a_folder_do_not_join_its_table(tmp_path):
    keep(tmp_path, make_run())
    keep(tmp_path / "reference", make_run(config_hash="h1"))
    assert list(bench.load_results(tmp_path)["config_hash"]) == ["h0"]


def test_importing_the_harness_loads_no_heavy_library():
    code = "import sys, bench, bench.store; print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_harness_has_no_other_names():
    with pytest.raises(AttributeError, match="no_such"):
        _ = bench.no_such


# --- tables beside a result ----------------------------------------------------------------------------


def test_rounds_are_kept_as_the_table_that_load_rounds_gives(tmp_path):
    run = make_run(rounds=4)
    path = store.run_path(tmp_path, run["config"], "h0")
    run["rounds_table"] = store.save_rounds(path, run)
    store.save_run(path, run)
    assert run["rounds_table"]["file"] == "rounds.csv"
    assert run["rounds_table"]["rows"] == 4
    kept = store.load_table(path, "rounds_table")
    whole = bench.load_rounds(tmp_path)
    shown = whole.drop(columns=["task", "model", "method", "split", "shots", "seed", "config_hash"])
    pd.testing.assert_frame_equal(kept, shown, check_dtype=False)
    header, first, *_ = path.with_name("rounds.csv").read_text().splitlines()
    assert header.startswith("round,accuracy,loss,bytes_up,bytes_down,cumulative_bytes,cumulative_seconds,")
    assert first.startswith("0,0.25,,0,0,0,")


def test_a_table_cannot_be_read_from_elsewhere(tmp_path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    path = tmp_path / "cell" / "run.json"
    digest = store.save_table(path, "ledger", [{"a": 1}])["sha256"]
    store.save_run(path, {**make_run(), "ledger": {"file": "../secret.csv", "rows": 1, "sha256": digest}})
    with pytest.raises(BadInput, match="secret"):
        store.load_table(path, "ledger")


def test_files_beside_a_result_are_flushed_before_they_take_their_names(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(store.os, "fsync", lambda descriptor: steps.append("flush") or fsync(descriptor))
    monkeypatch.setattr(store.os, "replace", lambda *names: steps.append("rename") or replace(*names))
    store.save_table(tmp_path / "run.json", "ledger", [{"round": 1}])
    assert steps == ["flush", "rename", "flush"]


# --- a result takes its place whole --------------------------------------------------------------------

OLD = {"config_hash": "old", "value": 1.0, "weights": "small"}
NEW = {"config_hash": "new", "value": 2.0, "weights": "none"}


def write_whole(path: Path, config_hash: str, value: float, weights: str) -> None:
    run = make_run(config_hash=config_hash)
    run["weights"] = store.save_weights(path, {"w": torch.full((3,), value)}, weights)
    run["ledger"] = store.save_table(path, "ledger", [{"round": 1, "bytes": value}])
    run["rounds_table"] = store.save_rounds(path, run)
    store.save_run(path, run)


def keep_whole(folder: Path, which: dict) -> None:
    with store.staged(folder / "run.json") as path:
        write_whole(path, **which)


def killed_at(step: int, work) -> bool:
    """Do `work` in a process that ends without any clean-up as it comes to a file the `step`-th time."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event, arguments):
            nonlocal left
            left -= event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
            if left == 0:
                os._exit(9)

        sys.addaudithook(count)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def assert_whole(folder: Path) -> str:
    """See that a folder holds one result with its own files and nothing else, and say which."""
    run = store.load_run(folder / "run.json")
    own = store.side_files(run)
    assert {file.name for file in folder.iterdir()} == {"run.json", *own}
    for name, described in own.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == described["sha256"]
    return run["config_hash"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("first", [None, OLD])
def test_a_result_killed_at_any_step_is_the_old_one_or_the_new_one(tmp_path, first):
    found = []
    for step in range(1, 1000):
        folder = tmp_path / str(step)
        if first:
            keep_whole(folder, first)
        killed = killed_at(step, partial(keep_whole, folder, NEW))
        if (folder / "run.json").exists() and not (folder / store.FINISHED).exists():
            store.load_run(folder / "run.json")
        store.recover(folder)
        if (folder / "run.json").exists():
            found.append(assert_whole(folder))
        else:
            assert first is None
            assert not folder.exists() or not list(folder.iterdir())
            found.append("none")
        if not killed:
            break
    order = ["old" if first else "none", "new"]
    assert found == sorted(found, key=order.index)
    assert set(found) == set(order)
    assert found.count("new") > 5  # the moving was cut off in many places


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_recovering_can_be_killed_at_any_step_too(tmp_path):
    keep_whole(tmp_path, OLD)
    write_whole(tmp_path / store.FINISHED / "run.json", **NEW)  # complete, not moved yet
    (tmp_path / ".run.json.0.tmp").touch()
    for step in range(1, 1000):
        if not killed_at(step, lambda: store.recover(tmp_path)):
            break
    assert assert_whole(tmp_path) == "new"


def test_a_result_that_is_never_complete_leaves_the_old_one(tmp_path):
    keep_whole(tmp_path, OLD)
    with suppress(KeyboardInterrupt), store.staged(tmp_path / "run.json") as path:
        store.save_table(path, "ledger", [{"round": 1}])
        raise KeyboardInterrupt
    assert assert_whole(tmp_path) == "old"


def test_a_complete_result_found_damaged_is_no_result(tmp_path):
    keep_whole(tmp_path, OLD)
    (tmp_path / store.FINISHED).mkdir()
    (tmp_path / store.FINISHED / "run.json").write_text("{")
    store.recover(tmp_path)
    assert assert_whole(tmp_path) == "old"


def test_what_is_not_of_the_suite_stays_beside_a_result(tmp_path):
    (tmp_path / "notes.csv").write_text("mine")
    keep_whole(tmp_path, OLD)
    keep_whole(tmp_path, NEW)
    assert (tmp_path / "notes.csv").read_text() == "mine"
    assert not (tmp_path / store.WEIGHTS).exists()


def test_recovering_a_folder_that_is_not_there_does_nothing(tmp_path):
    store.recover(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
