"""The rounds: who takes part, what is told, what is refused, what stays untouched."""

import random
import weakref
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flora import client, payload
from flora.evaluation import evaluate, predict, scores
from flora.events import Events, Listener, Phase, RoundRecord
from flora.federation import Federation
from flora.settings import Training
from tests.flora import toy

FLORA = {"name": "flora", "alpha": 4.0}
PROBE = {"name": "linear_probe"}
ZERO_SHOT = toy.method({"name": "zero_shot"})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(clients=st.integers(1, 40), share=st.floats(0.01, 1), seed=st.integers(0, 5), number=st.integers(1, 9))
def test_participants(clients, share, seed, number):
    def asked():
        return Federation(ZERO_SHOT, None, None, clients, share, seed).participants(number)

    chosen = asked()
    assert asked() == chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(clients))
    assert len(chosen) >= 1
    assert abs(len(chosen) - share * clients) <= max(0.5, 1 - share * clients)


def test_participants_change_with_round_and_seed_and_all_get_their_turn():
    federation = Federation(ZERO_SHOT, None, None, 10, 0.3)
    rounds = [tuple(federation.participants(number)) for number in range(1, 41)]
    assert {len(chosen) for chosen in rounds} == {3}
    assert len(set(rounds)) > 20
    times = np.bincount(np.concatenate(rounds), minlength=10)
    assert times.min() >= 4  # twelve expected each
    other = Federation(ZERO_SHOT, None, None, 10, 0.3, participation_seed=1)
    assert [tuple(other.participants(number)) for number in range(1, 41)] != rounds


def test_all_take_part_by_default_in_ascending_order():
    assert Federation(ZERO_SHOT, None, None, 5).participants(7) == [0, 1, 2, 3, 4]


def test_records_say_what_happened():
    federation = toy.federation(toy.method(FLORA))
    start = {n: t.clone() for n, t in federation.state.items()}
    records = []
    for record in federation.rounds(2):
        records.append(record)
        assert record.accuracy == evaluate(federation.method, federation.test)
        for name, parameter in federation.method.trainable.items():
            assert torch.equal(parameter, federation.state[name])
        assert (record.round == 0) == all(torch.equal(start[n], t) for n, t in federation.state.items())
    first, *trained = records
    assert [r.round for r in records] == [0, 1, 2]
    untrained = predict(toy.method(FLORA), federation.test)
    assert first == RoundRecord(0, **scores(untrained, toy.CLASSES))
    assert all(r.clients == (0, 1, 2) and r.refused == () and r.samples_seen == 21 for r in trained)
    assert trained[1].loss < trained[0].loss


def test_accuracy_is_the_share_of_right_answers():
    built = toy.method(PROBE)
    data = toy.samples(300)
    batch = toy.whole(data)
    with torch.no_grad():
        right = (built.logits(batch, built.classifier()).argmax(1) == batch.labels).double().mean().item()
    assert evaluate(built, data) == pytest.approx(right)
    assert 0 < right < 1


def test_clients_are_evaluated_on_their_parts_of_the_test_set():
    parts = [torch.arange(0, 12), torch.arange(12, 30), torch.tensor([], dtype=torch.int64)]
    federation = toy.federation(toy.method(PROBE), client_test=parts)
    for record in federation.rounds(2):
        first, second, nobody = record.client_accuracies
        assert nobody is None
        assert record.accuracy == pytest.approx((12 * first + 18 * second) / 30)
        batch = federation.test.batch(parts[0])
        scores = federation.method.logits(batch, federation.method.classifier())
        assert first == (scores.argmax(1) == batch.labels).double().mean().item()


def test_zero_shot_has_round_zero_only():
    recorder = toy.Recorder()
    built = toy.method({"name": "zero_shot"})
    federation = toy.federation(built, listeners=[recorder])
    (record,) = federation.rounds(3)
    assert record == RoundRecord(0, **scores(predict(built, federation.test), toy.CLASSES))
    assert recorder.heard == [
        ("started", Phase("evaluate", 0)),
        ("ended", Phase("evaluate", 0)),
        ("round", record),
    ]


def test_no_rounds_evaluate_only():
    assert [r.round for r in toy.federation(toy.method(FLORA)).rounds(0)] == [0]


def corrupted(state, value=torch.nan):
    name = next(iter(state))
    broken = {n: t.clone() for n, t in state.items()}
    broken[name].view(-1)[0] = value
    return payload.encode(broken)


