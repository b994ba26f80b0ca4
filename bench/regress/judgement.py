"""What is said of a metric: better, worse, the same, or nothing that would hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bench.regress.metrics import Metric


class Verdict(StrEnum):
    """What became of a metric from BASE to NEW, worst first."""

    EXPIRED = "expired"
    """Worse, and what accepted it has run out."""
    WORSE = "worse"
    CHANGED = "changed"
    """Other than it was, where no direction is the better one."""
    LOST = "lost"
    """Exact, or an accuracy, and in BASE alone: what is not measured cannot be guarded."""
    ACCEPTED = "accepted"
    """Worse, and accepted with a reason until a day to come."""
    UNSURE = "unsure"
    """Noise hides a change as large as the one that would count."""
    BETTER = "better"
    UNJUDGED = "not judged"
    """Cannot be compared honestly; the note says why."""
    SAME = "same"

    @property
    def fails(self) -> bool:
        """Whether a gate stops for it."""
        return self in (Verdict.EXPIRED, Verdict.WORSE, Verdict.CHANGED, Verdict.LOST)


@dataclass(frozen=True)
class Judgement:
    """One metric of one cell or probe, BASE beside NEW.

    Attributes:
        subject: the cell in words ("digits, flora, iid, 2 seeds") or the probe's name.
        metric: what is compared.
        base, new: the values, of a cell of several seeds those of the seed that differs most (medians for
            times, means for what is statistical); None where there is none.
        verdict: what became of it.
        change: new / base - 1 where both are numbers and base is not zero; None otherwise.
        interval: of `change`, where it was estimated; its confidence is in `note`.
        note: in one line what a reader must know: why nothing is said, which limit, which reason.
    """

    subject: str
    metric: Metric
    base: float | str | None
    new: float | str | None
    verdict: Verdict
    change: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON knows it."""
        return {
            "subject": self.subject,
            "metric": self.metric.name,
            "kind": self.metric.kind,
            "better": self.metric.better,
            "base": self.base,
            "new": self.new,
            "change": self.change,
            "interval": None if self.interval is None else list(self.interval),
            "verdict": self.verdict,
            "note": self.note,
        }


@dataclass(frozen=True)
class Comparison:
    """All that two measurements have in common, judged.

    Attributes:
        base, new: what they are called: a path, a revision.
        judgements: in the order they were found.
        only_base, only_new: cells and probes, in words, that the other side lacks.
        caveats: lines that hold for all of it.
    """

    base: str
    new: str
    judgements: Sequence[Judgement]
    only_base: Sequence[str] = ()
    only_new: Sequence[str] = ()
    caveats: Sequence[str] = field(default=())

    @property
    def fails(self) -> bool:
        """Whether anything got worse."""
        return any(judgement.verdict.fails for judgement in self.judgements)

    def worst_first(self) -> list[Judgement]:
        """Order by verdict, then by how much the metric changed."""
        order = {verdict: place for place, verdict in enumerate(Verdict)}
        return sorted(self.judgements, key=lambda x: (order[x.verdict], -abs(x.change or 0.0)))

    def count(self, verdict: Verdict) -> int:
        """How many metrics have this verdict."""
        return sum(judgement.verdict is verdict for judgement in self.judgements)
