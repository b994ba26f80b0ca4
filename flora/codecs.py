"""How tensors are written into payloads: as they are, in fewer bits, or only the largest of them.

What travels down are the tensors themselves. What travels up with a lossy codec is the difference to what
the client received, which the server adds to the same: an update is small beside the weights it changes, and
in the few bits of int8 the weights would round it away. What clients received is, where a broadcast is lossy
too, what the server itself reads in its broadcast, and not its own, finer state.

A payload of any codec is a file of safetensors that is checked on arrival as `flora.payload` checks it: the
names, shapes and types of what the codec writes for these tensors, all finite, scales not negative, indices
in range and ascending; and what comes of it is finite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from flora import payload
from flora.events import Direction
from flora.payload import PayloadError
from flora.settings import Bf16, CodecSpec, Fp16, Fp32, Int8, TopK

# What an update left out of a payload, by tensor: added to the client's next update.
Residual = dict[str, Tensor]
Tensors = Mapping[str, Tensor]

INT8_LEVELS = 127
# What the tensors are called that stand for one: none of these endings is another's, so that no names clash.
_CODES, _SCALE, _INDEX, _VALUE = ":int8", ":scale", ":index", ":value"


class Codec(ABC):
    """Writes and reads payloads in both directions.

    Attributes:
        keeps_residual: whether a client keeps what its update left out.
    """

    keeps_residual = False

    @abstractmethod
    def encode_state(self, state: Tensors) -> bytes:
        """Write the server's tensors, for its clients."""

    @abstractmethod
    def decode_state(self, encoded: bytes, like: Tensors) -> Tensors:
        """Read what the server sent.

        Returns:
            CPU tensors of the names, shapes and dtypes of `like`, each made anew when it is asked for.

        Raises:
            PayloadError: it holds anything else.
        """

    @abstractmethod
    def received(self, state: Tensors, encoded: bytes) -> Tensors:
        """Give what clients read in `encoded`, which was made of `state`."""

    @abstractmethod
    def encode_update(
        self, trained: Tensors, received: Tensors, residual: Residual | None
    ) -> tuple[bytes, Residual | None]:
        """Write what a client trained.

        Args:
            trained: its tensors, on whatever device.
            received: what it started from.
            residual: what its updates before left out, if it keeps that.

        Returns:
            The payload, and what the client is to keep: None if nothing, or if its training diverged.
        """

    @abstractmethod
    def decode_update(self, encoded: bytes, like: Tensors, received: Tensors) -> Tensors:
        """Read what a client sent, as the tensors it stands for.

        Args:
            encoded: the payload.
            like: what names, shapes and dtypes it must stand for.
            received: what the client started from.

        Returns:
            As `decode_state`.

        Raises:
            PayloadError: it holds anything else.
        """

    def tensor_bytes(self, direction: Direction, like: Tensors) -> int:
        """Count the bytes of a payload's tensors, by the shapes and dtypes of `like` alone."""
        return sum(x.numel() * x.element_size() for x in self._layout(direction, like).values())

    def tensors(self, direction: Direction, like: Tensors) -> int:
        """Count the tensors in a payload."""
        return len(self._layout(direction, like))

    def payload_bytes(self, direction: Direction, like: Tensors) -> int:
        """Count the bytes of a whole payload, its header among them."""
        return payload.size_of(self._layout(direction, like))

    @abstractmethod
    def _layout(self, direction: Direction, like: Tensors) -> Tensors:
        """Give tensors without memory of the names, shapes and dtypes that a payload holds."""


class Plain(Codec):
    """Tensors as they are, in the precision they train in, in both directions."""

    def encode_state(self, state: Tensors) -> bytes:
        """Write the tensors."""
        return payload.encode(state)

    def decode_state(self, encoded: bytes, like: Tensors) -> Tensors:
        """Read the tensors."""
        return payload.decode(encoded, like)

    def received(self, state: Tensors, encoded: bytes) -> Tensors:
        """Give the state itself."""
        return state

    def encode_update(
        self, trained: Tensors, received: Tensors, residual: Residual | None
    ) -> tuple[bytes, Residual | None]:
        """Write the trained tensors."""
        return payload.encode(trained), None

    def decode_update(self, encoded: bytes, like: Tensors, received: Tensors) -> Tensors:
        """Read the trained tensors."""
        return payload.decode(encoded, like)

    def _layout(self, direction: Direction, like: Tensors) -> Tensors:
        return like


