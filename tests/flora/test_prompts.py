"""Prompts, where they are cut, and the room that is made in them."""

import numpy as np
import pytest
import torch

from flora.prompts import Prompts, PromptTree
from tests.flora import toy


def test_tokenize_keeps_the_order():
    prompts = Prompts.tokenize(("a", "bb"), lambda texts: torch.tensor([[len(t), 9, 0, 0] for t in texts]))
    assert prompts.texts == ("a", "bb")
    assert len(prompts) == 2
    assert prompts.tokens.tolist() == [[1, 9, 0, 0], [2, 9, 0, 0]]
    assert prompts.longest == 2


def test_the_longest_prompt_decides_and_zeros_inside_stay():
    assert Prompts(("", "", ""), toy.tokens([(0, 0, 5), (0,), ()])).longest == 5
    assert Prompts(("", ""), toy.tokens([range(1, 11), (4,)])).longest == 12


def tree(names, shared=True):
    tokens = toy.tokens(names)
    return PromptTree(tokens, (tokens == toy.END).int().argmax(dim=1), shared)


def test_what_prompts_begin_with_alike_stands_in_the_tree_once():
    branches = tree([(5, 6), (5, 7), (8,)]).branches(np.arange(3))
    #                                start 5  6  end  7  end  8  end
    assert branches.tokens.tolist() == [48, 5, 6, 49, 7, 49, 8, 49]
    assert branches.positions.tolist() == [0, 1, 2, 3, 2, 3, 1, 2]
    assert branches.owners.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert branches.ends.tolist() == [3, 5, 7]
    sees = [[n for n, added in enumerate(row) if added == 0] for row in branches.mask.tolist()]
    assert sees == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 6], [0, 6, 7]]
    assert set(branches.mask.unique().tolist()) == {0.0, -float("inf")}


def test_some_classes_need_their_own_branches_alone():
    whole = tree([(5, 6), (5, 7), (8,)])
    some = whole.branches(np.array([2, 0]))
    assert some.nodes.tolist() == [0, 1, 2, 3, 6, 7]
    assert some.tokens.tolist() == [48, 5, 6, 49, 8, 49]
    assert some.ends.tolist() == [5, 3]  # in the order asked for
    assert some.mask.shape == (6, 6)
    assert len(whole) == 8


def test_prompts_kept_apart_share_nothing():
    branches = tree([(5,), (5,)], shared=False).branches(np.arange(2))
    assert branches.owners.tolist() == [0, 0, 0, 1, 1, 1]
    assert branches.ends.tolist() == [2, 5]
    assert (branches.mask[3:, :3] == -float("inf")).all()


def test_equal_prompts_end_at_one_node():
    assert tree([(5,), (6,), (5,)]).branches(np.arange(3)).ends.tolist() == [2, 4, 2]


def test_class_names_are_tokenised_too_where_they_are_given():
    def tokenizer(texts):
        return torch.tensor([[len(t), 9, 0, 0] for t in texts])

    prompts = Prompts.tokenize(("a dog", "an ox"), tokenizer, ("dog", "ox"))
    assert prompts.tokens[:, 0].tolist() == [5, 5]
    assert prompts.bare.tokens[:, 0].tolist() == [3, 2]
    without = Prompts.tokenize(("a dog",), tokenizer)
    assert without.bare is without


def test_room_is_made_behind_the_start_token():
    prompts = Prompts(("", ""), toy.tokens([(5, 0, 6), (4,)], length=8))
    start, end = toy.START, toy.END
    moved = prompts.with_room(3)
    assert moved.tokens.tolist() == [
        [start, start, start, start, 5, 0, 6, end],
        [start, start, start, start, 4, end, 0, 0],
    ]
    assert (prompts.longest, moved.longest) == (5, 8)
    with pytest.raises(ValueError, match="4 more tokens do not fit into 8 beside 5"):
        prompts.with_room(4)
