"""What holds for every method that trains, FLoRA at every place included, and what is each baseline's own."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from flora import client
from flora.federation import evaluate
from flora.settings import Training
from tests.flora import toy

every_case = pytest.mark.parametrize("options", toy.CASES, ids=toy.case_id)
every_method = pytest.mark.parametrize("options", toy.OPTIONS, ids=toy.case_id)
DATA = toy.samples(16)


def gradients(built, batch):
    loss = built.loss(batch)
    return loss.detach(), torch.autograd.grad(loss, list(built.trainable.values()))


def trained(built, steps=8, lr=5e-3):
    """Train on one batch; give the loss before each step and the method."""
    training = Training(optimizer={"lr": lr, "weight_decay": 0})
    tensors = {name: p.detach().clone() for name, p in built.trainable.items()}
    state = client.start(built, tensors, training, None)
    losses = []
    for _ in range(steps):
        before = state.losses.item()
        state = client.step(state, toy.whole(DATA))
        losses.append((state.losses.item() - before) / len(DATA))
    return losses


def slope_along(built, batch, parameter, direction, step=1e-5):
    here = parameter.detach().clone()
    losses = []
    with torch.no_grad():
        for sign in (1, -1):
            parameter.copy_(here + sign * step * direction)
            losses.append(built.loss(batch).item())
        parameter.copy_(here)
    return (losses[0] - losses[1]) / (2 * step)


@every_method
def test_closed_form_counts_what_trains(options):
    built = toy.method(options)
    assert built.closed_form() == sum(p.numel() for p in built.trainable.values()) > 0


@every_method
def test_closed_form_counts_what_trains_on_a_real_architecture(options):
    built = toy.built_on(toy.architecture("ViT-B-32"), options)
    assert built.closed_form() == sum(p.numel() for p in built.trainable.values()) > 0


@every_case
def test_every_trained_tensor_gets_a_gradient_that_is_the_losses_slope(options):
    """Autograd against central differences, each tensor moved along a random direction."""
    built = toy.shake(toy.method(options))
    batch = toy.whole(DATA)
    _, found = gradients(built, batch)
    generator = torch.Generator().manual_seed(2)
    for (name, parameter), gradient in zip(built.trainable.items(), found, strict=True):
        # attention is blind to a bias on all keys: it moves every score of a query alike
        assert gradient.abs().max() > 1e-9 or name.endswith("k_proj.bias"), name
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        slope = slope_along(built, batch, parameter, direction)
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-8), name


@every_case
def test_loss_falls_and_what_is_frozen_stays_bit_identical(options):
    built = toy.method(options)
    before = {name: p.detach().clone() for name, p in built.named_parameters()}
    losses = trained(built)
    assert losses[-1] < losses[0] - 1e-3
    for name, parameter in built.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == parameter.requires_grad, name
    buffers = dict(toy.method(options).named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in built.named_buffers())


@every_case
def test_acceleration_changes_nothing(options):
    exact, plain = (toy.shake(toy.method(options, how)) for how in ("exact", "none"))
    assert list(exact.trainable) == list(plain.trainable)
    for chosen in (torch.arange(16), torch.tensor([3, 8, 3, 13]), torch.tensor([0, 1])):
        batch = DATA.batch(chosen)
        (loss, found), (expected_loss, expected) = gradients(exact, batch), gradients(plain, batch)
        assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-9)
        for name, mine, theirs in zip(exact.trainable, found, expected, strict=True):
            assert torch.allclose(mine, theirs, rtol=0, atol=1e-9), name
    test = toy.samples(60, seed=7)
    assert evaluate(exact, test) == evaluate(plain, test)
    with torch.inference_mode():
        batch = toy.whole(test)
        mine, theirs = (m.logits(batch, m.classifier()) for m in (exact, plain))
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)


@every_case
def test_a_frozen_image_towers_features_stand_for_the_images(options):
    built = toy.shake(toy.method(options))
    places = options.get("places", ())
    expected = options["name"] == "full_finetune" or any(place.startswith("vision.") for place in places)
    assert built.trains_vision == expected
    if built.trains_vision:
        return
    featured = DATA.with_features(built.clip, 5)
    by_features, by_images = (gradients(built, toy.whole(data)) for data in (featured, DATA))
    assert by_features[0].item() == pytest.approx(by_images[0].item(), abs=1e-9)
    for mine, theirs in zip(by_features[1], by_images[1], strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)
    assert evaluate(built, featured) == evaluate(built, DATA)


@every_method
def test_which_towers_train(options):
    built = toy.method(options)
    images, texts = (
        {n for n in built.trainable if n.startswith((f"clip.{tower}.", f"clip.{tower}_head."))}
        for tower in ("vision", "text")
    )
    assert built.trains_vision == bool(images)
    assert built.trains_text == bool(texts)


@every_method
def test_a_start_does_not_depend_on_acceleration(options):
    exact, plain = (toy.method(options, how).trainable for how in ("exact", "none"))
    assert all(torch.allclose(exact[n], p, rtol=0, atol=1e-12) for n, p in plain.items())


def zero_shot_logits(batch):
    model = toy.open_clip_model()
    with torch.no_grad():
        images = model.encode_image(batch.inputs, normalize=True)
        texts = model.encode_text(toy.prompts().tokens, normalize=True)
        return model.logit_scale.exp() * images @ texts.T


def test_zero_shot_trains_nothing_and_scores_as_clip_does():
    built = toy.method({"name": "zero_shot"})
    assert built.trainable == {}
    assert built.closed_form() == 0
    assert not built.trains_vision
    assert not built.trains_text
    batch = toy.whole(DATA)
    assert torch.allclose(
        built.logits(batch, built.classifier()), zero_shot_logits(batch), rtol=0, atol=1e-10
    )
    assert evaluate(built, DATA) == (zero_shot_logits(batch).argmax(1) == batch.labels).double().mean()


@pytest.mark.parametrize("name", ["linear_probe", "full_finetune"])
@pytest.mark.parametrize("acceleration", ["exact", "none"])
def test_a_start_that_scores_as_zero_shot_does(name, acceleration):
    built = toy.method({"name": name}, acceleration)
    batch = toy.whole(DATA)
    logits = built.logits(batch, built.classifier())
    assert torch.allclose(logits, zero_shot_logits(batch), rtol=0, atol=1e-10)


def test_linear_probe_is_a_linear_layer_under_the_logit_scale():
    built = toy.shake(toy.method({"name": "linear_probe"}))
    batch = toy.whole(DATA)
    with torch.no_grad():
        images = F.normalize(built.clip.encode_image(batch.inputs), dim=-1)
        logits = built.clip.logit_scale.exp() * (images @ built.weight.T + built.bias)
    assert torch.allclose(built.logits(batch, built.classifier()), logits, rtol=0, atol=1e-12)
    assert built.loss(batch).item() == pytest.approx(F.cross_entropy(logits, batch.labels).item())


def test_linear_probe_leaves_the_text_features_it_started_from_alone():
    built = toy.method({"name": "linear_probe"})
    before = built.text_features(torch.arange(toy.CLASSES)).clone()
    trained(built)
    assert torch.equal(built.text_features(torch.arange(toy.CLASSES)), before)
    assert not torch.equal(built.weight, before)


def test_attention_adapter_starts_with_both_layers_the_identity():
    built = toy.method({"name": "attention_adapter"})
    batch = toy.whole(DATA)
    with torch.no_grad():
        x = toy.clip().encode_image(batch.inputs)
        expected = F.normalize(torch.tanh(x).exp() * x, dim=-1)  # softmax's sum leaves with the length
        assert torch.allclose(built.image_features(batch), expected, rtol=0, atol=1e-12)
    for layer in (built.first, built.second):
        assert torch.equal(layer.weight, torch.eye(toy.DIM, dtype=torch.float64))
        assert not layer.bias.any()


def test_attention_adapter_by_hand():
    built = toy.shake(toy.method({"name": "attention_adapter"}), scale=0.5)
    p = {name: tensor.detach() for name, tensor in built.trainable.items()}
    batch = toy.whole(DATA)
    with torch.no_grad():
        x = toy.clip().encode_image(batch.inputs)
        hidden = torch.tanh(x @ p["first.weight"].T + p["first.bias"])
        attention = (hidden @ p["second.weight"].T + p["second.bias"]).softmax(dim=-1)
        expected = attention * x / (attention * x).norm(dim=-1, keepdim=True)
        assert torch.allclose(built.image_features(batch), expected, rtol=0, atol=1e-12)


def test_full_finetune_trains_everything():
    built = toy.method({"name": "full_finetune"})
    assert all(p.requires_grad for p in built.parameters())
    assert "clip.logit_scale" in built.trainable


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("full_finetune", 151_277_313),
        ("linear_probe", toy.CLASSES * (512 + 1)),
        ("attention_adapter", 2 * (512 * 512 + 512)),
        ("zero_shot", 0),
    ],
)
def test_closed_forms_of_the_baselines_on_vit_b_32(name, parameters):
    assert toy.built_on(toy.architecture("ViT-B-32"), {"name": name}).closed_form() == parameters
