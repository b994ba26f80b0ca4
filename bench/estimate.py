"""What a run will take, known before it runs: parameters, bytes, FLOPs and memory.

The model is built of fake tensors (`torch._subclasses.FakeTensorMode`): they have shapes and types and no
numbers, so that neither weights nor room for them nor a GPU are needed, and the methods' own code takes its
steps on them under `bench.measure.tensors.Counter`. Which prompts a batch needs, and how long they are, is
taken from the real labels and prompts of the first round, where the task is at hand.

Clients are counted one by one; those that are trained together need as much memory more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.module import register_module_parameter_registration_hook

from bench.catalogue import load_method
from bench.config import PRECOMPUTED, RunConfig
from bench.frozen import AT_ONCE
from bench.images import KEPT_BYTES
from bench.inputs import divided
from bench.measure.causes import CAUSES
from bench.measure.tensors import Counter
from bench.models import load_shapes, open_clip_config
from flora import client
from flora.clip import ENCODED
from flora.codecs import make_codec
from flora.errors import BadInput
from flora.evaluation import FEATURES_AT_ONCE, IMAGES_AT_ONCE
from flora.features import Batch
from flora.federation import participants
from flora.method import Method
from flora.prompts import Prompts
from flora.settings import Training

if TYPE_CHECKING:
    from bench.calibration import Calibration

FAKE, FORMULAS = "fake tensors", "formulas"
# What stands in for a task that is not at hand.
STAND_IN_CLASSES = 10
# Of more clients than this, the others have the mean of these.
CLIENTS_LOOKED_AT = 64
# So many steps have their prompts chosen; of more, those of the first rounds stand for all.
STEPS_LOOKED_AT = 512
# Batches larger than this are not looked for.
LARGEST_BATCH = 2**17
# Counts that the search for a batch may take.
COUNTS = 14
FIRST_GUESS = 16


@dataclass(frozen=True)
class Work:
    """What a piece of work takes; see `bench.measure.tensors.Counter`.

    Attributes:
        flops: in all.
        operations: how many.
        created_bytes: of all tensors made.
        products: how many operations of so many FLOPs and bytes each.
        peak_bytes: most bytes of tensors that live at once.
        peak_by_cause: of these.
    """

    flops: int = 0
    operations: int = 0
    created_bytes: int = 0
    products: Mapping[tuple[int, int], int] = field(default_factory=dict)
    peak_bytes: int = 0
    peak_by_cause: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))


@dataclass(frozen=True)
class Estimate:
    """What a cell will take; None where it is not known.

    Attributes:
        model, method: their names.
        how: "fake tensors" or "formulas".
        notes: what the figures do not include or rest on, a line each.
        trainable_parameters: exact; None where no formula is known.
        parameters: all of the model with its method.
        payload_bytes: of one message, exact.
        bytes_up, bytes_down: of all rounds, exact where the clients are known.
        round_bytes_up, round_bytes_down: of one.
        batch_size: samples of a full step.
        sample_flops: of a step, by sample.
        step_flops: of a full step.
        steps: in all rounds.
        round_flops, train_flops: of the steps in one round, the mean, and in all.
        feature_flops: of what of the image tower is frozen and computed once, by image.
        features_flops: the same of all images, and of the test images once more before training, where they
            go through all of the tower.
        evaluate_flops: of all evaluations.
        peak_tensor_bytes: most bytes of tensors that live at once.
        peak_by_cause: of these, by cause.
        trainable_bytes: size of what trains.
        images: how many are used, those for testing among them.
        rounds: of training.
        evaluations: how many.
        dtype: the precision of what is computed.
        step, evaluation, features: work that predicted time is computed from: of a full step, of one
            evaluation, and of computing all features.
    """

    model: str
    method: str
    how: str
    notes: tuple[str, ...]
    trainable_parameters: int | None
    parameters: int | None
    payload_bytes: int | None
    bytes_up: int | None
    bytes_down: int | None
    round_bytes_up: int | None
    round_bytes_down: int | None
    batch_size: int
    sample_flops: int | None
    step_flops: int | None
    steps: int | None
    round_flops: int | None
    train_flops: int | None
    feature_flops: int | None
    features_flops: int | None
    evaluate_flops: int | None
    peak_tensor_bytes: int | None
    peak_by_cause: Mapping[str, int] | None
    trainable_bytes: int = 0
    images: int | None = None
    rounds: int = 0
    evaluations: int = 0
    dtype: str = "float32"
    step: Work | None = None
    evaluation: Work | None = None
    features: Work | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the figures as plain values, without the work that times are computed from."""
        values = asdict(self)
        for name in ("step", "evaluation", "features"):
            del values[name]
        return values

    @property
    def predictions(self) -> dict[str, Any]:
        """Give what `predictions.json` keeps of a cell, but for its time."""
        names = ("trainable_parameters", "payload_bytes", "bytes_up", "bytes_down", "train_flops")
        return {**{name: getattr(self, name) for name in names}, "peak_tensor_bytes": self.peak_tensor_bytes}


