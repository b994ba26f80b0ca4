"""Tensors told apart by their bits, on whatever device they are, far faster than by a cryptographic hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# Numbers are added up as words of so many bytes, as many words a row.
WORD_BYTES = 8
ROW_WORDS = 512


def fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Give 32 bytes for each tensor that change when its bits do.

    The bits are read as 64-bit words in rows of 512, and the sums (mod 2^64) along each row and down each
    column are hashed. A single change is always seen, and so is a swap of any two values that differ: it
    moves the sums of a row or of a column. Not seen are changes that cancel in every row and column alike,
    such as four values exchanged around a rectangle; nothing that happens by mistake does that. A tensor of
    fewer words than a row is hashed as it is. Shape and type are not looked at.
    """
    sums = [_sums(tensor.detach()) for tensor in tensors.values()]
    if not sums:
        return {}
    # copied together, or a GPU would be waited for once a tensor
    on_cpu = torch.cat(sums).cpu().split([len(x) for x in sums])
    return {
        name: hashlib.sha256(part.numpy().data).digest() for name, part in zip(tensors, on_cpu, strict=True)
    }


def changed(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    """Name the tensors of `before` whose fingerprints are others now, or that are gone."""
    return [name for name, found in before.items() if after.get(name) != found]


def combined(found: Iterable[bytes]) -> str:
    """Give one fingerprint, in hex, for several in their order."""
    return hashlib.sha256(b"".join(found)).hexdigest()


def _sums(tensor: Tensor) -> Tensor:
    words = _words(tensor)
    whole = len(words) // ROW_WORDS * ROW_WORDS
    if not whole:
        return words
    rows = words[:whole].view(-1, ROW_WORDS)
    return torch.cat([rows.sum(dim=1), rows.sum(dim=0), words[whole:]])


def _words(tensor: Tensor) -> Tensor:
    """View a tensor as int64 words; one that does not lie or end at the border of a word is copied."""
    flat = tensor.contiguous().view(-1)
    size = flat.element_size()
    if flat.numel() * size % WORD_BYTES == 0 and flat.storage_offset() * size % WORD_BYTES == 0:
        return flat.view(torch.int64)
    padding = -flat.numel() * size % WORD_BYTES
    return torch.cat([flat.view(torch.uint8), flat.new_zeros(padding, dtype=torch.uint8)]).view(torch.int64)
