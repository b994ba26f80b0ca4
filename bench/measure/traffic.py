"""What passes between server and clients: bytes as they were passed, held against the closed form."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from flora.events import Direction, Listener

HEADER_BYTES_PER_TENSOR = 150
"""Room for one tensor's name, type, shape and offsets in the header of a safetensors file."""


class PayloadMismatch(RuntimeError):
    """A payload is not the size that the method's formula gives."""


class Traffic(Listener):
    """Bytes per round and direction, each `len()` of what passed.

    Every payload has to hold its tensors and a header, neither less nor more:
    `tensor_bytes <= len(payload) <= tensor_bytes + 150 * tensors`.

    Args:
        tensor_bytes: bytes of the shared trainable tensors by the method's closed form.
        tensors: how many tensors these are.
    """

    def __init__(self, tensor_bytes: int, tensors: int) -> None:
        self._tensor_bytes = tensor_bytes
        self._most_bytes = tensor_bytes + HEADER_BYTES_PER_TENSOR * tensors
        self._tensors = tensors
        self._bytes: dict[Direction, dict[int, int]] = {"up": defaultdict(int), "down": defaultdict(int)}
        self._payloads = 0
        self._smallest = self._largest = 0

    def payload_passed(self, round: int, client: int, direction: Direction, payload: bytes) -> None:
        """Count `payload`.

        Raises:
            PayloadMismatch: if its size is not what the formula gives.
        """
        size = len(payload)
        self._bytes[direction][round] += size
        self._smallest = size if self._payloads == 0 else min(self._smallest, size)
        self._largest = max(self._largest, size)
        self._payloads += 1
        if not self._tensor_bytes <= size <= self._most_bytes:
            raise PayloadMismatch(
                f"payload {direction} in round {round}, client {client}: {size:,} bytes, but its "
                f"{self._tensors} tensors should take {self._tensor_bytes:,} and with their header "
                f"at most {self._most_bytes:,}"
            )

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
        return self._largest

    def invariant(self) -> dict[str, Any]:
        """Say whether every payload so far was of the size the formula gives, with the figures.

        `header_bytes` is what the largest payload has beyond its tensors, None if none passed.
        """
        sized = self._tensor_bytes <= self._smallest and self._largest <= self._most_bytes
        return {
            "holds": self._payloads == 0 or sized,
            "tensor_bytes": self._tensor_bytes,
            "header_bytes": self._largest - self._tensor_bytes if self._payloads else None,
            "payloads": self._payloads,
        }
