"""How much this machine's rounds differ when nothing does: recorded by `ab --calibrate`, used by `ab`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.caching import default_folder
from bench.measure.environment import cpu_name
from bench.measure.load import usable_cores
from bench.regress.decision import Spread
from flora.errors import BadInput

FILE = "noise.json"
SCHEMA = 1


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    deviation: float = Field(ge=0)
    degrees: int = Field(ge=1)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    schema_version: int = SCHEMA
    machines: dict[str, dict[str, _Kept]] = {}


def default_file() -> Path:
    """Where a machine's noise is kept: beside the cache of features."""
    return default_folder().parent / FILE


def machine(threads: int) -> str:
    """Name what the noise is of: the processor, the cores that may be used, the threads of a process."""
    return f"{cpu_name()}, {len(usable_cores())} cores, {threads} threads"


def known_noise(file: Path, of: str) -> dict[str, Spread]:
    """Give what was recorded of a machine, by probe; nothing where nothing was.

    Raises:
        BadInput: the file is damaged.
    """
    kept = _read(file).machines.get(of, {})
    return {probe: Spread(found.deviation, found.degrees) for probe, found in kept.items()}


def record_noise(file: Path, of: str, found: Mapping[str, Spread]) -> None:
    """Add what a calibration found, in the place of what an earlier one found of the same probes.

    Raises:
        BadInput: the file is damaged, or cannot be written.
    """
    from bench.store import replacing

    whole = _read(file)
    own = whole.machines.setdefault(of, {})
    own.update({probe: _Kept(deviation=x.deviation, degrees=x.degrees) for probe, x in found.items()})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(whole.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{file}: cannot be written ({error.strerror})") from error


def _read(file: Path) -> _File:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _File()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from error
    try:
        found = _File.model_validate(json.loads(text))
    except (ValueError, ValidationError):
        raise BadInput(f"{file}: holds no noise of a machine; remove it and calibrate anew") from None
    if found.schema_version != SCHEMA:
        raise BadInput(
            f"{file}: has schema {found.schema_version}, not {SCHEMA}; remove it and calibrate anew"
        )
    return found
