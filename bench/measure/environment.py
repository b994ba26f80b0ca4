"""Where a result was measured. Nothing here names the machine or its owner."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from bench.measure.nvml import NvmlUnavailable, driver_version

PROJECT = "flora-bench"
PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "peft",
    "numpy",
    "safetensors",
)
_SOURCES = ("flora", "baselines", "bench", "pyproject.toml")
_GIT_SECONDS = 10
_GIT_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


def describe(device: str) -> dict[str, Any]:
    """Say what the suite runs on: versions, processor, memory, GPU and the commit of its checkout.

    Args:
        device: where the work runs, such as "cpu" or "cuda:0"; the GPU is described for the latter alone.

    Returns:
        plain values only; None for what is not known or not there.
    """
    import torch

    return {
        **_machine(),
        "packages": dict(_packages()),
        "torch_threads": torch.get_num_threads(),
        "device": device,
        **(_gpu(device) if device.startswith("cuda") else {"gpu": None, "gpu_driver": None, "cuda": None}),
        **_commit(_checkout_root()),
    }


@cache
def _machine() -> dict[str, Any]:
    return {
        "suite": _suite_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


@cache
def _packages() -> dict[str, str | None]:
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _suite_version() -> str | None:
    root = _checkout_root()
    # a checkout may run uninstalled, or beside an older installed version
    return _version(PROJECT) if root is None else _project_table(root).get("version")


def cpu_name() -> str | None:
    """Return the processor's model name as its maker gives it, or the architecture where none is told."""
    if sys.platform == "linux":
        name = _cpuinfo_name(Path("/proc/cpuinfo"))
    elif sys.platform == "darwin":
        name = _output("sysctl", "-n", "machdep.cpu.brand_string")
    else:
        name = platform.processor()
    return name or platform.machine() or None


def _cpuinfo_name(cpuinfo: Path) -> str | None:
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _gpu(device: str) -> dict[str, str | None]:
    import torch

    try:
        driver: str | None = driver_version()
    except NvmlUnavailable:
        driver = None
    return {"gpu": torch.cuda.get_device_name(device), "gpu_driver": driver, "cuda": torch.version.cuda}


def _project_table(root: Path) -> dict[str, Any]:
    try:
        with (root / "pyproject.toml").open("rb") as file:
            project: dict[str, Any] = tomllib.load(file).get("project", {})
    except (OSError, tomllib.TOMLDecodeError):
        return {}
    return project


@cache
def _checkout_root() -> Path | None:
    """Return the root of this suite's git checkout, None when it runs from an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    # site-packages may itself lie within some other project's checkout
    ours = (root / ".git").exists() and _project_table(root).get("name") == PROJECT
    return root if ours else None


@cache
def _commit(root: Path | None) -> dict[str, str | bool | None]:
    """Return the commit, and whether the sources that ran differ from it (files not yet added included)."""
    if root is None:
        return {"git_commit": None, "git_dirty": None}
    commit = _output("git", "-C", str(root), "rev-parse", "--verify", "HEAD")
    changes = _output("git", "-C", str(root), "--no-optional-locks", "status", "--porcelain", "--", *_SOURCES)
    return {"git_commit": commit or None, "git_dirty": None if changes is None else bool(changes)}


def _output(*command: str) -> str | None:
    """Return what `command` prints, stripped; None if it fails, is missing or takes too long."""
    # within a git hook these point to the hook's repository, whatever -C says
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_ELSEWHERE}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
