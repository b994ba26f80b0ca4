"""Faults planted in a run, each of which one invariant has to find; and runs without any."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import images
from bench.catalogue import load_method, method_modules
from bench.config import RunConfig
from bench.images import Kept, Pixels
from bench.inputs import load_inputs
from bench.measure import invariants
from bench.measure.fingerprints import changed, fingerprints
from bench.measure.invariants import Invariants
from bench.measure.products import aggregation_error
from bench.tasks import load_task
from bench.tasks.base import ArrayImages, JoinedImages
from bench.tasks.folder import load as load_folder
from flora.aggregation import WeightedMean
from flora.events import Events, Listener, RoundRecord
from flora.features import Samples
from flora.federation import Federation
from flora.group import can_be_grouped
from flora.local import LocalTraining
from flora.runners import Grouped, OneByOne
from flora.settings import Training
from flora.states import models_for, states_for
from tests.flora import toy

FLORA = {"name": "flora", "alpha": 4.0}
FULL = {"name": "full_finetune"}
ALL = {
    "frozen_unchanged",
    "trained_moved",
    "evaluated_is_aggregated",
    "weights_sum_to_one",
    "losses_finite",
}
SIZES = [len(share) for share in toy.SHARES]


def watched(options=FLORA, *, dtype=torch.float32, listeners=(), **more):
    """A federation and its invariants, heard before the other listeners as in a run."""
    built = toy.method(options, dtype=dtype)
    watching = Invariants(built, SIZES, "federated")
    return toy.federation(built, listeners=[watching, *listeners], **more), watching


def broken(watching, federation):
    """What of a run does not hold, with the reasons."""
    result = watching.result(federation.trained_state)
    return {name: found["reason"] for name, found in result.items() if not found["holds"]}


class At(Listener):
    """Does something when a round is aggregated, before it is evaluated."""

    def __init__(self, act):
        self.act = act

    def aggregated(self, round, state):
        self.act(round, state)


# --- runs without a fault ------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [FLORA, FULL], ids=["flora", "full_finetune"])
def test_a_run_without_a_fault_holds(options, dtype, at_once):
    federation, watching = watched(options, dtype=dtype, at_once=at_once)
    list(federation.rounds(2))
    result = watching.result(federation.trained_state)
    assert set(result) == ALL
    assert all(found["holds"] and "reason" not in found for found in result.values())
    assert 0 < result["weights_sum_to_one"]["largest_share_of_tolerance"] < 0.5
    assert result["frozen_unchanged"]["numbers"] + sum(
        p.numel() for p in federation.method.trainable.values()
    ) == sum(x.numel() for x in [*federation.method.parameters(), *federation.method.buffers()])


BASELINES = [name for name in method_modules() if name != "zero_shot"]


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("name", BASELINES)
def test_every_method_holds_on_the_embedded_model(name, at_once):
    sizes = {"model": "tiny", "data": {"max_train": 20, "max_test": 10}, "clients": 4, "batch_size": 4}
    places = {"places": ["text.key", "text.value", "vision.mlp"]} if name == "peft:ia3" else {}
    config = RunConfig.read({**sizes, "method": {"name": name, **places}, "task": "digits", "device": "cpu"})
    inputs = load_inputs(config)
    generator = torch.Generator().manual_seed(0)
    built = load_method(name)(inputs.model.clip, inputs.prompts, config.method, generator)
    built.clip.shrink_frozen()
    train = inputs.train.with_images_kept()
    shares = [torch.from_numpy(share.copy()) for share in inputs.division.split.indices]
    if at_once > 1 and not can_be_grouped(built, train, shares[0]):
        pytest.skip("its clients cannot be grouped")
    training = Training(batch_size=4)
    clients = (built, train, shares, training, states_for(built, 4, training), 0)
    runner = OneByOne(*clients) if at_once == 1 else Grouped(*clients, at_once)
    watching = Invariants(built, inputs.division.split.client_sizes, "federated")
    federation = Federation(built, runner, inputs.test, 4, events=Events((watching,)))
    list(federation.rounds(2))
    assert set(watching.result(federation.state)) == ALL
    assert broken(watching, federation) == {}


@pytest.mark.parametrize(("clients", "moved"), [(1, True), (3, False)])
def test_without_a_server_there_is_less_to_check(clients, moved):
    built = toy.method(FLORA)
    shares = [torch.cat(toy.SHARES)] if clients == 1 else toy.SHARES
    watching = Invariants(built, [len(share) for share in shares], "centralized")
    trainer = OneByOne(built, toy.samples(), shares, toy.TRAINING, None, 5)
    rest = models_for(built, clients)
    local = LocalTraining(built, trainer, toy.samples(30), clients, rest, events=Events((watching,)))
    list(local.rounds(2))
    expected = {"frozen_unchanged", "losses_finite"} | ({"trained_moved"} if moved else set())
    assert set(watching.result(local.trained_state)) == expected
    assert broken(watching, local) == {}
    assert watching.aggregation_error(1) is None


@pytest.mark.parametrize(("options", "rounds"), [({"name": "zero_shot"}, 2), (FLORA, 0)])
def test_without_training_only_the_frozen_weights_are_checked(options, rounds):
    federation, watching = watched(options)
    list(federation.rounds(rounds))
    assert set(watching.result(federation.trained_state)) == {"frozen_unchanged"}


def test_one_step_from_the_start_is_not_judged_by_its_gradients():
    training = toy.TRAINING.model_copy(update={"local_steps": 1})
    federation, watching = watched(training=training)
    list(federation.rounds(1))  # with B = 0, A has no gradient
    assert "trained_moved" not in watching.result(federation.state)
    federation, watching = watched(training=training)
    list(federation.rounds(2))
    assert watching.result(federation.state)["trained_moved"]["holds"]


def test_a_refused_upload_breaks_nothing():
    federation, watching = watched()
    federation.runner = toy.Tampered(federation.runner, {1: b"garbage"})
    records = list(federation.rounds(2))
    assert len(records[-1].refused) == 1
    assert broken(watching, federation) == {}


def test_all_uploads_refused_leave_the_state_as_it_was():
    federation, watching = watched()
    federation.runner = toy.Tampered(federation.runner, dict.fromkeys(range(3), b"garbage"))
    list(federation.rounds(1))
    assert set(watching.result(federation.state)) == {"frozen_unchanged", "evaluated_is_aggregated"}
    assert broken(watching, federation) == {}


# --- frozen weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["parameter", "buffer"])
def test_a_frozen_weight_nudged_is_found(when):
    def nudge(round, state):
        frozen = {n: p for n, p in federation.method.named_parameters() if not p.requires_grad}
        of_kind = frozen if when == "parameter" else dict(federation.method.named_buffers())
        name = max((n for n, x in of_kind.items() if x.is_floating_point()), key=lambda n: of_kind[n].numel())
        nudged.append(name)
        flat = of_kind[name].detach().view(-1)
        with torch.no_grad():
            flat[flat.isfinite().nonzero()[7]] += 1e-7

    nudged = []
    federation, watching = watched(listeners=[At(nudge)])
    list(federation.rounds(1))
    assert broken(watching, federation) == {"frozen_unchanged": f"{nudged[0]} changed"}


def test_what_the_method_trains_may_change():
    federation, watching = watched(FULL)
    list(federation.rounds(1))
    assert watching.result(federation.state)["frozen_unchanged"]["holds"]


@settings(max_examples=120, derandomize=True)
@given(
    st.integers(1, 3000),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]),
    st.integers(0, 3),
    st.data(),
)
def test_fingerprints_see_every_change_and_every_swap(numbers, dtype, offset, data):
    generator = torch.Generator().manual_seed(numbers)
    values = torch.randint(0, 200, (numbers + offset,), generator=generator).to(dtype)[offset:]
    first, second = (data.draw(st.integers(0, numbers - 1)) for _ in range(2))
    before = fingerprints({"x": values})
    swapped = values.clone()
    swapped[[first, second]] = values[[second, first]]
    same = bool(values[first] == values[second])
    assert (fingerprints({"x": swapped}) == before) == same
    other = values.clone()
    other[first] += 1
    assert changed(before, fingerprints({"x": other})) == ["x"]
    assert fingerprints({"x": values.clone()}) == before


def test_fingerprints_do_not_depend_on_how_a_tensor_lies_in_memory():
    weights = torch.randn(8, 3, 16, 16)
    lying = weights.to(memory_format=torch.channels_last)
    assert lying.stride() != weights.stride()
    assert fingerprints({"x": lying}) == fingerprints({"x": weights})
    nothing = fingerprints({"scalar": torch.tensor(1.0), "none": torch.empty(0, 3)})
    assert len(set(nothing.values())) == 2
    assert fingerprints({}) == {}


def test_a_tensor_that_is_gone_has_changed():
    assert changed({"a": b"1", "b": b"2"}, {"b": b"2", "c": b"3"}) == ["a"]


# --- what trains ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_tensor_frozen_by_mistake_is_found(monkeypatch, at_once):
    federation, watching = watched(at_once=at_once)
    name = next(name for name in federation.state if "lora_B" in name)
    layer = federation.method.get_submodule(name.removesuffix(".weight"))
    monkeypatch.setattr(layer, "forward", lambda x: F.linear(x, layer.weight.detach()))
    list(federation.rounds(3))
    other = name.replace("lora_B", "lora_A")  # it acts by way of the first alone
    expected = f"{name} did not move; {other}, {name} had no gradient"
    assert broken(watching, federation) == {"trained_moved": expected}


def test_a_tensor_that_ends_where_it_began_is_found():
    federation, watching = watched()
    name = next(iter(federation.state))
    start = federation.state[name].clone()
    federation.events = Events((*federation.events.listeners, At(lambda _, state: state[name].copy_(start))))
    list(federation.rounds(2))
    assert broken(watching, federation)["trained_moved"] == f"{name} did not move"


def test_gradients_are_not_asked_for_once_all_tensors_had_one():
    asked = []

    class Asking(Listener):
        def work_started(self, work):
            if work.kind == "step":
                given = work.gradients
                object.__setattr__(work, "gradients", lambda: asked.append(work) or given())

    federation, _ = watched(listeners=[Asking()])
    list(federation.rounds(4))
    assert len(asked) == 2  # in the first step B is zero, so that A has none


def test_an_exception_in_a_step_passes_through(monkeypatch):
    federation, watching = watched(at_once=3)

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("flora.group.step", fails)
    with pytest.raises(KeyboardInterrupt):
        list(federation.rounds(1))
    assert broken(watching, federation) == {}


# --- the aggregate -------------------------------------------------------------------------------------


def test_an_evaluated_model_that_is_not_the_aggregated_one_is_found():
    def tamper(round, state):
        if round == 2:
            with torch.no_grad():
                next(iter(federation.method.trainable.values())).view(-1)[0].add_(1e-7)

    federation, watching = watched(listeners=[At(tamper)])
    list(federation.rounds(3))
    name = next(iter(federation.method.trainable))
    assert broken(watching, federation) == {
        "evaluated_is_aggregated": f"in round 2 {name} differed from what was aggregated"
    }


def test_a_round_evaluated_with_nothing_aggregated_is_found():
    federation, watching = watched()
    list(federation.rounds(1))
    with federation.events.phase("evaluate", 2):
        pass
    assert "nothing aggregated" in broken(watching, federation)["evaluated_is_aggregated"]


class Heavier:
    """A runner in whose uploads a client weighs twice as much, or comes twice."""

    def __init__(self, inner, factor, times):
        self.inner, self.factor, self.times = inner, factor, times

    def run(self, round, clients, broadcast, events):
        for uploads in self.inner.run(round, clients, broadcast, events):
            for upload in uploads:
                if upload.client == 1:
                    yield [replace(upload, samples=self.factor * upload.samples)] * self.times
                else:
                    yield [upload]


@pytest.mark.parametrize(
    ("factor", "times", "reason"), [(2, 1, "client 1 weighs 8, but has 4"), (1, 2, "client 1 counts twice")]
)
def test_an_upload_of_double_weight_is_noticed(factor, times, reason):
    federation, watching = watched()
    federation.runner = Heavier(federation.runner, factor, times)
    list(federation.rounds(1))
    assert reason in broken(watching, federation)["weights_sum_to_one"]


@pytest.mark.parametrize("options", [FLORA, FULL], ids=["flora", "full_finetune"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("probed", [2**20, 1])
def test_a_client_of_double_weight_in_the_aggregate_is_noticed(monkeypatch, options, dtype, probed):
    add = WeightedMean.add

    def heavier(self, tensors, weight):
        add(self, tensors, 2 * weight if weight == SIZES[1] else weight)

    monkeypatch.setattr(WeightedMean, "add", heavier)
    monkeypatch.setattr(invariants, "PROBED_NUMBERS", probed)
    slow = Training(batch_size=4, optimizer={"lr": 5e-5})
    federation, watching = watched(options, dtype=dtype, training=slow)
    list(federation.rounds(1))
    assert "the aggregate is off by" in broken(watching, federation)["weights_sum_to_one"]


def test_an_aggregate_that_is_no_number_is_noticed():
    federation, watching = watched()
    list(federation.rounds(1))
    watching.upload_accepted(2, 0, SIZES[0], federation.state)
    watching.aggregated(2, {name: x * torch.nan for name, x in federation.state.items()})
    assert "off by nan" in broken(watching, federation)["weights_sum_to_one"]


def test_an_aggregator_that_is_no_weighted_mean_is_not_held_against_one(monkeypatch):
    monkeypatch.setattr(WeightedMean, "is_weighted_mean", False)
    federation, watching = watched()
    list(federation.rounds(1))
    assert set(watching.result(federation.state)) == ALL - {"weights_sum_to_one"}
    assert watching.aggregation_error(1) is None


class Asked(Mapping):
    """Tensors that count how often each is asked for."""

    def __init__(self, tensors):
        self.tensors, self.times = tensors, dict.fromkeys(tensors, 0)

    def __getitem__(self, name):
        self.times[name] += 1
        return self.tensors[name]

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


def test_each_tensor_of_an_upload_is_asked_for_once():
    federation, watching = watched()
    asked = Asked(federation.state)
    watching.upload_accepted(1, 0, SIZES[0], asked)
    assert set(asked.times.values()) == {1}


def test_the_probe_is_of_whole_tensors_the_smallest_first(monkeypatch):
    monkeypatch.setattr(invariants, "PROBED_NUMBERS", 300)
    federation, watching = watched(FULL)
    asked = Asked(federation.state)
    watching.upload_accepted(1, 0, SIZES[0], asked)
    chosen = [federation.state[name].numel() for name, times in asked.times.items() if times]
    others = [federation.state[name].numel() for name, times in asked.times.items() if not times]
    assert sum(chosen) <= 300 < sum(chosen) + min(others)
    assert max(chosen) <= min(others)


# --- losses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_finite_number_is_found(loss):
    federation, watching = watched()
    list(federation.rounds(1))
    watching.round_ended(RoundRecord(2, 0.5, loss, clients=(0, 1, 2)))
    watching.round_ended(RoundRecord(3, 0.5, 1.0, clients=(0, 1, 2)))
    assert broken(watching, federation) == {"losses_finite": f"the loss of round 2 is {loss}"}


# --- what averaging factors loses ----------------------------------------------------------------------


def dense_error(products, weights):
    """The definition, with every product written out."""
    share = [w / sum(weights) for w in weights]
    lost, whole = [], []
    for left, right in products:
        mean = sum(w * b @ a for w, b, a in zip(share, left, right, strict=True))
        factors = [sum(w * x for w, x in zip(share, side, strict=True)) for side in (left, right)]
        whole.append(mean.flatten())
        lost.append((mean - factors[0] @ factors[1]).flatten())
    return float(torch.cat(lost).norm() / torch.cat(whole).norm())


@settings(max_examples=40, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_the_aggregation_error_is_that_of_dense_matrices(clients, rank, out, into, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    products = [(draw(clients, out, rank), draw(clients, rank, into)) for _ in range(2)]
    weights = [1 + seed % (number + 2) for number in range(clients)]
    expected = dense_error(products, weights)
    assert aggregation_error(products, weights) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_clients_that_agree_lose_nothing_and_products_of_zero_have_no_error():
    same = torch.randn(1, 4, 2).expand(3, 4, 2), torch.randn(1, 2, 5).expand(3, 2, 5)
    assert aggregation_error([same], [1, 2, 4]) < 1e-14
    assert aggregation_error([(torch.zeros(3, 4, 2), torch.randn(3, 2, 5))], [1, 1, 1]) is None


def test_a_small_error_is_not_lost_in_rounding():
    generator = torch.Generator().manual_seed(0)

    def nearly_alike(*shape):
        common, own = (torch.randn(n, *shape, generator=generator, dtype=torch.float64) for n in (1, 4))
        return common + 1e-7 * own

    # of second order: 1e-14 of the whole, where the plain difference of squares has an error of 1e-8
    error = aggregation_error([(nearly_alike(6, 2), nearly_alike(2, 5))], [1] * 4)
    assert 1e-15 < error < 1e-13


@pytest.mark.parametrize("options", [FLORA, {"name": "peft:lora"}, {"name": "peft:rslora"}])
def test_a_runs_aggregation_error_is_that_of_what_was_uploaded(options):
    kept = {1: [], 2: []}

    class Uploads(Listener):
        def upload_accepted(self, round, client, samples, tensors):
            kept[round].append({name: tensors[name].clone() for name in tensors})

    federation, watching = watched(options, dtype=torch.float64, listeners=[Uploads()], at_once=3)
    list(federation.rounds(2))
    assert {n for pair in federation.method.products for n in pair} == set(federation.method.trainable)
    for number, uploads in kept.items():
        pairs = [[[x[name] for x in uploads] for name in pair] for pair in federation.method.products]
        assert watching.aggregation_error(number) == pytest.approx(dense_error(pairs, SIZES), rel=1e-9)
        assert 1e-6 < watching.aggregation_error(number) < 1
    assert watching.aggregation_error(0) is None


def test_too_many_clients_have_no_aggregation_error(monkeypatch):
    monkeypatch.setattr(invariants, "MOST_CLIENTS_WITH_FACTORS", 2)
    federation, watching = watched()
    list(federation.rounds(2))
    assert watching.aggregation_error(1) is watching.aggregation_error(2) is None


@pytest.mark.parametrize("name", ["peft:dora", "peft:loha", "linear_probe"])
def test_methods_that_are_no_plain_products_have_no_aggregation_error(name):
    federation, watching = watched({"name": name})
    list(federation.rounds(1))
    assert watching.aggregation_error(1) is None


# --- test images in training ---------------------------------------------------------------------------


def pixels(*numbers):
    """Grey images, each of one number."""
    grey = np.repeat(np.array(numbers, dtype=np.uint8), 64).reshape(-1, 8, 8)
    return Samples(
        Pixels(ArrayImages(grey), None, torch.float32), torch.zeros(len(numbers), dtype=torch.int64)
    )


def test_a_test_image_placed_in_a_client_is_found():
    assert images.leaked_images(pixels(1, 2, 3), pixels(4, 5)) == 0
    assert images.leaked_images(pixels(1, 2, 5), pixels(4, 5, 5)) == 2
    one_client = pixels(1, 2, 3, 4).select(torch.tensor([0, 2]))
    assert images.leaked_images(one_client, pixels(4, 3)) == 1


def test_joined_sets_and_images_made_when_asked_for_are_looked_into():
    joined = JoinedImages([pixels(1, 2).images.images, pixels(3).images.images])
    train = Samples(Pixels(joined, None, torch.float32), torch.zeros(3, dtype=torch.int64))
    assert images.leaked_images(train, pixels(3, 4)) == 1
    made = load_task("synthetic:2x8x4", None)
    assert made.train.images.content(0) == made.train.images.content(0) != made.train.images.content(1)


def test_a_copy_of_a_file_under_another_name_is_found(tmp_path):
    from PIL import Image

    for number, name in enumerate(["train/a/0", "train/b/1", "test/a/2", "test/b/3"]):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    (tmp_path / "train/b/4.png").write_bytes((tmp_path / "test/b/3.png").read_bytes())
    task = load_folder(str(tmp_path), None)
    train, test = (
        Samples(Pixels(part.images, None, torch.float32), torch.from_numpy(part.labels))
        for part in (task.train, task.test)
    )
    assert images.leaked_images(train, test) == 1


def test_rows_of_features_are_compared_by_their_numbers():
    rows = torch.arange(20.0).view(5, 4)
    train, test = (Samples(Kept(x), torch.zeros(len(x), dtype=torch.int64)) for x in (rows[:3], rows[2:]))
    assert images.leaked_images(train, test) == 1


def test_decoded_and_other_images_cannot_be_compared():
    decoded = Samples(Kept(torch.zeros(1, 3, 8, 8)), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="both be decoded"):
        images.leaked_images(decoded, pixels(1))