def wrong_shape(state):
    return payload.encode({n: t[..., :1] for n, t in state.items()})


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (corrupted, "not finite"),
        (wrong_shape, "has shape"),
        (lambda state: b"garbage", "not a safetensors payload"),
        (lambda state: payload.encode({}), "missing"),
        (lambda state: b"", "not a safetensors payload"),
    ],
    ids=["nan", "shape", "garbage", "empty state", "nothing"],
)
def test_a_refused_upload_is_left_out_and_the_round_goes_on(tamper, reason):
    federation = toy.federation(toy.method(FLORA))
    honest = toy.federation(toy.method(FLORA)).runner
    uploads = [x for (x,) in honest.run(1, [0, 1, 2], payload.encode(federation.state), Events())]
    federation.runner = toy.Tampered(federation.runner, {1: tamper(federation.state)})
    records = list(federation.rounds(1))

    (refusal,) = records[1].refused
    assert refusal.client == 1
    assert reason in refusal.reason
    assert records[1].clients == (0, 1, 2)
    assert records[1].samples_seen == 21
    others = [uploads[0], uploads[2]]
    assert records[1].loss == pytest.approx(sum(u.loss * u.samples for u in others) / 17, abs=1e-12)
    tensors = [payload.decode(u.payload, federation.state) for u in others]
    for name, tensor in federation.state.items():
        expected = (7 * tensors[0][name] + 10 * tensors[1][name]) / 17
        assert torch.allclose(tensor, expected, rtol=0, atol=1e-12)


def test_clients_weigh_by_their_samples_however_many_steps_they_take():
    training = Training(batch_size=4, local_steps=3, optimizer={"lr": 1e-2})
    federation = toy.federation(toy.method(FLORA), training)
    honest = toy.federation(toy.method(FLORA), training).runner
    uploads = [x for (x,) in honest.run(1, [0, 1, 2], payload.encode(federation.state), Events())]
    assert [upload.seen for upload in uploads] == [11, 12, 10]
    _, record = federation.rounds(1)
    assert record.samples_seen == 33
    tensors = [payload.decode(u.payload, federation.state) for u in uploads]
    for name, tensor in federation.state.items():
        expected = sum(size * t[name] for size, t in zip((7, 4, 10), tensors, strict=True)) / 21
        assert torch.allclose(tensor, expected, rtol=0, atol=1e-12)


def test_the_rounds_after_a_refusal_go_on_from_the_others():
    federation = toy.federation(toy.method(FLORA))
    federation.runner = toy.Tampered(federation.runner, {1: b""})
    records = list(federation.rounds(3))
    assert [len(r.refused) for r in records] == [0, 1, 1, 1]
    assert all(t.isfinite().all() for t in federation.state.values())


def test_with_every_upload_refused_the_state_stays():
    federation = toy.federation(toy.method(FLORA))
    start = {n: t.clone() for n, t in federation.state.items()}
    federation.runner = toy.Tampered(federation.runner, dict.fromkeys(range(3), b"garbage"))
    before, after = federation.rounds(1)
    assert [r.client for r in after.refused] == [0, 1, 2]
    assert after.loss is None
    assert after.accuracy == before.accuracy
    for name, tensor in federation.state.items():
        assert torch.equal(tensor, start[name])
        assert torch.equal(federation.method.trainable[name], start[name])


@pytest.mark.parametrize("options", [FLORA, PROBE, {"name": "full_finetune"}], ids=lambda o: o["name"])
def test_the_same_seeds_give_the_same_bits(options):
    def run():
        recorder = toy.Recorder()
        built = toy.method(options, dtype=torch.float32)
        federation = toy.federation(built, participation=0.67, listeners=[recorder])
        records = list(federation.rounds(2))
        return records, federation.state, recorder.heard

    (records, state, heard), (same_records, same_state, same_heard) = run(), run()
    assert records == same_records
    assert heard == same_heard  # every payload among them
    assert all(torch.equal(state[n], t) for n, t in same_state.items())


def test_every_seed_makes_a_difference():
    def state(seed=0, order=5, participation=0):
        built = toy.method(FLORA, seed=seed)
        federation = toy.federation(built, participation=0.34, participation_seed=participation, order=order)
        list(federation.rounds(1))
        return torch.cat([t.flatten() for t in federation.state.values()])

    first = state()
    assert torch.equal(state(), first)
    for changed in ({"seed": 1}, {"order": 6}, {"participation": 2}):
        assert not torch.equal(state(**changed), first), changed


