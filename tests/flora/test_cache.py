"""Rows kept on disk: found again, computed once, and never trusted where a file is not what was written."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import flora.cache
from flora import shelves
from flora.cache import FeatureCache
from flora.shelves import Damaged, Shelf, read_shard, trim, verify

KIND = {"weights": "abc", "preprocessing": "square 8", "dtype": "float32", "stage": "image", "device": "cpu"}


def digests(numbers):
    """The digest of each number."""
    hashes = [hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in numbers]
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, 32)


class Tower:
    """Computes a row a number, and counts how often."""

    def __init__(self, numbers, shape=(3,), dtype=torch.float32, fail_at=None, add=0.0):
        self.numbers = torch.tensor(list(numbers))
        self.shape, self.dtype, self.fail_at, self.add = shape, dtype, fail_at, add
        self.asked = []

    def __call__(self, batches):
        return map(self.rows, batches)

    def rows(self, positions):
        if self.fail_at is not None and len(self.asked) >= self.fail_at:
            raise RuntimeError("stopped here")
        self.asked += self.numbers[positions].tolist()
        return self.row_of(self.numbers[positions])

    def row_of(self, numbers):
        offsets = torch.arange(torch.Size(self.shape).numel()).reshape(self.shape) / 8 + self.add
        return (numbers.reshape(-1, *[1] * len(self.shape)) + offsets).to(self.dtype)


def ask(cache, numbers, tower=None, batch_size=4, kind=KIND, **more):
    """Rows of numbers, held against what they should be."""
    numbers = list(numbers)
    tower = tower or Tower(numbers)
    rows = cache.rows(kind, digests(numbers), tower, batch_size, **more)
    assert torch.equal(rows.tensor(), tower.row_of(torch.tensor(numbers)))
    assert rows.found + rows.computed == len(set(numbers))
    assert len(tower.asked) == rows.computed
    return rows, tower


def only_shard(cache, kind=KIND):
    (path,) = Shelf.of(cache.folder, kind).shards()
    return path


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


@pytest.fixture
def small_shards(monkeypatch):
    """A shard a batch."""
    monkeypatch.setattr(flora.cache, "SHARD_BYTES", 1)


# --- rows are found again ------------------------------------------------------------------------------


def test_rows_are_computed_once(cache):
    first, tower = ask(cache, range(10))
    assert tower.asked == list(range(10))
    assert (first.found, first.computed, len(first), first.shape) == (0, 10, 10, (10, 3))
    again, _ = ask(FeatureCache(cache.folder), range(10))
    assert (again.found, again.computed, again.dtype) == (10, 0, torch.float32)


def test_a_part_a_whole_and_another_order_share_rows(cache):
    ask(cache, [5, 1, 7])
    ask(cache, [7, 5])
    _, tower = ask(cache, range(9))
    assert tower.asked == [0, 2, 3, 4, 6, 8]
    rows, _ = ask(cache, [8, 1, 8, 0])
    assert rows.computed == 0


def test_equal_images_share_a_row(cache):
    rows, tower = ask(cache, [4, 2, 4, 4, 2])
    assert tower.asked == [4, 2]
    assert (len(rows), rows.found, rows.computed) == (5, 0, 2)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_any_shape_and_dtype(cache, shape, dtype):
    ask(cache, range(6), Tower(range(6), shape, dtype))
    rows, _ = ask(cache, range(6), Tower(range(6), shape, dtype))
    assert (rows.found, rows.shape, rows.dtype) == (6, (6, *shape), dtype)


@pytest.mark.usefixtures("small_shards")
def test_gathering_gives_what_all_rows_hold(cache):
    ask(cache, range(11), batch_size=3)
    rows, _ = ask(cache, [10, 3, *range(14)])
    whole = rows.tensor()
    for indices in ([0], [15, 0, 7, 7, 2], list(range(16)), [], [-1]):
        assert torch.equal(rows[torch.tensor(indices, dtype=torch.int64)], whole[indices])
    with pytest.raises(IndexError):
        rows[torch.tensor([16])]
    rows[torch.tensor([2])].zero_()  # a copy: what is kept stays
    assert torch.equal(rows.tensor(), whole)


def test_rows_stay_readable_when_their_files_are_gone(cache):
    rows, tower = ask(cache, range(10))
    assert trim(cache.folder, 0)[1] == 0
    assert not list(cache.folder.iterdir())
    assert torch.equal(rows.tensor(), tower.row_of(torch.arange(10)))


def test_a_gradient_may_pass_rows_computed_in_inference_mode(tmp_path):
    with torch.inference_mode():
        rows = FeatureCache(tmp_path, limit_bytes=0).rows(KIND, digests(range(3)), Tower(range(3)), 2)
    weight = torch.ones(3, requires_grad=True)
    (rows[torch.arange(3)] * weight).sum().backward()
    assert weight.grad is not None


def test_progress_is_told_once_at_the_start_and_after_each_batch(cache):
    ask(cache, range(3))
    told = []
    ask(cache, range(10), batch_size=4, progress=lambda *counts: told.append(counts))
    assert told == [(3, 10), (7, 10), (10, 10)]
    told.clear()
    ask(cache, [1, 1, 2], progress=lambda *counts: told.append(counts))
    assert told == [(2, 2)]


def test_seconds_are_those_of_exactly_these_rows(cache, monkeypatch):
    clock = iter([0.0, 8.0, 8.0, 10.0, 13.0, 13.0])
    monkeypatch.setattr(flora.cache, "perf_counter", lambda: next(clock))
    rows, _ = ask(cache, range(4))
    assert rows.seconds == 8.0
    part, _ = ask(cache, [2])
    assert part.seconds == 2.0
    mixed, _ = ask(cache, [0, 1, 9])
    assert mixed.seconds == 4.0 + 3.0


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 31), np.uint8), np.zeros((2, 32), int), np.zeros((0, 32), np.uint8)]
)
def test_digests_of_another_form_are_refused(cache, wrong):
    with pytest.raises(ValueError, match="digests"):
        cache.rows(KIND, wrong, Tower([0, 1]), 2)


def test_another_number_of_rows_is_refused(cache):
    with pytest.raises(ValueError, match="1 rows for 2 images"):
        cache.rows(KIND, digests([0, 1]), lambda batches: (torch.ones(1, 3) for _ in batches), 2)


@pytest.mark.usefixtures("small_shards")
def test_missing_rows_are_counted_without_reading_any(cache, monkeypatch):
    assert cache.missing(KIND, digests([1, 1, 2])) == 2
    ask(cache, range(10), batch_size=3)

    def refuse(*_):
        raise AssertionError("it read rows")

    monkeypatch.setattr(shelves, "_hash_of_part", refuse)
    monkeypatch.setattr(flora.cache, "_mapped", refuse)
    assert cache.missing(KIND, digests(range(10))) == 0
    assert cache.missing(KIND, digests([4, 11, 9, 12, 11, 0])) == 2
    assert cache.missing({"weights": "other"}, digests([4])) == 1
    for path in Shelf.of(cache.folder, KIND).shards():
        cut(path)
    assert cache.missing(KIND, digests(range(10))) == 10
    with pytest.raises(ValueError, match="digests"):
        cache.missing(KIND, np.zeros((2, 31), np.uint8))


# --- what changes a row changes where it is looked up --------------------------------------------------


@given(st.sampled_from(sorted(KIND)), st.text(max_size=8))
def test_any_change_of_kind_is_another_shelf(name, value):
    assume(value != KIND[name])
    assert Shelf.of(Path("x"), {**KIND, name: value}) != Shelf.of(Path("x"), KIND)
    assert Shelf.of(Path("x"), {k: v for k, v in KIND.items() if k != name}) != Shelf.of(Path("x"), KIND)


def test_the_order_of_a_kind_does_not_matter():
    assert Shelf.of(Path("x"), dict(reversed(KIND.items()))) == Shelf.of(Path("x"), KIND)


@pytest.fixture
def zeros_kept(tmp_path_factory):
    cache = FeatureCache(tmp_path_factory.mktemp("zeros"))
    cache.rows(KIND, np.zeros((1, 32), np.uint8), Tower([0]), 1)
    return cache


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 31), st.integers(1, 255))
def test_any_change_of_a_digest_is_another_row(zeros_kept, place, value):
    changed = np.zeros((1, 32), np.uint8)
    changed[0, place] = value
    with pytest.raises(RuntimeError, match="stopped here"):
        zeros_kept.rows(KIND, changed, Tower([0], fail_at=0), 1)


def test_kinds_keep_their_rows_apart_and_say_what_they_are(cache):
    ask(cache, range(4))
    other = {**KIND, "weights": "other"}
    rows, _ = ask(cache, range(4), Tower(range(4), add=1.0), kind=other)
    assert rows.found == 0
    for kind in (KIND, other):
        assert json.loads((Shelf.of(cache.folder, kind).path / "key.json").read_text()) == kind


# --- interrupted, and at once --------------------------------------------------------------------------


def test_an_interrupted_build_goes_on_where_it_stopped(cache):
    with pytest.raises(RuntimeError, match="stopped here"):
        cache.rows(KIND, digests(range(10)), Tower(range(10), fail_at=8), 4)
    rows, tower = ask(cache, range(10))
    assert (rows.found, tower.asked) == (8, [8, 9])


BUILD = """
import sys, time, torch
import flora.cache
from pathlib import Path
from tests.flora.test_cache import KIND, Tower, digests

