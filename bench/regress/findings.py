"""What became of the series of a history: steps and drifts, how large, between which commits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.regress.history import History, Point, Revision, Series
from bench.regress.judgement import Verdict
from bench.regress.metrics import Better, Kind, Metric
from bench.regress.pairing import some
from bench.regress.steps import Drift, Fit, Step, exact_steps, noisy_steps
from bench.report.text import bytes_text, counted, digits
from flora.errors import BadInput

SMALLEST_SHARE = 0.005
"""Step of an accuracy that counts: half a point."""


@dataclass(frozen=True)
class Finding:
    """A change of a series.

    Attributes:
        series: that changed.
        verdict: worse, changed or better.
        drifts: whether it crept from `good` to `bad`, not stepped between them.
        good, bad: the last revision that is surely before the change, and the first that is surely after it.
        likeliest: the first after it by the best fit: that of a noisy step may be any from `good` to `bad`.
        before, after: levels, or texts.
        change: after / before - 1; None for texts and where `before` is zero.
        commits: that git counts from `good` to `bad`; None where it does not know them.
        software: what of python and packages differs between the two, in words.
    """

    series: Series
    verdict: Verdict
    drifts: bool
    good: Revision
    bad: Revision
    likeliest: Revision
    before: float | str
    after: float | str
    change: float | None
    commits: int | None = None
    software: str = ""

    @property
    def range(self) -> str:
        """The commits to look at, as git takes them."""
        return f"{self.good.commit[:10]}..{self.bad.commit[:10]}"

    @property
    def change_text(self) -> str:
        """By how much, or from what to what where there is no share."""
        show = partial(value_text, metric=self.series.metric)
        if self.change is None or self.series.metric.kind is Kind.STATISTICAL:
            return f"{show(self.before)} -> {show(self.after)}"
        return f"{100 * self.change:+.3g} % ({show(self.before)} -> {show(self.after)})"

    @property
    def where_text(self) -> str:
        """Between which commits, with the command that shows them."""
        count = f" ({counted(self.commits, 'commit')})" if self.commits else ""
        kind = "drifts, " if self.drifts else ""
        software = f"; {self.software}" if self.software else ""
        likeliest = "" if self.likeliest == self.bad else f", likeliest {self.likeliest.commit[:10]}"
        return f"{kind}{self.likeliest.day}, git log {self.range}{count}{likeliest}{software}"

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON knows it."""
        return {
            "subject": self.series.subject,
            "metric": self.series.metric.name,
            "machine": self.series.machine,
            "verdict": self.verdict,
            "kind": "drift" if self.drifts else "step",
            "before": self.before,
            "after": self.after,
            "change": self.change,
            "last_before": self.good.commit,
            "first_after": self.bad.commit,
            "likeliest": self.likeliest.commit,
            "time": self.likeliest.time,
            "subject_line": self.likeliest.subject,
            "commits": self.commits,
            "software": self.software,
        }


@dataclass(frozen=True)
class Judged:
    """A series with its pieces and what was found in it."""

    series: Series
    fit: Fit
    findings: Sequence[Finding]


def judged(history: History, series: Iterable[Series]) -> list[Judged]:
    """Look for steps in series; only points that are a commit and nothing else count."""
    return [_judged(history, one) for one in series]


def worst_first(found: Iterable[Judged]) -> list[Finding]:
    """Give all that was found: what got worse, what changed, what got better, each by how much."""
    order = {verdict: place for place, verdict in enumerate(Verdict)}
    findings = [finding for one in found for finding in one.findings]
    return sorted(findings, key=lambda x: (order[x.verdict], -abs(x.change or 0.0), x.series.subject))


