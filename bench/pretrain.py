"""Pretrains the embedded model `tiny`: a small CLIP that knows printed digits and capital letters.

Images are drawn (`bench.tiny.render`), captions are made from templates, and both towers learn together
with the contrastive loss of CLIP (Radford et al., arXiv 2103.00020). Since a batch holds several images of
one character, every caption of that character counts as a match (Khosla et al., arXiv 2004.11362).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from bench.tasks import load_task
from bench.tiny import CARD_NAME, CARD_TEMPLATE, CONFIG_NAME, MERGES_NAME, WEIGHTS_NAME
from bench.tiny.captions import captions
from bench.tiny.render import CHARACTERS, FONTS, render
from flora.errors import BadInput

if TYPE_CHECKING:
    from open_clip.model import CustomTextCLIP
    from open_clip.tokenizer import SimpleTokenizer
    from rich.console import Console

    from bench.tasks.base import LabelledImages, Task

STEPS = 800
WARMUP_STEPS = 150
BATCH_SIZE = 256
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
LARGEST_LOGIT_SCALE = 100.0

# The most frequent merges of CLIP's own vocabulary: enough to spell any class name in few tokens.
MERGES = 768
BYTES = 256
VOCABULARY = 2 * BYTES + MERGES + 2

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 8,
        "layers": 4,
        "width": 128,
        "head_width": 32,
        "mlp_ratio": 2.0,
    },
    "text_cfg": {"context_length": 32, "vocab_size": VOCABULARY, "width": 128, "heads": 4, "layers": 3},
    "custom_text": True,
}
PREPROCESS_CONFIG: dict[str, Any] = {
    "size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

OnStep = Callable[[int, int, float], None]


def pretrain_tiny(
    out: Path, *, seed: int = 0, steps: int = STEPS, on_step: OnStep | None = None
) -> dict[str, float]:
    """Draw, train, measure, and write config, vocabulary, weights and model card.

    The same seed, steps and library versions give the same weights on the same machine. Files already in
    ``out`` are replaced only once the new ones are complete.

    Args:
        out: folder to write to; made if need be.
        seed: of the initial weights, the drawing and the captions.
        steps: optimiser steps of 256 images each.
        on_step: called after each step with its number from 1, the number of steps and the loss.

    Returns:
        Accuracies of the written weights, read back, as fractions: see `measure`.

    Raises:
        BadInput: fewer than one step.
        OSError: ``out`` cannot be made or written to.
    """
    if steps < 1:
        raise BadInput(f"steps is {steps}; give 1 or more")
    out.mkdir(parents=True, exist_ok=True)
    # Within `out` and not in the system's temporary folder: files are replaced whole on one file system only.
    with tempfile.TemporaryDirectory(prefix="pretrain-", dir=out) as made:
        figures = _build(Path(made), seed, steps, on_step)
        for name in (CONFIG_NAME, MERGES_NAME, WEIGHTS_NAME, CARD_NAME):
            os.replace(Path(made, name), out / name)
    return figures


def _build(out: Path, seed: int, steps: int, on_step: OnStep | None) -> dict[str, float]:
    """Train, measure, and write every file; the accuracies of the written weights."""
    _write_config(out)
    _write_merges(out / MERGES_NAME)
    model = _train(out, seed, steps, on_step)
    state = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    weights = save(state)
    (out / WEIGHTS_NAME).write_bytes(weights)
    figures = measure(out)
    facts = {
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "bytes": len(weights),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "seed": seed,
        "steps": steps,
        "threads": torch.get_num_threads(),
    }
    (out / CARD_NAME).write_text(_card(facts, figures), encoding="utf-8")
    return figures


def measure(folder: Path) -> dict[str, float]:
    """Accuracies of the model in ``folder`` on real images, as fractions.

    Returns:
        Zero-shot accuracy on the test images of `digits` and of `glyphs`, and the accuracy of a logistic
        regression (scikit-learn's defaults) on standardised image features of `digits`, fitted on its
        training images.
    """
    model, preprocess = _load(folder)
    tokenizer = _tokenizer(folder)
    digits, glyphs = load_task("digits"), load_task("glyphs")
    return {
        "digits_zero_shot": _zero_shot(model, preprocess, tokenizer, digits),
        "digits_linear_probe": _linear_probe(model, preprocess, digits),
        "glyphs_zero_shot": _zero_shot(model, preprocess, tokenizer, glyphs),
    }


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[OnStep]:
    """A bar in the terminal, moved by the callback it yields."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ("pretrain", BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("pretrain", total=None, loss=math.nan)
        yield lambda step, steps, loss: progress.update(bar, completed=step, total=steps, loss=loss)


def _write_config(out: Path) -> None:
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (out / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_merges(path: Path) -> None:
    """Keep the first merges of CLIP's vocabulary, in the file format `SimpleTokenizer` reads."""
    whole = resources.files("open_clip") / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(whole.read_bytes()).decode("utf-8").split("\n")
    kept = "\n".join(lines[: 1 + MERGES])
    path.write_bytes(gzip.compress(kept.encode("utf-8"), mtime=0))


def _train(out: Path, seed: int, steps: int, on_step: OnStep | None) -> CustomTextCLIP:
    """The trained model; only local random streams are drawn from."""
    from open_clip.model import CustomTextCLIP

    config = {name: value for name, value in MODEL_CONFIG.items() if name != "custom_text"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CustomTextCLIP(**config)
    image_stream, caption_stream = np.random.default_rng(seed).spawn(2)
    tokens = _caption_tokens(_tokenizer(out))
    optimizer = torch.optim.AdamW(_parameter_groups(model), lr=LEARNING_RATE, betas=(0.9, 0.98))
    model.train()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _schedule(step, steps)
        pixels, labels = render(BATCH_SIZE, image_stream)
        picks = caption_stream.integers(tokens.shape[1], size=len(tokens))
        chosen = tokens[np.arange(len(tokens)), picks]
        loss = _loss(model, _normalised(pixels), torch.from_numpy(labels), chosen)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(LARGEST_LOGIT_SCALE))
        if on_step is not None:
            on_step(step, steps, loss.item())
    return model


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero, as a factor of the learning rate."""
    warmup = min(WARMUP_STEPS, steps)
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _parameter_groups(model: CustomTextCLIP) -> list[dict[str, Any]]:
    """Weight decay for matrices; none for biases, norms and the logit scale."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _caption_tokens(tokenizer: SimpleTokenizer) -> Tensor:
    """Token ids of as many captions for each character: (characters, captions, context length)."""
    texts = [captions(character) for character in CHARACTERS]
    most = math.lcm(*{len(row) for row in texts})
    return torch.stack([tokenizer(row * (most // len(row))) for row in texts])


def _normalised(pixels: np.ndarray) -> Tensor:
    """uint8 images (n, height, width, 3) as the model takes them: float32 (n, 3, height, width)."""
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(PREPROCESS_CONFIG[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (scaled - mean) / std


def _loss(model: CustomTextCLIP, images: Tensor, labels: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's symmetric loss over images (n, 3, h, w) and one caption a character, tokens (c, length)."""
    image_features = model.encode_image(images, normalize=True)
    text_features = model.encode_text(tokens, normalize=True)
    logits = model.logit_scale.exp() * image_features @ text_features.T
    present = torch.unique(labels)
    matches = functional.one_hot(labels, len(tokens)).T[present].float()
    to_image = functional.cross_entropy(logits.T[present], matches / matches.sum(1, keepdim=True))
    return (functional.cross_entropy(logits, labels) + to_image) / 2


def _load(folder: Path) -> tuple[CustomTextCLIP, Callable[[Any], Tensor]]:
    """Model and preprocessing, read as open_clip reads any local model."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval(), preprocess


def _tokenizer(folder: Path) -> SimpleTokenizer:
    from open_clip.tokenizer import SimpleTokenizer

    length = MODEL_CONFIG["text_cfg"]["context_length"]
    return SimpleTokenizer(bpe_path=str(folder / MERGES_NAME), context_length=length)


@torch.no_grad()
def _features(model: CustomTextCLIP, preprocess: Callable[[Any], Tensor], part: LabelledImages) -> Tensor:
    """Normalised image features (n, embedding)."""
    images = torch.stack([preprocess(image) for image in part.images])
    features: Tensor = model.encode_image(images, normalize=True)
    return features


@torch.no_grad()
def _zero_shot(
    model: CustomTextCLIP, preprocess: Callable[[Any], Tensor], tokenizer: SimpleTokenizer, task: Task
) -> float:
    prompts = model.encode_text(tokenizer(task.prompts), normalize=True)
    predicted = (_features(model, preprocess, task.test) @ prompts.T).argmax(1).numpy()
    return float((predicted == task.test.labels).mean())


def _linear_probe(model: CustomTextCLIP, preprocess: Callable[[Any], Tensor], task: Task) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = (_features(model, preprocess, part).numpy() for part in (task.train, task.test))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(probe.fit(train, task.train.labels).score(test, task.test.labels))


def _card(facts: dict[str, Any], figures: dict[str, float]) -> str:
    """The model card: what was built, from what, how well it does and what it is not for."""
    table = "\n".join(f"| {name} | {value:.4f} |" for name, value in figures.items())
    packages = ("torch", "open_clip_torch", "numpy", "pillow", "matplotlib", "scikit-learn")
    built_with = ", ".join(f"{package} {version(package)}" for package in packages)
    fonts = ", ".join(Path(font).stem for font in FONTS)
    template = CARD_TEMPLATE.read_text(encoding="utf-8")
    return template.format(
        **facts, batch=BATCH_SIZE, merges=MERGES, table=table, built_with=built_with, fonts=fonts
    )
