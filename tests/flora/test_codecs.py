"""Codecs: what they take, what they lose, what they refuse; and federations that use them."""

import json
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load, save

from flora import client, payload, states
from flora.aggregation import WeightedMean
from flora.codecs import make_codec
from flora.payload import PayloadError
from flora.settings import CODECS, Bf16, CodecConfig, Fp16, Fp32, Int8, TopK, Training
from flora.states import StatesOnDisk, residuals_for
from tests.flora import toy

SPECS = {
    "fp32": Fp32(),
    "fp16": Fp16(),
    "fp16 up": Fp16(direction="up"),
    "bf16": Bf16(),
    "bf16 up": Bf16(direction="up"),
    "int8": Int8(),
    "int8 up": Int8(direction="up"),
    "topk": TopK(share=0.25),
    "topk forgetful": TopK(share=0.25, error_feedback=False),
}
LOSSY = {name: spec for name, spec in SPECS.items() if name != "fp32"}
BOTH = {name: spec for name, spec in LOSSY.items() if getattr(spec, "direction", "up") == "both"}
DTYPES = [torch.float32, torch.float64]
FLORA = {"name": "flora", "alpha": 4.0}
PROBE = {"name": "linear_probe"}
TRAINING = toy.TRAINING.model_copy(update={"local_epochs": 2})

each_codec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
each_lossy = pytest.mark.parametrize("spec", LOSSY.values(), ids=LOSSY)


