"""One cell, from its configuration to what is kept of it."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from baselines.zero_shot import ZeroShot, ZeroShotOptions
from bench.catalogue import load_method
from bench.compute import applied, configured
from bench.config import PRECOMPUTED, RunConfig
from bench.device import deterministic
from bench.frozen import FrozenFeatures, kind_of_rows
from bench.images import Kept, leaked_images
from bench.inputs import Inputs, Suite, load_inputs
from bench.measure.instruments import Instruments
from bench.measure.invariants import Invariants
from bench.measure.traffic import Traffic, needed_once_bytes
from bench.measure.work import WorkMeter
from bench.models import open_clip_config
from bench.record import (
    Measured,
    client_rows,
    details_of,
    environment_of,
    evaluation_of,
    inputs_of,
    summary_of,
)
from flora.cache import FeatureCache
from flora.codecs import make_codec
from flora.errors import BadInput
from flora.evaluation import Predictions, accuracy, predict
from flora.events import Events, Listener, RoundRecord, Work
from flora.features import Samples
from flora.federation import Federation, participants
from flora.group import can_be_grouped, clients_at_once
from flora.local import LocalTraining
from flora.method import Method
from flora.runners import Grouped, OneByOne
from flora.states import models_for, residuals_for, states_for

if TYPE_CHECKING:
    from bench.checkpoints import Checkpoints

logger = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """No client's work was ever fit to be used."""


