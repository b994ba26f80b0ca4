"""The weighted mean against the sum it stands for."""

import random
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flora.aggregation import WeightedMean

FLOATS = st.floats(-1e6, 1e6, allow_nan=False)
UPLOADS = st.lists(
    st.tuples(st.lists(FLOATS, min_size=3, max_size=3), st.integers(1, 10_000)), min_size=1, max_size=12
)
checked = settings(max_examples=100, deadline=None, derandomize=True)


def mean(uploads, dtype=torch.float64):
    aggregator = WeightedMean()
    for values, weight in uploads:
        aggregator.add(
            {"a": torch.tensor(values, dtype=dtype), "b": torch.tensor(values[0], dtype=dtype)}, weight
        )
    return aggregator.result()


@checked
@given(uploads=UPLOADS)
def test_mean_is_the_weighted_sum_over_the_sum_of_weights(uploads):
    values = torch.tensor([v for v, _ in uploads], dtype=torch.float64)
    weights = torch.tensor([w for _, w in uploads], dtype=torch.float64)
    expected = (values * weights[:, None]).sum(0) / weights.sum()
    result = mean(uploads)
    size = values.abs().max().item()
    assert torch.allclose(result["a"], expected, rtol=0, atol=1e-12 * size)
    assert result["a"][0] == result["b"]
    single = mean(uploads, torch.float32)["a"]
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), expected, rtol=0, atol=1e-5 * size + 1e-37)  # float32's smallest


@checked
@given(uploads=UPLOADS, seed=st.integers(0, 999))
def test_order_does_not_matter(uploads, seed):
    other = random.Random(seed).sample(uploads, len(uploads))
    size = max(abs(x) for values, _ in uploads for x in values)
    assert torch.allclose(mean(uploads)["a"], mean(other)["a"], rtol=0, atol=1e-12 * size)


@checked
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
    weights=st.lists(st.integers(1, 10**6), min_size=1, max_size=20),
)
def test_equal_tensors_stay_bit_identical(values, weights):
    for dtype in (torch.float32, torch.float64):
        result = mean([(values, weight) for weight in weights], dtype)["a"]
        assert torch.equal(result, torch.tensor(values, dtype=dtype))


@pytest.mark.parametrize("weight", [0, -1, -0.5])
def test_a_weight_that_is_not_positive_is_refused(weight):
    aggregator = WeightedMean()
    aggregator.add({"a": torch.ones(2)}, 1)
    with pytest.raises(ValueError, match="must be positive"):
        aggregator.add({"a": torch.zeros(2)}, weight)
    assert torch.equal(aggregator.result()["a"], torch.ones(2))


class MadeWhenAsked(Mapping):
    """Makes a tensor each time it is asked for; counts how many were asked for."""

    def __init__(self, values):
        self.values_, self.asked = values, []

    def __getitem__(self, name):
        self.asked.append(name)
        return torch.tensor(self.values_[name])

    def __iter__(self):
        return iter(self.values_)

    def __len__(self):
        return len(self.values_)


def test_tensors_made_when_asked_for_are_asked_for_once():
    uploads = [MadeWhenAsked({"a": [1.0, 2.0], "b": [x]}) for x in (3.0, 5.0, 13.0)]
    aggregator = WeightedMean()
    for upload in uploads:
        aggregator.add(upload, 1)
    assert all(sorted(upload.asked) == ["a", "b"] for upload in uploads)
    assert aggregator.result()["b"].item() == pytest.approx(7)
    assert torch.equal(aggregator.result()["a"], torch.tensor([1.0, 2.0]))


def test_the_mean_is_moved_in_place():
    aggregator, first = WeightedMean(), {"a": torch.ones(2)}
    aggregator.add(first, 1)
    place = aggregator.result()["a"].data_ptr()
    aggregator.add({"a": torch.zeros(2)}, 1)
    assert aggregator.result()["a"].data_ptr() == place


def test_nothing_added_has_no_mean():
    with pytest.raises(ValueError, match="no client"):
        WeightedMean().result()
