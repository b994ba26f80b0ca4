"""Any adapter of PEFT that trains beside frozen Linear layers and whose tensors can be averaged.

The adapters are built by PEFT itself, with its own names and defaults for their options; what is added here
is where they go (`places`, as for FLoRA), that their start depends on nothing but the run's seed, and how
many parameters each must have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from math import ceil, isqrt
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from pydantic import Field, create_model, model_validator

from flora.errors import BadInput, nearest
from flora.lora import AdapterOptions, factors
from flora.method import Method, register

# What there is, by the name behind "peft:"; read without importing this module.
VARIANTS = {
    "lora": "LoRA as PEFT has it: kaiming start, divided by the rank (arXiv 2106.09685)",
    "rslora": "Rank-stabilised LoRA: divided by the square root of the rank (arXiv 2312.03732)",
    "dora": "DoRA: LoRA on the direction of each weight, and a trained magnitude (arXiv 2402.09353)",
    "vera": "VeRA: two trained vectors around random matrices that all layers share (arXiv 2310.11454)",
    "ia3": "(IA)^3: a trained factor on each output, or input of an MLP's second layer (arXiv 2205.05638)",
    "loha": "LoHa: the Hadamard product of two low-rank updates, FedPara's (arXiv 2108.06098)",
    "lokr": "LoKr: the Kronecker product of two small matrices (arXiv 2309.14859)",
    "hra": "HRA: a chain of Householder reflections of each layer's input (arXiv 2405.17484)",
    "oft": "OFT: block-diagonal rotations of each layer's input (arXiv 2306.07280)",
    "delora": "DeLoRA: LoRA of normalised direction and a trained strength (arXiv 2503.18225)",
    "hira": "HiRA: a low-rank update multiplied entry by entry onto the weight (ICLR 2025)",
    "randlora": "RandLoRA: trained scales of a full-rank sum of shared random matrices (arXiv 2502.00987)",
}

_PROMPTS = "it steers a language model by virtual tokens, which CLIP's towers do not take; use prompt_tuning"
_SINGLE = "PEFT computes it in single precision whatever the model's, so its gradient cannot be checked"
REFUSED = {
    "adalora": "each client would prune ranks by importance scores of its own, and the mean would mix "
    "factors of different subspaces; at a fixed rank it is LoRA with a diagonal in between: use peft:lora",
    "adaption_prompt": _PROMPTS,
    "boft": "PEFT compiles a CUDA extension for it when it is first used",
    "c3a": _SINGLE,
    "fourierft": _SINGLE,
    "ln_tuning": "on Linear layers it trains copies of whole weights; use layernorm_tuning",
    "poly": "it needs a task's number with every batch",
    "shira": "PEFT finds the entries to train by the values of a mask, which a model without weights, as "
    "estimates are made on, does not have",
    "trainable_tokens": "it trains rows of the token table, no Linear layer; use prompt_tuning",
    "vblora": "each client composes its vectors by a top-k choice of its own, which a mean does not keep",
    "xlora": "it mixes adapters that were trained before",
}


@dataclass(frozen=True)
class Layer:
    """A layer to adapt: its name in the CLIP and its widths."""

    name: str
    width_in: int
    width_out: int


@dataclass(frozen=True)
class Family:
    """An adapter of PEFT.

    Attributes:
        peft_type: PEFT's name for it.
        options: fields of PEFT's configuration that are offered.
        count: parameters of one adapted layer, from the layer's widths and the options.
        fixed: further fields of PEFT's configuration.
        is_product: whether its tensors act by the products of LoRA's pairs alone.
    """

    peft_type: str
    options: tuple[str, ...]
    count: Callable[[Layer, Any], int]
    fixed: dict[str, Any] = field(default_factory=dict)
    is_product: bool = False

    @property
    def config(self) -> type[peft.PeftConfig] | None:
        """PEFT's configuration class, None where the installed PEFT knows no such adapter."""
        return PEFT_TYPE_TO_CONFIG_MAPPING.get(self.peft_type)


def _factors(layer: Layer, options: Any) -> int:
    """Two factors, (r, in) and (out, r)."""
    return options.r * (layer.width_in + layer.width_out)


def _is_second_of_mlp(name: str) -> bool:
    return name.endswith(("mlp.c_proj", "mlp.fc2"))  # open_clip's, timm's


def _kronecker_factors(layer: Layer, options: Any) -> int:
    """Two matrices of the most even divisors of the widths, each low-rank where that is smaller."""
    small, large = zip(*(_even_divisors(width) for width in (layer.width_out, layer.width_in)), strict=True)
    count = 0
    for sides, may_be_low_rank in ((small, options.decompose_both), (large, True)):
        low_rank = may_be_low_rank and options.r < max(sides) / 2
        count += options.r * sum(sides) if low_rank else sides[0] * sides[1]
    return count


def _even_divisors(width: int) -> tuple[int, int]:
    small = next(divisor for divisor in range(isqrt(width), 0, -1) if width % divisor == 0)
    return small, width // small


def _random_bases(layer: Layer, options: Any) -> int:
    """For each of the bases that make up full rank, r scales and one for each of the smaller width."""
    narrow = min(layer.width_in, layer.width_out)
    return ceil(narrow / options.r) * (options.r + narrow)


