"""The CLIP a run starts from: weights, image preprocessing and tokenizer, all as open_clip has them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor

from bench import tiny
from flora.clip import Clip
from flora.errors import BadInput, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

    from bench.config import Model

# Random weights belong to the model, not to a run's seeds: every method and seed starts from the same.
RANDOM_WEIGHTS_SEED = 0


@dataclass(frozen=True)
class LoadedModel:
    """A CLIP and what its inputs need.

    Attributes:
        clip: the split model, frozen until a method says otherwise.
        preprocess: an RGB image as a (3, height, width) float32 tensor.
        tokenize: texts as (n, context length) int64 token ids.
    """

    clip: Clip
    preprocess: Callable[[Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]


def load_model(config: Model, device: str) -> LoadedModel:
    """Load `tiny`, or `ARCHITECTURE:random`: any architecture of open_clip with seeded random weights.

    Raises:
        BadInput: there is no such model.
    """
    if config.name == "tiny":
        source = f"{open_clip.factory.LOCAL_DIR_PREFIX}{tiny.FOLDER}"
        model = _create(source)
        tokenize = open_clip.get_tokenizer(source, bpe_path=str(tiny.MERGES))
    else:
        check_name(config.name)
        architecture, _, _ = config.name.partition(":")
        model = _create(architecture)
        tokenize = open_clip.get_tokenizer(architecture)
    preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    clip = Clip(model).to(device=device, dtype=getattr(torch, config.dtype))
    return LoadedModel(clip.requires_grad_(False), preprocess, tokenize)


def _create(source: str) -> Any:
    """Build an open_clip model with separate towers; weights it does not load are random by a fixed seed."""
    with torch.random.fork_rng(devices=[]), _without_warnings():
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        return open_clip.create_model(source, force_custom_text=True)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep open_clip from warning, on the root logger, of random weights that were asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def model_fingerprint(name: str) -> str:
    """Identify the weights behind a name by SHA-256 (hex): those of a file, or how random ones are drawn."""
    if name == "tiny":
        return hashlib.sha256(tiny.WEIGHTS.read_bytes()).hexdigest()
    drawn = f"{name} from seed {RANDOM_WEIGHTS_SEED}, torch {torch.__version__}"
    return hashlib.sha256(drawn.encode()).hexdigest()


def check_name(name: str) -> None:
    """Refuse what `load_model` could not load.

    Raises:
        BadInput: there is no such model.
    """
    if name == "tiny":
        return
    architecture, _, weights = name.partition(":")
    known = ["tiny", *open_clip.list_models()]
    if architecture not in known:
        raise BadInput(
            f"model.name: open_clip has no architecture {architecture!r}{nearest(architecture, known)}"
        )
    if architecture == "tiny":
        raise BadInput(f"model.name: {name!r} must be 'tiny', whose weights are given")
    if weights != "random":
        raise BadInput(f"model.name: {name!r} must be 'tiny' or '{architecture}:random'")
    config = open_clip.get_model_config(architecture)
    if "multimodal_cfg" in config or any(key.startswith("hf_") for key in config["text_cfg"]):
        raise BadInput(
            f"model.name: {architecture!r} has a decoder, or a text tower or tokenizer that is downloaded, "
            "which is not supported yet; choose one with CLIP's own, such as 'ViT-B-32:random'"
        )
