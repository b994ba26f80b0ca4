"""Images decoded on demand or kept give the same batches, and no more are kept than the budget allows."""

import gc
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bench.images
from bench.images import Kept, Pixels
from bench.tasks.base import ArrayImages
from flora.features import Samples

STREAM = np.random.default_rng(0)
COUNT, SIDE = 12, 8
ARRAY = STREAM.integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)


class Counted(ArrayImages):
    """Counts how often an image is made."""

    def __init__(self, pixels):
        super().__init__(pixels)
        self.asked = 0

    def __getitem__(self, index):
        self.asked += 1
        return super().__getitem__(index)


def preprocess(image):
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


def pixels(dtype=torch.float32):
    return Pixels(Counted(ARRAY), preprocess, dtype)


@given(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=30))
def test_kept_and_decoded_images_are_equal_in_the_order_asked_for(indices):
    chosen = torch.tensor(indices)
    decoded, kept = pixels()[chosen], pixels().kept()[chosen]
    assert torch.equal(decoded, kept)
    assert decoded.shape == (len(indices), 3, SIDE, SIDE)
    right = torch.from_numpy(ARRAY[indices].astype(np.float32) / 255).permute(0, 3, 1, 2)
    assert torch.equal(decoded, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_have_the_dtype_asked_for(dtype):
    assert pixels(dtype)[torch.tensor([0])].dtype == dtype
    assert pixels(dtype).kept()[torch.tensor([0])].dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spare", [0, -1])
def test_images_are_kept_up_to_the_budget_and_not_a_byte_above(monkeypatch, dtype, spare):
    need = COUNT * 3 * SIDE * SIDE * torch.empty((), dtype=dtype).element_size()
    monkeypatch.setattr(bench.images, "KEPT_BYTES", need + spare)
    source = pixels(dtype)
    if spare < 0:
        assert source.kept() is source
    else:
        assert isinstance(source.kept(), Kept)


def test_an_image_above_the_budget_costs_one_decoding_to_find_out(monkeypatch):
    monkeypatch.setattr(bench.images, "KEPT_BYTES", 0)
    source = pixels()
    source.kept()
    assert source.images.asked == 1


def test_kept_images_are_never_decoded_again():
    source = pixels()
    kept = source.kept()
    after_keeping = source.images.asked
    for _ in range(3):
        kept[torch.arange(COUNT)]
    assert source.images.asked == after_keeping
    assert kept.kept() is kept


def test_an_error_in_decoding_reaches_the_caller():
    def broken(image):
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        Pixels(ArrayImages(ARRAY), broken, torch.float32)[torch.arange(3)]


def test_what_is_kept_is_decoded_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(bench.images, "DECODED_AT_ONCE", 5)
    asked = []

    class Watched(Pixels):
        def __getitem__(self, indices):
            asked.append(len(indices))
            return super().__getitem__(indices)

    kept = Watched(ArrayImages(ARRAY), preprocess, torch.float32).kept()
    assert asked == [5, 5, 2]
    assert torch.equal(kept.pixels, pixels()[torch.arange(COUNT)])


class Alive(ArrayImages):
    """A long set of the same few images, which counts how many of them exist at once."""

    def __init__(self, count):
        super().__init__(ARRAY)
        self.count, self.alive, self.most, self.made = count, 0, 0, 0
        self.lock = threading.RLock()  # the collector may let go of an image amid a count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = super().__getitem__(index % COUNT)
        with self.lock:
            self.made += 1
            self.alive += 1
            self.most = max(self.most, self.alive)
        weakref.finalize(image, self.gone)
        return image

    def gone(self):
        with self.lock:
            self.alive -= 1


def test_a_set_of_any_size_takes_no_more_memory_than_a_batch(monkeypatch):
    """Ten thousand images in batches of 16: images made and batches alive never exceed what is in flight."""
    monkeypatch.setattr(bench.images, "KEPT_BYTES", 10_000)
    images = Alive(10_000)
    source = Samples(Pixels(images, preprocess, torch.float32), torch.zeros(len(images), dtype=torch.int64))
    batches, gc_was_on = weakref.WeakSet(), gc.isenabled()
    gc.disable()  # bounded by reference counts alone
    try:
        for batch in source.with_images_kept().batches(16):
            batches.add(batch.inputs)
            assert len(batches) <= 2
    finally:
        if gc_was_on:
            gc.enable()
    assert images.made == len(images) + 1
    assert images.most <= 16 + os.cpu_count()


def batches_of(*sizes):
    return list(torch.arange(sum(sizes)).split(list(sizes)))


class Slow(Counted):
    """Waits before each image until told to go on; knows how many were begun."""

    def __init__(self):
        super().__init__(np.concatenate([ARRAY] * 4))
        self.open = threading.Semaphore(0)

    def __getitem__(self, index):
        assert self.open.acquire(timeout=30)
        return super().__getitem__(index)


@given(
    st.lists(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=6), max_size=6),
    st.integers(0, 4),
    st.booleans(),
)
def test_batches_decoded_ahead_come_whole_and_in_order(chosen, ahead, kept):
    source = pixels().kept() if kept else pixels()
    asked = [torch.tensor(indices) for indices in chosen]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.images, "BATCHES_AHEAD", ahead)
        given_ahead = list(source.ahead(iter(asked)))
    assert len(given_ahead) == len(asked)
    for batch, indices in zip(given_ahead, asked, strict=True):
        assert torch.equal(batch, source[indices])


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_no_more_is_decoded_ahead_than_the_bound(monkeypatch, ahead):
    monkeypatch.setattr(bench.images, "BATCHES_AHEAD", ahead)
    drawn = []

    def indices():
        for number, batch in enumerate(batches_of(*[2] * 8)):
            drawn.append(number)
            yield batch

    for given_so_far, _ in enumerate(pixels_of_many().ahead(indices()), start=1):
        assert len(drawn) <= given_so_far + ahead
    assert len(drawn) == 8


