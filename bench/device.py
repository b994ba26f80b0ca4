"""Which device a run uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from flora.errors import BadInput


def resolve(name: str) -> str:
    """Turn `auto` into what this machine has, and check any other choice.

    Args:
        name: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        BadInput: no such kind of device, or it is not on this machine.
    """
    import torch

    count = torch.cuda.device_count()
    if name == "auto":
        return "cuda" if count else "cpu"
    valid = ["auto", "cpu", *(["cuda", *(f"cuda:{i}" for i in range(count))] if count else [])]
    if name in valid:
        return name
    raise BadInput(f"device: {name!r} is not on this machine; choose from {', '.join(valid)}")


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Have torch pick kernels on a GPU that give the same numbers every time; on a CPU they all do.

    An operation that has no such kernel warns and runs all the same.
    """
    if not device.startswith("cuda"):
        yield
        return
    import torch

    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def lacks_memory(error: Exception) -> bool:
    """Whether there was too little memory: torch says so in its own ways, and on the CPU in words alone."""
    import torch

    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
