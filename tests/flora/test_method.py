"""The contract's own parts: the loss, what is encoded how often, the registry."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import ValidationError

from flora.method import METHODS, Method, contrastive, register
from tests.flora import toy

ZERO_SHOT = {"name": "zero_shot"}
LORA_ON_TEXT = {"name": "flora", "places": ("text.out",)}
LORA_ON_VISION = {"name": "flora", "places": ("vision.out",)}


def encoded_shapes(built, monkeypatch):
    """Record what the text tower is given: whole prompts by their shape, trees by their number of nodes."""
    shapes = []
    encode, run = built.clip.encode_text, built.clip.run_text_blocks
    monkeypatch.setattr(
        built.clip, "encode_text", lambda tokens: shapes.append(tuple(tokens.shape)) or encode(tokens)
    )
    monkeypatch.setattr(
        built.clip, "run_text_blocks", lambda x, *more: shapes.append(len(x)) or run(x, *more)
    )
    return shapes


def test_contrastive_by_hand():
    similarities = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    e = torch.exp(similarities)
    by_image = -(torch.log(e[0, 0] / e[0].sum()) + torch.log(e[1, 1] / e[1].sum())) / 2
    by_text = -(torch.log(e[0, 0] / e[:, 0].sum()) + torch.log(e[1, 1] / e[:, 1].sum())) / 2
    assert contrastive(similarities).item() == pytest.approx(((by_image + by_text) / 2).item(), abs=1e-14)


def test_contrastive_is_symmetric_and_that_of_chance_is_the_log_of_the_batch():
    similarities = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    assert contrastive(similarities) == pytest.approx(contrastive(similarities.T).item())
    assert contrastive(torch.zeros(6, 6)).item() == pytest.approx(torch.tensor(6.0).log().item())
    assert contrastive(100 * torch.eye(6)).item() == pytest.approx(0)


def test_images_of_one_class_count_as_negatives_of_each_other():
    built = toy.method(LORA_ON_TEXT)
    data = toy.samples(4)
    one_class = type(data)(data.images, torch.zeros(4, dtype=torch.int64))
    # each image has the same prompt: every similarity of a row is the same, whatever the image
    images = built.image_features(toy.whole(one_class))
    text = built.text_features(toy.of_classes([0]))
    similarity = (built.scale * images @ text.T).expand(4, 4)
    assert built.loss(toy.whole(one_class)).item() == pytest.approx(contrastive(similarity).item(), abs=1e-12)
    by_image = torch.tensor(4.0, dtype=torch.float64).log()
    assert F.cross_entropy(similarity, torch.arange(4)).item() == pytest.approx(by_image.item())


@pytest.mark.parametrize("acceleration", ["exact", "none"])
def test_losses_by_hand(acceleration):
    data = toy.whole(toy.samples(7))
    model, texts = toy.open_clip_model(), toy.prompts().tokens
    images = model.encode_image(data.inputs, normalize=True)
    prompts = model.encode_text(texts, normalize=True)
    logits = model.logit_scale.exp() * images @ prompts.T
    expected = {
        "cross_entropy": F.cross_entropy(logits, data.labels),
        "contrastive": contrastive(logits[:, data.labels]),
    }
    for loss, value in expected.items():
        built = toy.method({**LORA_ON_TEXT, "loss": loss}, acceleration)  # B = 0: still zero-shot
        assert built.loss(data).item() == pytest.approx(value.item(), abs=1e-10)
        assert built(data).item() == built.loss(data).item()
        assert torch.allclose(built.logits(data, built.classifier()), logits, rtol=0, atol=1e-10)


# Start, and for each class the tokens of its name and its end.
NODES = 1 + 2 + 3 + 4 + 3 + 4


@pytest.mark.parametrize(
    ("options", "acceleration", "expected"),
    [
        # a frozen text tower is asked once in all
        (LORA_ON_VISION, "exact", [NODES]),
        (ZERO_SHOT, "exact", [NODES]),
        # one that trains, for each batch's distinct classes
        (LORA_ON_TEXT, "exact", [1 + 2 + 4 + 4, 1 + 3 + 3, NODES]),
        # without acceleration a prompt an image at full length
        (LORA_ON_TEXT, "none", [(6, 12), (2, 12), (toy.CLASSES, 12)]),
        (LORA_ON_VISION, "none", [(6, 12), (2, 12), (toy.CLASSES, 12)]),
    ],
)
def test_how_often_prompts_are_encoded(options, acceleration, expected, monkeypatch):
    built = toy.method(options, acceleration)
    shapes = encoded_shapes(built, monkeypatch)
    built.text_features(toy.of_classes([0, 2, 4, 2, 0, 0]))
    built.text_features(toy.of_classes([1, 3]))
    built.classifier()
    assert shapes == expected


def test_prompts_of_a_tower_that_reads_beyond_the_end_token_are_not_cut(monkeypatch):
    built = toy.method(LORA_ON_TEXT, text={**toy.TEXT, "pool_type": "last"})
    shapes = encoded_shapes(built, monkeypatch)
    built.text_features(toy.of_classes([1]))
    assert shapes == [(1, 12)]


def test_text_features_are_unit_rows_in_the_order_of_the_labels():
    labels = torch.tensor([4, 0, 4, 2])
    with torch.no_grad():
        expected = F.normalize(toy.clip().encode_text(toy.prompts().tokens[labels]), dim=-1)
        for options in (LORA_ON_TEXT, LORA_ON_VISION):
            for acceleration in ("exact", "none"):
                found = toy.method(options, acceleration).text_features(toy.of_classes(labels))
                assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_features_kept_during_an_evaluation_let_gradients_pass_later():
    built = toy.method(LORA_ON_VISION)
    with torch.inference_mode():
        built.classifier()
    built.loss(toy.whole(toy.samples(6))).backward()
    assert all(p.grad is not None for p in built.trainable.values())


class Tower(Method):
    """Trains nothing by itself."""

    Options = METHODS["zero_shot"].Options

    def prepare(self, generator):
        """Leave everything frozen."""

    def closed_form(self):
        return 0


class TrainedInput(Tower):
    """Trains what goes into the frozen text tower."""

    @property
    def trains_text(self):
        return True


@pytest.mark.parametrize(("cls", "encoded"), [(Tower, 1), (TrainedInput, 3)])
def test_prompts_embeddings_are_kept_only_where_the_method_says_they_stay(cls, encoded, monkeypatch):
    built = cls(toy.clip(), toy.prompts(), cls.Options(), torch.Generator())
    shapes = encoded_shapes(built, monkeypatch)
    for _ in range(3):
        built.classifier()
    assert len(shapes) == encoded


@pytest.mark.parametrize("acceleration", ["exact", "none"])
@pytest.mark.parametrize("options", [LORA_ON_TEXT, LORA_ON_VISION])
def test_within_other_prompts_a_method_knows_their_classes_and_afterwards_its_own(options, acceleration):
    built = toy.shake(toy.method(options, acceleration))
    own = built.classifier().detach().clone()
    others = toy.shake(toy.method(options, acceleration, prompts=toy.other_prompts()))
    with built.prompted(toy.other_prompts()):
        assert built.classes == 3
        assert torch.equal(built.classifier(), others.classifier())
        expected = others.classifier()[[2, 0]]
        assert torch.allclose(built.text_features(toy.of_classes([2, 0])), expected, rtol=0, atol=1e-12)
    assert built.classes == toy.CLASSES
    assert torch.equal(built.classifier(), own)


def test_a_methods_own_prompts_come_back_after_an_error(monkeypatch):
    built = toy.method(ZERO_SHOT)
    own = built.classifier()
    shapes = encoded_shapes(built, monkeypatch)

    def fail():
        with built.prompted(toy.other_prompts()):
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fail()
    assert torch.equal(built.classifier(), own)
    assert shapes == []  # its embeddings were kept meanwhile


def test_a_bias_of_the_model_is_added_to_every_similarity_and_changes_no_loss():
    data = toy.whole(toy.samples(7))
    plain, biased = toy.method(ZERO_SHOT), toy.method(ZERO_SHOT, init_logit_bias=-7.0)
    shift = biased.clip.logit_bias.item()
    assert shift < -5
    logits = [built.logits(data, built.classifier()) for built in (plain, biased)]
    assert torch.allclose(logits[1], logits[0] + shift, rtol=0, atol=1e-10)
    for loss in ("contrastive", "cross_entropy"):
        tuned = [
            toy.method({"name": "full_finetune", "loss": loss}, **more)
            for more in ({}, {"init_logit_bias": -7.0})
        ]
        assert tuned[1].loss(data).item() == pytest.approx(tuned[0].loss(data).item(), abs=1e-9)
        assert tuned[1].closed_form() == tuned[0].closed_form() + 1
        tuned[1].loss(data).backward()
        assert tuned[1].clip.logit_bias.grad.abs() < 1e-9


def test_a_second_method_on_the_same_clip_starts_from_all_frozen():
    model = toy.clip()
    toy.built_on(model, {"name": "full_finetune"})
    built = toy.built_on(model, {"name": "linear_probe"})
    assert list(built.trainable) == ["weight", "bias"]


@pytest.mark.parametrize("taken", ["flora", "zero_shot"])
def test_a_second_claim_to_a_name_is_refused(taken):
    holder = METHODS[taken]
    with pytest.raises(ValueError, match=f"'{taken}' is already taken by {holder.__qualname__}"):

        @register(taken)
        class Impostor(Method):
            pass

    assert METHODS[taken] is holder


def test_a_new_name_is_registered(monkeypatch):
    monkeypatch.setattr("flora.method.METHODS", dict(METHODS))

    class Newcomer(Method):
        pass

    assert register("newcomer")(Newcomer) is Newcomer
    with pytest.raises(ValueError, match="already taken"):
        register("newcomer")(Newcomer)
    with pytest.raises(TypeError, match="abstract"):
        Newcomer(toy.clip(), toy.prompts(), None, torch.Generator())


@pytest.mark.parametrize("name", METHODS)
def test_options_know_their_method_and_no_unknown_field(name):
    options = METHODS[name].Options
    assert options().name == name
    for wrong in ({"name": "other"}, {"ranks": 3}, {"loss": "hinge"}):
        with pytest.raises(ValidationError):
            options(**wrong)