flora.cache.SHARD_BYTES = 1
def compute(batches):
    for positions in batches:
        if positions[0] >= 8:
            print("reached", flush=True)
            time.sleep(60)
        yield Tower(range(20)).rows(positions)
flora.cache.FeatureCache(Path(sys.argv[1])).rows(KIND, digests(range(20)), compute, 4)
"""


def test_a_killed_build_goes_on_where_it_stopped(cache):
    root = Path(flora.cache.__file__).parents[1]
    child = subprocess.Popen([sys.executable, "-c", BUILD, cache.folder], cwd=root, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"reached\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    unfinished = Shelf.of(cache.folder, KIND).path / "half.tmp"
    unfinished.write_bytes(b"half a shard")
    rows, tower = ask(cache, range(20))
    assert (rows.found, tower.asked) == (8, list(range(8, 20)))
    assert not unfinished.exists()


@pytest.mark.usefixtures("small_shards")
def test_two_builds_at_once_compute_each_row_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(shelves, "PATIENCE_SECONDS", 0.01)
    second_waits = threading.Event()
    monkeypatch.setattr(shelves.logger, "warning", lambda *_: second_waits.set())
    towers = [Tower(range(12)), Tower(range(12))]
    started = threading.Event()

    def slowly(batches):
        started.set()
        assert second_waits.wait(30)
        return towers[0](batches)

    results = []

    def build(compute):
        results.append(FeatureCache(tmp_path).rows(KIND, digests(range(12)), compute, 5).tensor())

    first = threading.Thread(target=build, args=(slowly,))
    first.start()
    assert started.wait(30)
    second = threading.Thread(target=build, args=(towers[1],))
    second.start()
    first.join()
    second.join()
    assert (sorted(towers[0].asked), towers[1].asked) == (list(range(12)), [])
    assert torch.equal(*results)


def test_a_lock_left_behind_holds_nobody_up(cache):
    shelf = Shelf.of(cache.folder, KIND)
    shelf.path.mkdir(parents=True)
    (shelf.path / "lock").write_bytes(b"")
    ask(cache, range(4))


# --- files that are not what was written ---------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:30])


def empty(path):
    path.write_bytes(b"")


def flip_at(place):
    def flip(path):
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 4
        path.write_bytes(content)

    return flip


def flip_in_the_rows(path):
    start, size = read_shard(path).rows_at
    content = bytearray(path.read_bytes())
    content[start + size // 2] ^= 1
    path.unlink()  # a new file, as it would be where one is copied back
    path.write_bytes(content)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"more")


def replace_by_text(path):
    path.write_text("no tensors at all, but long enough for a header")


def replace_by_foreign_tensors(path):
    save_file({"rows": torch.ones(8, 3), "digests": torch.zeros(8, 32, dtype=torch.uint8)}, path)


def replace_by_deep_json(path):
    header = b"[" * 5000
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def claim_another_schema(path):
    path.write_bytes(path.read_bytes().replace(b'"schema":"1"', b'"schema":"9"'))


def take_rows_of_another_kind(path):
    other = FeatureCache(path.parents[1] / "other")
    numbers = range(8)
    other.rows({"weights": "other"}, digests(numbers), Tower(numbers, add=5.0), 4)
    path.write_bytes(only_shard(other, {"weights": "other"}).read_bytes())


DAMAGES = [
    cut, cut_in_the_header, empty, flip_at(0.2), flip_at(0.5), flip_at(0.999), flip_in_the_rows, lengthen,
    replace_by_text, replace_by_foreign_tensors, replace_by_deep_json, claim_another_schema,
    take_rows_of_another_kind,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_named_and_replaced(cache, damage, caplog):
    ask(cache, range(8))
    path = only_shard(cache)
    damage(path)
    rows, tower = ask(cache, range(8))
    assert tower.asked == list(range(8))
    assert not path.exists()
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(path) in line
    caplog.clear()
    rows, _ = ask(FeatureCache(cache.folder), range(8))
    assert (rows.found, caplog.records) == (8, [])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(zeros_kept, data):
    path = only_shard(zeros_kept)
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[data.draw(st.integers(0, len(sound) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(flipped)
        with pytest.raises(Damaged):
            read_shard(path).check_rows()
    finally:
        path.write_bytes(sound)
    read_shard(path).check_rows()


@pytest.mark.parametrize("other", [{"dtype": torch.float64}, {"shape": (5,)}])
@pytest.mark.parametrize("read", ["first", "last"])
def test_rows_of_another_layout_do_not_stay(cache, other, read, caplog):
    ask(cache, range(8))
    stray = FeatureCache(cache.folder / "stray")
    stray.rows(KIND, digests(range(8, 12)), Tower(range(8, 12), add=5.0, **other), 4)
    name = {"first": "0.safetensors", "last": "g.safetensors"}[read]
    only_shard(stray).rename(Shelf.of(cache.folder, KIND).path / name)
    rows = cache.rows(KIND, digests(range(16)), Tower(range(16)), 4)
    assert torch.equal(rows.tensor(), Tower(range(16)).row_of(torch.arange(16)))
    assert rows.found == {"first": 0, "last": 8}[read]
    assert "others here" in caplog.text
    assert all(file.damage is None for file in verify(cache.folder))


@pytest.mark.parametrize("other", [{"dtype": torch.float64}, {"shape": (5,)}])
def test_rows_kept_are_given_up_where_those_computed_now_are_of_another_layout(cache, other, caplog):
    ask(cache, range(8), Tower(range(8), **other))
    numbers = range(10)
    rows = cache.rows(KIND, digests(numbers), Tower(numbers), 4)
    assert torch.equal(rows.tensor(), Tower(numbers).row_of(torch.tensor(numbers)))
    assert (rows.found, rows.computed, len(caplog.messages)) == (0, 10, 1)
    assert ask(cache, numbers)[0].found == 10


def test_rows_that_are_wrong_but_whole_are_given_as_they_are(cache):
    ask(cache, range(4), Tower(range(4), add=100.0))
    rows = cache.rows(KIND, digests(range(4)), Tower(range(4), fail_at=0), 4)
    assert torch.equal(rows.tensor()[:, 0], torch.arange(4) + 100.0)


def test_damage_after_a_first_look_is_noticed_too(cache):
    ask(cache, range(8))
    ask(cache, range(8))
    flip_in_the_rows(only_shard(cache))
    _, tower = ask(cache, range(8))
    assert len(tower.asked) == 8


def test_nothing_is_unpickled(cache):
    ask(cache, range(8))
    path = only_shard(cache)
    torch.save({"rows": torch.ones(8, 3)}, path)
    assert ask(cache, range(8))[0].computed == 8


def test_rows_that_are_not_finite_are_given_but_not_kept(cache, caplog):
    def compute(batches):
        for positions in batches:
            rows = Tower(range(8)).rows(positions)
            rows[positions == 2] = torch.nan
            rows[positions == 5, 1] = -torch.inf
            yield rows

    for found in (0, 6):
        rows = cache.rows(KIND, digests(range(8)), compute, 4)
        whole = rows.tensor()
        assert rows.found == found
        assert whole[2].isnan().all()
        assert whole[5, 1] == -torch.inf
        assert torch.equal(whole[[0, 7]], Tower(range(8)).row_of(torch.tensor([0, 7])))
    assert "2 rows are not finite" in caplog.text


def test_verifying_names_and_removes_what_is_damaged(cache):
    ask(cache, range(8))
    ask(cache, range(8), kind={"weights": "other"})
    assert {file.damage for file in verify(cache.folder)} == {None}
    path = only_shard(cache)
    flip_in_the_rows(path)
    key = Shelf.of(cache.folder, {"weights": "other"}).path / "key.json"
    key.write_text('{"weights": "more"}')
    damaged = [file for file in verify(cache.folder) if file.damage]
    assert {(file.path, file.removed) for file in damaged} == {(path, True), (key, True)}
    assert {file.damage for file in verify(cache.folder)} == {None}


# --- room ----------------------------------------------------------------------------------------------


def kind_of(number):
    return {"weights": str(number)}


def use_at(cache, number, seconds):
    used = Shelf.of(cache.folder, kind_of(number)).path / "used"
    os.utime(used, (seconds, seconds))


def on_disk(cache):
    return {number for number in range(9) if Shelf.of(cache.folder, kind_of(number)).shards()}


def filled(folder, count=3):
    """A cache with `count` kinds of 100 rows, used one after another."""
    cache = FeatureCache(folder)
    for number in range(count):
        ask(cache, range(100), batch_size=100, kind=kind_of(number))
        use_at(cache, number, 1000 + number)
    return cache, Shelf.of(folder, kind_of(0)).size_bytes()


def test_the_least_recently_used_make_room(tmp_path):
    cache, each = filled(tmp_path)
    ask(cache, range(5), kind=kind_of(0))  # used again: now the most recent
    limited = FeatureCache(tmp_path, limit_bytes=3 * each + 100)
    ask(limited, range(100), batch_size=100, kind=kind_of(3))
    assert on_disk(cache) == {0, 2, 3}
    assert sum(shelf.size_bytes() for shelf in shelves.shelves(tmp_path)) <= limited.limit_bytes


def test_one_that_is_being_computed_is_not_removed(tmp_path):
    cache, each = filled(tmp_path)
    with FileLock(Shelf.of(tmp_path, kind_of(0)).path / "lock"):
        ask(FeatureCache(tmp_path, limit_bytes=3 * each + 100), range(100), batch_size=100, kind=kind_of(3))
    assert on_disk(cache) == {0, 2, 3}


@pytest.mark.usefixtures("small_shards")
def test_a_build_larger_than_the_limit_goes_on_in_memory(tmp_path, caplog):
    cache = FeatureCache(tmp_path, limit_bytes=3000)
    ask(cache, range(100), batch_size=10)
    assert 0 < len(Shelf.of(tmp_path, KIND).shards()) < 10
    assert [record.getMessage().count("limit of 3,000 bytes") for record in caplog.records] == [1]
    rows, _ = ask(cache, range(100), batch_size=10)
    assert 0 < rows.found < 100


def test_a_build_that_cannot_fit_pushes_nothing_out(tmp_path, caplog):
    cache, each = filled(tmp_path)
    limited = FeatureCache(tmp_path, limit_bytes=3 * each + 100)
    ask(limited, range(600), batch_size=600, kind=kind_of(3))
    assert on_disk(cache) == {0, 1, 2}
    assert "limit of" in caplog.text


def test_a_shelf_on_which_nothing_could_be_kept_does_not_stay(tmp_path):
    ask(FeatureCache(tmp_path, limit_bytes=10), range(4))
    with pytest.raises(RuntimeError, match="stopped here"):
        FeatureCache(tmp_path).rows(KIND, digests(range(4)), Tower(range(4), fail_at=0), 4)
    assert not list(tmp_path.iterdir())


def test_trimming_leaves_alone_what_is_not_of_the_cache(tmp_path):
    cache, _ = filled(tmp_path)
    mine = [tmp_path / "data" / "photo.safetensors", tmp_path / "notes.txt"]
    mine.append(Shelf.of(tmp_path, kind_of(1)).path / "notes.txt")
    mine[0].parent.mkdir()
    for file in mine:
        file.write_text("mine")
    trim(tmp_path, 0)
    assert on_disk(cache) == set()
    assert all(file.exists() for file in mine)


def test_trimming_by_age(tmp_path):
    cache, each = filled(tmp_path)
    removed, left = shelves.trim_unused(tmp_path, since=1001.5)
    assert on_disk(cache) == {2}
    assert (removed, left) == (2 * each, each)


# --- a disk that does not take them --------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_fails_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    ask(FeatureCache(tmp_path / "file" / "cache"), range(8))
    (line,) = caplog.messages
    assert "stay in memory" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to the administrator")
def test_a_read_only_cache_is_read(cache, caplog):
    ask(cache, range(8))
    shelf = Shelf.of(cache.folder, KIND).path
    shelf.chmod(0o555)
    try:
        assert ask(cache, range(8))[0].found == 8
        assert not caplog.messages
        assert ask(cache, range(10))[0].found == 8
        assert len(caplog.messages) == 1
    finally:
        shelf.chmod(0o755)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_fails_nothing(cache, number, caplog, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    ask(cache, range(12))
    (line,) = caplog.messages
    assert os.strerror(number) in line
    assert not list(cache.folder.rglob("*.tmp"))
    monkeypatch.undo()
    assert ask(cache, range(12))[0].found == 0


def test_a_file_that_may_not_grow_fails_nothing(cache, caplog):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        ask(cache, range(600), batch_size=600)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caplog.messages) == 1
    assert not list(cache.folder.rglob("*.tmp"))


def test_rows_are_still_given_where_there_is_no_lock(cache, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("no locks on this file system")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    ask(cache, range(4))
