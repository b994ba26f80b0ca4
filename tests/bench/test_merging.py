"""Results of several folders in one: whole runs, none lost, none overwritten unasked."""

import json
import os
import shutil
from pathlib import Path

import pytest

from bench import merging, store
from bench.cell_log import LOG
from bench.checkpoints import FOLDER as CHECKPOINTS
from bench.execute import FAILURE, TRACEBACK
from bench.locks import locked
from bench.merging import merge
from bench.progress_file import PROGRESS
from flora.errors import BadInput
from tests.bench.test_store import keep, make_run, write_whole

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shards(tmp_path):
    """The reference results in two parts that share one run, with what lies beside them."""
    runs = sorted((ROOT / "results/reference/quick").glob("digits/*/*/run.json"))
    parts = tmp_path / "one", tmp_path / "two"
    for part, paths in zip(parts, (runs[:20], runs[19:40]), strict=True):
        for path in paths:
            shutil.copytree(path.parent, part / path.parent.relative_to(ROOT / "results/reference/quick"))
    return parts


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def statuses(outcomes) -> list[str]:
    return sorted(outcome.status for outcome in outcomes)


def test_every_run_is_copied_as_it_is_with_all_beside_it(shards, tmp_path):
    into = tmp_path / "into"
    assert statuses(merge(shards, into)) == ["copied"] * 40 + ["kept"]
    assert contents(into) == {**contents(shards[0]), **contents(shards[1])}
    assert len(store.load_results(into)) == 40


def test_merging_again_changes_nothing(shards, tmp_path):
    into = tmp_path / "into"
    list(merge(shards, into))
    before = contents(into)
    assert set(statuses(merge(shards, into))) == {"kept"}
    assert contents(into) == before


def test_weights_and_log_come_along(tmp_path):
    path = store.run_path(tmp_path / "one", make_run()["config"], "aaa")
    write_whole(path, "aaa", 1.0, "small")
    path.with_name(LOG).write_text("began\n")
    list(merge([tmp_path / "one"], tmp_path / "into"))
    assert contents(tmp_path / "into") == contents(tmp_path / "one")


@pytest.mark.parametrize("newest", [False, True])
def test_results_that_differ_are_named_and_the_first_stays_unless_the_newest_is_asked_for(tmp_path, newest):
    one, two, into = (tmp_path / name for name in ("one", "two", "into"))
    for folder, value, loss in ((one, 1.0, 1.0), (two, 2.0, 3.5)):
        path = store.run_path(folder, make_run()["config"], "aaa")
        write_whole(path, "aaa", value, "small")
        run = store.load_run(path)
        run["rounds"][1]["loss"] = loss
        store.save_run(path, run)
    (two / "digits/flora/aaa/weights.safetensors").unlink()
    first, second = merge([one, two], into, newest)
    assert (first.status, second.status) == ("copied", "replaced" if newest else "differs")
    assert second.reason == "round 1 loss is 3.5 instead of 1.0"
    assert contents(into) == contents(two if newest else one)


def test_an_older_result_never_replaces_a_newer_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    keep(one, make_run(config_hash="aaa"))
    other = make_run(config_hash="aaa")
    other["summary"]["accuracy"] = 0.75
    keep(two, other)
    *_, last = merge([two, one], tmp_path / "into", newest=True)
    assert last.status == "differs"


def test_another_time_or_machine_is_no_difference_but_other_code_is(tmp_path):
    one, two, three = make_run(config_hash="aaa"), make_run(config_hash="aaa"), make_run(config_hash="aaa")
    two["summary"]["train_seconds"], two["environment"]["cpu"] = 9.0, "another"
    for run, harness in ((one, "h1"), (two, "h1"), (three, "h2")):
        run["definition"] = {"hash": harness, "config": "aaa", "harness": harness}
    for name, run in (("one", one), ("two", two), ("three", three)):
        keep(tmp_path / name, run)
    found = list(merge([tmp_path / name for name in ("one", "two", "three")], tmp_path / "into"))
    assert [outcome.status for outcome in found] == ["copied", "kept", "differs"]
    assert found[2].reason == "made from another harness"


