"""Payloads: what is sent arrives bit for bit, and nothing else is let in."""

import json
import pickle
import struct
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import flora.payload
from flora.payload import PayloadError, decode, encode, size_of
from tests.flora import toy

STATE = {
    "b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a.scale": torch.tensor(-2.5),
    "half": torch.tensor([1.5, -0.0], dtype=torch.float16),
}
PAYLOAD = encode(STATE)
INTEGERS = ["BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"]
FLOATS = ["F4", "F6_E2M3", "F6_E3M2", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F16", "BF16", "F32", "F64", "C64"]
DTYPES = [*INTEGERS, *FLOATS, "F8_E4M3FNUZ", "F8_E5M2FNUZ"]


def altered(**changes):
    return {**STATE, **changes}


def without(name):
    return {n: t for n, t in STATE.items() if n != name}


def raw(header, data=b""):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


def test_round_trip():
    arrived = decode(PAYLOAD, like=STATE)
    assert list(arrived) == list(STATE)
    for name, tensor in STATE.items():
        assert torch.equal(arrived[name], tensor)
        assert arrived[name].dtype == tensor.dtype
    assert not torch.signbit(arrived["half"][0])
    assert torch.signbit(arrived["half"][1])


def test_what_arrived_can_be_changed_without_changing_the_payload():
    arrived = decode(PAYLOAD, like=STATE)
    for tensor in arrived.values():
        tensor.zero_()
    assert torch.equal(arrived["b.weight"], STATE["b.weight"])
    assert torch.equal(decode(PAYLOAD, like=STATE)["b.weight"], STATE["b.weight"])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5),
        max_size=5,
    )
)
def test_round_trip_of_any_names_and_values(values):
    state = {name: torch.tensor(x, dtype=torch.float32) for name, x in values.items()}
    arrived = decode(encode(state), like=state)
    assert list(arrived) == list(state)
    assert all(torch.equal(arrived[n], t) for n, t in state.items())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.lists(st.integers(0, 4), max_size=3),
        max_size=5,
    ),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_the_bytes_are_those_the_library_writes(shapes, dtype):
    state = {
        name: torch.arange(100, dtype=dtype)[: torch.Size(s).numel()].reshape(s) for name, s in shapes.items()
    }
    assert encode(state) == save(state)


def test_the_library_reads_what_is_encoded_of_mixed_types():
    state = altered(bytes=torch.ones(3).bfloat16(), wide=torch.arange(3.0, dtype=torch.float64))
    read = load(encode(state))
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


def test_a_payload_laid_out_in_another_way_is_read_too():
    payload = save(STATE, metadata={"by": "another"})
    assert payload != PAYLOAD
    arrived = decode(payload, like=STATE)
    assert list(arrived) == list(STATE)
    assert all(torch.equal(arrived[name], tensor) for name, tensor in STATE.items())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    length=st.integers(1, 200),
    data=st.data(),
)
def test_one_number_that_is_not_finite_is_found_wherever_it_is(dtype, length, data):
    state = {
        "a": torch.full((length,), torch.finfo(dtype).max, dtype=dtype),
        "b": torch.zeros(3, dtype=dtype),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flora.payload, "_CHECKED_AT_ONCE_BYTES", 64)
        assert torch.equal(decode(encode(state), like=state)["a"], state["a"])
        name = data.draw(st.sampled_from(["a", "b"]))
        planted = data.draw(st.integers(0, len(state[name]) - 1))
        state[name][planted] = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
        with pytest.raises(PayloadError, match=f"'{name}' has values that are not finite"):
            decode(encode(state), like=state)


def traced_peak(work):
    tracemalloc.start()
    try:
        kept = work()
        return tracemalloc.get_traced_memory()[1], kept
    finally:
        tracemalloc.stop()


def test_numbers_are_copied_once_on_their_way_out_and_one_tensor_at_a_time_on_arrival():
    state = {str(number): torch.rand(2**18) for number in range(8)}  # a mebibyte each
    encoding, payload = traced_peak(lambda: encode(state))
    assert encoding < 1.1 * len(payload)
    decoding, arrived = traced_peak(lambda: decode(payload, like=state))
    assert decoding < 0.1 * len(payload)
    using, _ = traced_peak(lambda: max(float(arrived[name].max()) for name in arrived))
    assert using < 0.3 * len(payload)


def test_encode_takes_views_and_parameters():
    state = {"t": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)).T, "part": torch.arange(9.0)[2:5]}
    assert torch.equal(decode(encode(state), like=state)["t"], state["t"])
    assert torch.equal(decode(encode(state), like=state)["part"], state["part"])


