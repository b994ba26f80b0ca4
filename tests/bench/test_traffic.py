"""The ledger of bytes against planted payloads, what a client needs once, and the field `codec`."""

import csv
import hashlib
import io
import json
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.catalogue import describe_codecs
from bench.cell import run_cell
from bench.config import RunConfig, field_models, label
from bench.matrix import Matrix
from bench.measure.traffic import HEADER_BYTES_PER_TENSOR, Ledger, PayloadMismatch, Traffic, needed_once_bytes
from bench.report.names import label_runs
from bench.tasks.features import precomputed_clip, write_features
from flora import payload
from flora.codecs import Plain, make_codec
from flora.errors import BadInput
from flora.events import Events
from flora.method import METHODS
from flora.prompts import Prompts
from flora.settings import CODECS, Bf16, Fp16, Fp32, Int8, TopK
from tests.flora import toy

READ = RunConfig.read
SHARED = {"a": torch.zeros(10, 2), "b": torch.zeros(5)}
NUMBERS = 25
SPECS = [Fp32(), Fp16(), Bf16(), Int8(), Int8(direction="up"), TopK(share=0.2)]
SMALL = {
    "data": {"max_train": 40, "max_test": 40},
    "clients": 4,
    "rounds": 2,
    "batch_size": 8,
    "optimizer": {"lr": 1e-3, "weight_decay": 0.0},
    "device": "cpu",
}

each_codec = pytest.mark.parametrize("spec", SPECS, ids=str)


def raw(numbers, header=b"{}"):
    return len(header).to_bytes(8, "little") + header + bytes(numbers)


def traffic(spec=None, shared=SHARED, numbers=NUMBERS):
    return Traffic(make_codec(spec or Fp32()), shared, numbers)


# --- the ledger ----------------------------------------------------------------------------------------


def test_every_payload_is_a_row_and_rounds_are_added_up():
    listener = traffic(TopK(share=0.2))
    events = Events((listener,))
    passed = [
        (1, 0, "down", 100),
        (1, 0, "up", 40),
        (1, 1, "down", 100),
        (1, 1, "up", 40),
        (2, 0, "down", 100),
    ]
    for number, client, direction, numbers in passed:
        events.payload(number, client, direction, raw(numbers))
    rows = listener.rows()
    assert len(rows) == 5
    assert rows[3] == rows[-2] == {
        "round": 1, "client": 1, "direction": "up",
        "tensor_bytes": 40, "payload_bytes": 50, "wire_bytes": None,
    }  # fmt: skip
    assert [(r["round"], r["client"], r["direction"], r["tensor_bytes"]) for r in rows] == passed
    assert [r["round"] for r in rows[3:]] == [1, 2]
    with pytest.raises(IndexError):
        rows[5]
    assert listener.round_bytes(1) == {"bytes_up": 100, "bytes_down": 220}
    assert listener.round_bytes(2) == {"bytes_up": 0, "bytes_down": 110}
    assert listener.round_bytes(0) == {"bytes_up": 0, "bytes_down": 0}
    assert (listener.bytes_up, listener.bytes_down, listener.payload_bytes) == (100, 330, 110)
    assert listener.invariants()["payload_closed_form"] == {
        "holds": True, "tensor_bytes": 100, "tensor_bytes_up": 40, "tensor_bytes_down": 100,
        "header_bytes": 10, "payloads": 5,
    }  # fmt: skip


def test_a_ledger_can_be_written_as_csv():
    ledger = Ledger()
    ledger.add(1, 3, "up", 100, 110)
    file = io.StringIO()
    writer = csv.DictWriter(file, ledger[0])
    writer.writeheader()
    writer.writerows(ledger)
    assert file.getvalue().split() == [
        "round,client,direction,tensor_bytes,payload_bytes,wire_bytes",
        "1,3,up,100,110,",
    ]


def test_a_ledger_takes_little_memory():
    tracemalloc.start()
    try:
        ledger = Ledger()
        for number in range(20_000):
            ledger.add(1, number, "up", 2**40, 2**40)
        assert tracemalloc.get_traced_memory()[0] < 20_000 * 32
    finally:
        tracemalloc.stop()
    assert ledger[19_999]["client"] == 19_999


def test_without_a_payload_there_is_nothing_to_say():
    listener = traffic()
    assert listener.invariants() == {}
    assert listener.payload_bytes == 0
    assert len(listener.rows()) == 0


# --- the closed form -----------------------------------------------------------------------------------