@dataclass(frozen=True)
class _Task:
    """What a cell's task and split come to.

    Attributes:
        names: of the classes.
        texts: one prompt a class.
        labels: (n,) of the training images; stand-ins where the task is not at hand.
        shares: whose they are, one index array (n,) a client.
        train, test: how many images are used.
        known: whether the split is the real one.
        notes: on what is not.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    labels: Tensor
    shares: Sequence[Tensor]
    train: int
    test: int | None
    known: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Built:
    """A method of fake tensors, and what its batches look like.

    Attributes:
        method: the method.
        mode: what its tensors are of.
        inputs: shape of one image.
        stage: what of the image tower comes next in training; 0 where it all does.
        row: shape of what enters that stage.
    """

    method: Method
    mode: FakeTensorMode
    inputs: tuple[int, ...]
    stage: int
    row: tuple[int, ...]

    def empty(self, *shape: int) -> Tensor:
        """Make a fake tensor in the precision that batches have."""
        half = self.method.clip.compute_dtype is not None and self.stage not in (0, ENCODED)
        dtype = self.method.clip.compute_dtype if half else self.method.clip.logit_scale.dtype
        with self.mode:
            return torch.empty(shape, dtype=dtype)

    def batch(self, size: int, classes: int) -> Batch:
        """Make a batch of so many samples, of the first so many classes."""
        labels = torch.arange(size) % classes
        return Batch(self.empty(size, *self.row), labels, self.stage, labels)


def estimate(config: RunConfig, *, samples: Sequence[int] | None = None) -> Estimate:
    """Say what a cell will take, without weights, GPU or training.

    Args:
        config: the cell. The device does not matter: tensors are counted as a CPU would make them.
        samples: how many each client has, in the place of the cell's own split.

    Raises:
        BadInput: there is no such model, or the method does not fit it.
    """
    if config.model.name == PRECOMPUTED:
        raise BadInput(f"task: {config.task!r} holds no model, so that nothing can be foretold; name another")
    task = _task(config, samples)
    try:
        built = _built(*_key(config, task))
    except BadInput as error:
        if not _is_missing(config, error):
            raise
        return _by_formulas(config, task, str(error))
    except (RuntimeError, NotImplementedError) as error:
        return _by_formulas(config, task, _one_line(error))
    try:
        return _counted(config, task, built)
    except (RuntimeError, NotImplementedError) as error:  # a layer asks for numbers, which there are none of
        return _by_formulas(config, task, _one_line(error), built.method)


def largest_batch(config: RunConfig, memory_bytes: int) -> int:
    """Find the largest batch with which a run's tensors take no more than so many bytes; 0 if none does.

    Counted as `estimate` does, with features, evaluation and what is held; batches have all classes they can.

    Raises:
        BadInput: as `estimate`; or the model's steps cannot be counted.
    """
    task = _task(config, None)
    built = _built(*_key(config, task))
    held = _held_bytes(built, task, _servers(config, task, built.method))
    tested = None if task.test is None else _evaluation(built, task.test)
    if sum(_peak_by_cause(Work(), tested, _features(built, task), held).values()) > memory_bytes:
        return 0
    room = memory_bytes - held
    counted: dict[int, int] = {}

    def peak(size: int) -> int:
        if size not in counted:
            counted[size] = _step(built, config.training, size, _classes(size, task), True).peak_bytes
        return counted[size]

    if peak(1) > room:
        return 0
    fits, too_large, guess = 1, LARGEST_BATCH + 1, FIRST_GUESS
    while len(counted) < COUNTS and too_large - fits > 1:
        if peak(guess) <= room:
            fits = guess
        else:
            too_large = guess
        halve = len(counted) > COUNTS // 2  # no line, it seems
        line = (fits * too_large) ** 0.5 if halve else _on_line(counted, room)
        guess = int(min(max(line, fits + 1), too_large - 1))
    return fits


def _on_line(counted: Mapping[int, int], memory_bytes: int) -> float:
    """Continue the line through the two counts nearest to what is looked for."""
    (x, low), (y, high) = sorted(counted.items(), key=lambda pair: abs(pair[1] - memory_bytes))[:2]
    slope = (high - low) / (y - x)
    return x + (memory_bytes - low) / slope if slope > 0 else LARGEST_BATCH


def predicted_seconds(estimate: Estimate, calibration: Calibration) -> dict[str, float | None]:
    """Foretell how long the parts of a cell take on the machine that was calibrated, one client at a time.

    Args:
        estimate: as `estimate` gives it.
        calibration: of the machine.

    Returns:
        "step", "round" (its steps), "train", "features", "evaluate" and "total", each None if not known.
    """
    step = calibration.seconds(estimate.step, estimate.trainable_bytes) if estimate.step else None
    of_full = (
        estimate.train_flops / estimate.step_flops if estimate.train_flops and estimate.step_flops else 0
    )
    train = None if step is None or estimate.steps is None else step * of_full
    one = estimate.evaluation
    evaluate = None if one is None else calibration.seconds(one) * estimate.evaluations
    features = None if estimate.features is None else calibration.seconds(estimate.features)
    parts = (train, evaluate, features)
    known = [part for part in parts if part is not None]
    return {
        "step": step,
        "round": None if train is None else train / max(estimate.rounds, 1),
        "train": train,
        "features": features,
        "evaluate": evaluate,
        "total": sum(known) if len(known) == len(parts) else None,
    }


def _task(config: RunConfig, samples: Sequence[int] | None) -> _Task:
    """Find out what the cell's task and split come to, with stand-ins where they are not at hand."""
    try:
        prepared, division = divided(config)
    except BadInput as error:
        return _stand_in(config, samples, str(error))
    task = prepared.task
    labels = torch.from_numpy(task.train.labels.copy())
    shares = [torch.from_numpy(part.copy()) for part in division.split.indices]
    if samples is not None:
        shares = [torch.arange(size) % len(labels) for size in samples]
    used = torch.cat(shares).unique()
    if config.mode == "centralized":
        shares = [used]
    names, texts = tuple(task.class_names), tuple(task.prompts)
    return _Task(names, texts, labels, shares, len(used), len(division.test), True)


