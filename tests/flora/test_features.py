"""Samples as batches, and features in place of images."""

import torch

from tests.flora import toy


def test_batches_go_through_all_samples_in_order():
    data = toy.samples(11)
    batches = list(data.batches(4))
    assert [len(b.labels) for b in batches] == [4, 4, 3]
    assert torch.equal(torch.cat([b.labels for b in batches]), data.labels)
    assert torch.equal(torch.cat([b.inputs for b in batches]), data.images.pixels)
    assert not any(b.encoded for b in batches)
    assert len(data) == 11


def test_features_are_what_the_image_tower_gives():
    clip, data = toy.clip(), toy.samples(11)
    featured = data.with_features(clip, batch_size=4)
    with torch.no_grad():
        expected = clip.encode_image(data.images.pixels)
    assert torch.allclose(featured.features, expected, rtol=0, atol=1e-12)
    chosen = torch.tensor([7, 0, 3])
    batch = featured.batch(chosen)
    assert batch.encoded
    assert torch.equal(batch.inputs, featured.features[chosen])
    assert torch.equal(batch.labels, data.labels[chosen])
    assert data.features is None


def test_a_gradient_may_pass_features():
    featured = toy.samples(4).with_features(toy.clip(), batch_size=4)
    weight = torch.ones(toy.DIM, dtype=torch.float64, requires_grad=True)
    (toy.whole(featured).inputs * weight).sum().backward()
    assert torch.allclose(weight.grad, featured.features.sum(0), rtol=0, atol=1e-12)
    assert not featured.features.is_inference()


def test_kept_images_are_asked_of_their_source():
    class Decoded(toy.Images):
        def kept(self):
            return toy.Images(self.pixels * 2)

    data = toy.samples(3)
    data = type(data)(Decoded(data.images.pixels), data.labels)
    assert torch.equal(toy.whole(data.with_images_kept()).inputs, 2 * data.images.pixels)