@given(numbers=st.integers(90, 110), header=st.integers(0, 400))
def test_a_payload_is_refused_exactly_where_the_formula_says(numbers, header):
    listener = traffic()
    fits = numbers == 100 and header <= 2 * HEADER_BYTES_PER_TENSOR
    try:
        listener.payload_passed(1, 0, "up", raw(numbers, bytes(header)))
    except PayloadMismatch:
        assert not fits
    else:
        assert fits
    assert listener.invariants()["payload_closed_form"]["holds"] is fits
    assert ("reason" in listener.invariants()["payload_closed_form"]) is not fits


def test_a_mismatch_names_the_figures():
    with pytest.raises(
        PayloadMismatch,
        match=r"^payload up in round 2, client 5: its numbers take 1,099 bytes, but 1 tensors .* 1,100$",
    ):
        traffic(shared={"a": torch.zeros(275)}, numbers=275).payload_passed(2, 5, "up", raw(1_099))
    with pytest.raises(PayloadMismatch, match="have 25 numbers, but the method's closed form gives 24"):
        traffic(numbers=24).payload_passed(1, 0, "down", payload.encode(SHARED))
    with pytest.raises(PayloadMismatch, match="header takes 1,010 bytes, but of 2 tensors at most 308"):
        traffic().payload_passed(1, 0, "down", raw(100, bytes(1_002)))


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 40])
def test_what_is_no_payload_is_a_mismatch(content):
    with pytest.raises(PayloadMismatch, match="its numbers take 0 bytes"):
        traffic().payload_passed(1, 0, "up", content)


@each_codec
def test_payloads_of_every_codec_fit_and_one_tensor_more_does_not(spec):
    codec, listener = make_codec(spec), traffic(spec)
    down = codec.encode_state(SHARED)
    up, _ = codec.encode_update(SHARED, SHARED, None)
    listener.payload_passed(1, 0, "down", down)
    listener.payload_passed(1, 0, "up", up)
    assert listener.invariants()["payload_closed_form"]["holds"]
    assert [row["payload_bytes"] for row in listener.rows()] == [len(down), len(up)]
    more = SHARED | {"c": torch.zeros(1)}
    for direction, encoded in (
        ("down", codec.encode_state(more)),
        ("up", codec.encode_update(more, more, None)[0]),
    ):
        with pytest.raises(PayloadMismatch, match=f"payload {direction} in round 2, client 7: its numbers"):
            listener.payload_passed(2, 7, direction, encoded)
    assert not listener.invariants()["payload_closed_form"]["holds"]


@each_codec
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_tensor_added_to_the_uploads_of_a_federation_stops_it(spec, at_once):
    class WithOneMore(type(make_codec(spec))):
        def encode_update(self, trained, received, residual):
            spare = {"spare": torch.zeros(1, dtype=torch.float64)}
            return super().encode_update({**trained, **spare}, {**received, **spare}, residual)

    codec = make_codec(spec)
    built = toy.method({"name": "linear_probe"})
    listener = Traffic(codec, built.trainable, built.closed_form())
    server = toy.federation(built, at_once=at_once, listeners=[listener], codec=codec)
    object.__setattr__(server.runner, "codec", codec)
    list(server.rounds(1))
    planted = object.__new__(WithOneMore)
    planted.__dict__ |= codec.__dict__
    object.__setattr__(server.runner, "codec", planted)
    with pytest.raises(PayloadMismatch, match="payload up in round 1, client 0: its numbers take"):
        list(server.rounds(1))


def test_a_safetensors_payload_of_the_paper_size_fits():
    places = [
        f"text.transformer.resblocks.{layer}.attn.out_proj.lora_{side}"
        for layer in range(12)
        for side in "AB"
    ]
    state = {place: torch.zeros(2, 512) for place in places}
    listener = Traffic(Plain(), state, 24_576)
    listener.payload_passed(1, 0, "up", payload.encode(state))
    invariant = listener.invariants()["payload_closed_form"]
    assert invariant["tensor_bytes"] == 98_304
    assert invariant["header_bytes"] == listener.payload_bytes - 98_304


