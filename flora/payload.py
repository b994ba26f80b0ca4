"""Tensors as the bytes that travel: the safetensors format, checked on arrival.

A payload from a client is input from outside: nothing in it is executed or unpickled, and it is refused
with a reason unless it holds exactly the tensors that were asked for, with finite values.

The bytes are laid out here and not by the safetensors library, whose interface in memory copies a payload
twice on its way out. A payload that begins with the header that `encode` itself would have written needs no
parsing: all that arrives in a federation does. Any other is the library's to read, and is copied once more.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from math import isfinite

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

# The format's names of the types that tensors here may have.
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
}
# So much of a payload is looked at together: it stays in the processor's cache.
_CHECKED_AT_ONCE_BYTES = 2**18
_HEADER_ALIGNMENT = 8


class PayloadError(ValueError):
    """A payload that is not what it should be; the message says in what."""


class Arrived(Mapping[str, Tensor]):
    """The tensors of a payload found to be right: each is copied out of it when asked for, and every time.

    So a payload of any size takes no second place in memory, and whoever asks may change what it gets.
    """

    def __init__(self, payload: bytes, layout: _Layout) -> None:
        self._payload = memoryview(payload)
        self._places = layout.places

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        flat = _copied(self._payload[place.start : place.end], place.dtype)
        return flat.view(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a payload, counted in bytes from its start, a tensor lies."""

    start: int
    end: int
    dtype: torch.dtype
    shape: torch.Size


@dataclass(frozen=True, slots=True)
class _Layout:
    """How tensors of certain names, types and shapes lie in a payload.

    Attributes:
        header: the bytes before the numbers.
        places: of each tensor, in the order they were asked for in.
        order: their names in the order they lie in.
        blocks: stretches of one type, which can be looked at without regard to what tensors they are of.
        size: of the whole payload, in bytes.
    """

    header: bytes
    places: Mapping[str, _Place]
    order: Sequence[str]
    blocks: Sequence[_Place]
    size: int


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Say how many bytes `encode` would give, of which names, shapes and dtypes alone are looked at."""
    return _layout_of(tensors).size


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialise tensors, from whatever device, as safetensors bytes; their numbers are copied once."""
    layout = _layout_of(tensors)
    return b"".join([layout.header, *(_as_bytes(tensors[name]) for name in layout.order)])


def decode(payload: bytes, like: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Read a payload that must hold tensors of the names, shapes and dtypes of `like`, all finite.

    Returns:
        CPU tensors, in the order of `like`, independent of `payload`; what can be wrong with them was
        found before the first is given. They are made when asked for: see `Arrived`.

    Raises:
        PayloadError: it holds anything else.
    """
    layout = _layout_of(like)
    if len(payload) != layout.size or not payload.startswith(layout.header):
        return _decode_other(payload, like)
    numbers = memoryview(payload)
    if not all(_is_finite(numbers, block) for block in layout.blocks):
        name = next(name for name, place in layout.places.items() if not _is_finite(numbers, place))
        raise not_finite(name)
    return Arrived(payload, layout)


def _decode_other(payload: bytes, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a payload laid out in another way, or find what is wrong with it."""
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
        # the name is the sender's choice, of any length
        raise PayloadError(f"{len(unexpected)} unexpected tensors, first {reprlib.repr(unexpected[0])}")


def _check_tensor(name: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise PayloadError(f"{name!r} has shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    if found.dtype != expected.dtype:
        raise PayloadError(f"{name!r} is {found.dtype}, not {expected.dtype}")
    if not found.isfinite().all():
        raise not_finite(name)


def not_finite(name: str) -> PayloadError:
    """Say that a tensor is refused for such values."""
    return PayloadError(f"{name!r} has values that are not finite")


def _is_finite(payload: memoryview, place: _Place) -> bool:
    if not place.dtype.is_floating_point:
        return True
    for start in range(place.start, place.end, _CHECKED_AT_ONCE_BYTES):
        end = min(start + _CHECKED_AT_ONCE_BYTES, place.end)
        # the extremes are of the numbers themselves, or infinite, or NaN if any is: one pass, nothing kept
        if not all(map(isfinite, torch.aminmax(_copied(payload[start:end], place.dtype)))):
            return False
    return True


def _copied(numbers: memoryview, dtype: torch.dtype) -> Tensor:
    """Give bytes, copied, as a tensor of one dimension."""
    # torch warns of memory that must not be written to, and makes no tensor of none at all
    return torch.frombuffer(bytearray(numbers), dtype=dtype) if numbers else torch.empty(0, dtype=dtype)


def _as_bytes(tensor: Tensor) -> memoryview:
    """Give the numbers of a tensor as bytes, not copied if it lies on the CPU and in one piece."""
    # numpy knows no bfloat16
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _layout_of(tensors: Mapping[str, Tensor]) -> _Layout:
    return _layout(tuple((name, x.dtype, x.shape) for name, x in tensors.items()))


@lru_cache(maxsize=32)
def _layout(tensors: tuple[tuple[str, torch.dtype, torch.Size], ...]) -> _Layout:
    """Lay tensors out as the safetensors library does: wide types first, so that all are aligned."""
    in_order = sorted(tensors, key=lambda x: (-x[1].itemsize, _TYPES[x[1]], x[0]))
    sizes = [shape.numel() * dtype.itemsize for _, dtype, shape in in_order]
    ends = list(accumulate(sizes, initial=0))
    described = {
        name: {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        for (name, dtype, shape), start, end in zip(in_order, ends[:-1], ends[1:], strict=True)
    }
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    placed = {
        name: _Place(len(header) + start, len(header) + end, dtype, shape)
        for (name, dtype, shape), start, end in zip(in_order, ends[:-1], ends[1:], strict=True)
    }
    by_type = [list(group) for _, group in groupby(placed.values(), key=lambda place: place.dtype)]
    return _Layout(
        header,
        places={name: placed[name] for name, _, _ in tensors},
        order=list(placed),
        blocks=[_Place(group[0].start, group[-1].end, group[0].dtype, torch.Size()) for group in by_type],
        size=len(header) + ends[-1],
    )