def test_events_tell_each_step_in_order_and_never_overlap():
    recorder = toy.Recorder()
    federation = toy.federation(toy.method(FLORA), listeners=[recorder])
    records = list(federation.rounds(1))
    told = [
        (event[0], *asdict(event[1]).values()) if isinstance(event[1], Phase) else event[:4]
        for event in recorder.heard
    ]

    def phase(name, number, who=None, side="server"):
        return [("started", name, number, who, side), ("ended", name, number, who, side)]

    def of_client(who):
        return [
            ("payload", 1, who, "down"),
            *phase("send", 1, who, "client"),
            *phase("rest", 1, who, "client"),
            *phase("train", 1, who, "client"),
            *phase("rest", 1, who, "client"),
            *phase("receive", 1, who, "client"),
            ("payload", 1, who, "up"),
            *phase("receive", 1, who),
            *phase("check", 1, who),
            *phase("aggregate", 1, who),
        ]

    assert told == [
        *phase("evaluate", 0),
        ("round", records[0]),
        *phase("send", 1),
        *[event for who in range(3) for event in of_client(who)],
        *phase("aggregate", 1),
        *phase("check", 1),
        *phase("evaluate", 1),
        ("round", records[1]),
    ]


def test_bytes_told_are_the_payloads_themselves():
    recorder = toy.Recorder()
    federation = toy.federation(toy.method(FLORA), listeners=[recorder])
    start = {n: t.clone() for n, t in federation.state.items()}
    list(federation.rounds(1))
    passed = [event[1:] for event in recorder.heard if event[0] == "payload"]
    down = {who: data for _, who, direction, data in passed if direction == "down"}
    up = {who: data for _, who, direction, data in passed if direction == "up"}
    assert sorted(down) == sorted(up) == [0, 1, 2]
    assert set(down.values()) == {payload.encode(start)}
    honest = toy.federation(toy.method(FLORA)).runner.run(1, [0, 1, 2], down[0], Events())
    assert {upload.client: upload.payload for (upload,) in honest} == up
    sizes = {len(data) for data in (*down.values(), *up.values())}
    numbers = 8 * federation.method.closed_form()
    assert all(numbers < size <= numbers + 150 * len(start) for size in sizes)


def global_streams():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), (kind, keys.tolist(), *rest), random.getstate()


@pytest.mark.parametrize("options", toy.OPTIONS, ids=toy.case_id)
def test_global_random_streams_are_left_alone(options):
    before = global_streams()
    list(toy.federation(toy.method(options), participation=0.67).rounds(1))
    assert global_streams() == before


def test_training_on_features_is_training_on_images():
    def run(with_features):
        federation = toy.federation(toy.method(FLORA), Training(batch_size=4, optimizer={"lr": 1e-2}))
        if with_features:
            clip = federation.method.clip
            federation.test = toy.featured(federation.test, clip)
            train = toy.featured(federation.runner.samples, clip)
            object.__setattr__(federation.runner, "samples", train)
        return list(federation.rounds(2)), federation.state

    (records, state), (featured_records, featured) = run(False), run(True)
    for record, other in zip(records, featured_records, strict=True):
        assert record.accuracy == other.accuracy
        assert record.loss == pytest.approx(other.loss, abs=1e-10)
    assert all(torch.allclose(state[n], t, rtol=0, atol=1e-9) for n, t in featured.items())


def test_who_takes_part_and_the_batch_order_draw_from_streams_apart(monkeypatch):
    seeds = []
    make = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: seeds.append(seed) or make(seed))
    training = Training(batch_size=4)
    federation = toy.federation(toy.method({"name": "linear_probe"}), training)
    federation.participation_seed = 5
    federation.participants(3)
    list(client.batches(toy.samples(), toy.SHARES[0], training, (5, 3, 0)))
    participation, order = (np.random.SeedSequence(seed).generate_state(4).tolist() for seed in seeds)
    assert participation != order


def test_no_upload_is_held_while_the_next_client_trains():
    alive, at_start = [], []

    class Watched(toy.Tampered):
        def run(self, *arguments):
            for uploads in super().run(*arguments):
                alive.extend(map(weakref.ref, uploads))
                yield uploads
                del uploads

    class Starts(Listener):
        def phase_started(self, phase):
            if phase.name in ("train", "evaluate"):
                at_start.append(sum(upload() is not None for upload in alive))

    federation = toy.federation(toy.method(FLORA), listeners=[Starts()])
    federation.runner = Watched(federation.runner, {})
    list(federation.rounds(2))
    assert at_start == [0] * 9
