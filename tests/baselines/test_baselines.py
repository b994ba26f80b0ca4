"""What holds for every method that trains, FLoRA at every place included, and what is each baseline's own."""

from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from open_clip.model import CustomTextCLIP
from peft.tuners.lora.dora import DoraLinearLayer

from flora import client
from flora.clip import Clip
from flora.errors import BadInput
from flora.evaluation import evaluate
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


def hold_norms(monkeypatch):
    """DoRA's gradient takes the norms of the adapted weights for constants (section 4.3): make them such."""
    norms = {}
    measured = DoraLinearLayer.get_weight_norm

    def held(self, *args, **more):
        return norms.setdefault(id(self), measured(self, *args, **more))

    monkeypatch.setattr(DoraLinearLayer, "get_weight_norm", held)


@every_case
def test_every_trained_tensor_gets_a_gradient_that_is_the_losses_slope(options, monkeypatch):
    """Autograd against central differences, each tensor moved along a random direction."""
    built = toy.shake(toy.method(options))
    hold_norms(monkeypatch)
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
    if built.trains_vision:
        return
    featured = toy.featured(DATA, built.clip)
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
    # what a prompt's embedding is made of may train without the tower
    assert built.trains_text == (bool(texts) or options["name"] == "prompt_tuning")


@every_method
def test_a_start_is_the_generators_alone(options):
    def start(dtype=torch.float64):
        torch.rand(1)  # what others draw from the global stream must not matter
        built = toy.method(options, dtype=dtype)
        return {**built.trainable, **dict(built.named_buffers())}

    with torch.random.fork_rng():
        first, stream = start(), torch.get_rng_state()
        torch.set_rng_state(stream)
        again = start()
        torch.set_rng_state(stream)
        torch.rand(1)
        assert torch.equal(torch.get_rng_state(), stream) is False
        after_one_draw = torch.get_rng_state()
        torch.set_rng_state(stream)
        single = start(torch.float32)
        assert torch.equal(torch.get_rng_state(), after_one_draw)
    for name, tensor in first.items():
        assert torch.equal(again[name], tensor), name
        assert torch.allclose(single[name].to(tensor), tensor, rtol=1e-6, atol=1e-6), name


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


NOT_FROM_ZERO_SHOT = ("attention_adapter", "clip_adapter", "prompt_tuning")


@every_method
@pytest.mark.parametrize("acceleration", ["exact", "none"])
def test_a_start_that_scores_as_zero_shot_does(options, acceleration):
    if options["name"] in NOT_FROM_ZERO_SHOT:
        pytest.skip("what it adds works from the start")
    built = toy.method(options, acceleration)
    batch = toy.whole(DATA)
    logits = built.logits(batch, built.classifier())
    assert torch.allclose(logits, zero_shot_logits(batch), rtol=0, atol=1e-10)


@every_method
def test_a_method_of_open_vocabulary_scores_other_classes_by_their_prompts(options):
    built = toy.shake(toy.method(options))
    batch, others = toy.whole(DATA), toy.other_prompts()
    before = built.logits(batch, built.classifier())
    if not built.open_vocabulary:
        with pytest.raises(ValueError, match=f"{built.options.name} classifies only"), built.prompted(others):
            pass
        return
    with built.prompted(others), torch.no_grad():
        assert built.classes == len(others)
        found = built.logits(batch, built.classifier())
    expected = toy.shake(toy.method(options, prompts=others))
    assert torch.allclose(found, expected.logits(batch, expected.classifier()), rtol=0, atol=1e-12)
    assert torch.equal(built.logits(batch, built.classifier()), before)


def test_methods_with_weights_for_each_class_know_no_others():
    closed = [options for options in toy.OPTIONS if not toy.method(options).open_vocabulary]
    assert {options["name"] for options in closed} == {"linear_probe", "vision_finetune", "prompt_tuning"}
    assert all(o.get("class_specific") for o in closed if o["name"] == "prompt_tuning")


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
    before = built.text_features(toy.of_classes(range(toy.CLASSES))).clone()
    trained(built)
    assert torch.equal(built.text_features(toy.of_classes(range(toy.CLASSES))), before)
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
        ("vision_finetune", 87_849_216 + toy.CLASSES * (512 + 1)),
        ("clip_adapter", 2 * 512 * 128),
        ("prompt_tuning", 16 * 512),
        # a block has two of them; the towers have one and two besides
        ("layernorm_tuning", 2 * (25 * 512 + 26 * 768)),
        # a block's: four of its attention, the two of its normalisation, the MLP's wide one and its own
        ("bitfit", (12 * 11 + 1) * 512 + (12 * 11 + 2) * 768),
        ("zero_shot", 0),
    ],
)
def test_closed_forms_of_the_baselines_on_vit_b_32(name, parameters):
    assert toy.built_on(toy.architecture("ViT-B-32"), {"name": name}).closed_form() == parameters


