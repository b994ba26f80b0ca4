"""How near compute-bound work comes to the machine's own rate, and every method's step to its floor."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines.prompt_tuning import PromptTuning
from bench import tiny
from bench.catalogue import load_method
from bench.config import RunConfig
from bench.frozen import AT_ONCE
from bench.images import Kept
from bench.models import load_model
from bench.perf.costs import PASSES, Cost, Sizes, Step, Work, step_cost
from bench.perf.experiment import Measured, Setting
from bench.perf.jobs import job
from bench.tasks import load_task
from flora import client
from flora.clip import ENCODED
from flora.features import Samples
from flora.method import Method
from flora.prompts import Prompts

Timed = Callable[[], object]

MATRIX_SIDES = (1024, 2048, 4096)
COPIED_BYTES = 256 * 2**20


def roofline(setting: Setting) -> Measured:
    """Time matrix products, full fine-tuning and feature extraction in turn, then every method's step."""
    repeats = 1 if setting.quick else 5
    products = {side: _product(side, setting) for side in ((64,) if setting.quick else MATRIX_SIDES)}
    step = _Built.of("full_finetune", setting).step()
    features, images = _extraction(setting)
    work = {**{str(side): product for side, product in products.items()}, "step": step, "features": features}
    seconds = _interleaved(work, repeats, setting.device)
    flops = {"step": _count(step), "features": _count(features)}
    product_rate = max(2 * side**3 / seconds[str(side)] for side in products)
    rates = {name: count / seconds[name] for name, count in flops.items()}
    bandwidth = _bandwidth(setting)
    return Measured(
        figures={
            "full_finetune_share": rates["step"] / product_rate,
            "features_share": rates["features"] / product_rate,
            "product_gigaflops_per_second": product_rate / 1e9,
            "full_finetune_gigaflops_per_second": rates["step"] / 1e9,
            "features_gigaflops_per_second": rates["features"] / 1e9,
            "features_images_per_second": images / seconds["features"],
            "full_finetune_step_seconds": seconds["step"],
            "copy_gigabytes_per_second": bandwidth / 1e9,
            "methods": _methods(setting, product_rate, bandwidth),
        },
        samples=repeats,
        notes=[
            "float32; medians of repeats in turn; the product is the fastest of several square ones",
            "a step is forward, backward and Adam; operations are torch's count, Adam's not among them",
            "floor: the larger of operations over the product's rate and bytes over the rate of a copy",
        ],
    )


def _interleaved(work: dict[str, Timed], repeats: int, device: str) -> dict[str, float]:
    """Do each in turn, again and again, once before it counts; gives each one's median seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, do in work.items():
            took = _time(do, device)
            if repeat:
                seconds[name].append(took)
    return {name: median(values) for name, values in seconds.items()}


def _time(do: Timed, device: str) -> float:
    _wait(device)
    started = time.perf_counter()
    do()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _count(do: Timed) -> int:
    with FlopCounterMode(display=False) as counter:
        do()
    return int(counter.get_total_flops())


def _product(side: int, setting: Setting) -> Timed:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(setting.device) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _bandwidth(setting: Setting) -> float:
    """Bytes a second of a copy, what is read and what is written both counted."""
    size = COPIED_BYTES // (64 if setting.quick else 1)
    source = torch.zeros(size // 4, device=setting.device)
    target = torch.empty_like(source)
    seconds = _interleaved({"copy": lambda: target.copy_(source)}, 2 if setting.quick else 9, setting.device)
    return 2 * size / seconds["copy"]


def _extraction(setting: Setting) -> tuple[Timed, int]:
    """Give what evaluates the image tower as the harness does, and on how many images."""
    config = RunConfig.read(job(setting))
    clip = load_model(config.model, config.device).clip.requires_grad_(False)
    count = AT_ONCE if setting.quick else 8 * AT_ONCE
    samples = Samples(Kept(_pixels(clip.vision.image_size, count)), torch.zeros(count, dtype=torch.int64))
    samples = Samples(samples.images, samples.labels.to(config.device))
    return lambda: list(samples.encoded(clip, torch.arange(count).split(AT_ONCE))), count


@dataclass(frozen=True)
class _Built:
    """A method ready to train, with what it was made of."""

    config: RunConfig
    method: Method
    prompts: Prompts

    @classmethod
    def of(cls, name: str, setting: Setting) -> _Built:
        config = RunConfig.read(job(setting, method=name))
        model, task = load_model(config.model, config.device), load_task(config.task, None)
        prompts = Prompts.tokenize(task.prompts, model.tokenize, task.class_names)
        made = load_method(name)(model.clip, prompts, config.method, torch.Generator().manual_seed(0))
        return cls(config, made, prompts)

    def step(self) -> Timed:
        """Give what takes one training step, as a client does."""
        labels = (torch.arange(self.config.batch_size) % len(self.prompts)).to(self.config.device)
        batch = _samples(self.method, labels).batch(torch.arange(len(labels)))
        state = client.start(self.method, self.method.trainable, self.config.training, None)
        return lambda: client.step(state, batch)

    def cost(self, acceleration: str) -> Cost:
        """Count what such a step cannot do without."""
        name, images = self.config.method.name, self.config.batch_size
        sizes = Sizes.of(_architecture(self.config.model.name))
        exact = acceleration == "exact"
        if isinstance(self.method, PromptTuning):  # it scores against every class, with its vectors in front
            prompts, passed = self.prompts.bare.with_room(self.method.options.context), len(self.prompts)
        else:
            prompts, passed = self.prompts, images
        rows = [row[row != 0].tolist() for row in prompts.tokens]
        texts = Work.tree(rows) if exact else Work.sequences(passed, sizes.context)
        return step_cost(name, sizes, Step(images, len(rows), texts, exact))


def _samples(method: Method, labels: torch.Tensor) -> Samples:
    """Random images, or random features where the method's image tower is frozen."""
    generator = torch.Generator().manual_seed(0)
    pixels = Kept(_pixels(method.clip.vision.image_size, len(labels)))
    if method.trains_vision:
        return Samples(pixels, labels)
    features = torch.randn(len(labels), method.clip.dim, generator=generator).to(labels.device)
    return Samples(pixels, labels, features, ENCODED)


def _pixels(size: Any, count: int) -> torch.Tensor:
    height, width = size if isinstance(size, tuple) else (size, size)
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def _methods(setting: Setting, flops_per_second: float, bytes_per_second: float) -> dict[str, dict[str, Any]]:
    """Hold every method's step against its floor."""
    found = {}
    for name in ("flora", "linear_probe") if setting.quick else PASSES:
        built = _Built.of(name, setting)
        step, images = built.step(), built.config.batch_size
        seconds = _interleaved({"step": step}, 1 if setting.quick else 3, setting.device)["step"]
        found[name] = {
            "exact_ms_per_sample": 1e3 * seconds / images,
            "exact_counted_megaflops_per_sample": _count(step) / images / 1e6,
        }
        for acceleration in ("exact", "none"):
            cost = built.cost(acceleration)
            floor = max(cost.flops / flops_per_second, cost.bytes / bytes_per_second)
            found[name] |= {
                f"{acceleration}_megaflops_per_sample": cost.flops / images / 1e6,
                f"{acceleration}_kilobytes_per_sample": cost.bytes / images / 1e3,
                f"{acceleration}_floor_ms_per_sample": 1e3 * floor / images,
            }
    return found


def _architecture(model: str) -> dict[str, Any]:
    if model == "tiny":
        return dict(json.loads(tiny.CONFIG.read_text(encoding="utf-8"))["model_cfg"])
    return dict(open_clip.get_model_config(model.partition(":")[0]))
