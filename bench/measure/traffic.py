"""What passes between server and clients: a ledger of bytes as they passed, held against closed forms."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

from flora.events import Direction, Listener

if TYPE_CHECKING:
    from torch import Tensor

    from flora.codecs import Codec
    from flora.method import Method

HEADER_BYTES_PER_TENSOR = 150
"""Room for one tensor's name, type, shape and offsets in the header of a safetensors file."""

# A safetensors file begins with the length of its header.
_LENGTH_BYTES = 8
_DIRECTIONS: tuple[Direction, ...] = ("down", "up")
# Where a method keeps what its prompts' embeddings are computed with.
_TEXT_SIDE = ("clip.text.", "clip.text_head.")


class PayloadMismatch(RuntimeError):
    """A payload is not the size that the formulas of method and codec give."""


class Ledger(Sequence[dict[str, Any]]):
    """One row a payload, in the order they passed: a mapping when read, 25 bytes while it rests.

    A row has `round`, `client`, `direction`, `tensor_bytes` (of its numbers alone), `payload_bytes` (with
    their header) and `wire_bytes`, None where nothing went over a wire.
    """

    def __init__(self) -> None:
        self._rounds, self._clients, self._directions = array("i"), array("i"), array("b")
        self._tensor_bytes, self._payload_bytes = array("q"), array("q")

    def add(self, round: int, client: int, direction: Direction, tensor_bytes: int, size: int) -> None:
        """Write a payload down."""
        self._rounds.append(round)
        self._clients.append(client)
        self._directions.append(_DIRECTIONS.index(direction))
        self._tensor_bytes.append(tensor_bytes)
        self._payload_bytes.append(size)

    @property
    def _columns(self) -> dict[str, array[int]]:
        return {
            "round": self._rounds,
            "client": self._clients,
            "direction": self._directions,
            "tensor_bytes": self._tensor_bytes,
            "payload_bytes": self._payload_bytes,
        }

    def state(self) -> dict[str, list[int]]:
        """Give what is written down, by column."""
        return {name: column.tolist() for name, column in self._columns.items()}

    def restore(self, state: Mapping[str, Sequence[int]]) -> None:
        """Write down what `state` gave."""
        for name, column in self._columns.items():
            column.extend(state[name])

    def __len__(self) -> int:
        return len(self._rounds)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return {
            "round": self._rounds[index],
            "client": self._clients[index],
            "direction": _DIRECTIONS[self._directions[index]],
            "tensor_bytes": self._tensor_bytes[index],
            "payload_bytes": self._payload_bytes[index],
            "wire_bytes": None,
        }


