"""Which experiments there are. Nothing heavy is imported to say so."""

from __future__ import annotations

from collections.abc import Sequence

from bench.perf.experiment import Experiment, Target
from flora.errors import BadInput, nearest

_MACHINES = {"idle": "otherwise idle", "busy": "one core of two kept busy"}

_EXPERIMENTS = (
    Experiment(
        "shortcuts",
        "A round of FLoRA on ViT-B/32 with and without shortcuts, and what its features take.",
        6,
        "shortcuts",
        (Target("round_speedup", at_least=50), Target("features_over_forward", at_most=1.2)),
    ),
    Experiment(
        "fifty_rounds",
        "Fifty rounds of the same from the start of the process to its end.",
        4,
        "shortcuts",
        (Target("total_speedup", at_least=15),),
    ),
    Experiment(
        "headline",
        "A round of FLoRA against one of full fine-tuning, ViT-B/32, both accelerated: time and memory.",
        6,
        "shortcuts",
        (Target("round_speedup", at_least=34.72), Target("memory_ratio", at_least=2.47)),
    ),
    Experiment(
        "roofline",
        "Full fine-tuning and feature extraction of ViT-B/32 against a plain matrix product.",
        4,
        "rates",
        (Target("full_finetune_share", at_least=0.8), Target("features_share", at_least=0.8)),
    ),
    Experiment(
        "loop",
        "The federation loop, all of its measuring included, against a bare loop of the same steps.",
        2,
        "overhead",
        (Target("overhead_ratio", at_most=1.02), Target("tiny_extra_ms_per_client", at_most=3)),
    ),
    Experiment(
        "measuring",
        "Runs with everything measured and checked against the same runs with nothing listening.",
        6,
        "overhead",
        (Target("large_cost", at_most=0.01), Target("tiny_cost", at_most=0.05)),
    ),
    Experiment(
        "thousand_probes",
        "1,000 clients of 10 samples train a linear probe on kept features in one thread.",
        1,
        "crowds",
        (Target("ms_per_client", at_most=0.2),),
        threads=1,
    ),
    Experiment(
        "grouped",
        "1,000 clients of 10 glyphs each: trained together against one by one, and 10 to 1,000 of them.",
        5,
        "crowds",
        (
            Target("speedup", at_least=8),
            Target("largest_rise", at_most=1.1),
            Target("memory_over_budget", at_most=1),
        ),
    ),
    Experiment(
        "matrix",
        "150 cells of five methods with frozen towers: features extracted once against never kept.",
        15,
        "cells_together",
        (Target("total_speedup", at_least=20), Target("times_extracted", at_most=1)),
    ),
    Experiment(
        "cells",
        "Cells of one round of a linear probe on digits: what the harness adds to each.",
        1,
        "many_cells",
        (Target("overhead_seconds_per_cell", at_most=0.4),),
    ),
    Experiment(
        "stored",
        "`results`, `plan` and `status` on 10,000 stored results, each as a whole process.",
        1,
        "many_cells",
        tuple(Target(f"{command}_seconds", at_most=3) for command in ("results", "plan", "status")),
    ),
    Experiment(
        "memory",
        "Resident memory of FLoRA on ViT-B/32, over 100 rounds, and of 40 clients against 4.",
        3,
        "footprint",
        (
            Target("peak_memory_gigabytes", at_most=1.4),
            Target("growth_over_rounds_megabytes", at_most=8),
            Target("growth_with_clients_over_model", at_most=0.25),
        ),
    ),
    Experiment(
        "scaling",
        "How a round's cost grows with clients, rounds, classes and images.",
        3,
        "scaling",
    ),
    Experiment(
        "gpu",
        "On a GPU: grouped clients, and FLoRA against full fine-tuning for ViT-B/32 and ViT-L/14.",
        15,
        "gpu",
        (
            Target("grouped_speedup", at_least=10),
            Target("least_round_speedup", at_least=34.72),
            Target("least_memory_ratio", at_least=2.47),
        ),
    ),
    Experiment(
        "history_steps",
        "Steps planted in simulated histories, and how often one is found where there is none.",
        0.5,
        "steps",
        (
            Target("false_steps_in_1000_constant_series", at_most=1),
            Target("found_20_percent", at_least=0.99),
            Target("found_10_percent_in_50", at_least=0.95),
            Target("found_5_percent_in_50_at_noise_1_percent", at_least=0.99),
            Target("in_range_if_found", at_least=0.95),
        ),
    ),
    Experiment(
        "planted_growth",
        "A byte, a parameter, 2 % of live tensors, 1 % of FLOPs planted in the code that runs, one run each.",
        0.5,
        "planted",
        (Target("found_share", at_least=1), Target("false_alarms", at_most=0)),
    ),
    Experiment(
        "planted_accuracy",
        "Bugs and harmless reorderings of sums planted in training, compared over 5 seeds.",
        3,
        "planted",
        (Target("found_share", at_least=1), Target("false_alarms", at_most=0)),
    ),
    *(
        Experiment(
            f"slowdowns_{machine}",
            f"Slowdowns of 20, 10 and 5 % planted in one of three probes, 55 s of `ab` each, {how}.",
            30,
            "slowdowns",
            (
                Target("planted_20_found_share", at_least=1),
                Target("planted_10_found_share", at_least=0.95),
                Target("false_alarms", at_most=0),
            ),
        )
        for machine, how in _MACHINES.items()
    ),
    *(
        Experiment(
            f"same_{machine}",
            f"The same revision on both sides, compared by `ab` for 55 s at a time, {how}.",
            15,
            "slowdowns",
            (Target("false_alarms", at_most=0),),
        )
        for machine, how in _MACHINES.items()
    ),
)
# What `flora-bench perf` takes in the place of experiments' names.
ALONE = ("figures", "list")
EXPERIMENTS = {experiment.name: experiment for experiment in _EXPERIMENTS}


def chosen(names: Sequence[str]) -> list[Experiment]:
    """Give the experiments of these names, all of them for none, in their own order.

    Raises:
        BadInput: there is none of a name.
    """
    for name in names:
        if name in ALONE:
            raise BadInput(f"perf: `{name}` goes alone; leave the other names out")
        if name not in EXPERIMENTS:
            raise BadInput(f"perf: there is no experiment {name!r}{nearest(name, [*EXPERIMENTS, *ALONE])}")
    return [experiment for name, experiment in EXPERIMENTS.items() if not names or name in names]
