"""Everything a run depends on, validated: `RunConfig`. Each error is one line."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from bench.catalogue import load_method, method_modules
from bench.splits import SPLITS, SplitConfig, SplitSpec
from flora.errors import BadInput, nearest
from flora.settings import CODECS, SGD, Adam, CodecConfig, CodecSpec, Fp32, Options, Seeds, Settings, Training

# The model of a task that holds features instead of images.
PRECOMPUTED = "precomputed"
OPTIMIZERS = ("adam", "adamw", "sgd")
# Sections whose name chooses the model that reads them, and pydantic to say so.
_TAGGED = {"split": tuple(SPLITS), "optimizer": OPTIMIZERS, "codec": tuple(CODECS)}
# What may stand for a section, besides a mapping.
_SHORT_FORMS = {
    **dict.fromkeys(("model", "method", "split", "optimizer", "codec"), "a name or "),
    "seed": "a whole number or ",
}
_SHOULD = re.compile(r"^\w+ should")


class Model(Settings):
    """Which CLIP, and in which precision.

    Attributes:
        name: `tiny` (embedded); or an architecture of open_clip and its weights: `ViT-B-32:openai` (a tag of
            open_clip), `ViT-B-32:random` (seeded random weights), `ViT-B-32:/path/to/weights.safetensors`
            (or .pt, .pth, .bin, read as tensors alone). The path of a local open_clip config file, in .json,
            may stand in the place of the architecture. Of a local file the architecture alone says which
            activation it needs: OpenAI's are `ViT-B-32-quickgelu:/path/...`.
        dtype: "float32" and "float64" are the precision of weights and arithmetic; "bfloat16" and "float16"
            compute matrix products in it and keep in it the matrices that do not train, all that trains in
            float32.
    """

    name: str = "tiny"
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"


class Data(Settings):
    """Where the data lies, which of it is for training and for testing, and how much of it is used.

    Attributes:
        root: folder of data sets; a relative `folder:PATH` starts there.
        protocol: "official" keeps the data set's own training and test images apart; "paper" merges them
            and draws 20 % at random, by the split's seed, for testing, as FLoRA's published code does.
        test_domain: test on all images of this domain and train on those of all others.
        base_to_new: train on the first half of the classes, and test on each half apart.
        max_train, max_test: at most so many images, drawn evenly over the classes by the split's seed.
        max_per_class: the same limit for both, times the number of classes.
        on_corrupt: "refuse" stops at an image that cannot be decoded; "skip" leaves such images out,
            counted in the result.
    """

    root: str | None = None
    protocol: Literal["official", "paper"] = "official"
    test_domain: str | None = None
    base_to_new: bool = False
    max_train: int | None = Field(None, ge=1)
    max_test: int | None = Field(None, ge=1)
    max_per_class: int | None = Field(None, ge=1)
    on_corrupt: Literal["refuse", "skip"] = "refuse"


class Evaluation(Settings):
    """What the trained model is evaluated on, besides the task's test images.

    Attributes:
        set: "test"; or "validation", a part of every client's training data that is then not trained on.
        validation_share: how large that part is.
        per_client: evaluate for each client apart, on test images divided as the training images are.
        retention: another task, whose zero-shot accuracy is measured before and after.
    """

    set: Literal["test", "validation"] = "test"
    validation_share: float = Field(0.2, gt=0, lt=1)
    per_client: bool = False
    retention: str | None = None


class Compute(Settings):
    """How the machine computes; without any of it, as PyTorch does by itself.

    Attributes:
        threads: how many cores an operation may use; None for PyTorch's own choice.
        channels_last: keep images and convolutions of the image tower with the channels innermost.
        compile: compile the towers' blocks, in one of PyTorch's modes: "default" joins operations;
            "reduce-overhead" runs them as CUDA graphs, on a GPU alone; "max-autotune" also measures which
            kernels are fastest, which takes minutes. The compiling counts as part of the run.
        matmul_precision: of float32 matrix products: "highest" is float32's; "high" lets a GPU that has TF32
            round what is multiplied to 10 bits.
    """

    threads: int | None = Field(None, ge=1)
    channels_last: bool = False
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    matmul_precision: Literal["highest", "high"] = "highest"


class Tuning(Settings):
    """How the values of a run were found, for the record; it changes nothing.

    Attributes:
        grid: what was tried, in words.
        trials: settings tried for this method on this task and split.
        chosen: the values taken, by field.
        validation_accuracy: of these values, mean over the seeds.
    """

    grid: str
    trials: int = Field(ge=1)
    chosen: dict[str, Any]
    validation_accuracy: float


_SECTION_MODELS = {
    "model": Model,
    "data": Data,
    "evaluation": Evaluation,
    "compute": Compute,
    "tuning": Tuning,
    "seed": Seeds,
}


def _named(value: object) -> object:
    """Let a bare name stand for a section that has nothing else set."""
    return {"name": value} if isinstance(value, str) else value


def _method_options(value: object) -> object:
    """Read a method's options by the class the method itself declares for them."""
    if not isinstance(value, dict):
        return value
    options = _options_of(value)
    try:
        return options.model_validate(value)
    except ValidationError as error:
        raise BadInput(explain(error, "method", value)) from error


