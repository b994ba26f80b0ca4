"""Which GPU a cell gets: by the memory that it will take, as predicted, and what is free, as the driver says.

Cells begin in the order given, and none overtakes another on a GPU that the other waits for: a large cell
waits until enough is free, and is never put off for ever by small ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from bench.config import RunConfig, but_for_seed
from bench.measure.nvml import NvmlUnavailable, library
from flora.errors import BadInput

CONTEXT_BYTES = 2**30
"""What a process takes of a GPU besides tensors: CUDA's context and the workspaces of its libraries.

Some 0.5 GiB on recent GPUs; the rest is a margin.
"""

FRAGMENTATION = 1.5
"""What torch's allocator takes of a GPU, over the tensors that live at once.

It hands out rounded blocks, keeps those that are let go of, and holds what operations need meanwhile. A
cautious guess, not measured.
"""

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Prediction:
    """What a cell is foretold to take; None where that is not known.

    Args:
        seconds: in all.
        peak_bytes: most bytes of tensors that live at once; or what finds out, called once it is needed.
    """

    def __init__(
        self, seconds: float | None = None, peak_bytes: int | Callable[[], int | None] | None = None
    ) -> None:
        self.seconds = seconds
        self._peak_bytes = peak_bytes

    @cached_property
    def peak_bytes(self) -> int | None:
        """Most bytes of tensors that live at once, with one client trained at a time."""
        return self._peak_bytes() if callable(self._peak_bytes) else self._peak_bytes


def predictions(results: Path, cells: Sequence[RunConfig]) -> Callable[[RunConfig], Prediction | None]:
    """Tell what cells will take: as `flora-bench plan --save` left it in `results`.

    Without that, the memory of a cell for a GPU is counted when it is first asked for, once for all of
    `cells` that differ in their seed alone; that takes seconds.

    Raises:
        BadInput: as `bench.store.load_predictions`.
    """
    from bench.store import load_predictions

    saved = load_predictions(results)
    first: dict[str, RunConfig] = {}
    for cell in cells:
        first.setdefault(but_for_seed(cell), cell)
    counted = cache(lambda kind: _counted_bytes(first[kind]))

    def foretold(config: RunConfig) -> Prediction | None:
        if found := saved.get(config.hash):
            return Prediction(found.get("total_seconds"), found.get("peak_tensor_bytes"))
        if not config.device.startswith("cuda"):
            return None
        kind = but_for_seed(config)
        first.setdefault(kind, config)
        return Prediction(peak_bytes=lambda: counted(kind))

    return foretold


def _counted_bytes(config: RunConfig) -> int | None:
    from bench.estimate import estimate

    try:
        return estimate(config).peak_tensor_bytes
    except BadInput:  # nothing can be foretold of it
        return None


@dataclass(frozen=True)
class Gpu:
    """A GPU as it is now.

    Attributes:
        name: what `CUDA_VISIBLE_DEVICES` calls it.
        total_bytes: its memory.
        free_bytes: of it; None if the driver does not tell.
        taken_bytes: of it, by process as far as the driver tells.
        lost: it was there and the driver no longer finds it.
    """

    name: str
    total_bytes: int = 0
    free_bytes: int | None = None
    taken_bytes: Mapping[int, int] = field(default_factory=dict)
    lost: bool = False


@dataclass(frozen=True)
class Wish:
    """What a cell needs of a GPU.

    Attributes:
        index: of the only GPU that it may have; None for any.
        peak_bytes: of tensors that live at once with one client at a time; None if not known: then the cell
            has a GPU for itself.
        together: most clients that may be trained at once.
        share: of a GPU's memory that these may take; None where there is no limit.
    """

    index: int | None = None
    peak_bytes: int | None = None
    together: int = 1
    share: float | None = None

    @classmethod
    def of(cls, config: RunConfig, peak_bytes: int | None, one_by_one: bool = False) -> Wish:
        """Read from its configuration what a cell may take."""
        from flora.group import GPU_SHARE

        device, _, index = config.device.partition(":")
        assert device == "cuda"
        asked = config.clients_per_batch
        alone = config.mode != "federated" or config.acceleration == "none" or config.model.dtype in HALF
        if asked == "auto":
            together, share = 1 if one_by_one else config.clients, GPU_SHARE
        else:
            together, share = min(asked, config.clients), None
        return cls(int(index) if index else None, peak_bytes, 1 if alone else together, share)

    def bytes_on(self, gpu: Gpu) -> int | None:
        """Most that the cell takes of `gpu`, as far as can be known before; None if it is not."""
        from flora.group import ACTIVATION_COPIES

        if self.peak_bytes is None:
            return None
        grouped = self.together * ACTIVATION_COPIES * self.peak_bytes if self.together > 1 else 0
        if self.share is not None:
            grouped = min(grouped, int(self.share * gpu.total_bytes))
        return CONTEXT_BYTES + int(FRAGMENTATION * (self.peak_bytes + grouped))


HALF = ("float16", "bfloat16")
"""Precisions in which clients are trained one by one."""


@dataclass(frozen=True)
class Placed:
    """A cell that runs on a GPU.

    Attributes:
        gpu: its name.
        promised_bytes: what the cell was taken to need; None for all of the GPU.
        pid: of its process.
    """

    gpu: str
    promised_bytes: int | None
    pid: int | None = None


def next_to_start(
    wishes: Sequence[Wish | None], gpus: Sequence[Gpu], placed: Collection[Placed]
) -> tuple[int, Gpu | None] | None:
    """Say which of the cells that wait is to start now, and on which GPU.

    Args:
        wishes: of the cells, in the order in which they are to start; None for one that needs no GPU.
        gpus: all that cells may have, as they are now.
        placed: the cells that run on them.

    Returns:
        its place in `wishes` and its GPU, None if it needs none or the driver lists none for it; or None, if
        all have to wait for one that runs.
    """
    waited_for: set[str] = set()
    for place, wish in enumerate(wishes):
        allowed = _allowed(wish, gpus)
        if not allowed:
            return place, None
        assert wish is not None
        gpu = _choose(wish, allowed, waited_for, placed)
        if gpu is not None:
            return place, gpu
        waited_for |= {gpu.name for gpu in allowed}
    return None


def _allowed(wish: Wish | None, gpus: Sequence[Gpu]) -> Sequence[Gpu]:
    if wish is None:
        return []
    return gpus if wish.index is None else gpus[wish.index : wish.index + 1]


def _choose(
    wish: Wish, allowed: Sequence[Gpu], waited_for: Collection[str], placed: Collection[Placed]
) -> Gpu | None:
    """Take, of the GPUs that have room, the one with the fewest cells and then the most memory.

    A cell that has room nowhere gets the emptiest GPU once no cell runs on any that it may have: it may do
    with less than foretold, and if it does not, it says so.
    """
    on = {gpu.name: [cell for cell in placed if cell.gpu == gpu.name] for gpu in allowed}
    left = [gpu for gpu in allowed if gpu.name not in waited_for]
    fitting = [gpu for gpu in left if _fits(wish, gpu, on[gpu.name])]
    if not fitting and not any(on.values()):
        fitting = left
    return min(fitting, key=lambda gpu: (gpu.lost, len(on[gpu.name]), -(gpu.free_bytes or 0)), default=None)


def _fits(wish: Wish, gpu: Gpu, on_it: Sequence[Placed]) -> bool:
    if gpu.lost:
        return False
    needed = wish.bytes_on(gpu)
    if needed is None or gpu.free_bytes is None:
        return not on_it
    promised = 0
    for cell in on_it:
        if cell.promised_bytes is None:
            return False
        # what a process has taken is no longer free; where that is not told, it counts twice
        promised += max(0, cell.promised_bytes - gpu.taken_bytes.get(cell.pid or 0, 0))
    return needed <= gpu.free_bytes - promised


class Gpus:
    """The GPUs that this process may use, by the names and in the places that they had at the first look.

    Cells run on them by these names, whatever the driver comes to say later.
    """

    def __init__(self) -> None:
        self._names: list[str] = []

    def now(self) -> list[Gpu]:
        """Look at them; where the driver does not tell of any for the moment, nothing is known of them."""
        seen = {gpu.name: gpu for gpu in visible_gpus()}
        self._names = self._names or list(seen)
        silent = not any(name in seen for name in self._names)
        return [seen.get(name) or Gpu(name, lost=not silent) for name in self._names]


def visible_gpus() -> list[Gpu]:
    """List the GPUs that this process may use, in the order of CUDA or of `CUDA_VISIBLE_DEVICES`.

    Without NVML nothing is known of their memory. No GPU is set up for it in this process.
    """
    try:
        nvml = library()
    except NvmlUnavailable:
        return _gpus_of_torch()
    try:
        handles = _visible_handles(nvml)
    except nvml.NVMLError:
        return _gpus_of_torch()
    return [gpu for handle in handles if (gpu := _as_it_is(nvml, handle)) is not None]


def _gpus_of_torch() -> list[Gpu]:
    import torch

    count = torch.cuda.device_count()
    names = _visible_names() or list(map(str, range(count)))
    return [Gpu(name) for name in names[:count]]


def _visible_names() -> list[str] | None:
    """Split `CUDA_VISIBLE_DEVICES`; None if it is not set."""
    value = os.environ.get(VISIBLE)
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def _visible_handles(nvml: Any) -> list[Any]:
    """Give NVML's handles of what CUDA may see, up to the first name that is none, as CUDA does."""
    every = _in_order_of_cuda(nvml, range(nvml.nvmlDeviceGetCount()))
    names = _visible_names()
    if names is None:
        return every
    found = []
    for name in names:
        if (handle := _named(nvml, every, name)) is None:
            break
        found.append(handle)
    return found


