"""Digits and capital letters in five printed styles, one domain each: 1,800 images of 32x32, 36 classes.

Drawn from fonts that come with matplotlib and that the embedded model was not pretrained on, so that
feature shift between clients can be tried without a download.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from bench.tasks.base import ArrayImages, LabelledImages, Task, refuse_argument, stratified_split

CHARACTERS = string.digits + string.ascii_uppercase
SIZE = 32
PER_STYLE = 10
TEST_SHARE = 0.2
SEED = 0

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Style:
    """How the images of one domain look.

    Args:
        font: file name of a font bundled with matplotlib.
        ink: RGB of the character.
        paper: RGB behind it.
        blur: radius of a Gaussian blur, in pixels.
        noise: standard deviation of grey noise, of 255.
    """

    font: str
    ink: Colour
    paper: Colour
    blur: float = 0.0
    noise: float = 0.0


STYLES = {
    "terminal": Style("DejaVuSansMono.ttf", ink=(90, 240, 110), paper=(12, 16, 14)),
    "poster": Style("cmss10.ttf", ink=(255, 244, 214), paper=(176, 40, 36)),
    "typewriter": Style("cmtt10.ttf", ink=(40, 36, 60), paper=(238, 232, 214), blur=1.2),
    "italic": Style("STIXGeneralItalic.ttf", ink=(24, 44, 150), paper=(250, 250, 250), blur=0.4),
    "photocopy": Style("cmb10.ttf", ink=(70, 70, 70), paper=(190, 190, 190), blur=0.8, noise=28),
}


def load(argument: str | None, root: str | None) -> Task:
    """The task, four fifths of each class and style for training.

    Args:
        argument: must be None.
        root: not used; the images are drawn.
    """
    refuse_argument("glyphs", argument)
    strata = np.repeat(np.arange(len(STYLES) * len(CHARACTERS)), PER_STYLE)
    domains, labels = np.divmod(strata, len(CHARACTERS))
    everything = LabelledImages(ArrayImages(_draw_all()), labels, domains)
    train, test = stratified_split(strata, TEST_SHARE, SEED)
    kinds = ["number" if character.isdigit() else "capital letter" for character in CHARACTERS]
    return Task(
        name="glyphs",
        class_names=tuple(f"{kind} {character}" for kind, character in zip(kinds, CHARACTERS, strict=True)),
        template="a photo of the {}.",
        train=everything.select(train),
        test=everything.select(test),
        domain_names=tuple(STYLES),
    )


def _draw_all() -> np.ndarray:
    """All images, by style, then character, then repetition: (n, 32, 32, 3) uint8."""
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    stream = np.random.default_rng(SEED)
    return np.stack(
        [
            _draw(character, style, fonts / style.font, stream)
            for style in STYLES.values()
            for character in CHARACTERS
            for _ in range(PER_STYLE)
        ]
    )


def _draw(character: str, style: Style, font: Path, stream: np.random.Generator) -> np.ndarray:
    """One character, slightly moved, scaled and turned, (32, 32, 3) uint8."""
    face = ImageFont.truetype(font, size=int(stream.integers(21, 28)))
    cover = Image.new("L", (SIZE, SIZE))
    middle = SIZE / 2 + stream.uniform(-3, 3, size=2)
    left, top, right, bottom = face.getbbox(character)
    corner = (middle[0] - (left + right) / 2, middle[1] - (top + bottom) / 2)
    ImageDraw.Draw(cover).text(corner, character, fill=255, font=face)
    cover = cover.rotate(stream.uniform(-12, 12), resample=Image.Resampling.BICUBIC)
    cover = cover.filter(ImageFilter.GaussianBlur(style.blur))
    share = np.asarray(cover, dtype=np.float64)[..., None] / 255
    pixels = share * np.array(style.ink) + (1 - share) * np.array(style.paper)
    pixels += stream.normal(0, 1, size=(SIZE, SIZE, 1)) * style.noise
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)
