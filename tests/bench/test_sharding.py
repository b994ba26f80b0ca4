"""Parts of a matrix: together all of it, no cell twice, each alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.sharding import shard_of
from flora.errors import BadInput


@given(st.integers(0, 200), st.integers(1, 50))
def test_the_shards_together_are_the_matrix_and_none_is_longer_than_another_by_more_than_one(count, parts):
    cells = list(range(count))
    shards = [shard_of(cells, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(cell for shard in shards for cell in shard) == cells
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert all(shard == sorted(shard) for shard in shards)


def test_a_shard_takes_cells_from_all_over_the_matrix():
    assert shard_of(list(range(10)), "2/3") == [1, 4, 7]
    assert shard_of(list(range(10)), "1/1") == list(range(10))
    assert shard_of(list(range(2)), "3/3") == []


@pytest.mark.parametrize(
    "wrong", ["0/4", "5/4", "1/0", "0/0", "a/b", "", "1", "1/", "/4", "-1/4", "1/4/2", " 1/4", "1.0/4", "١/٤"]
)
def test_a_shard_that_there_is_not_is_refused_in_one_line(wrong):
    with pytest.raises(BadInput) as error:
        shard_of([], wrong)
    assert str(error.value) == f"--shard {wrong}: must be I/N with I from 1 to N, such as 1/4"