@pytest.mark.parametrize(
    ("codec", "up", "down"),
    [
        ("fp32", 4, 4),
        ("fp16", 2, 2),
        ({"name": "bf16", "direction": "up"}, 2, 4),
        ("int8", 1, 1),
        ({"name": "topk", "share": 0.1}, None, 4),
    ],
    ids=str,
)
def test_a_run_has_the_bytes_of_its_codec(codec, up, down):
    result = run_cell(READ({**SMALL, "method": "linear_probe", "codec": codec}))
    invariant = result["invariants"]["payload_closed_form"]
    assert invariant["holds"]
    dim = result["summary"]["trainable_parameters"] // 10 - 1
    scales = 8 if codec == "int8" else 0  # one for the weight, one for the bias
    sent = 8 * (dim + 1) if up is None else 10 * (dim + 1) * up + scales
    assert invariant["tensor_bytes_up"] == sent
    assert invariant["tensor_bytes_down"] == 10 * (dim + 1) * down + scales
    rows = 2 * 4  # rounds, clients
    for way in ("up", "down"):
        header = result["summary"][f"bytes_{way}"] - rows * invariant[f"tensor_bytes_{way}"]
        assert 0 < header <= rows * (4 * HEADER_BYTES_PER_TENSOR + 8)


# --- what a client needs once --------------------------------------------------------------------------


def sizes(method, *prefixes):
    """Bytes of the saved tensors of the untouched model that have one of these prefixes."""
    state = toy.clip(method.clip.logit_scale.dtype).state_dict()
    return sum(x.numel() * x.element_size() for n, x in state.items() if n.startswith(prefixes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_needed_once_is_what_is_frozen(dtype):
    size = dtype.itemsize
    embeddings, scale = toy.CLASSES * toy.DIM * size, size
    probe = toy.method({"name": "linear_probe"}, dtype=dtype)
    assert needed_once_bytes(probe) == sizes(probe, "vision") + embeddings + scale
    flora = toy.method({"name": "flora"}, dtype=dtype)
    assert needed_once_bytes(flora) == sizes(flora, "vision", "text") + scale
    on_images = toy.method({"name": "flora", "places": ("vision.out",)}, dtype=dtype)
    assert needed_once_bytes(on_images) == sizes(on_images, "vision") + embeddings + scale
    prompts = toy.method({"name": "prompt_tuning", "context": 4}, dtype=dtype)
    assert needed_once_bytes(prompts) == sizes(prompts, "vision", "text") + scale


@pytest.mark.parametrize("options", toy.CASES, ids=toy.case_id)
def test_trained_tensors_are_not_needed_once(options):
    built = toy.method(options)
    trained = {n for n, p in built.named_parameters() if p.requires_grad}
    assert trained == set(built.trainable)
    # what all layers of an adapter share has a name in each
    distinct = {x.data_ptr(): x for x in built.state_dict().values()}
    everything = sum(x.numel() * x.element_size() for x in distinct.values())
    travelling = 8 * built.closed_form()
    if built.trains_text:
        assert needed_once_bytes(built) == everything - travelling
    else:
        assert needed_once_bytes(built) < everything - travelling


def test_of_a_real_model_full_finetuning_needs_nothing_once_and_flora_all_of_it():
    model = toy.architecture("ViT-B-32")
    assert needed_once_bytes(toy.built_on(model, {"name": "full_finetune"})) <= 4
    assert needed_once_bytes(toy.built_on(toy.architecture("ViT-B-32"), {"name": "flora"})) == 605_109_252


def test_frozen_matrices_count_in_the_precision_they_are_stored_in():
    full = toy.method({"name": "flora"}, dtype=torch.float32)
    half = toy.method({"name": "flora"}, dtype=torch.float32)
    half.clip.compute_dtype = torch.bfloat16
    half.clip.shrink_frozen()
    assert 0.5 * needed_once_bytes(full) < needed_once_bytes(half) < 0.6 * needed_once_bytes(full)


def test_precomputed_features_need_no_image_tower(tmp_path):
    rows = torch.randn(6, 8)
    labels = torch.arange(6) % 3
    file = tmp_path / "f.safetensors"
    parts = {f"{part}.features": rows.clone() for part in ("train", "test")}
    parts |= {f"{part}.labels": labels.clone() for part in ("train", "test")}
    write_features(file, {**parts, "classes": torch.randn(3, 8)}, class_names=["a", "b", "c"])
    clip = precomputed_clip(file).requires_grad_(False)
    cls = METHODS["linear_probe"]
    prompts = Prompts(("a", "b", "c"), torch.arange(3)[:, None])
    built = cls(clip, prompts, cls.Options(name="linear_probe"), torch.Generator().manual_seed(0))
    assert needed_once_bytes(built) == 3 * 8 * 4 + 4


# --- the field `codec` ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codec": "int9"}, "codec.name: there is no codec 'int9'; did you mean 'int8'?"),
        ({"codec": {"name": "gzip"}}, "codec.name: there is no codec 'gzip'; choose from bf16, fp16, fp32, "),
        ({"codec": {"name": "topk", "shar": 1}}, "codec.shar: there is no such field; did you mean 'share'?"),
        ({"codec": {"name": "topk", "share": 2}}, "codec.share: 2 must be less than or equal to 1"),
        ({"codec": {"name": "int8", "direction": "down"}}, "codec.direction: 'down' must be 'both' or 'up'"),
        ({"codec": 8}, "codec: 8 must be a name or a mapping of fields to values"),
        ({"codec": {"name": "topk", "share": True}}, "codec.share: True must be a number, not a truth value"),
        ({"codec": "int8", "mode": "local_only"}, "codec: int8 has no effect in mode local_only; use fp32"),
        ({"codec": "topk", "mode": "centralized"}, "codec: topk has no effect in mode centralized; use fp32"),
    ],
    ids=str,
)
def test_a_codec_that_cannot_be_is_refused_in_one_line(fields, message):
    with pytest.raises(BadInput) as caught:
        READ(fields)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_codec_is_part_of_what_a_run_is():
    assert READ({}).codec == Fp32()
    hashes = {READ({"codec": codec}).hash for codec in [*CODECS, {"name": "topk", "share": 0.5}]}
    assert len(hashes) == 6
    assert READ({"codec": "topk"}).hash == READ({"codec": {"name": "topk", "share": 0.01}}).hash
    assert READ({"codec": {}}).hash == READ({"codec": "fp32"}).hash == READ({}).hash
    dumped = READ({"codec": "int8"}).model_dump(mode="json")
    assert READ(json.loads(json.dumps(dumped))).hash == READ({"codec": "int8"}).hash