@dataclass
class Leftovers:
    """What a run leaves beside its result.

    Attributes:
        weights: the trained tensors, where there is one model and not one a client.
        tables: rows of what is too long for the result, by the name of its table.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    tables: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def run_cell(
    config: RunConfig,
    listeners: Sequence[Listener] = (),
    leftovers: Leftovers | None = None,
    cache: FeatureCache | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    one_by_one: bool = False,
) -> dict[str, Any]:
    """Run one cell and give what its `run.json` holds.

    Args:
        config: the cell.
        listeners: told of every phase and round, besides those that measure.
        leftovers: given what the run leaves besides.
        cache: where what frozen towers give is kept from cell to cell; None for this cell alone.
        checkpoints: where the run goes on from, if it was begun before, and is kept meanwhile.
        one_by_one: train clients one after another where the configuration leaves the choice.

    Raises:
        BadInput: the cell asks for something that its task, split or model cannot give.
        PayloadMismatch: a payload is not of the size that the method's closed form gives.
        DivergedError: every upload of every round was refused.
    """
    instruments = Instruments.for_run(config.device, compiled=config.compute.compile is not None)
    events = Events((*listeners, *instruments.listeners))
    with deterministic(config.device), configured(config.compute, config.device):
        cell = Cell.prepared(config, cache, events, instruments.work)
        run = _Run.of(cell, instruments, one_by_one)
        run.train(checkpoints)
        _check_convergence(run.records)
        result = run.result()
    if leftovers is not None:
        leftovers.weights.update(run.training.trained_state or {})
        leftovers.tables |= {"ledger": run.traffic.rows(), "clients": client_rows(run.measured)}
    return result


@dataclass
class _Run:
    """A cell's training, watched.

    Attributes:
        cell: what trains.
        instruments: what measures it.
        training: the federation, or what stands in its place.
        traffic: the ledger.
        invariants: what has to hold.
        leak: whether any test image is trained on.
        records: of the rounds so far.
        sittings: of the processes before this one that worked on the run.
        began: when this one did.
        resumed_after: the round that it went on from, if it did.
        measured: all of it, once it is over.
    """

    cell: Cell
    instruments: Instruments
    training: Federation | LocalTraining
    traffic: Traffic
    invariants: Invariants
    leak: Mapping[str, Any]
    records: list[RoundRecord] = field(default_factory=list)
    sittings: Sequence[Mapping[str, Any]] = ()
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    resumed_after: int | None = None
    measured: Measured = field(init=False)

    @classmethod
    def of(cls, cell: Cell, instruments: Instruments, one_by_one: bool) -> _Run:
        """Put training and checks together, and let the instruments know what there is."""
        with cell.events.phase("check"):
            invariants = Invariants(cell.method, cell.client_sizes, cell.config.mode)
            leak = _no_test_in_train(cell.drawn, cell.inputs.test)
            codec, trainable = make_codec(cell.config.codec), cell.method.trainable
            traffic = Traffic(codec, trainable, cell.method.closed_form())
        events = Events((traffic, invariants, *cell.events.listeners))
        run = cls(cell, instruments, cell.training(events, one_by_one), traffic, invariants, leak)
        run._watch(half_precision=cell.config.model.dtype == "float16")
        return run

    def _watch(self, half_precision: bool = False) -> None:
        if self.instruments.work is not None:
            self.instruments.work.watch(self.cell.holders, lambda: self.training.held, half_precision)

    def train(self, checkpoints: Checkpoints | None) -> None:
        """Do the rounds, those left of a run that was begun before."""
        if checkpoints is not None:
            self._resume(checkpoints)
        for record in self.training.rounds(self.cell.config.rounds, self.resumed_after):
            self.records.append(record)
            if checkpoints is not None and checkpoints.due(record.round):
                self._save(checkpoints)

    def _resume(self, checkpoints: Checkpoints) -> None:
        latest = checkpoints.latest(_together(self.training))
        if latest is None:
            return
        self.cell.events.resume(latest.round)
        with self.cell.events.phase("resume"):
            latest.give_to(self.training)
            self.records, self.sittings, self.resumed_after = [*latest.records], latest.sittings, latest.round
        for name, part in self._listeners.items():
            part.restore(latest.measured[name])

    def _save(self, checkpoints: Checkpoints) -> None:
        state = {name: part.state() for name, part in self._listeners.items()}
        together, sittings = _together(self.training), [*self.sittings, self._sitting()]
        with self.cell.events.phase("checkpoint"):
            try:
                checkpoints.save(self.training, together, self.records, state, sittings)
            except OSError as error:
                logger.warning("no checkpoint of round %d: %s", self.records[-1].round, error)

    @property
    def _listeners(self) -> dict[str, Instruments | Traffic | Invariants]:
        return {"instruments": self.instruments, "traffic": self.traffic, "invariants": self.invariants}

    def _sitting(self) -> dict[str, Any]:
        """Describe what this process has done of the run."""
        first = 0 if self.resumed_after is None else self.resumed_after + 1
        last = self.records[-1].round
        return {
            "first_round": first if first <= last else None,  # every round was done before
            "last_round": last if first <= last else None,
            "seconds": self.instruments.clock.sitting_seconds,
            "began": self.began.isoformat(timespec="seconds"),
            "host": platform.node(),
        }

    def result(self) -> dict[str, Any]:
        """Look at what the rounds came to, and put all of it together."""
        cell, instruments, training = self.cell, self.instruments, self.training
        self._watch()  # other classes follow
        trained = cell.transfer(training)
        with cell.events.phase("check"):
            held = self.invariants.result(training.trained_state)
            if instruments.work is not None and cell.frozen is not None:
                instruments.work.add("features", cell.frozen.flops, cell.frozen.peak_by_cause)
            once = needed_once_bytes(cell.method)
        self.measured = Measured(
            instruments,
            self.traffic,
            self.invariants,
            self.records,
            cell.zero_shot,
            trained,
            cell.client_sizes,
            once,
        )
        summary, load = summary_of(self.measured), instruments.load.result()
        return {
            "status": "complete",
            "config": cell.config.model_dump(mode="json"),
            "config_hash": cell.config.hash,
            "summary": {
                **summary,
                "cpu_seconds": load.pop("cpu_seconds"),
                "extraction_seconds": None if cell.frozen is None else cell.frozen.extraction_seconds,
                "clients_together": _together(training),
                "trainable_parameters": sum(p.numel() for p in cell.method.trainable.values()),
            },
            **details_of(self.measured),
            "evaluation": evaluation_of(self.measured, cell.inputs.prepared.task.class_names),
            "features": _features(cell.frozen, cell.train),
            **inputs_of(cell.inputs),
            "load": load,
            "environment": environment_of(cell.config, instruments),
            "invariants": {**self.traffic.invariants(), **held, "no_test_in_train": self.leak},
            "sittings": [*self.sittings, self._sitting()],
        }


@dataclass
class Cell:
    """A cell that is ready to train.

    Attributes:
        config: what it is.
        inputs: what it starts from.
        frozen: what frozen towers give; None where nothing of it is kept.
        zero_shot: what the model predicted as it came, by suite; "test" is the task's own test set.
        method: around the model.
        drawn: the samples that any client has, before anything was computed of them.
        train, test: the samples as the method sees them.
        shares: one index array (n,) of `train` a client.
        events: whom to tell.
    """

    config: RunConfig
    inputs: Inputs
    frozen: FrozenFeatures | None
    zero_shot: dict[str, Predictions]
    method: Method
    drawn: Samples
    train: Samples
    test: Samples
    shares: Sequence[Tensor]
    events: Events

    @classmethod
    def prepared(
        cls,
        config: RunConfig,
        cache: FeatureCache | None,
        events: Events,
        work: WorkMeter | None = None,
    ) -> Cell:
        """Load, classify as it came, and build the method.

        Raises:
            BadInput: the cell asks for something that its task, split or model cannot give.
        """
        with events.phase("load"):
            inputs = load_inputs(config)
        if work is not None:
            clip = inputs.model.clip
            work.watch({"parameters": clip.parameters, "buffers": clip.buffers})
        with events.phase("prepare"):
            frozen = _frozen(config, inputs, cache, events)
        zero_shot = _zero_shot(config, inputs, frozen, events)
        with events.phase("prepare"):
            method = make_method(config, inputs)
            _check_prompts(method, inputs.suites)
            drawn, shares = _in_use(config, inputs)
            if method.exact:  # now, or it would be part of whatever asks for it first
                with events.work(Work("classifier")):
                    method.keep_frozen()
        train, test = _samples_for(method, (drawn, inputs.test), frozen, events)
        applied(method.clip, config.compute)
        return cls(config, inputs, frozen, zero_shot, method, drawn, train, test, shares, events)

    @property
    def client_sizes(self) -> list[int]:
        """How many samples each client has, by the split itself; of centralised training the one's."""
        if self.config.mode == "centralized":
            return [len(share) for share in self.shares]
        return list(self.inputs.division.split.client_sizes)

    def training(self, events: Events, one_by_one: bool = False) -> Federation | LocalTraining:
        """Put together who trains: a federation, every client alone, or one with all of their data."""
        with events.phase("prepare"):
            return self._training(events, one_by_one)

    def _training(self, events: Events, one_by_one: bool) -> Federation | LocalTraining:
        config, method, shares = self.config, self.method, self.shares
        kept = states_for(method, len(shares), config.training)
        clients = (method, self.train, shares, config.training, kept, config.seed.order)
        common: dict[str, Any] = {
            "participation": config.participation,
            "participation_seed": config.seed.participation,
            "client_test": _indices(self.inputs.division.client_test),
            "events": events,
        }
        if config.mode != "federated":
            trained = models_for(method, len(shares))
            return LocalTraining(method, OneByOne(*clients), self.test, len(shares), trained, **common)
        alone = one_by_one and config.clients_per_batch == "auto"
        at_once = 1 if alone else _clients_at_once(config, method, self.train, shares)
        codec = make_codec(config.codec)
        coded: dict[str, Any] = {"codec": codec, "residuals": residuals_for(method, len(shares), codec)}
        runner = OneByOne(*clients, **coded) if at_once == 1 else Grouped(*clients, at_once, **coded)
        return Federation(method, runner, self.test, len(shares), codec=codec, **common)

    def transfer(self, training: Federation | LocalTraining) -> dict[str, float]:
        """Evaluate the suites after training, mean over the models; none of a method bound to its classes."""
        suites, method, frozen = self.inputs.suites, self.method, self.frozen
        if not suites or not method.open_vocabulary:
            return {}
        if frozen is not None and not method.trains_vision:
            suites = {
                name: replace(suite, samples=frozen.of(suite.samples)) for name, suite in suites.items()
            }
        with self.events.phase("transfer"):
            of_models = [_on_suites(method, suites, self.events) for _ in training.models()]
        return {name: fmean(accuracy(found[name].correct) or 0.0 for found in of_models) for name in suites}

    @property
    def holders(self) -> dict[str, Callable[[], Iterable[Tensor]]]:
        """Say where tensors are held while clients train, by cause; the server's are its own to say."""
        parts = (self.train, self.test)
        images = [part.images.pixels for part in parts if isinstance(part.images, Kept)]
        rows = [x for part in parts for x in (part.features, part.labels) if isinstance(x, Tensor)]
        return {
            "parameters": self.method.parameters,
            "buffers": lambda: [*self.method.shared_tensors, *images, *rows],
        }


