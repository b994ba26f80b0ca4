"""The figures: each a function of a data frame, drawn on a canvas of its own; usable in a notebook.

Bands and whiskers are 95 % t-intervals over seeds. Methods look as ``bench.report.styles`` says.
"""

from bench.report.figures.bars import (
    bytes_bars,
    bytes_bars_points,
    memory_bars,
    memory_bars_points,
    time_bars,
    time_bars_points,
)
from bench.report.figures.canvas import FEWEST_FOR_INTERVAL, NothingToDraw
from bench.report.figures.clients import client_accuracies, client_accuracies_points
from bench.report.figures.curves import (
    accuracy_over_bytes,
    accuracy_over_bytes_points,
    accuracy_over_rounds,
    accuracy_over_rounds_points,
    accuracy_over_seconds,
    accuracy_over_seconds_points,
    few_shot_curves,
    few_shot_curves_points,
)
from bench.report.figures.divisions import split_picture, split_picture_points
from bench.report.figures.files import FORMATS, check_formats, read_data_sha256, save
from bench.report.figures.fronts import COSTS, pareto_front, pareto_front_points
from bench.report.figures.heat import heat_map, heat_map_points
from bench.report.figures.networks import time_to_accuracy, time_to_accuracy_points
from bench.report.figures.ranks import critical_difference_diagram, critical_difference_diagram_points
from bench.report.figures.ratios import ratios, ratios_points
from bench.report.figures.sensitivity import sensitivity, sensitivity_points, varied_options
from bench.report.figures.stacks import (
    memory_by_cause,
    memory_by_cause_points,
    phase_times,
    phase_times_points,
)
from bench.report.styles import SANS, Look

__all__ = [
    "COSTS",
    "FEWEST_FOR_INTERVAL",
    "FORMATS",
    "SANS",
    "Look",
    "NothingToDraw",
    "accuracy_over_bytes",
    "accuracy_over_bytes_points",
    "accuracy_over_rounds",
    "accuracy_over_rounds_points",
    "accuracy_over_seconds",
    "accuracy_over_seconds_points",
    "bytes_bars",
    "bytes_bars_points",
    "check_formats",
    "client_accuracies",
    "client_accuracies_points",
    "critical_difference_diagram",
    "critical_difference_diagram_points",
    "few_shot_curves",
    "few_shot_curves_points",
    "heat_map",
    "heat_map_points",
    "memory_bars",
    "memory_bars_points",
    "memory_by_cause",
    "memory_by_cause_points",
    "pareto_front",
    "pareto_front_points",
    "phase_times",
    "phase_times_points",
    "ratios",
    "ratios_points",
    "read_data_sha256",
    "save",
    "sensitivity",
    "sensitivity_points",
    "split_picture",
    "split_picture_points",
    "time_bars",
    "time_bars_points",
    "time_to_accuracy",
    "time_to_accuracy_points",
    "varied_options",
]
