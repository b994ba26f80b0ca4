"""Tensors as the bytes that travel: the safetensors format, checked on arrival.

A payload from a client is input from outside: nothing in it is executed or unpickled, and it is refused
with a reason unless it holds exactly the tensors that were asked for, with finite values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


class PayloadError(ValueError):
    """A payload that is not what it should be; the message says in what."""


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialise tensors, from whatever device, as safetensors bytes."""
    return save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})


def decode(payload: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a payload that must hold tensors of the names, shapes and dtypes of `like`, all finite.

    Returns:
        CPU tensors, in the order of `like`, independent of `payload`.

    Raises:
        PayloadError: it holds anything else.
    """
    try:
        tensors = load(payload)
    except (SafetensorError, ValueError, KeyError) as error:
        raise PayloadError(f"not a safetensors payload: {error}") from error
    _check_names(set(tensors), set(like))
    for name, expected in like.items():
        _check_tensor(name, tensors[name], expected)
    return {name: tensors[name] for name in like}


def _check_names(found: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - found):
        raise PayloadError(f"{len(missing)} tensors missing, first {missing[0]!r}")
    if unexpected := sorted(found - expected):
        raise PayloadError(f"{len(unexpected)} unexpected tensors, first {unexpected[0]!r}")


def _check_tensor(name: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise PayloadError(f"{name!r} has shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    if found.dtype != expected.dtype:
        raise PayloadError(f"{name!r} is {found.dtype}, not {expected.dtype}")
    if not torch.isfinite(found).all():
        raise PayloadError(f"{name!r} has values that are not finite")