def tensors(seed=0, dtype=torch.float32):
    """Of several ranks, one of them none, one empty, one of zeros."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (7, 5), "scale": (), "row": (11,), "none": (0, 3)}
    drawn = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    return drawn | {"zeros": torch.zeros(6, dtype=dtype)}


def trained_from(received, seed=1, size=1e-3):
    generator = torch.Generator().manual_seed(seed)
    return {n: x + size * torch.randn(x.shape, generator=generator).to(x.dtype) for n, x in received.items()}


def passed_up(codec, trained, received, residual=None):
    encoded, left = codec.encode_update(trained, received, residual)
    return dict(codec.decode_update(encoded, received, received)), left


def numbers_of(encoded):
    """The bytes of a payload that are not header, and how many tensors the header names."""
    length = int.from_bytes(encoded[:8], "little")
    return len(encoded) - 8 - length, len(json.loads(encoded[8 : 8 + length]))


# --- settings ------------------------------------------------------------------------------------------


def test_codecs_by_name_or_by_values():
    read = TypeAdapter(CodecConfig).validate_python
    assert {name: read(name) for name in CODECS} == {name: spec() for name, spec in CODECS.items()}
    assert read({"name": "topk", "share": 0.5}) == TopK(share=0.5)
    assert read({}) == Fp32()
    for wrong in ("fp8", {"name": "topk", "share": 0}, {"name": "topk", "direction": "both"}, 8):
        with pytest.raises(ValidationError):
            read(wrong)


# --- what travels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plain_payloads_are_the_tensors_as_they_are(dtype):
    codec, state = make_codec(Fp32()), tensors(dtype=dtype)
    trained = trained_from(state)
    assert codec.encode_state(state) == payload.encode(state) == save(state)
    assert codec.encode_update(trained, state, None) == (payload.encode(trained), None)
    assert codec.received(state, b"") is state


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_codec
def test_names_shapes_and_types_come_back(spec, dtype):
    codec, state = make_codec(spec), tensors(dtype=dtype)
    encoded = codec.encode_state(state)
    down = codec.decode_state(encoded, like=state)
    up, _ = passed_up(codec, trained_from(down), down)
    for arrived in (down, up, codec.received(state, encoded)):
        assert list(arrived) == list(state)
        assert len(arrived) == len(state)
        assert all(arrived[n].shape == x.shape and arrived[n].dtype == dtype for n, x in state.items())
    assert torch.equal(down["zeros"], state["zeros"])
    with pytest.raises(KeyError):
        down["other"]


@each_codec
def test_the_server_knows_what_clients_received(spec):
    codec, state = make_codec(spec), tensors()
    encoded = codec.encode_state(state)
    theirs, ours = codec.decode_state(encoded, like=state), codec.received(state, encoded)
    assert all(torch.equal(theirs[n], ours[n]) for n in state)


@each_codec
def test_what_arrived_can_be_changed(spec):
    codec, state = make_codec(spec), tensors()
    before = {n: x.clone() for n, x in state.items()}
    encoded, _ = codec.encode_update(trained_from(state), state, None)
    arrived = codec.decode_update(encoded, state, state)
    first = dict(arrived)
    for name in state:
        arrived[name].zero_()
    assert all(torch.equal(first[n], arrived[n]) for n in state)
    assert all(torch.equal(x, before[n]) for n, x in state.items())


@each_codec
def test_views_and_parameters_can_be_sent(spec):
    codec = make_codec(spec)
    received = {"t": torch.zeros(3, 2)}
    trained = {"t": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)).T}
    plain, left = passed_up(codec, {"t": trained["t"].detach().contiguous()}, received)
    view, same = passed_up(codec, trained, received)
    assert torch.equal(plain["t"], view["t"])
    assert left is same is None or torch.equal(left["t"], same["t"])


def expected_bytes(spec, direction, shapes, size):
    """The closed forms, written out once more: of tensors of these numbers of entries, `size` bytes each."""
    if direction == "down" and getattr(spec, "direction", "up") == "up":
        spec = Fp32()
    each = {
        "fp32": lambda n: n * size,
        "fp16": lambda n: 2 * n,
        "bf16": lambda n: 2 * n,
        "int8": lambda n: n + size,
        "topk": lambda n: min(n, max(1, round(spec.share * n))) * (4 + size),
    }
    return sum(map(each[spec.name], shapes))


@pytest.mark.parametrize("options", toy.CASES, ids=toy.case_id)
def test_payloads_have_the_closed_forms_bytes_and_little_header(options):
    built = toy.method(options, dtype=torch.float32)
    shapes = [p.numel() for p in built.trainable.values()]
    assert sum(shapes) == built.closed_form()
    for spec in SPECS.values():
        codec = make_codec(spec)
        down = codec.encode_state(built.trainable)
        up, _ = codec.encode_update(built.trainable, codec.decode_state(down, built.trainable), None)
        for direction, encoded in (("down", down), ("up", up)):
            held, count = numbers_of(encoded)
            assert held == codec.tensor_bytes(direction, built.trainable)
            assert held == expected_bytes(spec, direction, shapes, 4)
            assert count == codec.tensors(direction, built.trainable)
            assert len(encoded) == codec.payload_bytes(direction, built.trainable)
            assert len(encoded) <= held + 8 + 150 * count


@each_codec
def test_the_closed_form_holds_in_double_precision_for_tensors_of_any_rank(spec):
    codec, state = make_codec(spec), tensors(dtype=torch.float64)
    up, _ = codec.encode_update(state, state, None)
    sizes = [x.numel() for x in state.values()]
    assert numbers_of(up)[0] == codec.tensor_bytes("up", state) == expected_bytes(spec, "up", sizes, 8)
    assert numbers_of(codec.encode_state(state))[0] == codec.tensor_bytes("down", state)


@pytest.mark.parametrize("options", [{"name": "peft:randlora"}, {"name": "full_finetune"}], ids=toy.case_id)
@each_lossy
def test_headers_stay_small_with_the_names_of_a_real_model(spec, options):
    real = toy.built_on(toy.architecture("ViT-B-32"), options).trainable
    codec = make_codec(spec)
    header = codec.payload_bytes("up", real) - codec.tensor_bytes("up", real)
    assert header <= 150 * codec.tensors("up", real)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from([torch.int8, torch.int32, *DTYPES]), st.integers(0, 5)), max_size=6
    )
)
def test_the_bytes_of_mixed_types_are_those_the_library_writes(kinds):
    state = {f"{number}": torch.arange(size).to(dtype) for number, (dtype, size) in enumerate(kinds)}
    assert payload.encode(state) == save(state)


def test_names_that_end_as_the_codecs_own_do_not_clash():
    names = ["a", "a:scale", "a:int8", "a:index", "a:value", "a:int8:scale"]
    state = {name: torch.full((3,), float(number)) for number, name in enumerate(names, 1)}
    for spec in SPECS.values():
        codec = make_codec(spec)
        start = {name: torch.zeros(3) for name in names}
        arrived, _ = passed_up(codec, state, start)
        kept = 1 if spec.name == "topk" else 3
        assert all(torch.equal(arrived[n][:kept], x[:kept]) for n, x in state.items())


# --- what is lost --------------------------------------------------------------------------------------

NUMBERS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12)


def one_tensor(values, dtype=torch.float32):
    return {"x": torch.tensor(values, dtype=dtype)}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values=NUMBERS, dtype=st.sampled_from(DTYPES))
def test_half_precisions_round_to_the_nearest(values, dtype):
    state = one_tensor(values, dtype)
    for spec, bits, least in ((Fp16(), 11, 2**-24), (Bf16(), 8, 2**-133)):
        codec = make_codec(spec)
        arrived = codec.decode_state(codec.encode_state(state), state)["x"]
        # half a unit in the last place, and of subnormal numbers half of the smallest
        assert ((arrived - state["x"]).abs() <= state["x"].abs() * 2.0**-bits + least / 2).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(values=NUMBERS, dtype=st.sampled_from(DTYPES))
def test_int8_is_off_by_half_a_scale_at_most(values, dtype):
    codec, state = make_codec(Int8()), one_tensor(values, dtype)
    encoded = codec.encode_state(state)
    parts = load(encoded)
    scale = parts["x:scale"]
    assert scale == state["x"].abs().max() / 127
    assert parts["x:int8"].abs().max() <= 127
    arrived = codec.decode_state(encoded, state)["x"]
    eps = torch.finfo(dtype).eps
    assert ((arrived - state["x"]).abs() <= scale / 2 * (1 + 300 * eps) + torch.finfo(dtype).tiny).all()
    back = codec.decode_state(codec.encode_state({"x": -state["x"]}), state)["x"]
    assert torch.equal(back, -arrived)  # symmetric


def test_int8_rounds_halves_to_even_and_keeps_the_largest():
    state = one_tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0])
    arrived = load(make_codec(Int8()).encode_state(state))
    assert arrived["x:int8"].tolist() == [127, 0, 2, 2, 0, -2, -127]
    assert arrived["x:scale"] == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int8_takes_the_smallest_and_the_largest_numbers(dtype):
    codec, limits = make_codec(Int8()), torch.finfo(dtype)
    for size in (limits.tiny * limits.eps, limits.tiny, limits.max / 2):
        state = one_tensor([size, -size, 0.0], dtype)
        arrived = codec.decode_state(codec.encode_state(state), state)["x"]
        assert torch.allclose(arrived, state["x"], rtol=limits.eps * 4, atol=limits.tiny)


def test_small_updates_of_large_weights_survive_int8_because_differences_travel():
    received = one_tensor([100.0, 1.0, -50.1])
    trained = {"x": received["x"] + torch.tensor([1e-3, -1e-3, 5e-4])}
    codec = make_codec(Int8())
    arrived, _ = passed_up(codec, trained, received)
    assert torch.allclose(arrived["x"] - received["x"], trained["x"] - received["x"], rtol=0, atol=1e-5)
    # of the weights themselves the same eight bits would give the same codes before training and after
    before, after = (codec.write("x", tensors["x"])["x:int8"] for tensors in (received, trained))
    assert torch.equal(before, after)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    share=st.floats(0.01, 1),
    dtype=st.sampled_from(DTYPES),
)
def test_topk_sends_the_largest_and_of_equal_ones_the_first(values, share, dtype):
    update = torch.tensor(values, dtype=dtype)
    kept = max(1, round(share * len(values)))
    parts = make_codec(TopK(share=share)).write("x", update)
    by_size = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    best = sorted(by_size[:kept])
    assert parts["x:index"].tolist() == best
    assert parts["x:index"].dtype == torch.int32
    assert parts["x:value"].tolist() == [values[i] for i in best]


def test_topk_of_everything_is_everything():
    received = tensors(dtype=torch.float64)
    trained = trained_from(received)
    arrived, left = passed_up(make_codec(TopK(share=1)), trained, received)
    assert all(torch.allclose(arrived[n], x, rtol=0, atol=1e-15) for n, x in trained.items())
    assert not any(x.any() for x in left.values())


@settings(max_examples=30, deadline=None, derandomize=True)
@given(share=st.floats(0.01, 1), seed=st.integers(0, 99), rounds=st.integers(1, 12))
def test_nothing_is_lost_with_error_feedback(share, seed, rounds):
    codec, state = make_codec(TopK(share=share)), tensors(dtype=torch.float64)
    done = {name: torch.zeros_like(x) for name, x in state.items()}
    sent, left = {name: x.clone() for name, x in done.items()}, None
    for number in range(rounds):
        trained = trained_from(state, seed * 100 + number, size=1.0)
        arrived, left = passed_up(codec, trained, state, left)
        for name in state:
            done[name] += trained[name] - state[name]
            sent[name] += arrived[name] - state[name]
    assert all(torch.allclose(sent[n] + left[n], x, rtol=0, atol=1e-12) for n, x in done.items())


def test_without_error_feedback_nothing_is_kept():
    codec, state = make_codec(TopK(error_feedback=False)), tensors()
    assert passed_up(codec, trained_from(state), state)[1] is None
    assert residuals_for(toy.method(PROBE), 3, codec) is None


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@each_codec
def test_what_is_not_finite_is_refused_and_leaves_no_residual(spec, value):
    codec, received = make_codec(spec), tensors()
    trained = trained_from(received)
    trained["matrix"][3, 2] = value
    encoded, left = codec.encode_update(trained, received, None)
    assert left is None
    with pytest.raises(PayloadError, match=r"'matrix.*' has values that are not finite"):
        codec.decode_update(encoded, received, received)


def test_a_difference_beyond_half_precision_is_refused():
    received = one_tensor([1.0, 2.0])
    codec = make_codec(Fp16())
    for size, fits in ((65504, True), (65520, False), (-7e4, False)):
        encoded, _ = codec.encode_update({"x": received["x"] + size}, received, None)
        if fits:
            assert codec.decode_update(encoded, received, received)["x"].isfinite().all()
            continue
        with pytest.raises(PayloadError, match="'x' has values that are not finite"):
            codec.decode_update(encoded, received, received)


X = {"x": torch.zeros(2, 3)}
CODES, SCALE = torch.ones(2, 3, dtype=torch.int8), torch.tensor(0.5)
HUGE = torch.finfo(torch.float32).max


def sparse(index, value=(1.0, 2.0)):
    return {"x:index": torch.tensor(index, dtype=torch.int32), "x:value": torch.tensor(value)}


@pytest.mark.parametrize(
    ("spec", "parts", "reason"),
    [
        (Fp16(), {"x": torch.ones(2, 3)}, r"'x' is torch.float32, not torch.float16"),
        (Bf16(), {"x": torch.ones(2, 3).half()}, r"'x' is torch.float16, not torch.bfloat16"),
        (Fp16(), {"x": torch.ones(3, 2).half()}, r"'x' has shape \(3, 2\), not \(2, 3\)"),
        (Fp16(), {}, "1 tensors missing, first 'x'"),
        (Int8(), {"x:int8": CODES}, "1 tensors missing, first 'x:scale'"),
        (Int8(), {"x:int8": CODES, "x:scale": SCALE, "y": SCALE}, "1 unexpected tensors, first 'y'"),
        (Int8(), {"x:int8": CODES, "x:scale": -SCALE}, "'x' has the scale -0.5, which is negative"),
        (Int8(), {"x:int8": CODES, "x:scale": SCALE * torch.nan}, "'x:scale' has values that are not finite"),
        (Int8(), {"x:int8": CODES, "x:scale": SCALE.double()}, "'x:scale' is torch.float64"),
        (Int8(), {"x:int8": CODES, "x:scale": SCALE[None]}, r"'x:scale' has shape \(1,\), not \(\)"),
        (Int8(), {"x:int8": CODES.float(), "x:scale": SCALE}, "'x:int8' is torch.float32, not torch.int8"),
        (Int8(), {"x:int8": 9 * CODES, "x:scale": torch.tensor(HUGE)}, "'x' has values that are not finite"),
        (TopK(share=0.3), sparse([-1, 2]), "'x' has indices that do not ascend within 6 entries"),
        (TopK(share=0.3), sparse([0, 6]), "do not ascend within 6 entries"),
        (TopK(share=0.3), sparse([2, 2]), "do not ascend within 6 entries"),
        (TopK(share=0.3), sparse([3, 1]), "do not ascend within 6 entries"),
        (TopK(share=0.3), sparse([1, 2, 3], [1.0] * 3), r"'x:index' has shape \(3,\), not \(2,\)"),
        (TopK(share=0.3), sparse([1, 2], [1.0, torch.inf]), "'x:value' has values that are not finite"),
        (TopK(share=0.3), X, "2 tensors missing, first 'x:index'"),
    ],
    ids=str,
)
def test_a_hostile_upload_is_refused_with_its_reason(spec, parts, reason):
    codec = make_codec(spec)
    with pytest.raises(PayloadError, match=reason) as refusal:
        codec.decode_update(payload.encode(parts), X, X)
    assert "\n" not in str(refusal.value)


def test_a_sum_that_is_not_finite_is_refused():
    large = {"x": torch.full((2, 3), 0.9 * HUGE)}
    for spec in (Bf16(), Int8(), TopK()):
        codec = make_codec(spec)
        encoded, _ = codec.encode_update(large, X, None)
        assert codec.decode_update(encoded, X, X)["x"].isfinite().all()
        with pytest.raises(PayloadError, match="'x' has values that are not finite"):
            codec.decode_update(encoded, X, large)


@each_codec
def test_garbage_and_damaged_payloads_are_refused_or_harmless(spec):
    codec = make_codec(spec)
    encoded, _ = codec.encode_update({"x": torch.arange(6.0).reshape(2, 3)}, X, None)
    damaged = [
        encoded[:i] + bytes([encoded[i] ^ flip]) + encoded[i + 1 :]
        for i in range(len(encoded))
        for flip in (1, 128)
    ]
    for content in (b"", b"\xff" * 64, struct.pack("<Q", 2) + b"{}", *damaged):
        try:
            arrived = codec.decode_update(content, X, X)
        except PayloadError:
            continue
        assert list(arrived) == ["x"]
        assert arrived["x"].shape == (2, 3)
        assert arrived["x"].isfinite().all()


# --- in a federation -----------------------------------------------------------------------------------


def federated(options, spec, rounds=3, at_once=1, residuals=None, training=TRAINING, **more):
    built = toy.method(options)
    server = toy.federation(built, training, at_once=at_once, **more)
    codec = make_codec(spec)
    if residuals is None:
        residuals = residuals_for(built, len(toy.SHARES), codec)
    server.runner = replace(server.runner, codec=codec, residuals=residuals)
    server.codec = codec
    return server, list(server.rounds(rounds))


def far(one, other):
    return max(float((one.state[n] - x).abs().max()) for n, x in other.state.items())


@pytest.mark.parametrize("options", [FLORA, PROBE], ids=toy.case_id)
@each_codec
def test_clients_trained_together_and_one_by_one_send_the_same(spec, options):
    alone, records = federated(options, spec, rounds=2)
    together, others = federated(options, spec, rounds=2, at_once=2)
    assert far(alone, together) < 1e-9
    for one, other in zip(records, others, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-9)


@each_lossy
def test_what_is_lost_shows_and_is_small(spec):
    plain, _ = federated(PROBE, Fp32())
    coded, records = federated(PROBE, spec)
    start, _ = federated(PROBE, Fp32(), rounds=0)
    moved = far(plain, start)
    assert 0 < far(plain, coded) < (moved if spec.name == "topk" else 0.1 * moved)
    assert not any(record.refused for record in records)


@pytest.mark.parametrize("at_once", [1, 2])
def test_topk_of_everything_is_the_plain_federation(at_once):
    plain, records = federated(FLORA, Fp32(), at_once=at_once)
    coded, others = federated(FLORA, TopK(share=1), at_once=at_once)
    assert far(plain, coded) < 1e-12
    assert [r.accuracy for r in records] == [r.accuracy for r in others]


def by_hand(spec_down, rounds=3):
    """FedAvg in which int8 differences come back: every step of it in the open."""

    def rounded(x):
        scale = x.abs().max() / 127
        return torch.round(x / scale) * scale if scale > 0 else x

    built = toy.method(PROBE)
    data, state = toy.samples(), {n: p.detach().clone() for n, p in built.trainable.items()}
    kept = {}
    for number in range(1, rounds + 1):
        received = {n: rounded(x) for n, x in state.items()} if spec_down else state
        total = {n: torch.zeros_like(x) for n, x in state.items()}
        for who, share in enumerate(toy.SHARES):
            work = client.start(built, received, TRAINING, kept.get(who))
            for batch in client.batches(data, share, TRAINING, (5, number, who)):
                client.step(work, batch)
            kept[who] = {n: x.clone() for n, x in client.optimizer_state(work).items()}
            for name, tensor in client.finish(work).items():
                total[name] += len(share) * (received[name] + rounded(tensor - received[name]))
        state = {n: x / sum(map(len, toy.SHARES)) for n, x in total.items()}
    return state


@pytest.mark.parametrize("direction", ["both", "up"])
def test_an_int8_federation_is_what_comes_out_by_hand(direction):
    server, _ = federated(PROBE, Int8(direction=direction))
    expected = by_hand(direction == "both")
    assert all(torch.allclose(server.state[n], x, rtol=0, atol=1e-12) for n, x in expected.items())


def test_a_topk_federation_with_error_feedback_is_what_comes_out_by_hand():
    """One step of plain SGD a round on the whole of a client's data, so that the updates are gradients."""
    training = Training(batch_size=24, optimizer={"name": "sgd", "lr": 0.5})
    server, _ = federated(PROBE, TopK(share=0.1), rounds=4, training=training)
    built, data = toy.method(PROBE), toy.samples()
    state = {n: p.detach().clone() for n, p in built.trainable.items()}
    left = [{n: torch.zeros_like(x) for n, x in state.items()} for _ in toy.SHARES]
    for _ in range(4):
        mean = {n: torch.zeros_like(x) for n, x in state.items()}
        for who, share in enumerate(toy.SHARES):
            client.load(built, state)
            names = list(built.trainable)
            gradients = torch.autograd.grad(built.loss(data.batch(share)), built.trainable.values())
            for name, gradient in zip(names, gradients, strict=True):
                update = left[who][name] - 0.5 * gradient
                most = update.abs().flatten().topk(max(1, round(0.1 * update.numel()))).indices
                sent = torch.zeros_like(update).flatten()
                sent[most] = update.flatten()[most]
                left[who][name] = update - sent.view_as(update)
                mean[name] += len(share) / 21 * sent.view_as(update)
        state = {n: x + mean[n] for n, x in state.items()}
    assert all(torch.allclose(server.state[n], x, rtol=0, atol=1e-12) for n, x in state.items())


