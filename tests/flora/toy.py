"""A CLIP of a few thousand random weights, data for it, and shorthands to build methods and federations."""

from dataclasses import dataclass, replace
from importlib import import_module
from pkgutil import iter_modules

import open_clip
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor

import baselines
from flora import lora  # noqa: F401 (claims its name)
from flora.clip import ENCODED, Clip
from flora.events import Events, Listener
from flora.features import Batch, Samples
from flora.federation import Federation
from flora.method import METHODS
from flora.prompts import Prompts
from flora.runners import Grouped, OneByOne
from flora.settings import Training
from flora.states import states_for

for module in iter_modules(baselines.__path__):
    import_module(f"baselines.{module.name}")

VISION = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 2}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
DIM, CLASSES = 8, 5
START, END = 48, 49
# Unequal, interleaved, each smaller than two batches.
SHARES = [torch.arange(0, 14, 2), torch.arange(1, 14, 2)[:4], torch.arange(14, 24)]
TRAINING = Training(batch_size=4, optimizer={"lr": 1e-2})
PLACES = [
    f"{tower}.{part}"
    for tower in ("text", "vision")
    for part in ("query", "key", "value", "out", "mlp", "head")
]


def _with_each_loss(options):
    # PEFT's adapters change how towers compute, which no loss looks into: one does for all but one of them
    some_peft = options["name"].startswith("peft:") and options["name"] != "peft:dora"
    has_loss = "loss" in METHODS[options["name"]].Options.model_fields and not some_peft
    return [{**options, "loss": loss} for loss in ("contrastive", "cross_entropy")] if has_loss else [options]


# What fits into layers 16 wide and prompts of 12 tokens, where a default does not.
SIZES = {
    "prompt_tuning": {"context": 4},
    "peft:oft": {"oft_block_size": 8},
    "peft:vera": {"r": 8},
}
# Every method that trains, FLoRA at every place, with each loss it offers.
OPTIONS = [
    *({"name": "flora", "places": (place,)} for place in PLACES),
    {"name": "flora", "places": ("text.out", "vision.mlp"), "rank": 3},
    *({"name": name, **SIZES.get(name, {})} for name in METHODS if name not in ("flora", "zero_shot")),
    {"name": "prompt_tuning", "context": 3, "class_specific": True},
    {"name": "layernorm_tuning", "towers": ("vision",)},
    {"name": "bitfit", "towers": ("text",)},
    {"name": "peft:ia3", "places": ("vision.key", "vision.value", "vision.mlp")},
    {"name": "peft:dora", "places": ("text.mlp", "vision.head"), "r": 3},
]
CASES = [case for options in OPTIONS for case in _with_each_loss(options)]


def case_id(case):
    return "-".join("+".join(x) if isinstance(x, tuple) else str(x) for x in case.values())


def open_clip_model(dtype=torch.float64, vision=VISION, text=TEXT, **more):
    """An untouched open_clip model: no weight of it is zero or one, so that none can go unnoticed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CustomTextCLIP(DIM, vision, text, **more)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    return model.to(dtype).eval()


def clip(dtype=torch.float64, **more):
    return Clip(open_clip_model(dtype, **more))


def tokens(names, length=TEXT["context_length"]):
    """Start token, the name's tokens, end token, zeros."""
    rows = [[START, *name, END] for name in names]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def prompts():
    """One prompt a class, of different lengths, all shorter than the context."""
    names = [(7,), (3, 9), (11, 2, 30), (5, 5), (40, 17, 8)]
    return Prompts(tuple(map(str, names)), tokens(names))


@dataclass(frozen=True)
class Images:
    """Images in memory, as an image source."""

    pixels: Tensor

    def __getitem__(self, indices):
        return self.pixels[indices]

    def ahead(self, chosen):
        return (self[indices] for indices in chosen)

    def kept(self):
        return self

    def select(self, indices):
        return Images(self.pixels[indices])


def samples(count=24, dtype=torch.float64, seed=0):
    """Random images of each class in turn, an image of a class like others of it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    patterns = torch.randn(CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(count, 3, 16, 16, generator=generator)
    return Samples(Images((patterns[labels] + 0.5 * noise).to(dtype)), labels)


def other_prompts():
    """Three other classes, one with a longer name."""
    names = [(13, 21), (8,), (9, 19, 29, 39)]
    return Prompts(tuple(map(str, names)), tokens(names))


def method(options, acceleration="exact", dtype=torch.float64, seed=0, prompts=None, **more):
    """Build a method of this name and these options on a fresh toy CLIP."""
    return built_on(clip(dtype, **more), options, acceleration, seed, prompts)


def built_on(model, options, acceleration="exact", seed=0, texts=None):
    """Build a method on `model`, with prompts for its context length."""
    cls = METHODS[options["name"]]
    texts = texts or prompts()
    padding = torch.zeros(len(texts), model.text.context_length - TEXT["context_length"], dtype=torch.int64)
    texts = replace(texts, tokens=torch.cat([texts.tokens, padding], dim=1))
    return cls(model, texts, cls.Options(**options), torch.Generator().manual_seed(seed), acceleration)


def shake(built, scale=0.1, seed=1):
    """Move the trainable tensors off their start, where some gradients vanish."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    return built


def whole(data):
    """All samples as one batch."""
    return data.batch(torch.arange(len(data)))


def featured(data, clip, stage=ENCODED):
    """The samples with what the stages of the image tower before `stage` give for them."""
    return data.with_features(torch.cat([*data.encoded(clip, [torch.arange(len(data))], stage)]), stage)


def of_classes(labels):
    """A batch of which nothing but the labels is looked at."""
    return Batch(torch.empty(len(labels), 0), torch.as_tensor(labels))


def federation(
    built, training=TRAINING, *, kept=None, listeners=(), order=5, at_once=1, shares=SHARES, **more
):
    """A federation of three unequal clients around a method, trained `at_once` together."""
    dtype = built.clip.logit_scale.dtype
    kept = states_for(built, len(shares), training) if kept is None else kept
    values = (built, samples(dtype=dtype), shares, training, kept, order)
    runner = OneByOne(*values) if at_once == 1 else Grouped(*values, at_once)
    test = samples(30, dtype, seed=1)
    return Federation(built, runner, test, len(shares), events=Events(tuple(listeners)), **more)


@dataclass
class Tampered:
    """A runner whose uploads some clients replace: `payloads` by client number."""

    inner: OneByOne | Grouped
    payloads: dict[int, bytes]

    def run(self, round, clients, broadcast, events):
        for uploads in self.inner.run(round, clients, broadcast, events):
            yield [replace(x, payload=self.payloads.get(x.client, x.payload)) for x in uploads]


class Recorder(Listener):
    """Writes down everything it is told, in order."""

    def __init__(self):
        self.heard = []

    def phase_started(self, phase):
        self.heard.append(("started", phase))

    def phase_ended(self, phase):
        self.heard.append(("ended", phase))

    def payload_passed(self, round, client, direction, payload):
        self.heard.append(("payload", round, client, direction, payload))

    def round_ended(self, record):
        self.heard.append(("round", record))


def architecture(name):
    """A method-ready CLIP of a real architecture without any weights: shapes only, nothing is computed."""
    with torch.device("meta"):
        return Clip(CustomTextCLIP(**open_clip.get_model_config(name)))