def test_damaged_newer_and_unfinished_runs_are_skipped_by_name(shards, tmp_path):
    one, _ = shards
    cut, newer, table, *_ = sorted(one.glob("digits/*/*/run.json"))
    cut.write_text(cut.read_text()[:99])
    newer.write_text(json.dumps({"schema": 99}))
    table.with_name("ledger.csv").write_text("other\n")
    failed = one / "digits" / "flora" / "0123456789ab"
    failed.mkdir(parents=True)
    (failed / FAILURE).write_text("{}")
    skipped = {x.path: x.reason for x in merge([one], tmp_path / "into") if x.status == "skipped"}
    assert set(skipped) == {cut, newer, table, failed}
    for path, words in ((cut, "damaged"), (newer, "schema 99"), (table, "ledger.csv"), (failed, "no result")):
        assert words in skipped[path]
        assert not (tmp_path / "into" / path.relative_to(one)).exists()
    assert len(store.load_results(tmp_path / "into")) == 17


def test_a_run_that_is_going_on_in_the_target_is_left_alone(tmp_path):
    keep(tmp_path / "one", make_run(config_hash="aaa"))
    target = tmp_path / "into" / "digits" / "flora" / "aaa"
    target.mkdir(parents=True)
    with locked(target):
        (outcome,) = merge([tmp_path / "one"], tmp_path / "into")
    assert (outcome.status, "is being run" in outcome.reason) == ("skipped", True)
    assert not (target / "run.json").exists()


def test_predictions_are_merged_the_first_staying(tmp_path):
    for name, seconds in (("one", 1.0), ("two", 2.0)):
        keep(tmp_path / name, make_run(config_hash=f"a{name}"))
        store.save_predictions(
            tmp_path / name, {"both": {"total_seconds": seconds}, name: {"total_seconds": 5}}
        )
    list(merge([tmp_path / "one", tmp_path / "two"], tmp_path / "into"))
    found = store.load_predictions(tmp_path / "into")
    assert {key: values["total_seconds"] for key, values in found.items()} == {
        "both": 1.0,
        "one": 5,
        "two": 5,
    }


def test_old_results_stay_of_their_schema(tmp_path):
    old = ROOT / "tests/data/schema-1"
    assert statuses(merge([old], tmp_path / "into")) == ["copied"]
    assert contents(tmp_path / "into") == contents(old)


def test_a_merge_cut_off_leaves_no_half_run_and_goes_on(shards, tmp_path, monkeypatch):
    into, copied = tmp_path / "into", shutil.copyfileobj
    count = 0

    def fail(*given):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return copied(*given)

    monkeypatch.setattr(merging.shutil, "copyfileobj", fail)
    with pytest.raises(KeyboardInterrupt):
        list(merge(shards, into))
    for path in store.run_files(into):
        assert "damaged" not in store.unlike_saved(path, store.load_run(path)).values()
    list(merge(shards, into))
    assert contents(into) == {**contents(shards[0]), **contents(shards[1])}


def refuse(monkeypatch, refused):
    """Have `Path.open` refuse what it would refuse anyone but root."""
    opened = Path.open

    def open_if_allowed(path, mode="r", *args, **kwargs):
        if refused(path, mode):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_if_allowed)


def test_a_read_only_archive_is_copied_to_files_that_can_be_written(tmp_path, monkeypatch):
    path = store.run_path(tmp_path / "one", make_run()["config"], "aaa")
    write_whole(path, "aaa", 1.0, "small")
    path.with_name(LOG).write_text("began\n")
    for file in path.parent.iterdir():
        file.chmod(0o444)
        os.utime(file, ns=(10**18, 10**18))
    refuse(monkeypatch, lambda path, mode: set("wa+") & set(mode) and path.stat().st_mode & 0o200 == 0)
    assert statuses(merge([tmp_path / "one"], tmp_path / "into")) == ["copied"]
    assert contents(tmp_path / "into") == contents(tmp_path / "one")
    copied = [file.stat() for file in (tmp_path / "into/digits/flora/aaa").iterdir()]
    assert {file.st_mtime_ns for file in copied} == {10**18}
    assert all(file.st_mode & 0o200 for file in copied)


