"""The roofline of a training step: operations and bytes that it cannot do without, from dimensions alone.

Operations are those of matrix products and convolutions, two for each multiplication with its addition, as
`torch.utils.flop_counter` has them; attention goes backward through four products, its probabilities kept.
Bytes are those of matrices in float32: read in each pass over a tower, and for what trains the gradient and
Adam's moments; activations, norms and biases are left out, so that both are lower bounds.

A pass over tokens of width d through a block with a hidden width h takes 2 (4 d^2 + 2 d h) operations a token
and 4 d for each pair of tokens of which one may attend to the other; going backward, the same again for the
gradient of what came in, and, attention apart, once more for that of the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

BYTES = 4  # of a float32
# Adam reads a gradient, a weight and two moments, and writes the last three.
ADAM_BYTES = 7 * BYTES

# How far a step goes: not into the tower; forward; back to what enters it; that, but in the first block no
# further than the attention's output, under which nothing trains; or back to the weights as well.
Pass = Literal["skipped", "forward", "through", "through_to_out", "weights"]


@dataclass(frozen=True)
class Work:
    """What a step sends through a tower.

    Attributes:
        tokens: in all.
        pairs: of tokens, summed over the sequences: their lengths squared.
        pooled: outputs, one an image or prompt.
    """

    tokens: int
    pairs: int
    pooled: int

    @classmethod
    def sequences(cls, count: int, length: int) -> Work:
        """`count` sequences of one length."""
        return cls(count * length, count * length**2, count)

    @classmethod
    def tree(cls, prompts: Collection[Sequence[int]]) -> Work:
        """Prompts, each its token ids up to the end token, as one sequence of their distinct beginnings."""
        nodes = {tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))}
        return cls(len(nodes), len(nodes) ** 2, len(prompts))


@dataclass(frozen=True)
class Tower:
    """The dimensions of a transformer with a projection behind it.

    Attributes:
        layers: number of blocks.
        width: of a token.
        hidden: of the MLP.
        output: of the shared space.
        embedding: values of the table or convolution in front.
        patch: values of an image patch that the convolution in front reads; 0 for a table.
    """

    layers: int
    width: int
    hidden: int
    output: int
    embedding: int
    patch: int = 0

    @property
    def matrices(self) -> int:
        """Values of the matrices that every token is multiplied with, and of the projection."""
        return self.layers * self._of_block + self.width * self.output + (self.embedding if self.patch else 0)

    @property
    def weights(self) -> int:
        """The same with a token table."""
        return self.matrices + (0 if self.patch else self.embedding)

    @property
    def _of_block(self) -> int:
        return 4 * self.width**2 + 2 * self.width * self.hidden

    def flops(self, work: Work, far: Pass) -> int:
        """Operations of a step that goes so far."""
        if far == "skipped":
            return 0
        linear, attention = 2 * work.tokens * self._of_block, 4 * work.pairs * self.width
        blocks = self.layers * (linear + attention)
        head = 2 * work.pooled * self.width * self.output
        embedding = 2 * (work.tokens - work.pooled) * self.embedding if self.patch else 0
        forward = embedding + blocks + head
        if far == "forward":
            return forward
        through = self.layers * (linear + 2 * attention) + head
        if far == "through_to_out":  # in the first block the MLP alone
            through -= 2 * work.tokens * 4 * self.width**2 + 2 * attention
        of_weights = embedding + self.layers * linear + head if far == "weights" else 0
        return forward + through + of_weights

    def bytes(self, far: Pass) -> int:
        """Bytes of its matrices that such a step reads, and, where they train, writes."""
        passes = {"skipped": 0, "forward": 1, "through": 2, "through_to_out": 2, "weights": 2}[far]
        trained = self.weights * (BYTES + ADAM_BYTES) if far == "weights" else 0
        return passes * BYTES * self.matrices + trained


@dataclass(frozen=True)
class Sizes:
    """The dimensions of a CLIP.

    Attributes:
        vision, text: its towers.
        image_values: values of a preprocessed image.
        patches: of an image; one more token goes with them.
        context: tokens of a prompt at full length.
    """

    vision: Tower
    text: Tower
    image_values: int
    patches: int
    context: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sizes:
        """Read a model config of open_clip with a ViT and CLIP's own text tower."""
        vision, text, dim = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
        side, patch = vision["image_size"], vision["patch_size"]
        patch_values = 3 * patch**2
        return cls(
            _tower(vision, dim, vision["width"] * patch_values, patch_values),
            _tower(text, dim, text["width"] * text["vocab_size"]),
            3 * side**2,
            (side // patch) ** 2,
            text["context_length"],
        )


def _tower(config: Mapping[str, Any], dim: int, embedding: int, patch: int = 0) -> Tower:
    width = config["width"]
    hidden = int(width * config.get("mlp_ratio", 4.0))
    return Tower(config["layers"], width, hidden, dim, embedding, patch)


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        images: samples.
        classes: of the task.
        texts: the prompts that pass through the text tower, if it is needed.
        exact: whether frozen towers' outputs are kept; else every tower that is read computes.
    """

    images: int
    classes: int
    texts: Work
    exact: bool = True


@dataclass(frozen=True)
class Cost:
    """What a step cannot do without."""

    flops: int
    bytes: int


# How far each method goes into the image and the text tower, both accelerations alike: a tower that is only
# read forward costs nothing where its outputs are kept.
PASSES: Mapping[str, tuple[Pass, Pass]] = {
    "full_finetune": ("weights", "weights"),
    "vision_finetune": ("weights", "skipped"),
    "layernorm_tuning": ("through", "through"),
    "bitfit": ("through", "through"),
    "flora": ("forward", "through_to_out"),
    "prompt_tuning": ("forward", "through"),
    "attention_adapter": ("forward", "forward"),
    "clip_adapter": ("forward", "forward"),
    "linear_probe": ("forward", "skipped"),
}
LORA_RANK = 2
# Methods that score against all classes; the others match a batch with its own prompts.
_OVER_CLASSES = ("linear_probe", "vision_finetune", "prompt_tuning")


def step_cost(method: str, sizes: Sizes, step: Step) -> Cost:
    """Count what one step of a method with its default options takes.

    Args:
        method: of `PASSES`.
        sizes: of the model.
        step: its samples and prompts.
    """
    vision, text = (_kept(far) if step.exact else far for far in PASSES[method])
    images = Work.sequences(step.images, sizes.patches + 1)
    behind, trained = _behind(method, sizes, step)
    input_values = sizes.vision.output if vision == "skipped" else sizes.image_values
    return Cost(
        sizes.vision.flops(images, vision) + sizes.text.flops(step.texts, text) + behind,
        sizes.vision.bytes(vision)
        + sizes.text.bytes(text)
        + trained * (3 * BYTES + ADAM_BYTES)
        + step.images * input_values * BYTES,
    )


def _kept(far: Pass) -> Pass:
    return "skipped" if far == "forward" else far


def _behind(method: str, sizes: Sizes, step: Step) -> tuple[int, int]:
    """Give the operations outside of the towers' own matrices, and the values there that train."""
    n, dim = step.images, sizes.text.output
    scored = 2 * n * dim * (step.classes if method in _OVER_CLASSES else n)
    vision, text = PASSES[method]
    # backward once for each of the two sides that trains
    sides = (vision != "forward") + (text not in ("forward", "skipped"))
    match method:
        case "linear_probe" | "vision_finetune":
            return scored * (2 + (method == "vision_finetune")), step.classes * dim
        case "attention_adapter":
            return 2 * scored + _two_layers(n, dim, dim), 2 * dim**2
        case "clip_adapter":
            return 2 * scored + _two_layers(n, dim, dim // 4), 2 * dim * (dim // 4)
        case "flora":
            once = 2 * step.texts.tokens * LORA_RANK * sizes.text.width
            # A and B: forward, their gradients, and those of what enters B and, but for the first block, A
            return (1 + sides) * scored + (6 * sizes.text.layers - 1) * once, (
                2 * LORA_RANK * sizes.text.width * sizes.text.layers
            )
        case _:
            return (1 + sides) * scored, 0


def _two_layers(n: int, dim: int, hidden: int) -> int:
    """Two layers forward, their weights' gradients, and that of what enters the second."""
    return 5 * 2 * n * dim * hidden