def _stand_in(config: RunConfig, samples: Sequence[int] | None, reason: str) -> _Task:
    names = tuple(f"class {number}" for number in range(STAND_IN_CLASSES))
    texts = tuple(f"a photo of a {name}." for name in names)
    sizes = list(samples or [config.batch_size] * config.clients)
    labels = torch.arange(max(sizes)) % STAND_IN_CLASSES
    shares = [torch.arange(size) for size in sizes]
    known = samples is not None
    note = f"{STAND_IN_CLASSES} classes stand in for those of {config.task!r}, as it is not at hand: {reason}"
    return _Task(names, texts, labels, shares, sum(sizes), None, known, (note,))


def _key(config: RunConfig, task: _Task) -> tuple[str, str, str, str, tuple[str, ...], tuple[str, ...], int]:
    """Give all that a method of fake tensors depends on, as `_built` takes it."""
    return (
        config.model.name,
        # the same but that it finds its loss scale by looking at gradients, of which there are no numbers
        "bfloat16" if config.model.dtype == "float16" else config.model.dtype,
        config.method.model_dump_json(),
        config.acceleration,
        task.names,
        task.texts,
        task.train,
    )


def _built(
    model: str,
    dtype: str,
    options: str,
    acceleration: Any,
    names: tuple[str, ...],
    texts: tuple[str, ...],
    train: int,
) -> _Built:
    method, mode = _method(model, dtype, options, acceleration, names, texts)
    size = method.clip.vision.image_size
    inputs = (3, *(size if isinstance(size, tuple | list) else (size, size)))
    stage, row = _training_stage(method, mode, inputs, train)
    return _Built(method, mode, inputs, stage, row)


