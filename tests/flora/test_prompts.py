"""Prompts and where they are cut."""

import torch

from flora.prompts import Prompts
from tests.flora import toy


def test_tokenize_keeps_the_order():
    prompts = Prompts.tokenize(("a", "bb"), lambda texts: torch.tensor([[len(t), 9, 0, 0] for t in texts]))
    assert prompts.texts == ("a", "bb")
    assert len(prompts) == 2
    assert prompts.tokens.tolist() == [[1, 9, 0, 0], [2, 9, 0, 0]]
    assert prompts.cut.tolist() == [[1, 9], [2, 9]]


def test_the_longest_prompt_decides_and_zeros_inside_stay():
    tokens = toy.tokens([(0, 0, 5), (0,), ()])
    assert Prompts(("", "", ""), tokens).cut.tolist() == [
        [toy.START, 0, 0, 5, toy.END],
        [toy.START, 0, toy.END, 0, 0],
        [toy.START, toy.END, 0, 0, 0],
    ]


def test_a_prompt_of_full_length_is_not_cut():
    tokens = toy.tokens([range(1, 11), (4,)])
    assert torch.equal(Prompts(("", ""), tokens).cut, tokens)
