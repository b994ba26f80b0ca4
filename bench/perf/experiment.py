"""What an experiment is, what it leaves on disk, and when its targets hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flora.errors import BadInput

SCHEMA = 1
"""Version of an experiment's file; it rises whenever a reader of the last version would misread a field."""


@dataclass(frozen=True)
class Setting:
    """How an experiment is run.

    Attributes:
        quick: at sizes that only show that it works; its targets say nothing then.
        full: nothing extrapolated.
        device: where the work runs, "cpu" or "cuda".
    """

    quick: bool = False
    full: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Target:
    """What one of an experiment's figures must come to.

    Attributes:
        figure: its name.
        at_least, at_most: one of the two.
    """

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def text(self) -> str:
        """The target in words."""
        return _bound_text(self.at_least, self.at_most)

    def check(self, figures: Mapping[str, Any], quick: bool) -> Check:
        """Hold the figure against the target; a quick run decides nothing."""
        value = float(figures[self.figure])
        low, high = self.at_least, self.at_most
        holds = (low is None or value >= low) and (high is None or value <= high)
        return Check(
            figure=self.figure, value=value, at_least=low, at_most=high, holds=None if quick else holds
        )


@dataclass(frozen=True)
class Measured:
    """What an experiment found.

    Attributes:
        figures: numbers with their units in their names, and lists and mappings of such.
        samples: repeats behind the figures that decide.
        notes: what a reader must know to read them right.
        extrapolated: whether a figure that decides was partly computed from smaller runs.
    """

    figures: dict[str, Any]
    samples: int
    notes: Sequence[str] = ()
    extrapolated: bool = False


class Skipped(Exception):
    """The experiment cannot be made here; the message says why."""


@dataclass(frozen=True)
class Experiment:
    """One experiment: the function of its name in a module of `bench.perf`.

    Attributes:
        name: on the command line, and of its file.
        what: one sentence.
        minutes: it takes on 2 cores, about.
        module: where its function is.
        targets: what it must show; none for one that only records.
        threads: torch's, where the experiment asks for a number.
    """

    name: str
    what: str
    minutes: float
    module: str
    targets: Sequence[Target] = ()
    threads: int | None = field(default=None)

    def run(self, setting: Setting) -> Record:
        """Carry it out in this process.

        Raises:
            BadInput: the setting asks for a device that is not there.
        """
        from bench.measure.environment import describe

        measure = getattr(import_module(f"bench.perf.{self.module}"), self.name)
        common: dict[str, Any] = {
            "name": self.name,
            "what": self.what,
            "command": self._command(setting),
            "quick": setting.quick,
            "environment": describe(setting.device),
        }
        try:
            found: Measured = measure(setting)
        except Skipped as reason:
            return Record(**common, skipped=str(reason))
        checks = [target.check(found.figures, setting.quick) for target in self.targets]
        return Record(
            **common,
            figures=found.figures,
            checks=checks,
            holds=_all_hold(checks),
            extrapolated=found.extrapolated,
            samples=found.samples,
            notes=list(found.notes),
        )

    def _command(self, setting: Setting) -> str:
        flags = [f"--{flag}" for flag in ("quick", "full") if getattr(setting, flag)]
        device = [] if setting.device == "cpu" else ["--device", setting.device]
        return " ".join(["flora-bench", "perf", self.name, *flags, *device])


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Check(_Part):
    """A target with what was measured; `holds` is None in a quick run."""

    figure: str
    value: float
    at_least: float | None = None
    at_most: float | None = None
    holds: bool | None = None

    @property
    def text(self) -> str:
        """The target in words."""
        return _bound_text(self.at_least, self.at_most)

    @property
    def margin(self) -> float:
        """How many times better than asked for the value is: 1 is just on target, below 1 is short of it."""
        if self.at_least is not None:
            return self.value / self.at_least
        assert self.at_most is not None
        return self.at_most / self.value if self.value > 0 else float("inf")


class Record(_Part):
    """An experiment's file.

    Attributes:
        schema_version: of this layout ("schema" in the file).
        name, what: of the experiment.
        command: that makes it anew.
        quick: made at sizes that only show that it works.
        environment: as `bench.measure.environment.describe` has it.
        figures: everything measured.
        checks: the targets, held against the figures.
        holds: whether all of them hold; None if there are none, in a quick run, or if it was skipped.
        extrapolated: whether a figure that decides was partly computed from smaller runs.
        samples: repeats behind those figures.
        notes: what a reader must know.
        skipped: why there is nothing; empty otherwise.
    """

    schema_version: int = Field(SCHEMA, alias="schema")
    name: str
    what: str
    command: str
    quick: bool = False
    environment: dict[str, Any]
    figures: dict[str, Any] = {}
    checks: list[Check] = []
    holds: bool | None = None
    extrapolated: bool = False
    samples: int = 0
    notes: list[str] = []
    skipped: str = ""

    def write(self, folder: Path) -> Path:
        """Write `folder/<name>.json`, whole or not at all."""
        path = folder / f"{self.name}.json"
        new = path.with_suffix(".new")
        new.write_text(self.model_dump_json(indent=1, by_alias=True) + "\n", encoding="utf-8")
        return new.replace(path)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a file back.

        Raises:
            BadInput: it is none of an experiment, or of another schema.
        """
        try:
            record = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise BadInput(
                f"{path}: is no experiment's file ({reason}); remove it or make it anew"
            ) from error
        if record.schema_version != SCHEMA:
            raise BadInput(f"{path}: has schema {record.schema_version}, not {SCHEMA}; make it anew")
        return record


def read_all(folder: Path) -> list[Record]:
    """Read every experiment's file in `folder`, in the order of their names.

    Raises:
        BadInput: there is none, or one of them cannot be read.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise BadInput(f"--from: {str(folder)!r} holds no experiment; make some with `flora-bench perf`")
    return [Record.read(path) for path in files]


def _bound_text(at_least: float | None, at_most: float | None) -> str:
    return f"at most {at_most:g}" if at_least is None else f"at least {at_least:g}"


def _all_hold(checks: Sequence[Check]) -> bool | None:
    verdicts = [check.holds for check in checks]
    return None if not verdicts or None in verdicts else all(verdicts)
