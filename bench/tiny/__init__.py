"""The embedded model `tiny`: where its files lie, known without importing torch.

The folder is what open_clip calls a local directory: ``open_clip_config.json`` beside the weights.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "model.safetensors"
MERGES_NAME = "merges.txt.gz"
CARD_NAME = "MODEL_CARD.md"

CONFIG = FOLDER / CONFIG_NAME
WEIGHTS = FOLDER / WEIGHTS_NAME
MERGES = FOLDER / MERGES_NAME
CARD = FOLDER / CARD_NAME
CARD_TEMPLATE = FOLDER / "card_template.md"


@cache
def fingerprint() -> str:
    """SHA-256 of the weights, in hex."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