FAMILIES = {
    "lora": Family("LORA", ("r", "lora_alpha"), _factors, is_product=True),
    "rslora": Family("LORA", ("r", "lora_alpha"), _factors, {"use_rslora": True}, is_product=True),
    "dora": Family(
        "LORA",
        ("r", "lora_alpha", "use_rslora"),
        lambda layer, options: _factors(layer, options) + layer.width_out,
        {"use_dora": True},
    ),
    "vera": Family(
        "VERA",
        ("r", "d_initial", "projection_prng_key"),
        lambda layer, options: options.r + layer.width_out,
    ),
    "ia3": Family(
        "IA3",
        (),
        lambda layer, _: layer.width_in if _is_second_of_mlp(layer.name) else layer.width_out,
    ),
    "loha": Family("LOHA", ("r", "alpha"), lambda layer, options: 2 * _factors(layer, options)),
    "lokr": Family("LOKR", ("r", "alpha", "decompose_both"), _kronecker_factors),
    "hra": Family("HRA", ("r", "apply_GS"), lambda layer, options: options.r * layer.width_in),
    "oft": Family(
        "OFT",
        ("oft_block_size", "use_cayley_neumann", "num_cayley_neumann_terms"),
        lambda layer, options: layer.width_in * (options.oft_block_size - 1) // 2,
    ),
    "delora": Family("DELORA", ("r", "delora_lambda"), lambda layer, options: _factors(layer, options) + 1),
    "hira": Family("HIRA", ("r",), _factors),
    "randlora": Family("RANDLORA", ("r", "randlora_alpha", "projection_prng_key"), _random_bases),
}


class PeftOptions(AdapterOptions):
    """What all of them have; PEFT's own options come on top, under PEFT's names."""

    @model_validator(mode="before")
    @classmethod
    def _known_reasons(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if "dropout" in name:
                raise BadInput(
                    f"method.{name}: there is no dropout; methods run without it, to be repeatable"
                )
            if name == "target_modules":
                raise BadInput("method.target_modules: say which layers by method.places")
        return values


class Peft(Method):
    """One adapter of PEFT on the layers at the chosen places."""

    family: ClassVar[Family]
    options: Any

    def prepare(self, generator: torch.Generator) -> None:
        """Inject the adapters.

        Raises:
            BadInput: PEFT refuses or would change the options for these layers.
        """
        names = self.options.layers(self.clip)
        shapes = [self.clip.get_parameter(f"{name}.weight").shape for name in names]
        self._layers = [
            Layer(name, inputs, outputs) for name, (outputs, inputs) in zip(names, shapes, strict=True)
        ]
        # PEFT draws from the CPU's global stream: let that be the generator's for the moment
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.set_rng_state(generator.get_state())
            warnings.simplefilter("error", UserWarning)  # PEFT warns of what it changes in the options
            try:
                config = self._peft_config(names)
                PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](self.clip, config, adapter_name="default")
            except (ValueError, UserWarning) as error:
                raise BadInput(f"method: {self.options.name} on these layers: {_one_line(error)}") from error

    def closed_form(self) -> int:
        """Sum the family's formula over the adapted layers."""
        return sum(self.family.count(layer, self.options) for layer in self._layers)

    @property
    def products(self) -> Sequence[tuple[str, str]]:
        """B and A of each adapted layer, where the update is nothing but their product."""
        return factors(self.trainable) if self.family.is_product else ()

    def _peft_config(self, names: list[str]) -> peft.PeftConfig:
        """Say in PEFT's terms which layers are adapted, and how."""
        chosen = {name: getattr(self.options, name) for name in self.family.options}
        if self.family.peft_type == "IA3":
            chosen["feedforward_modules"] = [name for name in names if _is_second_of_mlp(name)]
        assert self.family.config is not None
        return self.family.config(target_modules=names, **chosen, **self.family.fixed)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def why_not(name: str) -> str:
    """Say in a line why there is no method `peft:NAME`."""
    known = {str(kind.value).lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if name in REFUSED:
        return f"peft:{name} cannot be had: {REFUSED[name]}"
    if name in FAMILIES:
        return f"peft:{name} is not in the installed PEFT {peft.__version__}; a newer one has it"
    if name not in known:
        return f"there is no peft:{name}{nearest(f'peft:{name}', [f'peft:{x}' for x in VARIANTS])}"
    if issubclass(known[name], peft.PromptLearningConfig):
        return f"peft:{name} cannot be had: {_PROMPTS}"
    return f"peft:{name} cannot be had yet: it needs a closed form among FAMILIES in baselines/peft.py"


def _options_class(variant: str, family: Family, config: type[peft.PeftConfig]) -> type[PeftOptions]:
    """Make PEFT's own fields, types and defaults options of ours."""
    hints, declared = get_type_hints(config), {f.name: f for f in fields(config)}
    offered: dict[str, Any] = {
        name: (_bounded(name, hints[name]), declared[name].default) for name in family.options
    }
    assert all(default is not MISSING for _, default in offered.values())
    full_name = f"peft:{variant}"
    return create_model(
        f"{variant.capitalize()}Options",
        __base__=PeftOptions,
        __module__=__name__,
        __doc__=VARIANTS[variant],
        name=(Literal[full_name], full_name),  # type: ignore[arg-type]
        **offered,
    )


def _bounded(name: str, kind: Any) -> Any:
    """Sizes and factors are above zero, seeds at least zero."""
    if kind is bool:
        return kind
    return Annotated[kind, Field(ge=0) if name.endswith(("seed", "key")) else Field(gt=0)]


for _variant, _family in FAMILIES.items():
    if (_config := _family.config) is not None:
        _contents = {
            "Options": _options_class(_variant, _family, _config),
            "family": _family,
            "__module__": __name__,
            "__doc__": VARIANTS[_variant],
        }
        register(f"peft:{_variant}")(type(f"Peft{_variant.capitalize()}", (Peft,), _contents))
