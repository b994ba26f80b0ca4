"""Payloads: tensors written as bytes and read back, and each codec's update there and back."""

from __future__ import annotations

import pytest
import torch

from flora import payload
from flora.codecs import make_codec
from flora.settings import CODECS
from tests.perf.made import block_tensors, flora_tensors

SENT = {"flora": flora_tensors, "block": block_tensors}


@pytest.mark.parametrize("sent", SENT)
def test_encode(benchmark, sent):
    tensors = SENT[sent]()
    encoded = benchmark(payload.encode, tensors)
    benchmark.extra_info["payload_bytes"] = len(encoded)
    assert len(encoded) == payload.size_of(tensors)


def read(encoded, like):
    """Read a payload with all that is in it: its tensors are made when they are asked for."""
    return dict(payload.decode(encoded, like))


@pytest.mark.parametrize("sent", SENT)
def test_decode(benchmark, sent):
    tensors = SENT[sent]()
    decoded = benchmark(read, payload.encode(tensors), tensors)
    assert all(torch.equal(decoded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("name", CODECS)
def test_encode_update(benchmark, name):
    codec, trained, received = make_codec(CODECS[name]()), block_tensors(1), block_tensors()
    encoded, _ = benchmark(codec.encode_update, trained, received, None)
    benchmark.extra_info["payload_bytes"] = len(encoded)
    assert len(encoded) == codec.payload_bytes("up", trained)


@pytest.mark.parametrize("name", CODECS)
def test_decode_update(benchmark, name):
    codec, trained, received = make_codec(CODECS[name]()), block_tensors(1), block_tensors()
    encoded, _ = codec.encode_update(trained, received, None)
    decoded = benchmark(lambda: dict(codec.decode_update(encoded, trained, received)))
    assert all(x.isfinite().all() for x in decoded.values())
    assert decoded.keys() == trained.keys()
