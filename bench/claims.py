"""The FLoRA paper's headline claims (arXiv 2404.15182) as checks that run: what it says, what is found here.

A claim is about published weights, sixteen data sets and a GPU. What is measured here says so where its
setting is another: a smaller model, one data set, this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        *(_accuracy(accuracies, name, says, of) for name, says, of in _SETTINGS),
        Finding(
            "paper-data",
            "accuracies and costs on the paper's own models and data sets",
            "none",
            "nothing",
            {},
            "cannot be tested here",
            NOT_PUBLISHED,
        ),
    ]


def _all_data(split: str) -> Callable[[DataFrame], DataFrame]:
    return lambda runs: runs[(runs["split"] == split) & runs["shots"].isna()]


_SETTINGS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("accuracy-iid", "FLoRA is at or above each baseline on IID data", _all_data("iid")),
    ("accuracy-dirichlet", "FLoRA is at or above each baseline on Dirichlet data", _all_data("dirichlet")),
    (
        "accuracy-pathological",
        "FLoRA is at or above each baseline where clients share no classes",
        _all_data("pathological"),
    ),
    (
        "accuracy-few-shot",
        "FLoRA is at or above each baseline with few shots",
        lambda runs: runs[runs["shots"].notna()],
    ),
)


def _ratio(costs: DataFrame, column: str, acceleration: str) -> float:
    """How many times more full fine-tuning takes than FLoRA, run alike; NaN where it was not measured."""
    alike = costs[costs["acceleration"] == acceleration].set_index("method")[column]
    return float(alike["full_finetune"] / alike["flora"])


def _time(costs: DataFrame) -> Finding:
    deployed, accelerated = (_ratio(costs, "train_seconds", mode) for mode in ("none", "exact"))
    verdict = _verdict(deployed >= SPEEDUP, max(deployed, accelerated) > 1)
    return Finding(
        "training-time",
        f"training is up to {SPEEDUP} times faster than full fine-tuning",
        COST_SETTING,
        f"{deployed:.1f} times faster as deployed, {accelerated:.1f} times with frozen features kept",
        {"claimed": SPEEDUP, "as_deployed": deployed, "accelerated": accelerated},
        verdict,
        f"holds at {SPEEDUP} or more as deployed; partly if it is faster at all. As deployed, both methods "
        "read each image through the whole image tower; kept features are this suite's, not the paper's",
    )


def _memory(costs: DataFrame) -> Finding:
    on_gpu = bool(costs["peak_gpu_memory_bytes"].notna().all())
    column = "peak_gpu_memory_bytes" if on_gpu else "peak_memory_bytes"
    deployed, accelerated = (_ratio(costs, column, mode) for mode in ("none", "exact"))
    tensors = _ratio(costs, "peak_tensor_bytes", "none")
    verdict = _verdict(deployed >= MEMORY_RATIO, deployed > 1)
    what = "on the GPU" if on_gpu else "of the process"
    return Finding(
        "memory",
        f"training takes {MEMORY_RATIO} times less memory than full fine-tuning",
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
    return Finding(
        "bytes",
        "clients send a small part of what full fine-tuning sends",
        COST_SETTING,
        f"a payload is {ratio:,.0f} times smaller",
        {"ratio": ratio},
        _verdict(ratio > 1, False),
        "holds if it is smaller",
    )


def _accuracy(accuracies: DataFrame, name: str, says: str, of: Callable[[Any], Any]) -> Finding:
    """Hold FLoRA against each baseline over the same seeds and splits."""
    from bench.report.statistics import paired_differences

    runs = of(accuracies)
    pairs: Any = paired_differences(runs[runs["method"].isin(["flora", *BASELINES])], reference="flora")
    figures: list[dict[str, Any]] = [
        {
            "baseline": str(row.other_label),
            "split": str(row.split_label),
            "n": int(row.n),
            "difference_points": 100 * row.mean,
            "half_width": 100 * row.half_width,
        }
        for row in pairs.itertuples()
    ]
    below = [x for x in figures if x["difference_points"] < 0]
    open_ = [x for x in figures if not abs(x["difference_points"]) > x["half_width"]]
    told = "; ".join(
        f"{_signed(x['difference_points'])} ± {x['half_width']:.1f} against {x['baseline']}"
        f"{'' if name != 'accuracy-few-shot' else ' (' + x['split'] + ')'}"
        for x in figures
    )
    verdict = _verdict(not below, len(below) < len(figures))
    return Finding(
        name,
        says,
        ACCURACY_SETTING,
        f"points of accuracy: {told}",
        {"differences": figures},
        verdict,
        "holds if no mean difference over the paired seeds is negative, partly if some are not; "
        f"of {len(figures)}, {len(open_)} have a 95 % interval that spans zero and are not settled",
    )


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
        f"Measured on {environment}.\n\n"
        f"| claim | the paper says | measured here | verdict |\n|---|---|---|---|\n{rows}\n\n"
        f"## Settings, and how verdicts follow\n\n{notes}\n"
    )
