"""All that measures a run, put together in the order in which it disturbs least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bench.measure.clock import Clock
from bench.measure.energy import Energy
from bench.measure.load import MachineLoad
from bench.measure.memory import Memory
from bench.measure.steps import StepTimes
from bench.measure.work import WorkMeter
from flora.events import Events, Listener

NO_COUNTS = "compute.compile: what runs inside compiled blocks cannot be seen"
NOT_BY_SIZE = "a step's operations do not follow from the sizes of its batch"


@dataclass(frozen=True)
class Instruments:
    """What listens to a run, from its start on.

    Attributes:
        load: processor time, this process's and others'.
        energy: joules.
        memory: resident and GPU memory by phase.
        work: operations and live tensors; None where they cannot be counted.
        steps: seconds of single steps.
        clock: seconds by phase.
    """

    load: MachineLoad
    energy: Energy
    memory: Memory
    work: WorkMeter | None
    steps: StepTimes
    clock: Clock

    @classmethod
    def for_run(cls, device: str, compiled: bool) -> Instruments:
        """Start measuring on `device`."""
        load, energy, memory, steps = MachineLoad(), Energy(device), Memory(device), StepTimes(device)
        clock = Clock(device)
        work = None if compiled else WorkMeter(aside=Events((clock,)))
        return cls(load, energy, memory, work, steps, clock)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """In order: those that take long listen around those whose time would suffer from it."""
        counting = () if self.work is None else (self.work,)
        return (self.energy, self.memory, *counting, self.steps, self.clock)

    def state(self) -> dict[str, Any]:
        """Give what has to be kept of the rounds so far for another process to go on, as JSON knows it."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part.state() for name, part in named.items() if part is not None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave in an earlier process, for the same run."""
        for name, of_part in state.items():
            getattr(self, name).restore(of_part)