class Lossy(Codec):
    """A codec that writes one tensor after another as some that take less.

    Attributes:
        down: whether broadcasts are written so, too.
    """

    def __init__(self, down: bool) -> None:
        self.down = down

    @abstractmethod
    def write(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Give what stands for a tensor on the CPU."""

    @abstractmethod
    def shapes(self, name: str, like: Tensor) -> dict[str, Tensor]:
        """Give tensors without memory, of the names, shapes and dtypes of what `write` gives."""

    @abstractmethod
    def read(self, name: str, parts: Tensors, like: Tensor) -> Tensor:
        """Make a tensor like `like` of what stands for it.

        Raises:
            PayloadError: it cannot be what `write` gave.
        """

    def encode_state(self, state: Tensors) -> bytes:
        """Write the tensors, lossy or as they are."""
        if not self.down:
            return payload.encode(state)
        return payload.encode({n: x for name in state for n, x in self.write(name, state[name]).items()})

    def decode_state(self, encoded: bytes, like: Tensors) -> Tensors:
        """Read the tensors."""
        if not self.down:
            return payload.decode(encoded, like)
        parts = payload.decode(encoded, self._layout("down", like))
        return _finite({name: self.read(name, parts, like[name]) for name in like})

    def received(self, state: Tensors, encoded: bytes) -> Tensors:
        """Read what was written, or give the state itself where it travels as it is."""
        return self.decode_state(encoded, like=state) if self.down else state

    def encode_update(
        self, trained: Tensors, received: Tensors, residual: Residual | None
    ) -> tuple[bytes, Residual | None]:
        """Write the differences of what was trained to what was received."""
        parts: dict[str, Tensor] = {}
        for name, tensor in trained.items():
            parts |= self.write(name, _difference(tensor, received[name]))
        return payload.encode(parts), None

    def decode_update(self, encoded: bytes, like: Tensors, received: Tensors) -> Tensors:
        """Add the differences to what was received."""
        parts = payload.decode(encoded, self._layout("up", like))
        return _finite({name: received[name] + self.read(name, parts, like[name]) for name in like})

    def _layout(self, direction: Direction, like: Tensors) -> Tensors:
        if direction == "down" and not self.down:
            return like
        return {n: x for name, tensor in like.items() for n, x in self.shapes(name, tensor).items()}


class Cast(Lossy):
    """Numbers of another type, rounded to the nearest, to the even one of two.

    What is beyond the type's range becomes infinite, and the payload is refused.
    """

    def __init__(self, dtype: torch.dtype, down: bool) -> None:
        super().__init__(down)
        self.dtype = dtype

    def write(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Give the tensor in the codec's type."""
        return {name: tensor.to(self.dtype)}

    def shapes(self, name: str, like: Tensor) -> dict[str, Tensor]:
        """Give one tensor of the same shape."""
        return {name: _without_memory(like.shape, self.dtype)}

    def read(self, name: str, parts: Tensors, like: Tensor) -> Tensor:
        """Give the tensor in its own type."""
        return parts[name].to(like.dtype)


class Quantised(Lossy):
    """Whole numbers of eight bits times a tensor's scale, symmetric; off by half a scale at most.

    The scale, of the tensor's own type, is the largest magnitude over 127, so that this one is exact to
    rounding; it is zero for a tensor of zeros. Numbers are rounded to the nearest, to the even one of two.
    """

    def write(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Give the codes, in the shape of the tensor, and the scale, a scalar."""
        extremes = torch.stack(torch.aminmax(tensor)) if tensor.numel() else tensor.new_zeros(1)
        scale = extremes.abs().max() / INT8_LEVELS
        if scale > 0 and scale.isfinite():
            codes = (tensor / scale).round_().clamp_(-INT8_LEVELS, INT8_LEVELS).to(torch.int8)
        else:
            codes = torch.zeros(tensor.shape, dtype=torch.int8)
        return {name + _CODES: codes, name + _SCALE: scale}

    def shapes(self, name: str, like: Tensor) -> dict[str, Tensor]:
        """Give codes and scale."""
        return {
            name + _CODES: _without_memory(like.shape, torch.int8),
            name + _SCALE: _without_memory((), like.dtype),
        }

    def read(self, name: str, parts: Tensors, like: Tensor) -> Tensor:
        """Multiply codes by the scale."""
        scale = parts[name + _SCALE]
        if scale < 0:
            raise PayloadError(f"{name!r} has the scale {scale:g}, which is negative")
        return parts[name + _CODES].to(like.dtype).mul_(scale)


class Sparse(Lossy):
    """The entries of largest magnitude of each difference, of equal ones those that come first; up only.

    With error feedback (Seide et al., Interspeech 2014; arXiv 1809.07599, 1901.09847) what an update leaves
    out is added to the client's next: sent late rather than never.

    Args:
        share: of a tensor's entries, in (0, 1]; at least one is sent.
        error_feedback: whether what is left out is kept.
    """

    def __init__(self, share: float, error_feedback: bool) -> None:
        super().__init__(down=False)
        self.share = share
        self.keeps_residual = error_feedback

    def encode_update(
        self, trained: Tensors, received: Tensors, residual: Residual | None
    ) -> tuple[bytes, Residual | None]:
        """Write the largest entries of difference and residual together; what is left is the new residual."""
        parts: dict[str, Tensor] = {}
        left: Residual = {}
        for name, tensor in trained.items():
            update = _difference(tensor, received[name])
            if residual is not None:
                update += residual[name]
            parts |= (sent := self.write(name, update))
            if self.keeps_residual:
                update.view(-1)[sent[name + _INDEX].long()] = 0
                left[name] = update
        # one entry that is not finite is among the largest, so all that may be kept is sound if these are
        sound = self.keeps_residual and all(x.isfinite().all() for x in parts.values())
        return payload.encode(parts), left if sound else None

    def write(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Give indices into the flattened tensor, ascending, and the values there, in its own type."""
        flat = tensor.reshape(-1)
        index = _largest(flat, self._kept(flat))
        return {name + _INDEX: index.to(torch.int32), name + _VALUE: flat[index]}

    def shapes(self, name: str, like: Tensor) -> dict[str, Tensor]:
        """Give indices and values."""
        kept = self._kept(like)
        return {
            name + _INDEX: _without_memory((kept,), torch.int32),
            name + _VALUE: _without_memory((kept,), like.dtype),
        }

    def read(self, name: str, parts: Tensors, like: Tensor) -> Tensor:
        """Put the values in their places, among zeros."""
        index = parts[name + _INDEX].long()
        if len(index) and (index[0] < 0 or index[-1] >= like.numel() or (index.diff() <= 0).any()):
            raise PayloadError(f"{name!r} has indices that do not ascend within {like.numel():,} entries")
        flat = torch.zeros(like.numel(), dtype=like.dtype)
        flat[index] = parts[name + _VALUE]
        return flat.view(like.shape)

    def _kept(self, tensor: Tensor) -> int:
        return min(tensor.numel(), max(1, round(self.share * tensor.numel())))


def make_codec(spec: CodecSpec) -> Codec:
    """Make the codec that the settings describe."""
    match spec:
        case Fp32():
            return Plain()
        case Fp16():
            return Cast(torch.float16, down=spec.direction == "both")
        case Bf16():
            return Cast(torch.bfloat16, down=spec.direction == "both")
        case Int8():
            return Quantised(down=spec.direction == "both")
        case TopK():
            return Sparse(spec.share, spec.error_feedback)


def _finite(tensors: Tensors) -> Tensors:
    """Make each tensor once, so that what is wrong with any is found before the first is used."""
    for name in tensors:
        tensor = tensors[name]
        if tensor.numel() and not all(x.isfinite() for x in torch.aminmax(tensor)):
            raise payload.not_finite(name)
    return tensors


def _difference(trained: Tensor, received: Tensor) -> Tensor:
    return (trained.detach().cpu() - received).contiguous()


def _largest(flat: Tensor, count: int) -> Tensor:
    """Give the ascending indices of the `count` largest magnitudes of (n,); NaN counts as infinite."""
    if count == len(flat):
        return torch.arange(count)
    magnitudes = flat.abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)
    least = magnitudes.kthvalue(len(flat) - count + 1).values
    above = (magnitudes > least).nonzero().view(-1)
    # torch does not say which of equal ones its own topk takes
    equal = (magnitudes == least).nonzero().view(-1)[: count - len(above)]
    return torch.cat([above, equal]).sort().values


def _without_memory(shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")