@lru_cache(maxsize=8)
def _method(
    model: str,
    dtype: str,
    options: str,
    acceleration: Any,
    names: tuple[str, ...],
    texts: tuple[str, ...],
) -> tuple[Method, FakeTensorMode]:
    """Build a method; splits of one task share it, and with it the counts of equal pieces of work."""
    values = {"model": {"name": model, "dtype": dtype}, "method": json.loads(options)}
    config = RunConfig.read({**values, "acceleration": acceleration, "device": "cpu"})
    mode = _mode()
    with _fake_parameters(mode):
        loaded = load_shapes(config.model)
        prompts = Prompts.tokenize(list(texts), loaded.tokenize, list(names))
        cls = load_method(config.method.name)
        method = cls(loaded.clip, prompts, config.method, torch.Generator().manual_seed(0), acceleration)
    method.clip.shrink_frozen()
    return method, mode


def _mode() -> FakeTensorMode:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # it would keep weak references, and a module can convert only parameters that have none
    mode.fake_tensor_converter.set_tensor_memo = lambda t, v: None  # type: ignore[method-assign]
    return mode


@contextmanager
def _fake_parameters(mode: FakeTensorMode) -> Iterator[None]:
    """Have the parameters of modules built meanwhile made fake; all that is read stays real."""

    def fake(module: Any, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if isinstance(parameter, FakeTensor):
            return parameter
        with mode:
            return nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)

    # what the hook returns takes the parameter's place, which torch's annotation leaves out
    hook = register_module_parameter_registration_hook(fake)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _training_stage(
    method: Method, mode: FakeTensorMode, inputs: tuple[int, ...], train: int
) -> tuple[int, tuple[int, ...]]:
    """Say what of the image tower a step begins with, as `bench.frozen` has it, and what enters there."""
    stage = method.frozen_image_stages if method.exact else 0
    stages = method.clip.image_stages
    if stage != ENCODED and (stage == 0 or stages[stage - 1].name == "patches"):
        return 0, inputs
    with mode:
        one = torch.empty(1, *inputs, dtype=method.clip.logit_scale.dtype)
    with torch.no_grad(), method.clip.autocast():
        row = method.clip.run_image_stages(one, slice(0, stage))
    if stage != ENCODED and row.nbytes * train > KEPT_BYTES:
        return 0, inputs
    return stage, tuple(row.shape[1:])


