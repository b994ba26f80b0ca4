"""The embedded model: how it is built, and that what is shipped is what its card says."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from open_clip.tokenizer import SimpleTokenizer

from bench import pretrain, tiny
from bench.cli.pretrain import pretrain as pretrain_command
from bench.tasks import glyphs
from bench.tiny.captions import captions
from bench.tiny.render import CHARACTERS, FONTS, render
from flora.errors import BadInput

LARGEST_BYTES = 4_000_000


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shipped_model() -> tuple[torch.nn.Module, SimpleTokenizer]:
    with torch.random.fork_rng(devices=[]):
        model = open_clip.create_model(f"local-dir:{tiny.FOLDER}").eval()
    return model, SimpleTokenizer(bpe_path=str(tiny.MERGES), context_length=model.context_length)


# --- drawing and captions -------------------------------------------------------------------------------


def test_pictures_are_as_asked_and_the_same_for_the_same_seed() -> None:
    images, labels = render(64, np.random.default_rng(3))
    again, labels_again = render(64, np.random.default_rng(3))
    other, _ = render(64, np.random.default_rng(4))
    assert (images.shape, images.dtype) == ((64, 32, 32, 3), np.uint8)
    assert labels.min() >= 0
    assert labels.max() < len(CHARACTERS)
    np.testing.assert_array_equal(images, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert not np.array_equal(images, other)


def test_every_character_is_drawn_and_leaves_ink() -> None:
    images, labels = render(1500, np.random.default_rng(0))
    assert set(labels.tolist()) == set(range(36))
    assert images.reshape(len(images), -1).std(axis=1).min() > 5


def test_no_font_of_the_glyphs_task_is_drawn_in_pretraining() -> None:
    held_out = {style.font for style in glyphs.STYLES.values()}
    assert len(held_out) == 5
    assert held_out.isdisjoint(FONTS)


def test_no_caption_fits_two_characters() -> None:
    by_character = {character: set(captions(character)) for character in CHARACTERS}
    assert sum(map(len, by_character.values())) == len(set().union(*by_character.values()))
    assert "a photo of the number 7." in by_character["7"]
    assert "a photo of the digit seven." in by_character["7"]
    assert "a photo of the capital letter K." in by_character["K"]


# --- loss and schedule ----------------------------------------------------------------------------------


class Fixed:
    """Stands in for a model: features are handed through, normalised."""

    def __init__(self, logit_scale: float) -> None:
        self.logit_scale = torch.tensor(math.log(logit_scale))

    def encode_image(self, features: torch.Tensor, normalize: bool) -> torch.Tensor:
        assert normalize
        return torch.nn.functional.normalize(features, dim=-1)

    encode_text = encode_image


def test_with_one_image_a_character_the_loss_is_that_of_clip() -> None:
    stream = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 5, 8, generator=stream).double()
    model = Fixed(7.0)
    ours = pretrain._loss(model, images, torch.arange(5), texts)
    theirs = ClipLoss()(
        model.encode_image(images, normalize=True),
        model.encode_text(texts, normalize=True),
        torch.tensor(7.0),
    )
    torch.testing.assert_close(ours, theirs)


def test_the_loss_does_not_ask_for_images_of_an_absent_character() -> None:
    stream = torch.Generator().manual_seed(1)
    images, texts = torch.randn(6, 8, generator=stream), torch.randn(4, 8, generator=stream)
    loss = pretrain._loss(Fixed(5.0), images, torch.tensor([0, 0, 1, 1, 3, 3]), texts)
    assert torch.isfinite(loss)


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    factors = [pretrain._schedule(step, 1000) for step in range(1, 1001)]
    top = pretrain.WARMUP_STEPS - 1
    assert factors[top] == max(factors) == 1
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert factors[-1] == pytest.approx(0)
    assert pretrain._schedule(1, 1) == 1


# --- building -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    first, second = (tmp_path_factory.mktemp("tiny") / "new" for _ in range(2))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    steps: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "BATCH_SIZE", 16)
        figures = pretrain.pretrain_tiny(first, seed=1, steps=2, on_step=lambda s, n, _: steps.append((s, n)))
        pretrain.pretrain_tiny(second, seed=1, steps=2)
    after = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    return SimpleNamespace(
        first=first, second=second, figures=figures, steps=steps, before=before, after=after
    )


def test_building_twice_gives_the_same_bytes(built: SimpleNamespace) -> None:
    for name in (tiny.CONFIG_NAME, tiny.WEIGHTS_NAME, tiny.MERGES_NAME, tiny.CARD_NAME):
        assert sha256(built.first / name) == sha256(built.second / name), name


def test_building_reports_its_steps_and_figures(built: SimpleNamespace) -> None:
    assert built.steps == [(1, 2), (2, 2)]
    assert set(built.figures) == {"digits_zero_shot", "digits_linear_probe", "glyphs_zero_shot"}
    assert all(0 <= value <= 1 for value in built.figures.values())
    card = (built.first / tiny.CARD_NAME).read_text()
    assert sha256(built.first / tiny.WEIGHTS_NAME) in card
    assert "with seed 1, 2 steps of 16 images" in card


def test_building_leaves_the_global_random_streams_alone(built: SimpleNamespace) -> None:
    assert torch.equal(built.before[0], built.after[0])
    assert np.array_equal(built.before[1], built.after[1])


def test_building_writes_the_shipped_config_and_vocabulary(built: SimpleNamespace) -> None:
    for name in (tiny.CONFIG_NAME, tiny.MERGES_NAME):
        assert (built.first / name).read_bytes() == (tiny.FOLDER / name).read_bytes()


@pytest.mark.parametrize("stage", ["_train", "measure", "_card"])
def test_an_interrupted_build_leaves_the_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "model"
    out.mkdir()
    names = {tiny.CONFIG_NAME, tiny.WEIGHTS_NAME, tiny.MERGES_NAME, tiny.CARD_NAME}
    for name in names:
        (out / name).write_text("old")
    monkeypatch.setattr(pretrain, "BATCH_SIZE", 4)
    monkeypatch.setattr(pretrain, stage, interrupt)
    if stage == "_card":
        monkeypatch.setattr(pretrain, "measure", lambda _: {})
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain_tiny(out, steps=1)
    assert {path.name: path.read_text() for path in out.iterdir()} == dict.fromkeys(names, "old")
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"^--out .*file.x cannot be written .*$"):
        pretrain_command("tiny", out=tmp_path / "file" / "x")


def test_no_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="steps is 0"):
        pretrain.pretrain_tiny(tmp_path, steps=0)


def test_the_progress_bar_takes_steps() -> None:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with pretrain.progress_bar(console) as on_step:
        on_step(3, 4, 1.25)
    assert "3/4" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "1.250" in console.file.getvalue()  # type: ignore[attr-defined]


# --- what is shipped ------------------------------------------------------------------------------------


def test_the_paths_are_known_without_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, bench.tiny; sys.exit('torch' in sys.modules)"], check=True
    )


def test_the_shipped_weights_are_those_of_the_card() -> None:
    assert sha256(tiny.WEIGHTS) in tiny.CARD.read_text()


def test_the_shipped_files_are_small() -> None:
    assert tiny.WEIGHTS.stat().st_size < LARGEST_BYTES


def test_the_shipped_weights_reach_their_targets_and_the_figures_of_the_card() -> None:
    figures = pretrain.measure(tiny.FOLDER)
    assert 0.45 <= figures["digits_zero_shot"] <= 0.65  # above, and there would be too little to gain
    assert figures["digits_linear_probe"] >= 0.93
    assert figures["glyphs_zero_shot"] >= 0.25
    noted = {
        name: float(value) for name, value in re.findall(r"\| (\w+) \| (0\.\d+) \|", tiny.CARD.read_text())
    }
    assert noted == pytest.approx(figures, abs=0.01)


def test_the_shipped_config_is_that_of_the_code() -> None:
    config = json.loads(tiny.CONFIG.read_text())
    assert config == {"model_cfg": pretrain.MODEL_CONFIG, "preprocess_cfg": pretrain.PREPROCESS_CONFIG}


def test_the_logit_scale_is_one_of_a_clip() -> None:
    model, _ = shipped_model()
    assert 1 < model.logit_scale.exp().item() <= 100


@pytest.mark.parametrize("text", ["flower pot cactus", "café", "数字七", "", "x" * 500])
def test_any_text_can_be_written_in_the_vocabulary(text: str) -> None:
    model, tokenizer = shipped_model()
    tokens = tokenizer(text)
    assert tokenizer.vocab_size == model.text.vocab_size
    assert tokenizer.eot_token_id == tokenizer.vocab_size - 1 == tokens.max()
    assert torch.isfinite(model.encode_text(tokens)).all()


@torch.no_grad()
def test_the_text_tower_cannot_see_past_the_end_token() -> None:
    model, tokenizer = shipped_model()
    tokens = tokenizer(["a photo of the number 7."])
    changed = tokens.clone()
    changed[0, tokens.argmax() + 1 :] = 300
    torch.testing.assert_close(model.encode_text(changed), model.encode_text(tokens))
