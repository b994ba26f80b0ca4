"""Two measurements set against each other: what became of each metric that both have."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from bench.regress.calibrated import CALIBRATED, PLAIN_TIME, Timing, judge_calibrated, why_not
from bench.regress.gate import PROBE, Fields, Gate, Limit, fields_of
from bench.regress.judgement import Comparison, Judgement, Verdict
from bench.regress.measurements import Benchmark, CellMeasures, Measurements
from bench.regress.metrics import METRICS, SECONDS, TIGHT_SHARE, Better, Kind, Metric, metric_of
from bench.regress.pairing import Cell, Pair, paired, some, words
from flora.errors import BadInput

if TYPE_CHECKING:
    from bench.regress.accuracy import Judged

RESIDENT = "resident_at_start_bytes"
"""What a process held before its run began: where that differs, its peak is not the run's alone."""

TOGETHER = "clients_together"
"""How many clients trained at once, which work and memory follow."""

_RESTS_ON = {
    "split_fingerprint": "the splits",
    "data_fingerprint": "the images",
    "model_fingerprint": "the models' weights",
}
_OF_THE_WORK = ("flops", "train_flops", "total_flops", "peak_")
_ROUNDING = 1e-9

Figure = float | str | None
Timings = tuple[Timing, Timing]
Values = Mapping[str, Any]
Found = tuple[Judgement, Fields]


def compare_measurements(base: Measurements, new: Measurements, gate: Gate, today: date) -> Comparison:
    """Judge all that two measurements have in common.

    Args:
        base: what was.
        new: what is.
        gate: budgets, and what is accepted.
        today: the day by which what is accepted runs out.

    Raises:
        BadInput: they have nothing in common.
    """
    cells = paired(base.cells, new.cells)
    before, after = ({x.name: x for x in side.benchmarks} for side in (base, new))
    both = [(before[name], after[name]) for name in before if name in after]
    if not cells.cells and not both:
        raise BadInput(
            f"{base.name} and {new.name} have no cell and no benchmark in common: the first has "
            f"{_contents(base)}, the second {_contents(new)}"
        )
    alone = [
        *((subject, fields_of(cell.config), cell.metrics) for subject, cell in cells.new),
        *((name, {PROBE: name}, after[name].extra) for name in after if name not in before),
    ]
    found = [*_of_cells(cells.cells, gate), *_of_benchmarks(both, gate), *_above_caps(alone, gate)]
    settled = [(gate.settle(judgement, fields, today), fields) for judgement, fields in found]
    return Comparison(
        base.name,
        new.name,
        [judgement for judgement, _ in settled],
        [*cells.only_base, *(name for name in before if name not in after)],
        [*cells.only_new, *(name for name in after if name not in before)],
        [
            *cells.caveats,
            *_caveats(base, new, cells.cells),
            *_of_times(judgement for judgement, _ in settled),
            *gate.caveats(settled, today),
        ],
    )


def _contents(side: Measurements) -> str:
    return some([*(words(cell.config) for cell in side.cells), *(x.name for x in side.benchmarks)], 2)


# --- cells ---------------------------------------------------------------------------------------------


def _of_cells(cells: Sequence[Cell], gate: Gate) -> Iterator[Found]:
    statistical = _statistical(cells, gate)
    for place, cell in enumerate(cells):
        for metric in _metrics_of(cell):
            limit = gate.limit(metric, cell.fields)
            alike = [
                pair for pair in cell.pairs if not _unlike(metric, pair) or _is_capped(pair, metric, limit)
            ]
            if not alike:
                pair = cell.pairs[0]
                found = _unjudged(cell.subject, metric, *_values(pair, metric), _unlike(metric, pair))
            elif metric.kind is Kind.STATISTICAL:
                found = _lost(cell.subject, metric, alike) or statistical[place, metric.name]
            elif metric.kind is Kind.ROUNDING:
                found = _learning(cell.subject, metric, alike)
            elif metric.kind is Kind.NOISY:
                found = _calibrated(cell.subject, metric, [_timings(pair, metric) for pair in alike], limit)
            else:
                found = _of_seeds(cell.subject, metric, alike, limit)
            yield found, cell.fields


