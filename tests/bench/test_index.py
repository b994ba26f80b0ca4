"""The index of a results folder gives the table that the files give, whatever happened to it or to them."""

import inspect
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from bench import index, migrations, store
from bench.index import INDEX, definitions, indexed
from flora.errors import BadInput
from tests.bench.test_store import keep, make_run

ROOT = Path(__file__).parents[2]
MIXED_SEED = {"split": 1, "participation": 2, "init": 3, "order": 4}


@pytest.fixture
def quick(tmp_path):
    shutil.copytree(ROOT / "results/reference/quick", tmp_path / "quick")
    return tmp_path / "quick"


@pytest.fixture
def varied(tmp_path):
    """Runs whose columns hold values of several kinds, or are there for some of them alone."""
    runs = [
        make_run("flora", seed=10, config_hash="d", rank=2, places=["text.out"], scale=1),
        make_run("flora", seed=9, config_hash="c", rank=4, places=["text.q", "text.k"], scale=0.5),
        make_run("flora", seed=MIXED_SEED, config_hash="e", rank=None, places="all", scale=True),
        make_run("fedlc", shots=4, config_hash="b", huge=2**80, empty=[]),
        make_run("fedlc", shots=None, config_hash="a", nested={"deep": [[1, 2], None]}),
    ]
    runs[3]["summary"] = {"accuracy": 0.25, "more": 3}
    keep(tmp_path / "varied", *runs)
    return tmp_path / "varied"


def from_files(folder: Path) -> pd.DataFrame:
    return store.load_results(store.run_files(folder))


def assert_like_files(folder: Path) -> None:
    pd.testing.assert_frame_equal(indexed(folder), from_files(folder))
    pd.testing.assert_frame_equal(store.load_results(folder), from_files(folder))


def reads(monkeypatch) -> list[str]:
    """Note which results are read from their files."""
    read: list[str] = []
    load = store.load_run
    monkeypatch.setattr(store, "load_run", lambda path: read.append(Path(path).parent.name) or load(path))
    return read


@pytest.mark.parametrize("name", ["quick", "varied"])
def test_the_index_gives_what_the_files_give(name, request, monkeypatch):
    folder = request.getfixturevalue(name)
    expected = from_files(folder)
    pd.testing.assert_frame_equal(indexed(folder, rebuild=True), expected)
    read = reads(monkeypatch)
    pd.testing.assert_frame_equal(indexed(folder), expected)
    pd.testing.assert_frame_equal(store.load_results(folder), expected)
    assert read == []


def test_changed_added_and_removed_runs_are_seen(varied, monkeypatch):
    indexed(varied, rebuild=True)
    keep(
        varied,
        make_run("zero_shot", config_hash="f", alone=True),
        make_run("fedlc", shots=4, config_hash="b"),
    )
    shutil.rmtree(varied / "digits" / "flora" / "c")
    read = reads(monkeypatch)
    found = indexed(varied)
    assert sorted(read) == ["b", "f"]
    pd.testing.assert_frame_equal(found, from_files(varied))
    assert sorted(found["config_hash"]) == ["a", "b", "d", "e", "f"]


def test_columns_take_the_types_of_the_runs_that_are_left(varied):
    indexed(varied, rebuild=True)
    for gone in ("c", "e"):
        shutil.rmtree(varied / "digits" / "flora" / gone)
    assert_like_files(varied)
    assert pd.api.types.is_integer_dtype(indexed(varied)["seed"])


def test_a_result_replaced_within_the_same_tick_and_of_the_same_size_is_seen(varied):
    indexed(varied, rebuild=True)
    path = varied / "digits" / "flora" / "c" / "run.json"
    before = path.stat()
    run = make_run("flora", seed=9, config_hash="c", rank=8, places=["text.q", "text.k"], scale=0.5)
    store.save_run(path, run)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert 8 in set(indexed(varied)["method.rank"])


def test_a_result_edited_in_place_to_the_same_size_and_time_is_seen(varied):
    indexed(varied, rebuild=True)
    path = varied / "digits" / "flora" / "c" / "run.json"
    before = path.stat()
    path.write_text(path.read_text().replace('"rank": 4', '"rank": 8'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size, before.st_mtime_ns, before.st_ino
    )  # fmt: skip
    assert 8 in set(indexed(varied)["method.rank"])


def test_a_folder_that_moved_is_read_by_its_index(varied, tmp_path, monkeypatch):
    indexed(varied, rebuild=True)
    moved = varied.rename(tmp_path / "moved")
    read = reads(monkeypatch)
    assert all(Path(path).is_relative_to(moved) for path in indexed(moved)["path"])
    assert read == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"nonsense" * 100, None])