def pixels_of_many():
    return Pixels(ArrayImages(np.concatenate([ARRAY] * 4)), preprocess, torch.float32)


def test_the_next_batch_is_decoded_while_the_first_is_used():
    begun = threading.Event()

    class Watched(ArrayImages):
        def __getitem__(self, index):
            if index == 2:
                begun.set()
            return super().__getitem__(index)

    batches = Pixels(Watched(ARRAY), preprocess, torch.float32).ahead(batches_of(2, 2, 2))
    next(batches)
    assert begun.wait(timeout=30)  # nobody has asked for the second batch


def test_decoding_stops_where_the_caller_does(monkeypatch):
    monkeypatch.setattr(bench.images, "_DECODERS", ThreadPoolExecutor(max_workers=2))
    images = Slow()
    batches = Pixels(images, preprocess, torch.float32).ahead(batches_of(2, 40))
    images.open.release(4)  # the first batch, and the next two images
    next(batches)
    batches.close()
    images.open.release(100)
    bench.images._DECODERS.shutdown(wait=True)
    assert images.asked <= 2 + 2 + 2  # beyond these only what the two threads had begun


def test_an_error_ahead_is_raised_in_its_place_and_ends_the_decoding(monkeypatch):
    monkeypatch.setattr(bench.images, "_DECODERS", ThreadPoolExecutor(max_workers=2))
    made = []

    class Broken(ArrayImages):
        def __getitem__(self, index):
            if index == 3:
                raise ValueError("planted")
            made.append(index)
            return super().__getitem__(index)

    batches = Pixels(Broken(ARRAY), preprocess, torch.float32).ahead(batches_of(2, 2, 2, 2))
    assert torch.equal(next(batches), pixels()[torch.arange(2)])
    with pytest.raises(ValueError, match="planted"):
        next(batches)
    assert list(batches) == []
    bench.images._DECODERS.shutdown(wait=True)
    assert max(made) <= 5  # the fourth batch was never asked for