def _in_order_of_cuda(nvml: Any, indices: Collection[int]) -> list[Any]:
    """Give the handles in the order in which CUDA counts; None for a GPU that does not answer.

    NVML counts by the bus. CUDA does if told to, and else begins with the fastest.
    """
    by_bus = [_handle(nvml, index) for index in indices]
    if len(by_bus) < 2 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return by_bus
    by_uuid = {_uuid(nvml, handle): handle for handle in by_bus}
    counted = [f"GPU-{uuid}" for uuid in _uuids_of_cuda()]
    return [by_uuid.get(uuid) for uuid in counted] if counted else by_bus


_ASK_CUDA = """
import torch
for index in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_properties(index).uuid)
"""


@cache
def _uuids_of_cuda() -> Sequence[str]:
    """Have another process ask, once, as it sets up CUDA; nothing if CUDA has no answer."""
    environment = {name: value for name, value in os.environ.items() if name != VISIBLE}
    asked = subprocess.run(
        [sys.executable, "-c", _ASK_CUDA], env=environment, capture_output=True, text=True, check=False
    )
    return asked.stdout.split() if asked.returncode == 0 else []


def _named(nvml: Any, every: Sequence[Any], name: str) -> Any | None:
    if name.lstrip("-").isdigit():
        return every[int(name)] if 0 <= int(name) < len(every) else None
    for handle in every:
        if (_uuid(nvml, handle) or "").startswith(name):  # CUDA takes the beginning of one
            return handle
    try:
        return nvml.nvmlDeviceGetHandleByUUID(name.encode())  # a slice of a GPU
    except nvml.NVMLError:
        return None


def _handle(nvml: Any, index: int) -> Any | None:
    try:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError:
        return None


def _uuid(nvml: Any, handle: Any | None) -> str | None:
    try:
        return None if handle is None else _text(nvml.nvmlDeviceGetUUID(handle))
    except nvml.NVMLError:
        return None


def _as_it_is(nvml: Any, handle: Any | None) -> Gpu | None:
    """Ask the driver for a GPU's memory; what it does not tell is left out. None if it has lost the GPU."""
    name = _uuid(nvml, handle)
    if name is None:
        return None
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:
        return Gpu(name)
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        processes = []
    taken = {process.pid: int(process.usedGpuMemory) for process in processes if process.usedGpuMemory}
    return Gpu(name, int(memory.total), int(memory.free), taken)


def _text(value: str | bytes) -> str:
    """Older versions of NVML's package give bytes."""
    return value.decode() if isinstance(value, bytes) else value