def _counted(config: RunConfig, task: _Task, built: _Built) -> Estimate:
    """Put the figures together from counts of single pieces of work."""
    method, training = built.method, config.training
    size = min(training.batch_size, max(map(len, task.shares)))
    steps = _Steps(config, task, built)
    full = steps.full
    evaluations = config.rounds + 1 if method.trainable else 1
    tested = None if task.test is None else _evaluation(built, task.test)
    features = _features(built, task)
    images = None if task.test is None else task.train + task.test
    kept = built.stage != 0
    per_image = _feature_batch(built, built.stage).flops // AT_ONCE if kept else 0
    rounds = config.rounds if method.trainable else 0
    up, down = _payload_bytes(config, method) if rounds else (0, 0)
    passes = steps.messages if config.mode == "federated" else 0
    held = _held_bytes(built, task, _servers(config, task, method))
    by_cause = _peak_by_cause(full, tested, features, held)
    train_flops = steps.flops if task.known else None
    return Estimate(
        model=config.model.name,
        method=config.method.name,
        how=FAKE,
        notes=(*task.notes, *steps.notes),
        trainable_parameters=sum(p.numel() for p in method.trainable.values()),
        parameters=sum(p.numel() for p in method.parameters()),
        payload_bytes=max(up, down),
        bytes_up=up * passes,
        bytes_down=down * passes,
        round_bytes_up=up * passes // max(rounds, 1),
        round_bytes_down=down * passes // max(rounds, 1),
        batch_size=size,
        sample_flops=full.flops // size,
        step_flops=full.flops,
        steps=steps.count if task.known else None,
        round_flops=None if train_flops is None else train_flops // max(rounds, 1),
        train_flops=train_flops,
        feature_flops=per_image,
        features_flops=None if images is None else features.flops,
        evaluate_flops=None if tested is None else tested.flops * evaluations,
        peak_tensor_bytes=sum(by_cause.values()),
        peak_by_cause=by_cause,
        trainable_bytes=sum(p.numel() * p.element_size() for p in method.trainable.values()),
        images=images,
        rounds=rounds,
        evaluations=evaluations,
        dtype=config.model.dtype,
        step=full,
        evaluation=tested,
        features=None if images is None else features,
    )


def _payload_bytes(config: RunConfig, method: Method) -> tuple[int, int]:
    """Size of one message up, and of one down."""
    codec = make_codec(config.codec)
    return codec.payload_bytes("up", method.trainable), codec.payload_bytes("down", method.trainable)


def _peak_by_cause(step: Work, tested: Work | None, features: Work, held: int) -> dict[str, int]:
    """Give a run's peak: of a step or an evaluation beside what is held, or of features, made before that."""
    later = max((step, tested or Work()), key=lambda work: work.peak_bytes)
    if features.peak_bytes > later.peak_bytes + held:
        return dict(features.peak_by_cause)
    return {**later.peak_by_cause, "buffers": later.peak_by_cause["buffers"] + held}


def _servers(config: RunConfig, task: _Task, method: Method) -> int:
    """Count the copies of the trainable tensors that the server holds while a client trains."""
    if config.mode != "federated" or not method.trainable:
        return 0
    return 1 + (len(participants(len(task.shares), config.participation, config.seed.participation, 1)) > 1)


def _held_bytes(built: _Built, task: _Task, servers: int) -> int:
    """Size of what is there all the time: features, labels and the server's copies of what trains."""
    images = task.train + (task.test or 0)
    row = built.empty(1, *built.row).nbytes  # a feature, or a decoded image where none is kept
    rows = sum(row * n for n in (task.train, task.test or 0) if row * n <= KEPT_BYTES)
    trainable = sum(p.numel() * p.element_size() for p in built.method.trainable.values())
    return rows + images * torch.int64.itemsize + servers * trainable