def _metrics_of(cell: Cell) -> list[Metric]:
    """Give the metrics that any run of a cell has, those of phases behind the others."""
    sides = [side for pair in cell.pairs for side in (pair.base, pair.new)]
    names = {name for side in sides for name in side.metrics if _value(side.metrics, name) is not None}
    if any(x is not None for side in sides for x in (*side.losses, *side.accuracies)):
        names.add("learning")
    order = [name for name in METRICS if name in names] + sorted(names - METRICS.keys())
    return [metric for name in order if (metric := metric_of(name)) is not None]


def _value(values: Values, name: str) -> Figure:
    """Give a number or a text; None for what is none, or not finite."""
    value = values.get(name)
    if isinstance(value, str):
        return value
    return value if isinstance(value, int | float) and abs(value) <= sys.float_info.max else None


def _values(pair: Pair, metric: Metric) -> tuple[Figure, Figure]:
    return _value(pair.base.metrics, metric.name), _value(pair.new.metrics, metric.name)


def _unlike(metric: Metric, pair: Pair) -> str:
    """Say why a metric of two runs is not of the same thing; "" if it is."""
    worked = metric.name.startswith(_OF_THE_WORK) or metric.kind is Kind.NOISY
    learnt = metric.kind in (Kind.ROUNDING, Kind.STATISTICAL)
    for part, name in _RESTS_ON.items():
        # work follows what the weights' sizes are, and not what is in them
        rests = learnt or (worked and part != "model_fingerprint")
        prints = [_value(side.metrics, part) for side in (pair.base, pair.new)]
        if rests and None not in prints and prints[0] != prints[1]:
            return f"not like with like: {name} differ"
    devices = [_device(side) for side in (pair.base, pair.new)]
    if devices[0] != devices[1] and (worked or metric.kind is Kind.ROUNDING):
        return f"not like with like: {devices[0]} beside {devices[1]}"
    return _unlike_processes(metric, pair.base.metrics, pair.new.metrics)


def _is_capped(pair: Pair, metric: Metric, limit: Limit) -> bool:
    """Whether NEW is above what it may not be, whatever BASE is and however unlike the two are."""
    return _above_cap(_values(pair, metric)[1], limit)


def _device(cell: CellMeasures) -> str:
    return str(cell.config.get("device", "cpu")).partition(":")[0]


def _unlike_processes(metric: Metric, base: Values, new: Values) -> str:
    if metric.name != "peak_memory_bytes" or None in (_value(base, metric.name), _value(new, metric.name)):
        return ""
    before, after = _value(base, RESIDENT), _value(new, RESIDENT)
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return "it is not known whether the processes were alike"
    if abs(after - before) > TIGHT_SHARE * before:
        return "the processes were not alike: one held more before its run began (--isolate)"
    return ""


def _of_seeds(subject: str, metric: Metric, pairs: Sequence[Pair], limit: Limit) -> Judgement:
    """Judge seed by seed, and give the one that differs most, with how many others are as bad."""
    judged = [_of_values(subject, metric, *_values(pair, metric), limit) for pair in pairs]
    order = [*Verdict]
    place = min(range(len(judged)), key=lambda i: (order.index(judged[i].verdict), -_distance(judged[i])))
    worst = judged[place]
    notes = [worst.note]
    if metric.name == "broken_invariants" and worst.verdict is Verdict.WORSE:
        notes.append(pairs[place].new.broken)
    if len(pairs) > 1 and worst.verdict is not Verdict.SAME:
        notes.append(_in_seeds(sum(x.verdict is worst.verdict for x in judged), pairs, place))
    return replace(worst, note="; ".join(filter(None, notes)))


def _in_seeds(n: int, pairs: Sequence[Pair], most: int) -> str:
    if n == len(pairs):
        return f"in each of {n} seeds"
    return (
        f"in seed {pairs[most].seed} alone"
        if n == 1
        else f"in {n} of {len(pairs)} seeds, most in {pairs[most].seed}"
    )


def _distance(judgement: Judgement) -> float:
    if isinstance(judgement.base, int | float) and isinstance(judgement.new, int | float):
        return abs(judgement.new - judgement.base)
    return 0.0


