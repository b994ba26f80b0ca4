"""Draws the images that `tiny` is pretrained on: printed digits and capital letters.

Nothing here reads a data set, and nothing is handwritten: that is left to learn. The look of a scanned form
(white ink, 8x8 cells) is one of several.
"""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CHARACTERS = string.digits + string.ascii_uppercase
SIZE = 32
CANVAS = 64
DIGIT_SHARE = 10 / 36
SCAN_SHARE = 0.25

# The fonts of the task `glyphs` are not among these.
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-BoldOblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralBolIta.ttf",
    "cmr10.ttf",
    "cmti10.ttf",
)

Stream = np.random.Generator


def render(count: int, stream: Stream) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw ``count`` images.

    Returns:
        (count, 32, 32, 3) uint8 images and the (count,) position of each one's character in `CHARACTERS`.
    """
    digits = stream.random(count) < DIGIT_SHARE
    labels = np.where(digits, stream.integers(10, size=count), stream.integers(10, 36, size=count))
    images = [_picture(CHARACTERS[label], stream) for label in labels]
    return np.stack(images), labels


def _turn(stream: Stream) -> NDArray[np.float64]:
    """A slant and a rotation, as a (2, 2) matrix."""
    angle = stream.normal(0, 0.12)
    slant = stream.normal(-0.12, 0.22)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return rotation @ np.array([[1.0, slant], [0.0, 1.0]])


def _printed(character: str, font: str, stream: Stream) -> Image.Image:
    """The character in white on a black canvas, (64, 64), slanted, turned and stretched."""
    glyph = _glyph(character, font)
    matrix = _turn(stream)
    corners = np.array([(0, 0), (glyph.width, 0), (0, glyph.height), (glyph.width, glyph.height)]) @ matrix.T
    span = np.ptp(corners, axis=0)
    height = CANVAS * stream.uniform(0.75, 1.0)
    stretch = height / span[1] * np.array([stream.uniform(0.8, 1.15), 1.0])
    stretch[0] = min(stretch[0], CANVAS / span[0])
    forward = np.diag(stretch) @ matrix
    back = np.linalg.inv(forward)
    centre = np.array([glyph.width, glyph.height]) / 2
    offset = centre - back @ (CANVAS / 2 + stream.normal(0, 2.0, size=2))
    row_x, row_y = np.column_stack([back, offset])
    canvas = glyph.transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, (*row_x, *row_y), resample=Image.Resampling.BILINEAR
    )
    if stream.random() < 0.3:
        canvas = canvas.filter(ImageFilter.MaxFilter(3))
    return canvas


@cache
def _glyph(character: str, font: str) -> Image.Image:
    """A character cut out to its ink."""
    import matplotlib

    face = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font, size=CANVAS)
    left, top, right, bottom = face.getbbox(character)
    glyph = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(glyph).text((-left, -top), character, fill=255, font=face)
    return glyph


def _picture(character: str, stream: Stream) -> NDArray[np.uint8]:
    """The character as a picture (32, 32, 3): a coarse scan, or a photo with colours, blur and noise."""
    ink = _printed(character, FONTS[stream.integers(len(FONTS))], stream)
    if stream.random() < SCAN_SHARE:
        return _scan(ink, stream)
    return _photo(ink, stream)


def _scan(ink: Image.Image, stream: Stream) -> NDArray[np.uint8]:
    """White ink counted in 8x8 cells of 16 levels, as optical forms are read, enlarged again."""
    cells = np.asarray(ink.resize((8, 8), Image.Resampling.BOX), dtype=np.float64)
    levels = np.round(np.clip(cells / 255 * stream.uniform(1.0, 1.3), 0, 1) * 16)
    coarse = Image.fromarray(np.round(levels * (255 / 16)).astype(np.uint8))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"))


def _photo(ink: Image.Image, stream: Stream) -> NDArray[np.uint8]:
    """Ink of one colour on paper of another, at some distance, blurred and noisy."""
    size = int(stream.integers(16, SIZE + 1))
    corner = tuple(stream.integers(0, SIZE - size + 1, size=2).tolist())
    cover = Image.new("L", (SIZE, SIZE))
    cover.paste(ink.resize((size, size), Image.Resampling.BOX), corner)
    if stream.random() < 0.4:
        coarse = int(stream.integers(10, 24))
        cover = cover.resize((coarse, coarse), Image.Resampling.BOX).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
    cover = cover.filter(ImageFilter.GaussianBlur(stream.uniform(0, 1.3)))
    dark, light = stream.uniform(0, 90, size=3), stream.uniform(150, 255, size=3)
    if stream.random() < 0.5:  # grey rather than coloured
        dark, light = dark[:1].repeat(3), light[:1].repeat(3)
    shade, paper = (dark, light) if stream.random() < 0.5 else (light, dark)
    share = np.asarray(cover, dtype=np.float64)[..., None] / 255
    pixels = share * shade + (1 - share) * paper
    pixels += stream.normal(0, 1, size=(SIZE, SIZE, 1)) * stream.uniform(0, 25)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)
