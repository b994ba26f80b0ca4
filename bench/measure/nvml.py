"""NVML, NVIDIA's management library: what the driver knows of a GPU and of this process on it."""

from __future__ import annotations

import os
from typing import Any

MILLI = 1000
"""NVML counts in thousandths of a joule and of a watt."""


class NvmlUnavailable(RuntimeError):
    """The driver cannot say; the message is the reason, in one line."""


def library() -> Any:
    """Return `pynvml`, initialised.

    Raises:
        NvmlUnavailable: if the package or the driver is missing.
    """
    try:
        import pynvml
    except ImportError as error:
        raise NvmlUnavailable(f"nvidia-ml-py is not installed ({error})") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(f"no NVIDIA driver answers ({error})") from error
    return pynvml


def driver_version() -> str:
    """Return the version of the NVIDIA driver.

    Raises:
        NvmlUnavailable: if there is none to ask.
    """
    nvml = library()
    try:
        return str(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        raise NvmlUnavailable(f"the driver does not tell its version ({error})") from error


class NvmlDevice:
    """The GPU that torch calls `device`, as NVML sees it.

    Attributes:
        nvml: the initialised `pynvml`.
        handle: NVML's handle of the GPU, the first argument of its `nvmlDeviceGet...` functions.

    Raises:
        NvmlUnavailable: if the driver is missing or knows no such GPU.
    """

    def __init__(self, device: str) -> None:
        self.nvml = library()
        try:
            self.handle = _handle(self.nvml, device)
        except self.nvml.NVMLError as error:
            raise NvmlUnavailable(f"NVML does not find {device} ({error})") from error

    def process_memory_bytes(self) -> int:
        """Return the bytes of GPU memory this process holds now, CUDA context and torch's cache included.

        Raises:
            NvmlUnavailable: if the driver fails, does not list this process or does not know its share.
        """
        try:
            processes = self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
        except self.nvml.NVMLError as error:
            raise NvmlUnavailable(f"the driver does not list the GPU's processes ({error})") from error
        used = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
        if not used:
            # in a container the driver may know this process by the host's number
            raise NvmlUnavailable(f"the driver lists no process {os.getpid()} on the GPU")
        if used[0] is None:
            raise NvmlUnavailable("the driver does not tell the memory of single processes")
        return int(used[0])

    def energy_joules(self) -> float:
        """Return what the whole board has used since its driver was loaded, other processes' work included.

        Raises:
            NvmlUnavailable: if the driver fails or the GPU has no counter (those before Volta have none).
        """
        try:
            return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / MILLI
        except self.nvml.NVMLError as error:
            raise NvmlUnavailable(f"the GPU does not tell the energy it used ({error})") from error

    def power_watts(self) -> float:
        """Return what the whole board draws now; on recent GPUs the mean over the last second.

        Raises:
            NvmlUnavailable: if the driver fails or the GPU has no such sensor.
        """
        try:
            return float(self.nvml.nvmlDeviceGetPowerUsage(self.handle)) / MILLI
        except self.nvml.NVMLError as error:
            raise NvmlUnavailable(f"the GPU does not tell the power it draws ({error})") from error


def _handle(nvml: Any, device: str) -> Any:
    """Return NVML's handle of torch's `device`.

    The two number GPUs differently (CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER count for torch alone),
    so the UUID decides. A torch too old to tell it leaves the entry of CUDA_VISIBLE_DEVICES.
    """
    import torch

    index = torch.device(device).index
    index = torch.cuda.current_device() if index is None else index
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is None:
        visible = _visible_device(index)
        return nvml.nvmlDeviceGetHandleByIndex(int(visible)) if visible.isdigit() else _by_uuid(nvml, visible)
    try:
        return _by_uuid(nvml, f"GPU-{uuid}")
    except nvml.NVMLError:
        # torch leaves out the prefix, and a slice of a GPU has another one
        return _by_uuid(nvml, f"MIG-{uuid}")


def _by_uuid(nvml: Any, uuid: str) -> Any:
    return nvml.nvmlDeviceGetHandleByUUID(uuid.encode())


def _visible_device(index: int) -> str:
    """Return the entry of CUDA_VISIBLE_DEVICES behind torch's `index`, or the index itself without any."""
    visible = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return visible[index] if index < len(visible) and visible[index] else str(index)