def _learning(subject: str, metric: Metric, pairs: Sequence[Pair]) -> Judgement:
    if all((x.base.losses, x.base.accuracies) == (x.new.losses, x.new.accuracies) for x in pairs):
        return Judgement(subject, metric, None, None, Verdict.SAME, note="the same to the last digit")
    from bench.regress.accuracy import judge_learning

    return _told(subject, metric, judge_learning([x.base for x in pairs], [x.new for x in pairs]))


def _lost(subject: str, metric: Metric, pairs: Sequence[Pair]) -> Judgement | None:
    """Say that NEW lacks an accuracy in seeds in which BASE has it: the others alone would say too little."""
    lost = [x for x in (_values(pair, metric) for pair in pairs) if x[0] is not None and x[1] is None]
    if not lost:
        return None
    note = f"NEW lacks it in {len(lost)} of {len(pairs)} seeds"
    return Judgement(subject, metric, *lost[0], Verdict.LOST, note=note)


def _statistical(cells: Sequence[Cell], gate: Gate) -> dict[tuple[int, str], Judgement]:
    """Judge what is statistical of all cells, by their place and the metric's name.

    It is corrected for how many there are that changed at all.
    """
    found: dict[tuple[int, str], Judgement] = {}
    changed: dict[tuple[int, Metric], Judged] = {}
    for place, cell in enumerate(cells):
        for metric in (x for x in _metrics_of(cell) if x.kind is Kind.STATISTICAL):
            base, new = (_numbers(cell, metric, side) for side in (0, 1))
            if base == new:  # there is nothing that chance could have made of it
                known = [value for value in base if value is not None]
                mean = fmean(known) if known else None
                found[place, metric.name] = Judgement(cell.subject, metric, mean, mean, Verdict.SAME)
            else:
                changed[place, metric] = _over_seeds(cell, base, new, gate.limit(metric, cell.fields))
    if changed:
        from bench.regress.accuracy import corrected

        for (place, metric), judged in zip(changed, corrected([*changed.values()]), strict=True):
            found[place, metric.name] = _told(cells[place].subject, metric, judged)
    return found


def _over_seeds(
    cell: Cell, base: Sequence[float | None], new: Sequence[float | None], limit: Limit
) -> Judged:
    from bench.regress.accuracy import judge_accuracy

    images = min(pair.base.test_images for pair in cell.pairs)
    return judge_accuracy(base, new, margin=limit.absolute, images=images)


def _numbers(cell: Cell, metric: Metric, side: int) -> list[float | None]:
    values = [_values(pair, metric)[side] for pair in cell.pairs if not _unlike(metric, pair)]
    return [None if isinstance(value, str) else value for value in values]


def _told(subject: str, metric: Metric, judged: Judged) -> Judgement:
    return Judgement(
        subject, metric, judged.base, judged.new, judged.verdict, judged.change, judged.interval, judged.note
    )


# --- benchmarks ----------------------------------------------------------------------------------------


def _of_benchmarks(both: Sequence[tuple[Benchmark, Benchmark]], gate: Gate) -> Iterator[Found]:
    for base, new in both:
        fields = {PROBE: new.name}
        if base.seconds or new.seconds:
            yield _time_of(base, new, gate.limit(SECONDS, fields)), fields
        for name in dict.fromkeys((*base.extra, *new.extra)):
            values = _value(base.extra, name), _value(new.extra, name)
            metric = gate.metric(name)
            if metric is None or values == (None, None):
                continue
            limit = gate.limit(metric, fields)
            why = _unlike_figure(metric, base.extra, new.extra)
            if why and not _above_cap(values[1], limit):
                yield _unjudged(new.name, metric, *values, why), fields
            else:
                yield _of_values(new.name, metric, *values, limit), fields


def _time_of(base: Benchmark, new: Benchmark, limit: Limit) -> Judgement:
    if base.seconds and new.seconds and _interleaved(base, new):
        return _decided(base, new, limit)
    timings = (
        Timing(base.seconds, base.extra.get("kernels")),
        Timing(new.seconds, new.extra.get("kernels")),
    )
    return _calibrated(new.name, SECONDS, [timings], limit)