def test_a_payload_cut_short_anywhere_is_refused():
    for length in range(len(PAYLOAD)):
        with pytest.raises(PayloadError, match=r"."):
            decode(PAYLOAD[:length], like=STATE)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (encode(without("half")), r"1 tensors missing, first 'half'"),
        (encode({}), r"3 tensors missing, first 'a\.scale'"),
        (encode(altered(spare=torch.ones(1))), r"1 unexpected tensors, first 'spare'"),
        (encode({**without("half"), "Half": STATE["half"]}), r"missing, first 'half'"),
        (encode(altered(half=torch.ones(3).half())), r"'half' has shape \(3,\), not \(2,\)"),
        (encode(altered(**{"b.weight": torch.ones(3, 2)})), r"'b.weight' has shape \(3, 2\), not \(2, 3\)"),
        (encode(altered(**{"a.scale": torch.ones(1)})), r"'a.scale' has shape \(1,\), not \(\)"),
        (encode(altered(half=torch.ones(2))), r"'half' is torch.float32, not torch.float16"),
        (encode(altered(half=torch.ones(2, dtype=torch.bfloat16))), r"'half' is torch.bfloat16"),
        (encode(altered(**{"b.weight": torch.ones(2, 3, dtype=torch.int32)})), r"'b.weight' is torch.int32"),
        (encode(altered(**{"a.scale": torch.tensor(torch.nan)})), r"'a.scale' has values .* not finite"),
        (encode(altered(**{"a.scale": torch.tensor(-torch.inf)})), r"'a.scale' has values .* not finite"),
        (encode(altered(half=torch.tensor([0, torch.inf]).half())), r"'half' has values .* not finite"),
        (PAYLOAD + b"\0", "not a safetensors payload"),
        (b"", "not a safetensors payload"),
        (b"\0" * 64, "not a safetensors payload"),
        (b"\xff" * 64, "not a safetensors payload"),
        (pickle.dumps(STATE), "not a safetensors payload"),
        (raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4), "not a safetensors"),
        (raw({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4), "not a safetensors"),
        (raw(b"[" * 5000), "not a safetensors payload"),
        (raw({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 0]}}), "not a safetensors"),
    ],
)
def test_anything_else_is_refused_with_its_reason(payload, reason):
    with pytest.raises(PayloadError, match=reason) as refusal:
        decode(payload, like=STATE)
    assert "\n" not in str(refusal.value)


def test_nothing_is_unpickled():
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a payload was executed",)

    with pytest.raises(PayloadError):
        decode(pickle.dumps({"a": Bomb()}), like=STATE)


def decodes_or_is_refused(payload):
    try:
        arrived = decode(payload, like=STATE)
    except PayloadError:
        return
    assert {n: (t.shape, t.dtype) for n, t in arrived.items()} == {
        n: (t.shape, t.dtype) for n, t in STATE.items()
    }
    assert all(t.isfinite().all() for t in arrived.values())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(position=st.integers(0, len(PAYLOAD) - 1), byte=st.integers(0, 255))
def test_a_damaged_byte_is_refused_or_harmless(position, byte):
    decodes_or_is_refused(PAYLOAD[:position] + bytes([byte]) + PAYLOAD[position + 1 :])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_garbage_is_refused(payload):
    decodes_or_is_refused(payload)
    decodes_or_is_refused(struct.pack("<Q", len(payload)) + payload)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [[0], [1], [8], []])
def test_every_type_of_the_format_is_refused_or_right(dtype, shape):
    count = 1 if not shape else shape[0]
    for size in {0, 1, 2, 4, 6, 8, 16, count, 2 * count, 4 * count, 8 * count}:
        payload = raw({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, b"\0" * size)
        decodes_or_is_refused(payload)
        try:
            decode(payload, like={"a": torch.zeros(shape)})
        except PayloadError:
            continue
        assert dtype == "F32"


def overhead(tensors):
    """Bytes that the format adds to the numbers: eight, and a header of names, types, shapes and offsets."""
    offset, header = 0, {}
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    return 8 + len(json.dumps(header, separators=(",", ":")))


@pytest.mark.parametrize("options", toy.CASES, ids=toy.case_id)
def test_the_format_adds_little_to_the_numbers(options):
    """At most 150 bytes a tensor, with the names and sizes of ViT-B/32."""
    small = toy.method(options, dtype=torch.float32).trainable
    numbers = sum(p.numel() * 4 for p in small.values())
    # padded to eight bytes; the order of the tensors, and so the digits of their offsets, may differ
    assert abs(len(encode(small)) - numbers - overhead(small)) <= 8 + 2 * len(small)
    real = toy.built_on(toy.architecture("ViT-B-32"), options).trainable
    assert 0 < overhead(real) + 8 <= 150 * len(real)


def test_the_size_is_known_before_anything_is_encoded():
    tensors = {"a": torch.ones(3, 5), "b": torch.ones(2, dtype=torch.float64), "c": torch.empty(0)}
    assert size_of(tensors) == len(encode(tensors))
    without_numbers = {name: x.to("meta") for name, x in tensors.items()}
    assert size_of(without_numbers) == len(encode(tensors))
