"""The captions that `tiny` is pretrained with: what a character may be called, in what sentence."""

from __future__ import annotations

TEMPLATES = (
    "a photo of the {}.",
    "a photo of a {}.",
    "a blurry photo of the {}.",
    "a black and white photo of the {}.",
    "a low resolution photo of the {}.",
    "a drawing of the {}.",
    "a scan of the {}.",
    "a handwritten {}.",
    "a printed {}.",
    "the {}.",
    "{}",
)
_DIGIT_NOUNS = ("number", "digit", "numeral")
_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LETTER_NOUNS = ("capital letter", "letter", "uppercase letter")


def captions(character: str) -> list[str]:
    """Every caption of one digit or capital letter; twice as many for a digit, which also has a word."""
    if character.isdigit():
        spellings = (character, _DIGIT_WORDS[int(character)])
        names = [f"{noun} {spelling}" for noun in _DIGIT_NOUNS for spelling in spellings]
    else:
        names = [f"{noun} {character}" for noun in _LETTER_NOUNS]
    return [template.format(name) for template in TEMPLATES for name in names]