def _options_of(method: Mapping[str, Any]) -> type[Options]:
    if not isinstance(name := method.get("name"), str):
        raise BadInput(f"method.name: {name!r} is no method's name{nearest('', method_modules())}")
    return _options_class(name)


@cache
def _options_class(method: str) -> type[Options]:
    return load_method(method).Options


def _same_seed(value: object) -> object:
    """Let one number seed all four streams."""
    if isinstance(value, int) and not isinstance(value, bool):
        return dict.fromkeys(Seeds.model_fields, value)
    return value


def _auto_or_number(value: object, read: ValidatorFunctionWrapHandler) -> object:
    """Say in one sentence what pydantic would say of each of the two forms."""
    try:
        return read(value)
    except ValidationError:
        raise BadInput(f"clients_per_batch: {value!r} must be auto or a whole number from 1") from None


@cache
def _resolved(device: str, visible: str | None) -> str:
    """Look for GPUs once and not in each of many cells; which are `visible` can change between two looks."""
    from bench.device import resolve

    return resolve(device)


class RunConfig(Training):
    """One run. Field by field as documented in the README; a training's fields are among them."""

    task: str = "digits"
    model: Annotated[Model, BeforeValidator(_named)] = Model()
    method: Annotated[SerializeAsAny[Options], BeforeValidator(_method_options), BeforeValidator(_named)] = (
        Field("flora", validate_default=True)
    )
    split: SplitConfig = Field("iid", validate_default=True)
    clients: int = Field(10, ge=1)
    participation: float = Field(1.0, gt=0, le=1)
    rounds: int = Field(10, ge=0)
    mode: Literal["federated", "local_only", "centralized"] = "federated"
    codec: CodecConfig = Fp32()
    seed: Annotated[Seeds, BeforeValidator(_same_seed)] = Seeds()
    data: Data = Data()
    evaluation: Evaluation = Evaluation()
    compute: Compute = Compute()
    tuning: Tuning | None = None
    acceleration: Literal["exact", "none"] = "exact"
    clients_per_batch: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1)], WrapValidator(_auto_or_number)
    ] = "auto"
    engine: Literal["local"] = "local"
    device: str = Field("auto", validate_default=True)

    @field_validator("task")
    @classmethod
    def _whole_path(cls, task: str) -> str:
        """Write a folder's path out, so that one folder has one name."""
        name, _, path = task.partition(":")
        return f"{name}:{Path(path).expanduser()}" if name in ("folder", "features") and path else task

    @model_validator(mode="before")
    @classmethod
    def _model_of_features(cls, values: Any) -> Any:
        """Features were made by a model of their own; let no other be named beside them."""
        if not isinstance(values, dict) or not str(values.get("task", "")).startswith("features:"):
            return values
        named = _named(values.get("model", PRECOMPUTED))
        if not isinstance(named, dict) or named.get("name") != PRECOMPUTED:
            raise BadInput(f"model: must be '{PRECOMPUTED}' for {values['task']!r}, which holds no model")
        return {**values, "model": named}

    @model_validator(mode="after")
    def _fields_fit(self) -> RunConfig:
        """Refuse a field that would have no effect in this mode."""
        if self.mode != "federated" and self.proximal_mu:
            raise BadInput(f"proximal_mu: {self.proximal_mu} has no effect in mode {self.mode}; use 0")
        if self.mode != "federated" and self.codec.name != "fp32":
            raise BadInput(f"codec: {self.codec.name} has no effect in mode {self.mode}; use fp32")
        together = self.clients_per_batch
        if together not in ("auto", 1) and self.mode != "federated":
            raise BadInput(f"clients_per_batch: {together} has no effect in mode {self.mode}; use 1 or auto")
        if self.mode == "centralized" and self.participation != 1:
            raise BadInput(f"participation: {self.participation} has no effect in mode centralized; use 1")
        retention = self.evaluation.retention
        if self.model.name == PRECOMPUTED and retention is not None:
            raise BadInput("evaluation.retention: another task needs a model, and features:FILE holds none")
        if retention is not None and retention.startswith("features:"):
            raise BadInput(f"evaluation.retention: {retention!r} holds no images; give a task that does")
        if self.data.test_domain and self.evaluation.per_client and self.evaluation.set == "test":
            raise BadInput(
                "evaluation.per_client: no client has images like those of data.test_domain; use one"
            )
        if self.local_steps is not None and self.local_epochs != 1:
            raise BadInput(
                f"local_epochs: {self.local_epochs} has no effect beside local_steps; leave one out"
            )
        if self.model.name == PRECOMPUTED and not self.task.startswith("features:"):
            raise BadInput(f"model.name: '{PRECOMPUTED}' goes with a task features:FILE, not {self.task!r}")
        return self

    @field_validator("device")
    @classmethod
    def _present(cls, device: str) -> str:
        """Resolve `auto`, and refuse a GPU that is not there."""
        return _resolved(device, os.environ.get("CUDA_VISIBLE_DEVICES"))

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> RunConfig:
        """Validate `values`.

        Raises:
            BadInput: naming the first field that is wrong, its value, and what would be right.
        """
        try:
            config = cls.model_validate(dict(values))
        except ValidationError as error:
            raise BadInput(explain(error)) from error
        if any(_truth_values(values)):
            _refuse_truth_values(values, config.model_dump())
        return config

    @property
    def training(self) -> Training:
        """What a client does in a round."""
        return Training(**{name: getattr(self, name) for name in Training.model_fields})

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits over every field that can change the numbers, and none that cannot.

        `data.root`, `tuning` and the index of a GPU cannot. The path in `folder:PATH`, `features:FILE` or a
        model's name stays in, though what lies there is fingerprinted apart (`bench.definition`): the hash
        names the result's folder, where two data sets of one shape must not take turns. Moved images are
        another cell for that. `compute` stays in, as how many threads add up decides how sums are rounded.
        """
        resolved = self.model_dump(mode="json")
        del resolved["data"]["root"], resolved["tuning"]
        if self.codec.name == "fp32":  # as before there was a choice: results of then stand for this run
            del resolved["codec"]
        resolved["device"] = resolved["device"].partition(":")[0]
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:12]

    def with_seed(self, seed: object) -> RunConfig:
        """Give the same run with another seed: of many cells that differ in it alone, the rest is read once.

        Raises:
            BadInput: as `read`.
        """
        try:
            read = Seeds.model_validate(_same_seed(seed))
        except ValidationError:
            read = None
        if read is None or (isinstance(seed, Mapping) and any(_truth_values(seed))):
            return self.model_copy(update={"seed": RunConfig.read({"seed": seed}).seed})
        return self.model_copy(update={"seed": read})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> RunConfig:
        """Copy, as pydantic does, but not the hash of what was there before the update."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("hash", None)
        return copied