@pytest.mark.parametrize("name", [store.RUN, "ledger.csv", LOG])
def test_a_source_that_cannot_be_read_is_skipped_and_the_others_are_copied(tmp_path, monkeypatch, name):
    for key in ("aaa", "bbb"):
        path = store.run_path(tmp_path / "one", make_run()["config"], key)
        write_whole(path, key, 1.0, "small")
        path.with_name(LOG).write_text("began\n")
    secret = path.with_name(name)
    refuse(monkeypatch, lambda path, mode: path == secret)
    copied, skipped = merge([tmp_path / "one"], tmp_path / "into")
    assert (copied.status, skipped.status, skipped.path) == ("copied", "skipped", path)
    assert "cannot be read (Permission denied)" in skipped.reason
    assert store.run_files(tmp_path / "into") == [tmp_path / "into/digits/flora/aaa/run.json"]


def test_what_attempts_left_in_the_target_goes_when_a_result_comes(tmp_path):
    keep(tmp_path / "one", make_run(config_hash="aaa"))
    target = tmp_path / "into/digits/flora/aaa"
    (target / CHECKPOINTS / "round-00003").mkdir(parents=True)
    for name in (FAILURE, TRACEBACK, PROGRESS):
        (target / name).write_text("{}")
    assert statuses(merge([tmp_path / "one"], tmp_path / "into")) == ["copied"]
    assert contents(tmp_path / "into") == contents(tmp_path / "one")
    assert not (target / CHECKPOINTS).exists()


@pytest.mark.parametrize("name", ["none", "file", "empty"])
def test_a_folder_without_results_is_refused_before_anything_is_copied(shards, tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=name):
        list(merge([shards[0], tmp_path / name], tmp_path / "into"))
    assert not (tmp_path / "into").exists()


def test_a_folder_is_not_merged_into_itself(shards):
    with pytest.raises(BadInput, match="is one of the folders"):
        list(merge(shards, shards[0] / ".." / "one"))


def test_a_target_that_takes_no_files_is_refused(shards, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot write"):
        list(merge(shards, tmp_path / "file"))


def test_a_full_disk_is_one_line(shards, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging.shutil, "copyfileobj", full)
    with pytest.raises(BadInput, match="No space left"):
        list(merge(shards, tmp_path / "into"))
    assert store.run_files(tmp_path / "into") == []


def test_the_command_counts_and_names(run_cli, shards, tmp_path):
    one, two = map(str, shards)
    code, out, err = run_cli("merge", one, two, "--into", str(tmp_path / "into"))
    assert (code, out, err) == (0, f"{tmp_path / 'into'}: 40 copied, 1 kept\n", "")
    path = next(shards[0].glob("digits/*/*/run.json"))
    run = store.load_run(path)
    store.save_run(path, {**run, "environment": {**run["environment"], "cpu": "another"}})
    code, out, err = run_cli("merge", one, "--into", str(tmp_path / "machines"))
    assert (code, "2 kinds of machine" in err) == (0, True)
    path.write_text("{")
    code, out, err = run_cli("merge", one, "--into", str(tmp_path / "into"), "--json")
    assert (code, err.count(str(path))) == (1, 1)
    assert sorted({record["status"] for record in json.loads(out)}) == ["kept", "skipped"]


def test_the_command_refuses_what_is_no_folder_of_results(run_cli, tmp_path):
    code, _, err = run_cli("merge", str(tmp_path / "none"), "--into", str(tmp_path / "into"))
    assert (code, err.count("\n"), "none" in err) == (2, 1, True)