def _unlike_figure(metric: Metric, base: Values, new: Values) -> str:
    """Say why a figure that a benchmark leaves is not compared; "" if it is."""
    if metric.kind is Kind.NOISY:
        return PLAIN_TIME if metric.unit == "s" else "noisy: shown, and not compared"
    if metric.kind in (Kind.STATISTICAL, Kind.ROUNDING):
        return "a single figure, without seeds to compare it over"
    return _unlike_processes(metric, base, new)


def _interleaved(base: Benchmark, new: Benchmark) -> bool:
    sessions = [(x.extra.get("interleaved") or {}).get("session") for x in (base, new)]
    return sessions[0] is not None and sessions[0] == sessions[1]


def _decided(base: Benchmark, new: Benchmark, limit: Limit) -> Judgement:
    from bench.regress.decision import Spread, decide

    one, other = base.extra["interleaved"], new.extra["interleaved"]
    middle = median(base.seconds), median(new.seconds)
    try:
        decision = decide(
            one["rounds"],
            other["rounds"],
            smallest=limit.allowed(middle[0]) / middle[0],
            comparisons=other.get("comparisons", 1),
            known=Spread(**other["spread"]) if other.get("spread") else None,
        )
    except (ValueError, ArithmeticError) as error:
        return _unjudged(new.name, SECONDS, *middle, f"its rounds cannot be compared: {error}")
    if decision.verdict is Verdict.UNJUDGED:
        return _unjudged(new.name, SECONDS, *middle, decision.note)
    interval = decision.low - 1, decision.high - 1
    return Judgement(
        new.name, SECONDS, *middle, decision.verdict, decision.ratio - 1, interval, decision.note
    )


# --- values and times ----------------------------------------------------------------------------------


def _of_values(subject: str, metric: Metric, base: Figure, new: Figure, limit: Limit) -> Judgement:
    """Judge what is the same but for what a limit allows."""
    if _above_cap(new, limit):
        note = f"above the budget of {_amount(limit.at_most or 0, metric)}"
        return Judgement(subject, metric, base, new, Verdict.WORSE, _change(base, new), note=note)
    if new is None and metric.kind is Kind.EXACT:
        return Judgement(subject, metric, base, new, Verdict.LOST, note="NEW lacks it")
    if base is None or new is None:
        return _unjudged(subject, metric, base, new, f"{'BASE' if base is None else 'NEW'} lacks it")
    if isinstance(base, str) or isinstance(new, str):
        return Judgement(subject, metric, base, new, Verdict.SAME if base == new else Verdict.CHANGED)
    verdict, note = _moved(metric, base, new, limit)
    return Judgement(subject, metric, base, new, verdict, _change(base, new), note=note)


def _above_cap(new: Figure, limit: Limit) -> bool:
    return isinstance(new, int | float) and limit.at_most is not None and new > limit.at_most


def _moved(metric: Metric, base: float, new: float, limit: Limit) -> tuple[Verdict, str]:
    worse_by = {Better.LOWER: new - base, Better.HIGHER: base - new}.get(metric.better, abs(new - base))
    allowed = limit.allowed(base) * (1 + _ROUNDING)
    share = limit.relative * abs(base) >= limit.absolute
    told = f"{100 * limit.relative:g} %" if share else _amount(limit.absolute, metric)
    told = f"{told} allowed" if allowed else ""
    if worse_by > allowed:
        return (Verdict.CHANGED if metric.better is Better.NEITHER else Verdict.WORSE), told
    if worse_by < -metric.relative * abs(base):
        return Verdict.BETTER, ""
    return Verdict.SAME, told if worse_by > 0 else ""


def _change(base: Figure, new: Figure) -> float | None:
    if not isinstance(base, int | float) or not isinstance(new, int | float) or not base:
        return None
    change = new / base - 1
    return change if math.isfinite(change) else None


def _amount(value: float, metric: Metric) -> str:
    return f"{value:,.10g} {metric.unit}".strip()


def _unjudged(subject: str, metric: Metric, base: Figure, new: Figure, why: str) -> Judgement:
    return Judgement(subject, metric, base, new, Verdict.UNJUDGED, _change(base, new), note=why)


