"""How clients train: plain, validated values, free of torch so that a command line can read them fast."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Settings(BaseModel):
    """Base of all settings: unknown fields are refused, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Options(Settings):
    """Base of every method's options; a method narrows `name` to its own."""

    name: str


class Adam(Settings):
    """Adam with L2 regularisation, or AdamW. The defaults are FLoRA's (arXiv 2404.15182, published code)."""

    name: Literal["adam", "adamw"] = "adam"
    lr: float = Field(5e-5, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.2, ge=0)
    state: Literal["keep", "reset"] = "keep"


class SGD(Settings):
    """Stochastic gradient descent, with momentum if asked for."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(1e-2, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    state: Literal["keep", "reset"] = "reset"


def _with_name(value: object) -> object:
    """Let a bare name stand for that optimiser, and a mapping without a name for Adam."""
    if isinstance(value, str):
        return {"name": value}
    return {"name": "adam", **value} if isinstance(value, dict) else value


Optimizer = Annotated[Adam | SGD, Field(discriminator="name"), BeforeValidator(_with_name)]


class Fp32(Settings):
    """Tensors as they are, in the precision they train in."""

    name: Literal["fp32"] = "fp32"


class Fp16(Settings):
    """IEEE half precision, 2 bytes a number: 11 bits of precision, up to 65504."""

    name: Literal["fp16"] = "fp16"
    direction: Literal["both", "up"] = "both"


class Bf16(Settings):
    """bfloat16, 2 bytes a number: 8 bits of precision, the range of float32."""

    name: Literal["bf16"] = "bf16"
    direction: Literal["both", "up"] = "both"


class Int8(Settings):
    """Whole numbers from -127 to 127 and one scale a tensor, its largest magnitude over 127."""

    name: Literal["int8"] = "int8"
    direction: Literal["both", "up"] = "both"


class TopK(Settings):
    """The largest entries of each client's update alone, up only; what is left out waits its turn.

    Attributes:
        share: of each tensor's entries that travel; at least one does.
        error_feedback: add to a client's next update what was left out of those before
            (Stich et al., arXiv 1809.07599; Karimireddy et al., arXiv 1901.09847).
    """

    name: Literal["topk"] = "topk"
    share: float = Field(0.01, gt=0, le=1)
    error_feedback: bool = True


CODECS: dict[str, type[Settings]] = {"fp32": Fp32, "fp16": Fp16, "bf16": Bf16, "int8": Int8, "topk": TopK}


def _with_codec_name(value: object) -> object:
    """Let a bare name stand for that codec, and a mapping without a name for the plain one."""
    if isinstance(value, str):
        return {"name": value}
    return {"name": "fp32", **value} if isinstance(value, dict) else value


CodecSpec = Fp32 | Fp16 | Bf16 | Int8 | TopK
CodecConfig = Annotated[CodecSpec, Field(discriminator="name"), BeforeValidator(_with_codec_name)]


class Training(Settings):
    """What a client does in a round.

    Attributes:
        local_epochs: passes over the client's samples.
        local_steps: if set, that many batches instead, starting over as often as needed.
        batch_size: samples a step; the last batch of a pass may be smaller.
        proximal_mu: factor on FedProx's term, half the squared distance to what the server sent
            (arXiv 1812.06127); 0 for none.
        optimizer: its kind and values; `state: keep` carries its moments from round to round.
    """

    local_epochs: int = Field(1, ge=1)
    local_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(128, ge=1)
    proximal_mu: float = Field(0.0, ge=0)
    optimizer: Optimizer = Adam()


class Seeds(Settings):
    """One seed for each of the four random streams."""

    split: int = Field(0, ge=0, lt=2**63)
    participation: int = Field(0, ge=0, lt=2**63)
    init: int = Field(0, ge=0, lt=2**63)
    order: int = Field(0, ge=0, lt=2**63)