def _truth_values(given: Mapping[str, Any]) -> Iterator[bool]:
    for value in given.values():
        if isinstance(value, Mapping):
            yield from _truth_values(value)
        else:
            yield isinstance(value, bool)


def _refuse_truth_values(given: Mapping[str, Any], read: Mapping[str, Any], path: str = "") -> None:
    """Refuse a truth value that was read as a number: YAML takes yes, no, on and off for truth values."""
    for name, value in given.items():
        if isinstance(value, Mapping):
            _refuse_truth_values(value, read[name], f"{path}{name}.")
        elif isinstance(value, bool) and not isinstance(read[name], bool):
            raise BadInput(f"{path}{name}: {value} must be a number, not a truth value")


def but_for_seed(config: RunConfig) -> str:
    """Give one text for all runs that differ in their seeds alone."""
    return json.dumps(config.model_dump(mode="json", exclude={"seed", "tuning"}), sort_keys=True)


def label(config: RunConfig) -> str:
    """Name a run as people speak of it: task, method, split, shots, seed; all else where not the default."""
    shots = f" {config.split.shots}-shot" if config.split.shots else ""
    seeds = config.seed.model_dump().values()
    seed = f"seed {config.seed.split}" if len(set(seeds)) == 1 else f"seeds {'-'.join(map(str, seeds))}"
    mode = "" if config.mode == "federated" else f" {config.mode.replace('_', ' ')}"
    model = "" if config.model == Model() else f" · {config.model.name}"
    plain = " unaccelerated" if config.acceleration == "none" else ""
    codec = "" if config.codec.name == "fp32" else f" · {_in_words(config.codec)}"
    method = f"{_in_words(config.method)}{mode}{plain}"
    return f"{config.task}{model} · {method}{codec} · {_in_words(config.split)}{shots} · {seed}"


