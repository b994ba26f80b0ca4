"""How a round's cost grows along one axis at a time, with the embedded model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.perf.experiment import Measured, Setting
from bench.perf.jobs import RoundWalls, run, warm_up

METHODS = ("flora", "full_finetune", "linear_probe")
CLIENTS, ROUNDS, CLASSES, IMAGES, TEST = 8, 3, 10, 320, 320


def scaling(setting: Setting) -> Measured:
    """Sweep clients, rounds, classes and images, all else as it is."""
    warm_up(setting)
    axes: dict[str, Sequence[int]] = {
        "clients": (2, 8, 32, 128),
        "rounds": (3, 6, 12, 24),
        "classes": (10, 32, 100, 320),
        "images": (80, 320, 1280),
    }
    if setting.quick:
        axes = {"clients": (2, 4)}
    methods = METHODS[:1] if setting.quick else METHODS
    return Measured(
        figures={
            "axes": {
                axis: {
                    "values": list(values),
                    "seconds": {m: [_seconds(setting, m, axis, value) for value in values] for m in methods},
                }
                for axis, values in axes.items()
            }
        },
        samples=ROUNDS,
        notes=[
            f"all else: {CLIENTS} clients, {CLASSES} classes, {IMAGES} training and {TEST} test images",
            "clients: of 10 images each; classes and images: as many clients; seconds of a round, evaluation "
            "included, and on the axis of rounds those of all of them",
        ],
    )


def _seconds(setting: Setting, method: str, axis: str, value: int) -> float:
    """Seconds of a round, or on the axis of rounds of all."""
    at: dict[str, int] = {"clients": CLIENTS, "rounds": ROUNDS, "classes": CLASSES, "images": IMAGES}
    at[axis] = value
    if axis == "clients":
        at["images"] = 10 * value
    test = CLASSES if setting.quick else TEST
    walls = RoundWalls()
    values: dict[str, Any] = {
        "task": f"synthetic:{at['classes']}x{max(at['images'], at['classes'])}x{test}",
        "model": "tiny",
        "method": method,
        "clients": at["clients"],
        "rounds": at["rounds"],
        "batch_size": 32,
        "optimizer": {"name": "adam", "state": "reset"},
        "device": setting.device,
    }
    run(values, walls)
    return sum(walls.seconds) if axis == "rounds" else min(walls.seconds)