def test_vision_finetune_is_a_linear_probe_on_a_tower_that_trains():
    tuned, probe = (toy.method({"name": name}) for name in ("vision_finetune", "linear_probe"))
    batch = toy.whole(DATA)
    assert tuned.loss(batch).item() == probe.loss(batch).item()
    towers = {name for name in tuned.trainable if name not in probe.trainable}
    assert towers == {
        n for n, _ in tuned.named_parameters() if n.startswith(("clip.vision.", "clip.vision_head."))
    }


@pytest.mark.parametrize("ratio", [0.2, 0.9])
def test_clip_adapter_by_hand(ratio):
    built = toy.shake(toy.method({"name": "clip_adapter", "ratio": ratio, "reduction": 2}), scale=0.5)
    down, up = built.down.detach(), built.up.detach()
    assert (down.shape, up.shape) == ((toy.DIM // 2, toy.DIM), (toy.DIM, toy.DIM // 2))
    batch = toy.whole(DATA)
    with torch.no_grad():
        x = toy.clip().encode_image(batch.inputs)
        mixed = ratio * ((x @ down.T).clamp(min=0) @ up.T).clamp(min=0) + (1 - ratio) * x
        expected = mixed / mixed.norm(dim=-1, keepdim=True)
        assert torch.allclose(built.image_features(batch), expected, rtol=0, atol=1e-12)


def test_clip_adapter_starts_as_torch_starts_linear_layers():
    built = toy.built_on(toy.clip(), {"name": "clip_adapter", "reduction": 1})
    for weight in (built.down, built.up):
        bound = toy.DIM**-0.5
        assert 0.9 * bound < weight.abs().max() <= bound
        assert abs(weight.mean()) < 5 * bound / 3**0.5 / weight.numel() ** 0.5


@pytest.mark.parametrize("acceleration", ["exact", "none"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_context_vectors_that_are_words_make_the_prompt_of_these_words(acceleration, class_specific):
    """The one check that says it all: place, order, length and end of the spliced prompt are right."""
    options = {"name": "prompt_tuning", "context": 3, "class_specific": class_specific}
    built = toy.method(options, acceleration)
    names = [(7,), (3, 9), (11, 2, 30), (5, 5), (40, 17, 8)]  # those of toy.prompts()
    words = [(20 + label, 31, 6) if class_specific else (20, 31, 6) for label in range(toy.CLASSES)]
    with torch.no_grad():
        embedded = toy.clip().text.token_embedding(torch.tensor(words))
        built.context.copy_(embedded if class_specific else embedded[0])
        written = toy.tokens([(*words[label], *name) for label, name in enumerate(names)])
        expected = F.normalize(toy.clip().encode_text(written), dim=-1)
        labels = torch.tensor([4, 0, 2, 2, 1, 3])
        assert torch.allclose(
            built.text_features(toy.of_classes(labels)), expected[labels], rtol=0, atol=1e-12
        )
        assert torch.allclose(built.classifier(), expected, rtol=0, atol=1e-12)


def test_context_vectors_stand_beside_the_bare_names_where_these_are_known():
    names, prompts = toy.tokens([(i, i + 1) for i in range(toy.CLASSES)]), toy.prompts()
    options = {"name": "prompt_tuning", "context": 4}
    by_name = toy.method(options, prompts=replace(prompts, names=names))
    bare = toy.method(options, prompts=replace(prompts, tokens=names))
    assert torch.equal(by_name.classifier(), bare.classifier())
    assert not torch.allclose(by_name.classifier(), toy.method(options).classifier())


def test_context_vectors_start_small():
    built = toy.method({"name": "prompt_tuning", "context": 7, "class_specific": True})
    assert built.context.shape == (toy.CLASSES, 7, toy.TEXT["width"])
    z = built.context.detach() / 0.02
    tolerance = 5 / z.numel() ** 0.5  # five standard errors
    assert abs(z.mean()) < tolerance
    assert abs(z.std() - 1) < tolerance


def test_the_hook_of_prompt_tuning_is_gone_even_after_an_error(monkeypatch):
    built = toy.method({"name": "prompt_tuning", "context": 2})
    built.classifier()
    monkeypatch.setattr(built.clip.text, "ln_final", None)
    with pytest.raises(TypeError):
        built.classifier()
    assert not built.clip.text.token_embedding._forward_hooks


def test_prompts_that_leave_no_room_for_the_context_are_refused():
    toy.method({"name": "prompt_tuning", "context": 7})  # 5 tokens are the longest, of 12
    with pytest.raises(BadInput, match=r"^method\.context: 8 vectors do not fit beside .* at most 7 do$"):
        toy.method({"name": "prompt_tuning", "context": 8})
    with pytest.raises(BadInput, match=r"^method\.context: 16 vectors"):
        toy.method({"name": "prompt_tuning"})


@pytest.mark.parametrize("text", [{"pool_type": "last"}, {"no_causal_mask": True}], ids=str)
def test_prompt_tuning_needs_a_tower_that_is_read_at_the_end_token(text):
    with pytest.raises(BadInput, match=r"^method\.name: prompt_tuning needs a causal text tower"):
        toy.method({"name": "prompt_tuning", "context": 2}, text={**toy.TEXT, **text})


@pytest.mark.parametrize("name", ["bitfit", "layernorm_tuning"])
@pytest.mark.parametrize("towers", [("text",), ("vision",), ("text", "vision"), ("text", "text")])
def test_what_trains_of_the_chosen_towers(name, towers):
    built = toy.method({"name": name, "towers": towers})
    with torch.device("meta"):
        model = CustomTextCLIP(toy.DIM, toy.VISION, toy.TEXT)
    kinds = open_clip.transformer.LayerNorm
    norms = {f"clip.{n}." for n, m in model.named_modules() if isinstance(m, kinds)}
    norms = {n.replace("clip.visual", "clip.vision") for n in norms}
    for full_name, parameter in built.named_parameters():
        inside = full_name.split(".")[1].removesuffix("_head") in towers
        chosen = full_name.endswith("bias") if name == "bitfit" else full_name.startswith(tuple(norms))
        assert parameter.requires_grad == (inside and chosen), full_name
    assert built.closed_form() == sum(p.numel() for p in built.trainable.values())


def half(options, seed=0):
    """A method that computes in bfloat16 and trains in float32, its frozen matrices shrunk."""
    model = Clip(toy.open_clip_model(torch.float32), compute_dtype=torch.bfloat16)
    built = toy.shake(toy.built_on(model, options, seed=seed))
    built.clip.shrink_frozen()
    return built


@every_case
def test_in_half_precision_what_trains_stays_single_and_the_loss_close(options):
    data = toy.samples(16, torch.float32)
    low, full = half(options), toy.shake(toy.method(options, dtype=torch.float32))
    loss, found = gradients(low, toy.whole(data))
    expected, reference = gradients(full, toy.whole(data))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.05, abs=0.05)
    for name, gradient in zip(low.trainable, found, strict=True):
        assert low.trainable[name].dtype == gradient.dtype == torch.float32, name
    together = [torch.cat([x.flatten() for x in gs]) for gs in (found, reference)]
    assert F.cosine_similarity(*together, dim=0) > 0.95
    for layer in low.clip.modules():
        if isinstance(layer, torch.nn.Linear):
            assert layer.weight.dtype == (torch.float32 if layer.weight.requires_grad else torch.bfloat16)


@pytest.mark.parametrize("name", ["zero_shot", "linear_probe", "attention_adapter"])
def test_similarities_keep_their_precision_whatever_a_caller_sets(name):
    built = half({"name": name})
    batch = toy.whole(toy.samples(16, torch.float32))
    with torch.inference_mode():
        expected = built.logits(batch, built.classifier())
        with torch.autocast("cpu", torch.bfloat16):
            found = built.logits(batch, built.classifier())
    assert found.dtype == torch.float32
    tolerance = 1e-6 if name != "attention_adapter" else 0.2  # its layers are the caller's affair
    assert torch.allclose(found, expected, rtol=0, atol=tolerance)


def test_layernorm_tuning_needs_a_layernorm():
    resnet = {"layers": (1, 1, 1, 1), "width": 8, "image_size": 32, "patch_size": None}
    with pytest.raises(BadInput, match=r"^method\.towers: there is no LayerNorm in vision$"):
        toy.method({"name": "layernorm_tuning", "towers": ("vision",)}, vision=resnet)
    built = toy.method({"name": "layernorm_tuning"}, vision=resnet)
    assert built.closed_form() == sum(p.numel() for p in built.trainable.values()) == 2 * 5 * 16


def test_bitfit_counts_convolutions_and_batch_norms():
    resnet = {"layers": (1, 1, 1, 1), "width": 8, "image_size": 32, "patch_size": None}
    built = toy.method({"name": "bitfit", "towers": ("vision",)}, vision=resnet)
    assert built.closed_form() == sum(p.numel() for p in built.trainable.values()) > 0