def make_method(config: RunConfig, inputs: Inputs) -> Method:
    """Build the cell's method around its model.

    Raises:
        BadInput: the method does not fit the model.
    """
    cls = load_method(config.method.name)
    method = cls(inputs.model.clip, inputs.prompts, config.method, _generator(config), config.acceleration)
    if config.model.name == PRECOMPUTED and any(name.startswith("clip.") for name in method.trainable):
        raise BadInput(
            f"method.name: {config.method.name!r} trains a tower, and {config.task!r} holds features alone; "
            "use a method that trains behind the towers, such as linear_probe"
        )
    method.clip.shrink_frozen()
    return method


def _check_prompts(method: Method, suites: Mapping[str, Suite]) -> None:
    """Find out before training whether the method can read the prompts of other classes."""
    if method.open_vocabulary:
        for suite in suites.values():
            method.tokens_of(suite.prompts)


def _check_convergence(records: Sequence[RoundRecord]) -> None:
    """Refuse to pass the untrained model off as a trained one."""
    trained = records[1:]
    if trained and all(len(record.refused) == len(record.clients) for record in trained):
        reason = trained[0].refused[0].reason
        raise DivergedError(f"every upload was refused, the first as {reason}; try a lower learning rate")


def _frozen(
    config: RunConfig, inputs: Inputs, cache: FeatureCache | None, events: Events
) -> FrozenFeatures | None:
    """Have what is frozen computed once; None where each image is to go through the model each time."""
    if config.acceleration == "none":
        return None
    model = inputs.model
    precomputed = config.model.name == PRECOMPUTED
    described = {} if precomputed else open_clip_config(config.model.name)
    kind = kind_of_rows(config, inputs.sources["model"], described)
    return FrozenFeatures(model.clip, kind, None if precomputed else cache, events)