def test_residuals_in_memory_and_on_disk_give_identical_results(monkeypatch):
    in_memory, _ = federated(PROBE, TopK(share=0.1), participation=0.67)
    on_disk, _ = federated(PROBE, TopK(share=0.1), participation=0.67, residuals=StatesOnDisk())
    assert all(torch.equal(in_memory.state[n], x) for n, x in on_disk.state.items())
    assert sorted(on_disk.runner.residuals) == sorted(in_memory.runner.residuals) == [0, 1, 2]
    built, codec = toy.method(PROBE), make_codec(TopK())
    assert residuals_for(built, 10, codec) == {}
    monkeypatch.setattr(states, "STATES_IN_MEMORY_BYTES", 10 * 8 * built.closed_form())
    assert isinstance(residuals_for(built, 10, codec), dict)
    assert isinstance(residuals_for(built, 11, codec), StatesOnDisk)


def test_error_feedback_makes_up_for_what_a_small_share_leaves_out():
    plain, _ = federated(PROBE, Fp32(), rounds=8)
    kept, _ = federated(PROBE, TopK(share=0.05), rounds=8)
    dropped, _ = federated(PROBE, TopK(share=0.05, error_feedback=False), rounds=8)
    assert far(plain, kept) < far(plain, dropped)


def test_a_client_that_diverged_is_refused_and_loses_its_residual():
    server, _ = federated(PROBE, TopK(share=0.5), rounds=1)
    assert sorted(server.runner.residuals) == [0, 1, 2]
    broken = {n: torch.full_like(x, torch.finfo(x.dtype).max) for n, x in server.state.items()}
    encoded = server.codec.encode_state(broken)
    ((upload,),) = server.runner.run(2, [1], encoded, server.events)
    assert sorted(server.runner.residuals) == [0, 2]
    with pytest.raises(PayloadError, match="not finite"):
        server.codec.decode_update(upload.payload, broken, broken)


@pytest.mark.parametrize("at_once", [1, 2])
@each_codec
def test_listeners_are_told_of_what_really_passed_and_of_what_it_stands_for(spec, at_once):
    class Ears(toy.Recorder):
        def __init__(self):
            super().__init__()
            self.mean = WeightedMean()

        def upload_accepted(self, round, client, samples, tensors):
            self.mean.add(tensors, samples)

    ears = Ears()
    server, _ = federated(FLORA, spec, rounds=1, at_once=at_once, listeners=[ears])
    assert all(torch.equal(server.state[n], x) for n, x in ears.mean.result().items())
    for _, _, _, direction, encoded in (heard for heard in ears.heard if heard[0] == "payload"):
        assert numbers_of(encoded)[0] == server.codec.tensor_bytes(direction, server.state)


@pytest.mark.parametrize("spec", BOTH.values(), ids=BOTH)
def test_a_garbled_upload_is_left_out_and_the_round_goes_on(spec):
    server, _ = federated(PROBE, spec, rounds=0)
    server.runner = toy.Tampered(server.runner, {1: payload.encode(server.state)})
    records = list(server.rounds(1))
    (refusal,) = records[1].refused
    assert refusal.client == 1
    assert records[1].clients == (0, 1, 2)