class _Steps:
    """The steps of a whole run, from counts of a few.

    Attributes:
        full: one of a full batch, of as many classes as it can have, the optimiser's state being there.
        count: how many there are.
        flops: of all.
        messages: that pass each way.
        notes: on totals that only a part was counted of.
    """

    def __init__(self, config: RunConfig, task: _Task, built: _Built) -> None:
        self._config, self._task, self._built = config, task, built
        method = built.method
        self.full = Work()
        self.count = self.flops = self.messages = 0
        self.notes: list[str] = []
        if not method.trainable:
            return
        in_round = [
            participants(len(task.shares), config.participation, config.seed.participation, number)
            for number in range(1, config.rounds + 1)
        ]
        numbers = sorted({number for chosen in in_round for number in chosen})
        self._drawn = {number: self._labels(number, 1) for number in numbers[:CLIENTS_LOOKED_AT]}
        more = STEPS_LOOKED_AT // max(1, sum(map(len, self._drawn.values())))
        self._rounds = max(1, min(config.rounds, more))
        for number in self._drawn:
            for later in range(2, self._rounds + 1):
                self._drawn[number] += self._labels(number, later)
        drawn = [labels for of_client in self._drawn.values() for labels in of_client]
        size = max(map(len, drawn), default=1)
        classes = max((len(labels.unique()) for labels in drawn if len(labels) == size), default=1)
        again = config.rounds > 1 or len(drawn) > len(self._drawn) * self._rounds
        self.full = _step(built, config.training, size, classes, again)
        self._coefficients = self._fitted(size, classes)
        of_client = self._of_clients(numbers)
        self.messages = sum(map(len, in_round))
        self.count = round(sum(of_client[number][0] for chosen in in_round for number in chosen))
        self.flops = round(sum(of_client[number][1] for chosen in in_round for number in chosen))
        if len(numbers) > len(self._drawn):
            self.notes.append(
                f"steps and FLOPs of {len(self._drawn)} of {len(numbers)} clients were counted; "
                "the others have the mean of these by sample"
            )
        if self._rounds < config.rounds and method.needs_texts:
            self.notes.append(
                f"prompts were chosen for {self._rounds} of {config.rounds} rounds; FLOPs of the others are "
                "the mean of these"
            )

    def _of_clients(self, numbers: Sequence[int]) -> dict[int, tuple[float, float]]:
        """Give each client's steps and FLOPs in a round; of clients not looked at by their samples."""
        looked_at = {number: self._of_client(drawn) for number, drawn in self._drawn.items()}
        if len(looked_at) == len(numbers):
            return looked_at
        shares = self._task.shares
        samples = sum(len(shares[number]) for number in looked_at)
        a_sample = [sum(of[i] for of in looked_at.values()) / samples for i in (0, 1)]
        others = {n: (len(shares[n]) * a_sample[0], len(shares[n]) * a_sample[1]) for n in numbers}
        return {**others, **looked_at}

    def _labels(self, number: int, round: int) -> list[Tensor]:
        """Give the labels of a client's batches in a round."""
        config, share = self._config, self._task.shares[number]
        drawn = client.order(share, config.training, (config.seed.order, round, number))
        return [self._task.labels[indices] for indices in drawn]

    def _of_client(self, drawn: Sequence[Tensor]) -> tuple[float, float]:
        """Count a round's steps, and add their FLOPs up: the mean of the rounds looked at."""
        sizes = np.array([self._sizes(labels) for labels in drawn])
        return len(drawn) / self._rounds, float((sizes @ self._coefficients).sum()) / self._rounds

    def _sizes(self, labels: Tensor) -> tuple[int, int, int]:
        """Give what the FLOPs of a step are taken to be linear in."""
        method = self._built.method
        if not method.needs_texts:
            return 1, len(labels), 0
        texts = method.choose_texts(labels)
        return 1, len(labels), sum(len(part.nodes) for part in texts.branches) or len(texts.classes)

    def _fitted(self, size: int, classes: int) -> np.ndarray:
        """Fit FLOPs to those of the full batch, and of others with half of the samples or classes."""
        half = max(1, size // 2), max(1, classes // 2)
        others = {(half[0], min(half[0], classes))}
        if self._built.method.needs_texts:
            others.add((size, half[1]))
        rows, flops = [self._sizes(torch.arange(size) % classes)], [self.full.flops]
        for n, k in sorted(others - {(size, classes)}):
            rows.append(self._sizes(torch.arange(n) % k))
            flops.append(_step(self._built, self._config.training, n, k, False).flops)
        scale = np.maximum(np.abs(np.array(rows, dtype=float)).max(axis=0), 1)
        found = np.linalg.lstsq(np.array(rows) / scale, np.array(flops, dtype=float), rcond=None)[0]
        return found / scale


def _classes(size: int, task: _Task) -> int:
    return min(size, len(task.names))


def _step(built: _Built, training: Training, size: int, classes: int, again: bool) -> Work:
    """Count a client's first step, or its second, on a batch of so many samples and classes."""
    key = built, training.model_dump_json(exclude={"batch_size", "local_epochs", "local_steps"})
    return _counted_step(*key, size, classes, again)


@lru_cache(maxsize=4096)
def _counted_step(built: _Built, settings: str, size: int, classes: int, again: bool) -> Work:
    method = built.method
    values = {name: p.detach().clone() for name, p in method.trainable.items()}
    state = client.start(method, values, Training.model_validate_json(settings), None)
    del values
    batch = method.collate(built.batch(size, classes))
    if again:
        client.step(state, batch)
        state.optimizer.zero_grad(set_to_none=True)
    held = {
        "parameters": method.parameters(),
        "optimizer_state": [
            x for of in state.optimizer.state.values() for x in of.values() if isinstance(x, Tensor)
        ],
        "buffers": [*method.shared_tensors, *state.anchor, batch.inputs],
    }
    with Counter(held, method.trainable.values()) as counter:
        client.step(state, batch)
    client.finish(state)
    return _work(counter)


@lru_cache(maxsize=256)
def _evaluation(built: _Built, test: int) -> Work:
    """Count one evaluation on so many images: the classifier, and one batch as often as there are such."""
    method, evaluated = built.method, built
    size = min(test, IMAGES_AT_ONCE if built.stage == 0 else FEATURES_AT_ONCE)
    held = {"parameters": method.parameters(), "buffers": method.shared_tensors}
    with torch.no_grad():
        if method.exact:
            method.keep_frozen()
        with Counter(held) as of_classifier:
            classifier = method.classifier()
        batch = evaluated.batch(size, method.classes)
        held["buffers"] = [*method.shared_tensors, classifier, batch.inputs]
        with Counter(held) as of_batch:
            logits = method.logits(batch, classifier)
            logits.argmax(dim=-1), logits.softmax(dim=-1).amax(dim=-1)
    return _added(_work(of_classifier), _work(of_batch), test / size)


def _features(built: _Built, task: _Task) -> Work:
    """Count the computing of all features."""
    features = Work()
    for batch, count in _feature_batches(built, task):
        features = _added(features, batch, count)
    return features


def _feature_batches(built: _Built, task: _Task) -> list[tuple[Work, int]]:
    """Give the batches that frozen stages of the image tower see, and how many of each."""
    if not built.method.exact:
        return []
    train, test = (ceil(n / AT_ONCE) for n in (task.train, task.test or 0))
    whole = (_feature_batch(built, ENCODED), test + (train if built.stage == ENCODED else 0))
    if built.stage in (0, ENCODED):
        return [whole]
    return [whole, (_feature_batch(built, built.stage), train + test)]


@lru_cache(maxsize=256)
def _feature_batch(built: _Built, stage: int) -> Work:
    """Count a batch of images on its way through the stages of the tower before `stage`."""
    clip = built.method.clip
    with built.mode:
        images = torch.empty(AT_ONCE, *built.inputs, dtype=clip.logit_scale.dtype)
    held = {"parameters": clip.parameters(), "buffers": [images]}
    with torch.no_grad(), clip.autocast(), Counter(held) as counter:
        clip.run_image_stages(images, slice(0, stage))
    return _work(counter)


def _work(counter: Counter) -> Work:
    return Work(
        counter.flops,
        counter.operations,
        counter.created_bytes,
        dict(counter.products),
        counter.peak_bytes,
        dict(counter.peak_by_cause),
    )


def _added(once: Work, often: Work, times: float) -> Work:
    """Add one piece of work to another that is done several times."""
    products = dict(once.products)
    for product, count in often.products.items():
        products[product] = products.get(product, 0) + max(1, round(count * times))
    higher = max(once, often, key=lambda work: work.peak_bytes)
    return Work(
        once.flops + round(often.flops * times),
        once.operations + round(often.operations * times),
        once.created_bytes + round(often.created_bytes * times),
        products,
        higher.peak_bytes,
        higher.peak_by_cause,
    )


# --- formulas ------------------------------------------------------------------------------------------


def _is_missing(config: RunConfig, error: BadInput) -> bool:
    """Whether a model is there by its name, and something else that it is built of is not at hand."""
    text = open_clip_config(config.model.name)["model_cfg"]["text_cfg"]
    return bool(text.get("hf_model_name")) and str(error).startswith("model.name:")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _by_formulas(config: RunConfig, task: _Task, reason: str, method: Method | None = None) -> Estimate:
    """Say what closed forms and the architecture's configuration tell, of a model that could not be tried."""
    trainable = _trainable_by_formula(config, task) if method is None else method.closed_form()
    item = torch.float64.itemsize if config.model.dtype == "float64" else torch.float32.itemsize
    rounds = config.rounds if trainable else 0
    in_round = len(participants(len(task.shares), config.participation, config.seed.participation, 1))
    in_round = in_round if config.mode == "federated" else 0
    passes = in_round * rounds
    up = down = None if trainable is None else trainable * item
    if method is not None:
        up, down = _payload_bytes(config, method)
    notes = [*task.notes, f"it cannot be built of fake tensors: {reason}"]
    if method is None:
        notes.append("payloads are without their header and codec")
    size = min(config.batch_size, max(map(len, task.shares)))
    flops = _image_flops(open_clip_config(config.model.name)["model_cfg"]["vision_cfg"])
    return Estimate(
        model=config.model.name,
        method=config.method.name,
        how=FORMULAS,
        notes=tuple(notes),
        trainable_parameters=trainable,
        parameters=None if method is None else sum(p.numel() for p in method.parameters()),
        payload_bytes=None if up is None or down is None else max(up, down),
        bytes_up=None if up is None else up * passes,
        bytes_down=None if down is None else down * passes,
        round_bytes_up=None if up is None else up * in_round,
        round_bytes_down=None if down is None else down * in_round,
        batch_size=size,
        sample_flops=None,
        step_flops=None,
        steps=None,
        round_flops=None,
        train_flops=None,
        feature_flops=flops,
        features_flops=None,
        evaluate_flops=None,
        peak_tensor_bytes=None,
        peak_by_cause=None,
        rounds=rounds,
        dtype=config.model.dtype,
    )


def _trainable_by_formula(config: RunConfig, task: _Task) -> int | None:
    """Count what trains from the shared width alone, of methods that only that matters to."""
    dim, classes = open_clip_config(config.model.name)["model_cfg"]["embed_dim"], len(task.names)
    return {"zero_shot": 0, "linear_probe": classes * (dim + 1)}.get(config.method.name)


def _image_flops(vision: Mapping[str, Any]) -> int | None:
    """Count a transformer's FLOPs on one image: twice its matrices a token, and attention."""
    layers, size = vision.get("layers", 12), vision.get("image_size", 224)
    if vision.get("timm_model_name") or not isinstance(layers, int) or not isinstance(size, int):
        return None
    width, patch = vision.get("width", 768), vision.get("patch_size", 16)
    patches = (size // patch) ** 2
    tokens = patches + 1
    a_token = 2 * width * width * (4 + 2 * vision.get("mlp_ratio", 4))
    return int(2 * patches * 3 * patch**2 * width + layers * tokens * (a_token + 4 * tokens * width))