def _zero_shot(
    config: RunConfig, inputs: Inputs, frozen: FrozenFeatures | None, events: Events
) -> dict[str, Predictions]:
    """Evaluate the model as it came, before any method touches it."""
    of = (lambda part: part) if frozen is None else frozen.of
    test = of(inputs.test)
    suites = {name: replace(suite, samples=of(suite.samples)) for name, suite in inputs.suites.items()}
    with events.phase("zero_shot"):
        untouched = ZeroShot(
            inputs.model.clip, inputs.prompts, ZeroShotOptions(), _generator(config), config.acceleration
        )
        return {"test": predict(untouched, test, events), **_on_suites(untouched, suites, events)}


def _on_suites(method: Method, suites: Mapping[str, Suite], events: Events) -> dict[str, Predictions]:
    """Classify each suite's images into its own classes."""
    found = {}
    for name, suite in suites.items():
        with method.prompted(suite.prompts):
            found[name] = predict(method, suite.samples, events)
    return found


def _generator(config: RunConfig) -> torch.Generator:
    return torch.Generator().manual_seed(config.seed.init)


def _in_use(config: RunConfig, inputs: Inputs) -> tuple[Samples, list[Tensor]]:
    """Give the samples that any client has, and whose they are: with few shots most have no client."""
    shares = _indices(inputs.division.split.indices)
    used = torch.cat(shares).unique()
    if config.mode == "centralized":
        shares = [used]
    if len(used) == len(inputs.train):
        return inputs.train, shares
    return inputs.train.select(used), [torch.searchsorted(used, share) for share in shares]


def _samples_for(
    method: Method, parts: tuple[Samples, Samples], frozen: FrozenFeatures | None, events: Events
) -> tuple[Samples, Samples]:
    """Give training and test samples as the method sees them: what a frozen tower gives, or images."""
    train, test = parts
    if frozen is not None:
        return frozen.for_training(method, train), frozen.for_training(method, test)
    with events.phase("decode"):
        return train.with_images_kept(), test.with_images_kept()


def _clients_at_once(config: RunConfig, method: Method, train: Samples, shares: Sequence[Tensor]) -> int:
    """Say how many clients are trained together.

    Raises:
        BadInput: a number was asked for, and the method's clients cannot be.
    """
    asked = config.clients_per_batch
    in_round = len(participants(len(shares), config.participation, config.seed.participation, 1))
    if asked == "auto":
        return clients_at_once(method, train, shares, config.training, in_round)
    if asked == 1 or config.acceleration == "none" or not method.trainable:
        return 1
    if not can_be_grouped(method, train, shares[0]):
        why = "in half precision" if method.clip.compute_dtype else "as a layer's code cannot be mapped"
        raise BadInput(
            f"clients_per_batch: {asked} clients of {config.method.name} cannot be trained together {why}; "
            "use 1 or auto"
        )
    return min(asked, in_round)


def _no_test_in_train(train: Samples, test: Samples) -> dict[str, Any]:
    """Say whether no image that is tested on is one that a client trains on."""
    found = leaked_images(train, test)
    if not found:
        return {"holds": True, "images": 0}
    return {"holds": False, "images": found, "reason": f"{found} test images are in clients' training data"}


def _together(training: Federation | LocalTraining) -> int:
    runner = training.runner if isinstance(training, Federation) else None
    return runner.at_once if isinstance(runner, Grouped) else 1


def _features(frozen: FrozenFeatures | None, train: Samples) -> dict[str, Any] | None:
    """Describe what was kept of the image tower; None where training went through all of it each time."""
    return None if frozen is None or train.features is None else frozen.describe(train.stage)


def _indices(parts: Sequence[Any]) -> list[Tensor]:
    return [torch.from_numpy(part.copy()) for part in parts]  # a split's own are read-only