def test_results_from_before_there_were_codecs_keep_their_names():
    config = READ({"task": "digits", "method": "linear_probe", "device": "cpu"})
    of_then = config.model_dump(mode="json")
    del of_then["codec"], of_then["tuning"], of_then["data"]["root"]
    assert config.hash == hashlib.sha256(json.dumps(of_then, sort_keys=True).encode()).hexdigest()[:12]


def test_a_run_is_called_after_its_codec():
    assert label(READ({"codec": "int8"})) == "digits · flora · int8 · iid · seed 0"
    assert label(READ({"codec": {"name": "topk", "share": 0.1}})).split(" · ")[2] == "topk (share 0.1)"
    assert field_models("codec", {"name": "topk"}) == [TopK]


def test_codecs_multiply_the_cells_of_a_matrix():
    cells = Matrix(codec=["fp32", "int8", {"name": "topk", "share": [0.1, 0.5]}], rounds=1).cells()
    assert [cell.codec for cell in cells] == [Fp32(), Int8(), TopK(share=0.1), TopK(share=0.5)]


def test_codecs_can_be_set(tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text("codec: [int8, topk]\n")
    assert [c.codec for c in Matrix.read(str(file), ["codec=bf16"]).cells()] == [Bf16()]
    both = Matrix.read(str(file), ["codec.share=0.1"]).cells()
    assert [c.codec for c in both] == [Int8(), TopK(share=0.1)]
    (one,) = Matrix.read(str(file), ["codec=topk", "codec.error_feedback=false"]).cells()
    assert one.codec == TopK(error_feedback=False)
    with pytest.raises(BadInput, match=r"^--set codec.shar: there is no such field; did you mean 'share'\?$"):
        Matrix.read(str(file), ["codec.shar=0.1"])


def test_every_codec_is_described_in_a_line():
    described = describe_codecs()
    assert list(described) == list(CODECS)
    assert all(line.endswith(".") and len(line) < 100 for line in described.values())


def frame(*codecs):
    import pandas as pd

    rows = [
        {"task": "digits", "model": "tiny", "method": "flora", "split": "iid", "shots": None} for _ in codecs
    ]
    return pd.DataFrame([row | codec for row, codec in zip(rows, codecs, strict=True)])


@pytest.mark.parametrize(
    ("codecs", "labels"),
    [
        ([{"codec.name": "fp32"}, {"codec.name": "fp32"}], ["FLoRA", "FLoRA"]),
        ([{}, {"codec.name": "fp32"}], ["FLoRA", "FLoRA"]),
        (
            [{}, {"codec.name": "int8", "codec.direction": "both"}],
            ["FLoRA (codec fp32)", "FLoRA (codec int8)"],
        ),
        (
            [{"codec.name": "topk", "codec.share": share} for share in (0.1, 0.5)],
            ["FLoRA (codec topk, share 0.1)", "FLoRA (codec topk, share 0.5)"],
        ),
    ],
    ids=["same", "old", "two", "options"],
)
def test_a_codec_that_varies_is_part_of_a_methods_name(codecs, labels):
    assert list(label_runs(frame(*codecs))["method_label"]) == labels