def test_a_damaged_index_is_made_anew(varied, content):
    indexed(varied, rebuild=True)
    (varied / INDEX).write_bytes((varied / INDEX).read_bytes()[:2000] if content is None else content)
    assert_like_files(varied)


def test_another_table_under_its_name_is_no_index(varied):
    pd.DataFrame({"path": ["x"], "n": [1]}).to_parquet(varied / INDEX)
    assert_like_files(varied)


def test_an_index_of_another_reader_is_made_anew(varied, monkeypatch):
    indexed(varied, rebuild=True)
    monkeypatch.setattr(index, "_reader", lambda: "another")
    read = reads(monkeypatch)
    indexed(varied)
    assert len(read) == 5


@pytest.mark.parametrize("module", [store, migrations, index])
def test_the_reader_of_an_index_is_another_when_any_of_its_code_is(monkeypatch, module):
    before, source = index._reader(), inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda one: source(one) + "\n" * (one is module))
    assert index._reader() != before


def test_few_results_leave_no_index_and_many_do(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "KEPT_FROM", 3)
    keep(tmp_path, make_run(config_hash="a"), make_run(config_hash="b"))
    indexed(tmp_path)
    assert not (tmp_path / INDEX).exists()
    keep(tmp_path, make_run(config_hash="c"))
    indexed(tmp_path)
    assert (tmp_path / INDEX).exists()


def test_definitions_are_read_of_index_and_files_alike(varied, monkeypatch):
    expected = {path: store.load_run(path)["definition"] for path in store.run_files(varied)}
    assert definitions(varied) == expected
    indexed(varied, rebuild=True)
    read = reads(monkeypatch)
    assert definitions(varied) == expected
    assert read == []
    monkeypatch.setattr(index, "KEPT_FROM", 1)
    keep(varied, make_run(config_hash="new"))
    assert len(definitions(varied)) == 6
    assert definitions(varied.parent / "none") == {}


def test_a_folder_that_takes_no_index_is_read_all_the_same(varied, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(index, "KEPT_FROM", 1)
    monkeypatch.setattr(store.os, "replace", refuse)
    pd.testing.assert_frame_equal(indexed(varied), from_files(varied))
    assert sorted(path.name for path in varied.iterdir()) == ["digits"]
    with pytest.raises(BadInput, match="Read-only"):
        indexed(varied, rebuild=True)


def test_a_damaged_result_is_named_and_left_out_if_asked(varied):
    indexed(varied, rebuild=True)
    path = varied / "digits" / "flora" / "c" / "run.json"
    path.write_text("{")
    for read in (indexed, store.load_results, definitions):
        with pytest.raises(BadInput, match="damaged"):
            read(varied)
        told: list[BadInput] = []
        assert len(read(varied, on_damage=told.append)) == 4
        assert [str(path) in str(error) for error in told] == [True]


@pytest.mark.parametrize("name", ["none", "file", "empty"])
def test_where_there_is_nothing_it_is_said(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for rebuild in (False, True):
        with pytest.raises(BadInput, match=name):
            indexed(tmp_path / name, rebuild)


def test_a_result_that_is_removed_while_others_are_read_is_left_out(varied, monkeypatch):
    load = store.load_run

    def load_and_remove(path):
        shutil.rmtree(varied / "digits" / "flora" / "c", ignore_errors=True)
        return load(path)

    monkeypatch.setattr(store, "load_run", load_and_remove)
    assert sorted(indexed(varied)["config_hash"]) == ["a", "b", "d", "e"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_many_that_write_it_at_once_do_no_harm(varied):
    children = []
    for _ in range(4):
        if not (child := os.fork()):
            try:
                for _ in range(5):
                    indexed(varied, rebuild=True)
                    indexed(varied)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert sorted(path.name for path in varied.iterdir()) == ["digits", INDEX]
    assert_like_files(varied)


def test_hidden_folders_hold_no_results(varied):
    keep(varied / ".kept", make_run(config_hash="x"))
    shutil.copytree(varied / "digits" / "flora" / "c", varied / "digits" / "flora" / ".c")
    shutil.copytree(varied / "digits" / "flora" / "c", varied / "digits" / "flora" / "c" / store.FINISHED)
    assert len(indexed(varied)) == 5


def test_other_readers_find_numbers_and_text_and_know_what_is_json(varied):
    indexed(varied, rebuild=True)
    table = pq.read_table(varied / INDEX)
    rows = table.to_pandas().set_index("config_hash")
    assert rows.loc["a", "accuracy"] == 0.5
    assert rows.loc["a", "path"] == "digits/fedlc/a/run.json"
    about = json.loads(table.schema.metadata[b"flora_bench"])
    assert {"seed", "method.places", "method.scale", "method.huge"} <= set(about["json"])
    assert "accuracy" not in about["json"]
    assert json.loads(rows.loc["c", "method.places"]) == ["text.q", "text.k"]
