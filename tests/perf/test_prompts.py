"""Prompts of a hundred classes: tokens, their tree, and what the text tower makes of them."""

from __future__ import annotations

import pytest
import torch

from bench.config import Model
from bench.models import load_model
from flora.prompts import Prompts, PromptTree
from tests.perf.made import make_method

CLASSES = 100
TEXTS = tuple(f"a photo of the number {number}." for number in range(CLASSES))


def test_tokenising(benchmark):
    prompts = benchmark(Prompts.tokenize, TEXTS, load_model(Model(), "cpu").tokenize)
    assert len(prompts.tokens) == CLASSES


def test_prompt_tree(benchmark):
    model = load_model(Model(), "cpu")
    tokens = Prompts.tokenize(TEXTS, model.tokenize).tokens
    tree = benchmark(PromptTree, tokens, model.clip.prompt_ends(tokens))
    assert CLASSES < len(tree) < tokens.numel()


@pytest.mark.parametrize("name", ["flora", "full_finetune"])
def test_prompt_encoding(benchmark, name):
    method = make_method(name, TEXTS)
    with torch.inference_mode():
        classifier = benchmark(method.classifier)
    torch.testing.assert_close(classifier.norm(dim=-1), torch.ones(CLASSES))