def chosen(history: History, probes: Sequence[str] = (), metrics: Sequence[str] = ()) -> list[Series]:
    """Choose series by their subject, a pattern with * or a part of it, and by their metric.

    Raises:
        BadInput: nothing of the history is meant.
    """
    from fnmatch import fnmatchcase

    from flora.errors import nearest

    left = list(history.series)
    for name in metrics:
        known = {one.metric.name for one in left}
        if name not in known:
            raise BadInput(f"--metric: {name!r} is not in the history{nearest(name, known)}")
    for pattern in probes:
        if not any(_matches(one.subject, pattern, fnmatchcase) for one in left):
            raise BadInput(f"--probe: no subject matches {pattern!r}; there is {some(history.subjects)}")
    return [
        one
        for one in left
        if (not metrics or one.metric.name in metrics)
        and (not probes or any(_matches(one.subject, pattern, fnmatchcase) for pattern in probes))
    ]


def value_text(value: float | str, metric: Metric) -> str:
    """Write a value with its unit."""
    if isinstance(value, str):
        return value[:12]
    if metric.kind is Kind.EXACT and metric.unit:
        # to the last digit, as any change counts; the mean of several seeds may be no whole number
        return f"{value:,.{0 if value == int(value) else 2}f} {metric.unit}"
    if metric.unit == "B":
        return bytes_text(value, 4)
    if metric.unit == "s":
        return seconds_text(value)
    if metric.kind is Kind.STATISTICAL:
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if value == int(value) else digits(value)


def seconds_text(seconds: float) -> str:
    """Write a time with a unit in which it has no leading zeros: 12.3 ms."""
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return f"{digits(seconds / scale)} {unit}"
    return f"{digits(seconds / 1e-9)} ns"


def _matches(subject: str, pattern: str, matches: Callable[[str, str], bool]) -> bool:
    # [flora] in a name is no set of letters
    return pattern in subject or ("*" in pattern and matches(subject, pattern.replace("[", "[[]")))


def _judged(history: History, series: Series) -> Judged:
    fit = fit_of(series)
    findings = [
        *(_finding(history, series, x, x.earliest - 1, x.latest, x.index) for x in fit.steps),
        *(_finding(history, series, x, x.start, x.stop - 1, x.stop - 1) for x in fit.drifts),
    ]
    return Judged(series, fit, findings)


def fit_of(series: Series) -> Fit:
    """Fit pieces as the metric's kind asks for; none to what is not judged."""
    metric = series.metric
    if not series.judged:
        return Fit()
    values = [point.value for point in series.committed]
    numbers = [value for value in values if not isinstance(value, str)]
    if metric.kind is Kind.EXACT or len(numbers) < len(values):
        return exact_steps(values)
    if metric.kind is Kind.STATISTICAL:
        return noisy_steps(numbers, smallest=SMALLEST_SHARE, relative=False)
    # of steps as large as a gate's limit, half are estimated below it
    return noisy_steps(numbers, smallest=metric.relative / 2)


def _finding(
    history: History, series: Series, found: Step | Drift, before: int, after: int, likeliest: int
) -> Finding:
    """Word what was found, between the points of two indices."""
    points = series.committed
    good, bad = points[before], points[after]
    return Finding(
        series=series,
        verdict=_verdict(series.metric.better, found),
        drifts=isinstance(found, Drift),
        good=good.revision,
        bad=bad.revision,
        likeliest=points[likeliest].revision,
        before=found.before,
        after=found.after,
        change=found.change,
        commits=_commits(history, good.revision, bad.revision),
        software=_software(good, bad),
    )


def _verdict(better: Better, found: Step | Drift) -> Verdict:
    if better is Better.NEITHER or isinstance(found.before, str) or isinstance(found.after, str):
        return Verdict.CHANGED
    rises = found.after > found.before
    return Verdict.BETTER if rises == (better is Better.HIGHER) else Verdict.WORSE


def _commits(history: History, good: Revision, bad: Revision) -> int | None:
    if history.repository is None:
        return None
    try:
        return int(history.repository.git("rev-list", "--count", f"{good.commit}..{bad.commit}"))
    except BadInput:
        return None


def _software(good: Point, bad: Point) -> str:
    names = sorted(good.software.keys() | bad.software.keys())
    pairs = [(name, good.software.get(name, "none"), bad.software.get(name, "none")) for name in names]
    return ", ".join(f"{name} {old} -> {new}" for name, old, new in pairs if old != new)
