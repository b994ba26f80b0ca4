"""The FLoRA paper's headline claims (arXiv 2404.15182) as checks that run: what it says, what is found here.

A claim is about published weights, sixteen data sets and a GPU. What is measured here says so where its
setting is another: a smaller model, one data set, this machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pandas import DataFrame

    from bench.config import RunConfig

Verdict = Literal["holds", "holds partly", "does not hold", "cannot be tested here"]

SPEEDUP, MEMORY_RATIO = 34.72, 2.47

COST_SETTING = "ViT-B-32:random, 4 clients with 32 images each, batch 32, one round, contrastive loss"
ACCURACY_SETTING = "the embedded tiny model on the handwritten digits, preset quick: 10 clients, 10 rounds"
NOT_PUBLISHED = (
    "the paper's own numbers need OpenAI's CLIP weights and its sixteen data sets: `flora-bench run paper` "
    "is that comparison, for a machine that has them and a GPU"
)

# Runs that claims of cost are read from; one or two minutes each on two cores.
COST_CELLS = (
    "speed",
    ("model=ViT-B-32:random", "method=[flora, full_finetune]"),
)
# And those of accuracy.
ACCURACY_CELLS = ("quick", ("seed=[0, 1, 2]",))

BASELINES = ("full_finetune", "linear_probe", "attention_adapter")


@dataclass(frozen=True)
class Finding:
    """What became of one claim.

    Attributes:
        claim: its name.
        says: what the paper's sentence means.
        setting: where it was measured here.
        measured: what was found, in words.
        figures: the same as numbers.
        verdict: whether it holds in this setting.
        why: how the verdict follows.
    """

    claim: str
    says: str
    setting: str
    measured: str
    figures: Mapping[str, Any]
    verdict: Verdict
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)


def cells(part: tuple[str, Sequence[str]], device: str) -> list[RunConfig]:
    """Expand the runs that claims are read from."""
    from bench.matrix import Matrix

    source, overrides = part
    return Matrix.read(source, [*overrides, f"device={device}"]).cells()


def findings(costs: DataFrame, accuracies: DataFrame) -> list[Finding]:
    """Check every claim.

    Args:
        costs: `bench.store.load_results` of the cells of `COST_CELLS`.
        accuracies: the same of `ACCURACY_CELLS`.
    """
    return [
        _time(costs),
        _memory(costs),
        _bytes(costs),
        *(_accuracy(accuracies, *setting) for setting in _SETTINGS),
        _untested(
            "paper-data",
            "accuracies and costs on the paper's own models and data sets",
            "none",
            NOT_PUBLISHED,
        ),
    ]


# Name, what is said, splits, and whether with few shots.
_SETTINGS: tuple[tuple[str, str, tuple[str, ...], bool], ...] = (
    ("accuracy-iid", "FLoRA is at or above each baseline on IID data", ("iid",), False),
    ("accuracy-dirichlet", "FLoRA is at or above each baseline on Dirichlet data", ("dirichlet",), False),
    (
        "accuracy-pathological",
        "FLoRA is at or above each baseline where clients share no classes",
        ("pathological",),
        False,
    ),
    (
        "accuracy-few-shot",
        "FLoRA is at or above each baseline with few shots",
        ("iid", "dirichlet", "pathological"),
        True,
    ),
)


def _untested(claim: str, says: str, setting: str, why: str) -> Finding:
    return Finding(claim, says, setting, "nothing", {}, "cannot be tested here", why)


def _ratio(costs: DataFrame, column: str, acceleration: str) -> float:
    """How many times more full fine-tuning takes than FLoRA, run alike; NaN where it was not measured."""
    import pandas as pd

    if column not in costs:
        return math.nan
    alike = pd.to_numeric(costs[costs["acceleration"] == acceleration].set_index("method")[column])
    full, flora = (float(alike.get(method, math.nan)) for method in ("full_finetune", "flora"))
    return full / flora if flora > 0 else math.nan


def _not_measured(column: str) -> str:
    return f"{column} was not measured of both methods, as deployed and with frozen features kept"


def _time(costs: DataFrame) -> Finding:
    deployed, accelerated = (_ratio(costs, "train_seconds", mode) for mode in ("none", "exact"))
    says = f"training is up to {SPEEDUP} times faster than full fine-tuning"
    if math.isnan(deployed + accelerated):
        return _untested("training-time", says, COST_SETTING, _not_measured("train_seconds"))
    verdict = _verdict(deployed >= SPEEDUP, max(deployed, accelerated) > 1)
    return Finding(
        "training-time",
        says,
        COST_SETTING,
        f"{deployed:.1f} times faster as deployed, {accelerated:.1f} times with frozen features kept",
        {"claimed": SPEEDUP, "as_deployed": deployed, "accelerated": accelerated},
        verdict,
        f"holds at {SPEEDUP} or more as deployed; partly if it is faster at all. As deployed, both methods "
        "read each image through the whole image tower; kept features are this suite's, not the paper's",
    )


def _memory(costs: DataFrame) -> Finding:
    on_gpu = "peak_gpu_memory_bytes" in costs and bool(costs["peak_gpu_memory_bytes"].notna().all())
    column = "peak_gpu_memory_bytes" if on_gpu else "peak_memory_bytes"
    deployed, accelerated = (_ratio(costs, column, mode) for mode in ("none", "exact"))
    tensors = _ratio(costs, "peak_tensor_bytes", "none")
    says = f"training takes {MEMORY_RATIO} times less memory than full fine-tuning"
    if math.isnan(deployed + accelerated + tensors):
        why = _not_measured("peak_tensor_bytes" if math.isnan(tensors) else column)
        return _untested("memory", says, COST_SETTING, why)
    verdict = _verdict(deployed >= MEMORY_RATIO, deployed > 1)
    what = "on the GPU" if on_gpu else "of the process"
    return Finding(
        "memory",
        says,
        COST_SETTING,
        f"peak {what} {deployed:.2f} times less as deployed ({accelerated:.2f} with frozen features kept); "
        f"live tensors {tensors:.2f} times less",
        {
            "claimed": MEMORY_RATIO,
            "as_deployed": deployed,
            "accelerated": accelerated,
            "live_tensors": tensors,
        },
        verdict,
        f"holds at {MEMORY_RATIO} or more as deployed; partly if it is less at all. The process's peak holds "
        "the libraries too, which live tensors leave out",
    )


def _bytes(costs: DataFrame) -> Finding:
    ratio = _ratio(costs, "payload_bytes", "exact")
    says = "clients send a small part of what full fine-tuning sends"
    if math.isnan(ratio):
        return _untested("bytes", says, COST_SETTING, _not_measured("payload_bytes"))
    return Finding(
        "bytes",
        says,
        COST_SETTING,
        f"a payload is {ratio:,.0f} times smaller",
        {"ratio": ratio},
        _verdict(ratio > 1, False),
        "holds if it is smaller",
    )


def _accuracy(accuracies: DataFrame, name: str, says: str, splits: Sequence[str], few_shots: bool) -> Finding:
    """Hold FLoRA against each baseline over the same seeds and splits."""
    asked = accuracies["split"].isin(splits) & (accuracies["shots"].notna() == few_shots)
    figures = _differences(accuracies[asked & accuracies["method"].isin(["flora", *BASELINES])])
    wanted = len(splits) * len(BASELINES)
    if len(figures) < wanted:
        why = f"of {wanted} comparisons with a baseline there are runs of both for {len(figures)}"
        return _untested(name, says, ACCURACY_SETTING, why)
    negative = [x for x in figures if x["difference_points"] < 0]
    counts = {standing: sum(x["standing"] == standing for x in figures) for standing in ("above", "below")}
    told = "; ".join(
        f"{_signed(x['difference_points'])} ± {_half_width(x)} against {x['baseline']}"
        f"{' (' + x['split'] + ')' if few_shots else ''}"
        for x in figures
    )
    settled = sum(counts.values())
    return Finding(
        name,
        says,
        ACCURACY_SETTING,
        f"points of accuracy: {told}; settled: {settled} of {len(figures)} differences "
        f"({counts['above']} above, {counts['below']} below)",
        {"differences": figures},
        _verdict(not negative, len(negative) < len(figures) or not counts["below"]),
        "holds if no mean difference over the paired seeds is negative; does not hold if all are, and at "
        "least one is settled: its 95 % interval lies below zero; partly otherwise",
    )


def _differences(runs: DataFrame) -> list[dict[str, Any]]:
    """Subtract each baseline's accuracy from FLoRA's, and say on which side of zero the interval lies."""
    from bench.report.statistics import paired_differences

    if not (runs["method"] == "flora").any():
        return []
    pairs: Any = paired_differences(runs, reference="flora")
    return [
        {
            "baseline": str(row.other_label),
            "split": str(row.split_label),
            "n": int(row.n),
            "difference_points": 100 * row.mean,
            "half_width": None if math.isnan(row.half_width) else 100 * row.half_width,
            "standing": _standing(row.mean, row.half_width),
        }
        for row in pairs.itertuples()
    ]


def _standing(mean: float, half_width: float) -> str:
    """Say where the interval lies; of one seed there is none."""
    return "above" if mean - half_width > 0 else "below" if mean + half_width < 0 else "not settled"


def _half_width(figure: Mapping[str, Any]) -> str:
    return "–" if figure["half_width"] is None else f"{figure['half_width']:.1f}"


def _signed(points: float) -> str:
    return f"{'+' if points >= 0 else '−'}{abs(points):.1f}"


def _verdict(wholly: bool, partly: bool) -> Verdict:
    return "holds" if wholly else "holds partly" if partly else "does not hold"


def to_markdown(found: Sequence[Finding], environment: str) -> str:
    """Give the findings as a page."""
    rows = "\n".join(f"| {x.claim} | {x.says} | {x.measured} | **{x.verdict}** |" for x in found)
    notes = "\n".join(f"- **{x.claim}** ({x.setting}): {x.why}." for x in found)
    return (
        "# The paper's claims, checked\n\n"
        "Written by `flora-bench claims`; the figures are in `results/reference/claims.json`. "
        f"Measured on {environment}. Accuracies are of the embedded model, which shows that methods work and "
        "cannot tell how they rank on CLIP's own weights and photographs.\n\n"
        f"| claim | the paper says | measured here | verdict |\n|---|---|---|---|\n{rows}\n\n"
        f"## Settings, and how verdicts follow\n\n{notes}\n"
    )