def labels(cells: Sequence[RunConfig]) -> dict[str, str]:
    """Name cells, by their hash, so that no two share a name: what tells those apart that would is added."""
    alike: dict[str, list[RunConfig]] = {}
    for cell in cells:
        alike.setdefault(label(cell), []).append(cell)
    named = {}
    for name, group in alike.items():
        flat = [_flat(cell.model_dump(mode="json")) for cell in group]
        differ = [field for field in flat[0] if any(one.get(field) != flat[0][field] for one in flat)]
        for cell, values in zip(group, flat, strict=True):
            more = ", ".join(f"{field} {_value_in_words(values.get(field))}" for field in differ)
            named[cell.hash] = f"{name} ({more})" if more else name
    return named


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return flat


def _in_words(section: Options | SplitSpec | CodecSpec) -> str:
    """Give the name of a method, split or codec, with what is not at its default; without shots."""
    changed = [
        f"{name} {_value_in_words(value)}"
        for name, field in type(section).model_fields.items()
        if name not in ("name", "shots")
        and (value := getattr(section, name)) != field.get_default(call_default_factory=True)
    ]
    return f"{section.name} ({', '.join(changed)})" if changed else section.name


def _value_in_words(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "+".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def field_models(section: str, value: Any = None) -> Sequence[Any]:
    """Give the models that say which fields a section of the configuration has.

    Args:
        section: a field of `RunConfig`; empty for `RunConfig` itself.
        value: what the section holds, to tell by its name which method, split, optimiser or codec it is.
    """
    match section:
        case "":
            return [RunConfig]
        case "method":
            return [_options_of(value)]
        case "split":
            named = [spec for name, spec in SPLITS.items() if name == value.get("name")]
            return named or list(SPLITS.values())
        case "optimizer":
            return [SGD if value.get("name") == "sgd" else Adam]
        case "codec":
            return [CODECS.get(value.get("name"), Fp32)]
    return [_SECTION_MODELS[section]]


def explain(error: ValidationError, section: str = "", value: Any = None) -> str:
    """Put the first of pydantic's errors into one line: field, value, what would be right.

    Args:
        error: as raised.
        section: the field of `RunConfig` whose value was validated; empty for a whole `RunConfig`.
        value: that value.
    """
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, BadInput):
        return str(cause)
    path = [section] if section else []
    for part in map(str, first["loc"]):
        # where a name chooses the model, pydantic puts it between the section and the field
        if not (len(path) == 1 and part in _TAGGED.get(path[0], ())):
            path.append(part)
    *parents, last = path
    field = ".".join(path)
    if first["type"] == "extra_forbidden":
        if parents in (["optimizer"], ["codec"]):
            value = {"name": first["loc"][1]}
        models = field_models(parents[0] if parents else "", value)
        return f"{field}: there is no such field{nearest(last, {n for m in models for n in m.model_fields})}"
    if first["type"] == "union_tag_invalid":
        name = str(first["input"]["name"])
        return f"{field}.name: there is no {last} {name!r}{nearest(name, _TAGGED[field])}"
    if first["type"] in ("model_type", "model_attributes_type"):
        short = _SHORT_FORMS.get(field, "")
        return f"{field}: {first['input']!r} must be {short}a mapping of fields to values"
    if cause is not None:
        return f"{field}: {cause}" if field else str(cause)
    problem = "has a value too few" if first["type"] == "missing" else _SHOULD.sub("must", first["msg"])
    return f"{field}: {first['input']!r} {problem}"
