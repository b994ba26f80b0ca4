"""The embedded model `tiny`: where its files lie, known without importing torch.

The folder is what open_clip calls a local directory: ``open_clip_config.json`` beside the weights.
"""

from __future__ import annotations

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
