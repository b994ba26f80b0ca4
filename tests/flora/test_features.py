"""Samples as batches, and features in place of images."""

import pytest
import torch

from flora.clip import ENCODED
from tests.flora import toy


def test_batches_go_through_all_samples_in_order():
    data = toy.samples(11)
    batches = list(data.batches(4))
    assert [len(b.labels) for b in batches] == [4, 4, 3]
    assert torch.equal(torch.cat([b.labels for b in batches]), data.labels)
    assert torch.equal(torch.cat([b.inputs for b in batches]), data.images.pixels)
    assert all(b.stage == 0 for b in batches)
    assert len(data) == 11


def test_features_are_what_the_image_tower_gives():
    clip, data = toy.clip(), toy.samples(11)
    found = toy.featured(data, clip)
    with torch.no_grad():
        expected = clip.encode_image(data.images.pixels)
    assert torch.allclose(found.features, expected, rtol=0, atol=1e-12)
    chosen = torch.tensor([7, 0, 3])
    batch = found.batch(chosen)
    assert batch.stage == ENCODED
    assert torch.equal(batch.inputs, found.features[chosen])
    assert torch.equal(batch.labels, data.labels[chosen])
    assert torch.equal(batch.classes, data.labels[chosen])
    assert data.features is None


@pytest.mark.parametrize("stage", range(6))
def test_what_enters_a_stage_leads_to_the_same_features(stage):
    clip, data = toy.clip(), toy.samples(5)
    batch = toy.whole(toy.featured(data, clip, stage))
    assert [s.name for s in clip.image_stages] == [
        "patches",
        "block 1 of 2",
        "block 2 of 2",
        "pooling",
        "head",
    ]
    with torch.no_grad():
        expected = clip.encode_image(data.images.pixels)
        assert torch.allclose(clip.encode_image(batch.inputs, stage), expected, rtol=0, atol=1e-12)


def test_a_gradient_may_pass_features():
    found = toy.featured(toy.samples(4), toy.clip())
    weight = torch.ones(toy.DIM, dtype=torch.float64, requires_grad=True)
    (toy.whole(found).inputs * weight).sum().backward()
    assert torch.allclose(weight.grad, found.features.sum(0), rtol=0, atol=1e-12)
    assert not found.features.is_inference()


def test_kept_images_are_asked_of_their_source():
    class Decoded(toy.Images):
        def kept(self):
            return toy.Images(self.pixels * 2)

    data = toy.samples(3)
    data = type(data)(Decoded(data.images.pixels), data.labels)
    assert torch.equal(toy.whole(data.with_images_kept()).inputs, 2 * data.images.pixels)