def _calibrated(subject: str, metric: Metric, runs: Sequence[Timings], limit: Limit) -> Judgement:
    """Judge times in units of the kernel sets measured around them; a plain time is never judged."""
    known = [(base.fastest, new.fastest) for base, new in runs]
    base, new = (median(side) if None not in side else None for side in zip(*known, strict=True))
    why = next(filter(None, (why_not(*run) for run in runs)), "")
    if why or base is None or new is None:
        return _unjudged(subject, metric, base, new, why)
    found = judge_calibrated(runs, limit.allowed(base) / base)
    return Judgement(subject, metric, base, new, found.verdict, found.ratio - 1, note=found.note)


def _timings(pair: Pair, metric: Metric) -> Timings:
    base, new = (
        Timing([value] if isinstance(value, int | float) else [], side.kernels)
        for side, value in zip((pair.base, pair.new), _values(pair, metric), strict=True)
    )
    return base, new


# --- NEW alone, and caveats ----------------------------------------------------------------------------


def _above_caps(alone: Iterable[tuple[str, Fields, Values]], gate: Gate) -> Iterator[Found]:
    """Judge what BASE lacks by the budgets that hold whatever BASE is."""
    for subject, fields, values in alone:
        for name in values:
            metric, value = gate.metric(name), _value(values, name)
            if metric is not None and value is not None:
                limit = gate.limit(metric, fields)
                if _above_cap(value, limit):
                    yield _of_values(subject, metric, None, value, limit), fields


def _caveats(base: Measurements, new: Measurements, cells: Sequence[Cell]) -> list[str]:
    """Say in what the sides differ that is neither cell nor metric, each thing once."""
    dirty = [
        f"{name} was measured in a worktree with changes that are not committed"
        for name, side in (("BASE", base), ("NEW", new))
        if side.revision.get("dirty")
    ]
    return [*dirty, *_of_machines(base.machine, new.machine), *_of_runs(cells), *_of_names((base, new))]


def _of_machines(base: Values, new: Values) -> list[str]:
    flat = [
        {**side, **packages} if isinstance(packages := side.get("packages"), Mapping) else side
        for side in (base, new)
    ]
    names = [name for name in flat[0] if name in flat[1] and name != "packages"]
    differ = [f"{x} {flat[0][x]} -> {flat[1][x]}" for x in names if flat[0][x] != flat[1][x]]
    return [f"measured on unlike machines: {', '.join(differ)}"] if differ else []


def _of_times(judgements: Iterable[Judgement]) -> list[str]:
    n = sum(x.note.startswith(CALIBRATED) for x in judgements)
    told = "in units of the kernel set around them, at another time or on another machine of the kind"
    return [f"times: {n:,} compared {told}"] if n else []


def _of_runs(cells: Iterable[Cell]) -> list[str]:
    """Say where runs of one cell were computed in another way, as far as both sides know."""
    asked = {"device": _device, "threads": _threads, "clients trained together": _together}
    pairs = [pair for cell in cells for pair in cell.pairs]
    said = []
    for name, of in asked.items():
        ways = [(of(x.base), of(x.new)) for x in pairs]
        differ = [f"{one} -> {other}" for one, other in ways if None not in (one, other) and one != other]
        if differ:
            said.append(f"{name} differ in {len(differ)} of {len(pairs)} runs: {some(differ)}")
    return said


def _threads(cell: CellMeasures) -> str | None:
    fields = fields_of(cell.config)
    if "compute.threads" not in fields:
        return None
    return "default" if fields["compute.threads"] is None else str(fields["compute.threads"])


def _together(cell: CellMeasures) -> str | None:
    together = cell.metrics.get(TOGETHER)
    return None if together is None else str(together)


def _of_names(sides: Iterable[Measurements]) -> list[str]:
    """Name what cells have that is no metric, as what one suite calls so another may call otherwise."""
    names = {name for side in sides for cell in side.cells for name in cell.metrics}
    unknown = sorted(name for name in names - {RESIDENT, TOGETHER} if metric_of(name) is None)
    return [f"not compared, as no metric is called so: {some(unknown)}"] if unknown else []
