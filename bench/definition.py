"""What a cell is: all that can change its numbers, hashed, to know whether a result still stands for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from bench.catalogue import method_modules
from bench.code_version import code_version, imported
from bench.config import RunConfig

HARNESS = "bench.cell"
"""The module that runs a cell. What it imports is the harness; what it only finds by name is not."""


@dataclass(frozen=True)
class Definition:
    """What a cell's numbers follow from.

    A split is not among it: it follows from the configuration, the data and the code, and what it was is
    recorded in the result.

    Attributes:
        config: hash of the configuration.
        data, suites, model: fingerprints of the images, of those of other suites, and of the weights.
        harness, method, task: versions of the code that runs every cell; that only this method has; that
            loads only this task, or the one whose retention is measured. Empty in results from before these
            were kept.
    """

    config: str
    data: str
    suites: str
    model: str
    harness: str
    method: str
    task: str

    @classmethod
    def read(cls, kept: Any) -> Definition | None:
        """Read what `to_dict` gave; None if it is something else."""
        if not isinstance(kept, Mapping):
            return None
        parts = [kept.get(name, "") for name in cls.__match_args__]
        return cls(*parts) if parts[0] and all(isinstance(part, str) for part in parts) else None

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits over all of it; empty where the versions of the code are not known."""
        if not self.harness:
            return ""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, str]:
        """Give it as `run.json` holds it, under "definition"."""
        return {"hash": self.hash, **asdict(self)}

    def changes(self, then: Definition | None, config: RunConfig) -> list[str]:
        """Say in words what is not as it was then; nothing if the numbers of then still hold.

        Args:
            then: what a result was made from; None if it does not say.
            config: the cell's, to name its method and task.
        """
        words = {
            "config": "configuration changed",
            "data": "images changed",
            "suites": "images changed",
            "model": "weights changed",
            "harness": "harness changed",
            "method": f"method {config.method.name} changed",
            "task": f"task {config.task.partition(':')[0]} changed",
        }
        recorded = {} if then is None else {part: x for part, x in asdict(then).items() if x}
        if then is not None and then.harness:
            recorded["suites"] = then.suites  # empty where there were none
        differ = [words[part] for part, x in recorded.items() if getattr(self, part) != x]
        if "harness" not in recorded:
            differ.append("made before code versions were kept")
        return list(dict.fromkeys(differ))


Fingerprints = dict[Hashable, dict[str, str]]
"""What `bench.sources.sources` gave, by what it depends on."""


def definition_of(config: RunConfig, seen: Fingerprints | None = None) -> Definition:
    """Find out what a cell is on this machine, with this code, now.

    Args:
        config: the cell.
        seen: fingerprints that hold for as long as the caller keeps them, so that of many cells the images
            and weights they share are read once; added to.

    Raises:
        BadInput: its images or weights cannot be had.
    """
    from bench.sources import sources

    seen = {} if seen is None else seen
    if (key := _inputs(config)) not in seen:
        seen[key] = sources(config)
    retention = config.evaluation.retention
    return Definition(
        config.hash,
        **seen[key],
        harness=_harness_version(),
        method=_method_version(config.method.name),
        task=_task_version(config.task, *([retention] if retention else [])),
    )


def _inputs(config: RunConfig) -> Hashable:
    """Put together what decides a cell's images and weights; methods, splits and most seeds share them."""
    from bench.sources import draws_images

    seed = config.seed.split if draws_images(config.data) else None
    return config.task, config.data, config.evaluation.retention, config.model.name, seed


@cache
def _harness_version() -> str:
    return code_version(imported(HARNESS))


@cache
def _method_version(name: str) -> str:
    return _version_beside_harness(method_modules()[name])


@cache
def _task_version(*specs: str) -> str:
    return _version_beside_harness(*(f"bench.tasks.{spec.partition(':')[0]}" for spec in specs))


def _version_beside_harness(*modules: str) -> str:
    return code_version(frozenset().union(*map(imported, modules)) - imported(HARNESS))