class Traffic(Listener):
    """Keeps the ledger, and holds every payload against what it has to be.

    The shared tensors have as many numbers as the method's closed form gives; the numbers in the payload
    take exactly as many bytes as the codec's closed form gives for tensors of these shapes; and the header
    takes at most 150 bytes a tensor.

    Args:
        codec: by whose formula.
        shared: the shared trainable tensors, of which the shapes and dtypes are looked at.
        numbers: how many numbers these have by the method's closed form.
    """

    def __init__(self, codec: Codec, shared: Mapping[str, Tensor], numbers: int) -> None:
        self._found = sum(x.numel() for x in shared.values())
        self._numbers = numbers
        self._tensor_bytes = {way: codec.tensor_bytes(way, shared) for way in _DIRECTIONS}
        self._tensors = {way: codec.tensors(way, shared) for way in _DIRECTIONS}
        self._bytes: dict[Direction, dict[int, int]] = {"up": defaultdict(int), "down": defaultdict(int)}
        self._ledger = Ledger()
        self._largest: dict[Direction, tuple[int, int]] = {"up": (0, 0), "down": (0, 0)}
        self._mismatch: str | None = None

    def payload_passed(self, round: int, client: int, direction: Direction, payload: bytes) -> None:
        """Write `payload` down.

        Raises:
            PayloadMismatch: if its size is not what the formulas give.
        """
        size = len(payload)
        header = min(_LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "little"), size)
        self._bytes[direction][round] += size
        self._ledger.add(round, client, direction, size - header, size)
        self._largest[direction] = max(self._largest[direction], (size, header))
        if problem := self._problem(direction, size - header, header):
            self._mismatch = f"payload {direction} in round {round}, client {client}: {problem}"
            raise PayloadMismatch(self._mismatch)

    def _problem(self, direction: Direction, tensor_bytes: int, header: int) -> str | None:
        tensors, expected = self._tensors[direction], self._tensor_bytes[direction]
        if self._found != self._numbers:
            return (
                f"the shared tensors have {self._found:,} numbers, but the method's closed form gives "
                f"{self._numbers:,}"
            )
        if tensor_bytes != expected:
            return f"its numbers take {tensor_bytes:,} bytes, but {tensors} tensors should take {expected:,}"
        if header > (most := _LENGTH_BYTES + HEADER_BYTES_PER_TENSOR * tensors):
            return f"its header takes {header:,} bytes, but of {tensors} tensors at most {most:,}"
        return None

    def rows(self) -> Sequence[dict[str, Any]]:
        """Give the ledger, one row a payload."""
        return self._ledger

    def round_bytes(self, round: int) -> dict[str, int]:
        """Bytes of one round as `bytes_up` and `bytes_down`, summed over the clients."""
        return {
            "bytes_up": self._bytes["up"].get(round, 0),
            "bytes_down": self._bytes["down"].get(round, 0),
        }

    @property
    def bytes_up(self) -> int:
        """Bytes from the clients to the server, over all rounds."""
        return sum(self._bytes["up"].values())

    @property
    def bytes_down(self) -> int:
        """Bytes from the server to the clients, over all rounds."""
        return sum(self._bytes["down"].values())

    @property
    def payload_bytes(self) -> int:
        """Size of one payload, the largest if they vary; 0 if none passed."""
        return max(self.payload_bytes_by_direction.values())

    @property
    def payload_bytes_by_direction(self) -> dict[Direction, int]:
        """The same, each way."""
        return {way: size for way, (size, _) in self._largest.items()}

    def state(self) -> dict[str, Any]:
        """Give what has to be kept of the rounds so far for another process to go on, as JSON knows it."""
        return {"ledger": self._ledger.state(), "bytes": self._bytes, "largest": self._largest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave in an earlier process."""
        self._ledger.restore(state["ledger"])
        for way in _DIRECTIONS:
            self._bytes[way].update({int(number): size for number, size in state["bytes"][way].items()})
            size, header = state["largest"][way]
            self._largest[way] = size, header

    def invariants(self) -> dict[str, dict[str, Any]]:
        """Say whether every payload so far was of the size the formulas give, with the figures; none if none.

        `tensor_bytes` and `header_bytes` are of the largest payload;
        `tensor_bytes_up` and `tensor_bytes_down` are the closed forms.
        """
        if not len(self._ledger):
            return {}
        size, header = max(self._largest.values())
        closed = {f"tensor_bytes_{way}": self._tensor_bytes[way] for way in ("up", "down")}
        found = {
            "holds": self._mismatch is None,
            "tensor_bytes": size - header,
            **closed,
            "header_bytes": header,
            "payloads": len(self._ledger),
            **({} if self._mismatch is None else {"reason": self._mismatch}),
        }
        return {"payload_closed_form": found}


def needed_once_bytes(method: Method) -> int:
    """Count the bytes that a client needs once, before its first round: what is frozen, as it is stored.

    The image tower, and what the method adds and does not train; of the text side the tower if the prompts'
    embeddings change in training, else the embeddings (classes, dim). What trains travels every round and is
    not among them; features that were computed beforehand have no image tower.
    """
    saved = method.state_dict().keys()  # what is not, such as a mask, follows from the architecture
    frozen = [
        tensor.numel() * tensor.element_size()
        for name, tensor in chain(method.named_parameters(), method.named_buffers())
        if name in saved and name not in method.trainable
        if method.trains_text or not name.startswith(_TEXT_SIDE)
    ]
    embeddings = method.classes * method.clip.dim * method.clip.logit_scale.element_size()
    return sum(frozen) + (0 if method.trains_text else embeddings)
