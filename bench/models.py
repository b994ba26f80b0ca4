"""The CLIP a run starts from: weights, image preprocessing and tokenizer, all as open_clip has them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import open_clip
import timm
import torch
from open_clip.coca_model import CoCa, MultimodalCfg
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.convert import convert_state_dict
from open_clip.hf_configs import arch_dict
from open_clip.model import (
    CLIPTextCfg,
    CLIPVisionCfg,
    CustomTextCLIP,
    convert_to_custom_text_state_dict,
    set_model_preprocess_cfg,
)
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig

from bench import tiny
from bench.device import lacks_memory
from bench.weights import (
    WEIGHTS_SUFFIXES,
    first_line,
    from_hub,
    not_at_hand,
    published_file,
    read_tensors,
    unreadable,
)
from flora.clip import Clip
from flora.errors import BadInput, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

    from bench.config import Model

# Random weights belong to the model, not to a run's seeds: every method and seed starts from the same.
RANDOM_WEIGHTS_SEED = 0
FORMS = (
    "'tiny', 'ARCHITECTURE:TAG', 'ARCHITECTURE:random' or 'ARCHITECTURE:/path/to/weights.safetensors' "
    "(see `flora-bench list models`)"
)

# What a local config file may set: what open_clip's own do, and its classes take.
MODEL_SETTINGS = (
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "multimodal_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
)
PART_SETTINGS: Mapping[str, Any] = {
    "vision_cfg": CLIPVisionCfg.__dataclass_fields__,
    "text_cfg": CLIPTextCfg.__dataclass_fields__,
    "multimodal_cfg": MultimodalCfg.__dataclass_fields__,
}
# open_clip hands any other on to transformers' `from_pretrained`, where `trust_remote_code` runs code.
TOKENIZER_SETTINGS: Mapping[str, tuple[Any, ...]] = {
    "clean": ("canonicalize", "lower", "whitespace"),
    "strip_sep_token": (False, True),
}
PREPROCESSING: Mapping[str, tuple[Any, ...]] = {
    "mode": ("RGB",),
    "interpolation": ("bicubic", "bilinear", "random"),
    "resize_mode": ("shortest", "longest", "squash"),
}


@dataclass(frozen=True)
class LoadedModel:
    """A CLIP and what its inputs need.

    Attributes:
        clip: the split model, frozen until a method says otherwise.
        preprocess: an RGB image as a (3, height, width) float32 tensor.
        tokenize: texts as (n, context length) int64 token ids.
    """

    clip: Clip
    preprocess: Callable[[Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class _Source:
    """What a model's name stands for.

    Attributes:
        name: as the user wrote it.
        architecture: open_clip's name, or the path of a config file.
        weights: a local file; or open_clip's settings of a published one; or None, for random weights.
        model_cfg: open_clip's configuration of the architecture, with the activation that the weights need.
        preprocess_cfg: how images are prepared, but for their size.
        config_file: the local config file, if the architecture is one.
    """

    name: str
    architecture: str
    weights: Path | Mapping[str, Any] | None
    model_cfg: dict[str, Any]
    preprocess_cfg: Mapping[str, Any]
    config_file: Path | None = None


def load_model(config: Model, device: str) -> LoadedModel:
    """Load a model by name, frozen, in float32 or float64.

    In bfloat16 or float16 it arrives in float32 too, and computes in half precision inside `Clip.autocast`;
    `Clip.shrink_frozen` then halves what is found not to train.

    A local checkpoint does not say which activation and preprocessing it was trained with, and it fits
    whatever they are: 'ARCHITECTURE:/path' takes the activation of that architecture (weights of OpenAI,
    MetaCLIP and DFN need one whose name ends in '-quickgelu'), and the preprocessing that all its published
    weights share or, where they share none (ViT-L-14, ViT-H-14, ViT-H-14-quickgelu), open_clip's default.
    With others than it was trained with, a checkpoint runs all the same and computes something else.

    Raises:
        BadInput: there is no such model, or its weights or tokenizer cannot be had or read.
    """
    source = _parse(config.name)
    tokenize = _tokenizer(source)
    return _loaded(_build(source), source, config, device, tokenize)


def _loaded(
    model: Any, source: _Source, config: Model, device: str, tokenize: Callable[[list[str]], Tensor]
) -> LoadedModel:
    """Take an open_clip model over, on its device and in its precision."""
    preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    dtype = getattr(torch, config.dtype)
    half = dtype in (torch.bfloat16, torch.float16)
    clip = Clip(model, compute_dtype=dtype if half else None)
    clip = clip.to(device=device, dtype=torch.float32 if half else dtype)
    return LoadedModel(clip.requires_grad_(False), preprocess, tokenize)


def load_shapes(config: Model) -> LoadedModel:
    """Load a model as `load_model` does, on the CPU and with whatever its parameters hold at random.

    No weights are read; and where its tokenizer cannot be had, open_clip's own stands in for it.

    Raises:
        BadInput: there is no such model, or what its text tower is made of cannot be had.
    """
    source = replace(_parse(config.name), weights=None)
    model = _random_model(source)
    set_model_preprocess_cfg(model, {**source.preprocess_cfg, "size": model.visual.image_size})
    try:
        tokenize = _tokenizer(source)
    except BadInput:
        length = source.model_cfg["text_cfg"].get("context_length", DEFAULT_CONTEXT_LENGTH)
        tokenize = SimpleTokenizer(context_length=length)
    return _loaded(model, source, config, "cpu", tokenize)


def model_fingerprint(name: str) -> str:
    """Identify the weights behind a name by SHA-256 (hex): those of a file, or how random ones are drawn.

    The bytes of a local config file count too. A published file that is not at hand is downloaded.

    Raises:
        BadInput: there is no such model, or its weights cannot be had.
    """
    source = _parse(name)
    if source.weights is None:
        drawn = f"{name} from seed {RANDOM_WEIGHTS_SEED}, torch {torch.__version__}"
        weights = hashlib.sha256(drawn.encode()).hexdigest()
    else:
        file = _weights_file(source)
        try:
            weights = _hash_of(file, file.stat().st_size, file.stat().st_mtime_ns)
        except OSError as error:
            raise unreadable(file, error) from None
    if source.config_file is None or name == "tiny":
        return weights
    return hashlib.sha256(weights.encode() + source.config_file.read_bytes()).hexdigest()


@lru_cache(maxsize=32)
def fetch_model(name: str) -> None:
    """Have a model's weights and what its text side needs at hand, downloaded if need be; nothing is built.

    Raises:
        BadInput: there is no such model, or they cannot be had.
    """
    model_fingerprint(name)
    source = _parse(name)
    _tokenizer(source)
    _language_model(source)


@lru_cache(maxsize=32)
def _hash_of(file: Path, size: int, modified: int) -> str:
    """Hash a file; `size` and `modified` are there for the cache to tell versions of it apart."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_name(name: str) -> None:
    """Refuse what `load_model` could not load, as far as the name tells; nothing is downloaded or built.

    Raises:
        BadInput: there is no such model.
    """
    _parse(name)


def open_clip_config(name: str) -> dict[str, Any]:
    """Give what `open_clip_config.json` must say of the model behind a name, for open_clip to load it.

    Raises:
        BadInput: there is no such model.
    """
    source = _parse(name)
    size = CLIPVisionCfg(**source.model_cfg["vision_cfg"]).image_size
    return {"model_cfg": source.model_cfg, "preprocess_cfg": {**source.preprocess_cfg, "size": size}}


def checkpoint_state(clip: Clip, name: str) -> dict[str, Tensor]:
    """Give a model's weights under the names that `open_clip.create_model` expects for the name it had.

    A CoCa's decoder, which `Clip` leaves out and no method trains, is taken from where the model came from.

    Args:
        clip: without adapters: merge and remove them before.
        name: what the model was loaded by.

    Raises:
        BadInput: there is no such model.
    """
    source = _parse(name)
    config = source.model_cfg
    if "multimodal_cfg" in config:
        whole = _build(source).state_dict()
        return {**whole, **clip.open_clip_state()}
    return clip.open_clip_state(
        plain=not (config.get("custom_text") or "hf_model_name" in config["text_cfg"])
    )


def describe_models() -> dict[str, str]:
    """Say which models a run can start from: how they are named, and every architecture of open_clip."""
    forms = {
        "tiny": "Embedded: a small CLIP pretrained on printed characters; nothing is downloaded",
        "ARCHITECTURE:TAG": "An architecture and published weights, of those below; downloaded once",
        "ARCHITECTURE:random": "An architecture with seeded random weights: for time, memory, bytes",
        "ARCHITECTURE:/path/to/weights.safetensors": (
            "An architecture and a local checkpoint; .pt, .pth and .bin are read as tensors alone"
        ),
        "/path/to/config.json:random": "A local open_clip config file in the place of an architecture",
    }
    tags = {name: ", ".join(list_pretrained_tags_by_model(name)) for name in open_clip.list_models()}
    return forms | {name: listed or "no published weights" for name, listed in tags.items()}


# --- names ---------------------------------------------------------------------------------------------


def _parse(name: str) -> _Source:
    """Find out what a name stands for, as far as that can be said without loading anything."""
    if name == "tiny":
        return _source(name, str(tiny.CONFIG), tiny.WEIGHTS)
    architecture, weights = _parted(name)
    if architecture == "tiny":
        raise BadInput(f"model.name: {name!r} must be 'tiny', whose weights are given")
    if not architecture.endswith(".json"):
        known = open_clip.list_models()
        if architecture not in known:
            raise BadInput(
                f"model.name: open_clip has no architecture {architecture!r}"
                f"{_nearest(architecture, ['tiny', *known])}"
            )
    if not weights:
        raise BadInput(f"model.name: {name!r} does not say which weights; it must be {FORMS}")
    if weights == "random":
        return _source(name, architecture, None)
    if "/" in weights or "\\" in weights or weights.endswith(WEIGHTS_SUFFIXES):
        return _source(name, architecture, _local_weights(weights))
    return _source(name, architecture, _published_weights(architecture, weights))


def _parted(name: str) -> tuple[str, str]:
    """Part a name into architecture and weights; the path of a config file may hold colons."""
    config_file, dot_json, rest = name.partition(".json")
    if dot_json and rest[:1] in ("", ":"):
        return f"{config_file}.json", rest[1:]
    architecture, _, weights = name.partition(":")
    return architecture, weights


def _nearest(name: str, valid: Iterable[str], kind: str = "architectures") -> str:
    """Name the closest valid names, whatever their case, as the end of an error message."""
    by_lower = {x.lower(): x for x in valid}
    if name.lower() in by_lower:
        return f"; did you mean {by_lower[name.lower()]!r}?"
    close = [repr(by_lower[x]) for x in get_close_matches(name.lower(), by_lower, n=3)]
    if not close:
        return f"; see `flora-bench list models` for the {len(by_lower)} {kind}"
    return f"; did you mean {' or '.join(close)}?"


def _local_weights(text: str) -> Path:
    file = Path(text).expanduser()
    if file.suffix not in WEIGHTS_SUFFIXES:
        raise BadInput(f"model.name: {text!r} must end in one of {', '.join(WEIGHTS_SUFFIXES)}")
    if not file.is_file():
        raise BadInput(f"model.name: there is no file {text!r} to read weights from")
    return file


def _published_weights(architecture: str, tag: str) -> Mapping[str, Any]:
    settings = get_pretrained_cfg(architecture, tag)
    if settings:
        return settings
    tags = list_pretrained_tags_by_model(architecture)
    if not tags:
        raise BadInput(
            f"model.name: open_clip has no published weights of {architecture!r}, such as {tag!r}; "
            f"give '{architecture}:random' or '{architecture}:/path/to/weights.safetensors'"
        )
    raise BadInput(
        f"model.name: open_clip has no weights {tag!r} of {architecture!r}"
        f"{_nearest(tag, [*tags, 'random'], 'tags')}"
    )


def _source(name: str, architecture: str, weights: Path | Mapping[str, Any] | None) -> _Source:
    config_file = None
    if architecture.endswith(".json"):
        config_file = Path(architecture).expanduser()
        model_cfg, overlay = _read_config(config_file)
    else:
        model_cfg = open_clip.get_model_config(architecture)
        overlay = weights if isinstance(weights, Mapping) else _common_preprocessing(architecture)
        # open_clip only warns where published weights need the other activation
        if isinstance(weights, Mapping) and weights.get("quick_gelu"):
            model_cfg["quick_gelu"] = True
    preprocess_cfg = merge_preprocess_dict(PreprocessCfg(), overlay)
    return _Source(name, architecture, weights, model_cfg, preprocess_cfg, config_file)


def _common_preprocessing(architecture: str) -> Mapping[str, Any]:
    """Give how images are prepared for an architecture's published weights, if that is one and the same."""
    settings = [
        merge_preprocess_dict({}, get_pretrained_cfg(architecture, tag))
        for tag in list_pretrained_tags_by_model(architecture)
    ]
    return settings[0] if settings and all(x == settings[0] for x in settings) else {}


def _read_config(file: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Read an open_clip config: of the model alone, or with the preprocessing beside it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"model.name: there is no config file '{file}' to read: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"model.name: '{file}' is no JSON: {error}") from None
    if not isinstance(content, dict) or "model_cfg" not in content:
        content = {"model_cfg": content}
    try:
        _check_keys("an open_clip config", content, ("model_cfg", "preprocess_cfg"))
        _check_model(content["model_cfg"])
        _check_preprocessing(content.get("preprocess_cfg", {}))
    except ValueError as error:
        raise BadInput(f"model.name: '{file}': {error}") from None
    return content["model_cfg"], content.get("preprocess_cfg", {})


def _check_model(config: Any) -> None:
    _check_keys("an open_clip config", config, MODEL_SETTINGS)
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise ValueError(f"it is no open_clip config: it has no {missing[0]!r}")
    if type(config["embed_dim"]) is not int or config["embed_dim"] < 1:
        raise ValueError(f"embed_dim must be a positive integer, not {_short(config['embed_dim'])}")
    for part, valid in PART_SETTINGS.items():
        if part in config:
            _check_keys(part, config[part], valid)
    _check_sources(config["vision_cfg"], config["text_cfg"])
    _check_tokenizer(config["text_cfg"])


def _check_sources(vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Refuse what would have a library look elsewhere than is checked, fetched and hashed here."""
    for settings, key in ((vision, "timm_model_name"), (text, "hf_model_name"), (text, "hf_tokenizer_name")):
        if not isinstance(settings.get(key), str | None):
            raise ValueError(f"{key} must be a name, not {_short(settings[key])}")
    name = vision.get("timm_model_name")
    if name and not timm.is_model(name):  # timm itself would read 'hf-hub:...' and 'local-dir:...' too
        close = get_close_matches(name, timm.list_models(), n=1)
        raise ValueError(
            f"timm_model_name: timm has no architecture {name!r}"
            + (f"; did you mean {close[0]!r}?" if close else "; it must be one of timm.list_models()")
        )


def _check_tokenizer(text: Mapping[str, Any]) -> None:
    settings = text.get("tokenizer_kwargs")
    if settings is not None:
        valid = TOKENIZER_SETTINGS if text.get("hf_tokenizer_name") else ("clean",)
        _check_keys("tokenizer_kwargs", settings, valid)
        _check_choices(settings, TOKENIZER_SETTINGS)


def _check_preprocessing(config: Any) -> None:
    _check_keys("preprocess_cfg", config, PreprocessCfg.__dataclass_fields__)
    settings = {key: x for key, x in config.items() if x is not None}  # null is open_clip's default
    _check_choices(settings, PREPROCESSING)
    for key in ("mean", "std"):
        numbers = settings.get(key, [1, 1, 1])
        if not isinstance(numbers, list) or len(numbers) != len("RGB") or not all(map(_is_finite, numbers)):
            raise ValueError(f"{key} must be three numbers, not {_short(numbers)}")
    if min(settings.get("std", [1])) <= 0:
        raise ValueError(f"std must be above zero, not {_short(settings['std'])}")
    if type(settings.get("fill_color", 0)) is not int:
        raise ValueError(f"fill_color must be an integer, not {_short(settings['fill_color'])}")


def _check_keys(section: str, settings: Any, valid: Iterable[str]) -> None:
    if not isinstance(settings, dict):
        raise ValueError(f"{section} must be a mapping of settings, not {_short(settings)}")
    for key in settings:
        if key not in valid:
            raise ValueError(f"{section} has no setting {key!r}{nearest(key, valid)}")


def _check_choices(settings: Mapping[str, Any], valid: Mapping[str, tuple[Any, ...]]) -> None:
    for key, choices in valid.items():
        if key in settings and settings[key] not in choices:
            known = ", ".join(map(json.dumps, choices))
            raise ValueError(f"{key} must be one of {known}, not {_short(settings[key])}")


def _is_finite(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def _short(value: Any) -> str:
    """Show a value as the config file has it."""
    return json.dumps(value)[:60]


# --- building and loading ------------------------------------------------------------------------------


def _build(source: _Source) -> Any:
    """Build an open_clip model with separate towers and its weights."""
    if source.weights is None:
        model = _random_model(source)
    else:
        file = _weights_file(source)  # first: it may not be there
        with _parameters_without_memory():
            model = _random_model(source)
        _load_weights(model, file, source)
    set_model_preprocess_cfg(model, {**source.preprocess_cfg, "size": model.visual.image_size})
    return model


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Have modules built meanwhile keep only the shapes of their parameters, for weights to be put there.

    Buffers are computed as ever: not all of them come with the weights.
    """

    def without_memory(module: Any, name: str, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        return torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    # what the hook returns takes the parameter's place, which torch's annotation leaves out
    hook = register_module_parameter_registration_hook(without_memory)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _random_model(source: _Source) -> Any:
    """Build an open_clip model with random weights by a fixed seed; no tower downloads its own."""
    config = deepcopy(source.model_cfg)
    config.pop("custom_text", None)
    config["vision_cfg"]["timm_model_pretrained"] = False
    config["text_cfg"]["hf_model_pretrained"] = False
    config["text_cfg"]["hf_model_name"] = _language_model(source)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_WEIGHTS_SEED)
            if "multimodal_cfg" not in config:
                return CustomTextCLIP(**config)
            model = CoCa(**config)
            # open_clip leaves this one as it finds the memory
            torch.nn.init.normal_(model.text_decoder.text_projection, std=model.text_decoder.width**-0.5)
            return model
    except Exception as error:  # a local file's settings may be wrong in any way
        if source.config_file is None or lacks_memory(error):
            raise
        reason = first_line(error)
        raise BadInput(f"model.name: open_clip cannot build '{source.config_file}': {reason}") from None


def _language_model(source: _Source) -> str | None:
    """Have the config of a language model, if it is the text tower, at hand, and say where."""
    name = source.model_cfg["text_cfg"].get("hf_model_name")
    return from_hub(_without_code, name, f"{source.name!r} needs the text tower") if name else None


def _without_code(language_model: str) -> str:
    """Refuse a language model of no kind that open_clip knows; of these transformers has the code itself.

    For any other, transformers would ask on the terminal whether to run the code that comes with it.
    """
    kind = AutoConfig.from_pretrained(language_model, trust_remote_code=False).model_type
    if kind not in arch_dict:
        raise ValueError(f"open_clip has no text tower of kind {kind!r}{nearest(kind, arch_dict)}")
    return language_model


def _load_weights(model: Any, file: Path, source: _Source) -> None:
    state = _fitted(model, read_tensors(file))
    expected = model.state_dict()
    names = (*expected, *(name for name in state if name not in expected))
    wrong = [text for name in names if (text := _mismatch(name, expected, state))]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise BadInput(
            f"model.name: '{file}' holds no weights of {source.architecture!r}: {'; '.join(wrong[:3])}{more}"
        )
    model.load_state_dict(state, assign=True)  # the tensors read become the model's: there is one of each


def _fitted(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape as open_clip does what older versions of it, and others, have stored differently."""
    state = convert_to_custom_text_state_dict(convert_state_dict(model, state))
    state.pop("text.transformer.embeddings.position_ids", None)  # no weight in newer transformers
    for name in ("logit_scale", "logit_bias"):
        expected = getattr(model, name)
        if name in state and expected is not None and state[name].numel() == 1:
            state[name] = state[name].reshape(expected.shape)
    return state


def _mismatch(name: str, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    if name not in state:
        return f"{name} is missing"
    if name not in expected:
        return f"{name} has no place in it"
    if state[name].shape != expected[name].shape:
        return f"{name} is {tuple(state[name].shape)}, not {tuple(expected[name].shape)}"
    return None


def _tokenizer(source: _Source) -> Callable[[list[str]], Tensor]:
    settings = source.model_cfg["text_cfg"]
    repository = settings.get("hf_tokenizer_name")
    if source.config_file is None and not repository:
        return open_clip.get_tokenizer(source.architecture)
    more = dict(settings.get("tokenizer_kwargs") or {})
    more["context_length"] = settings.get("context_length", DEFAULT_CONTEXT_LENGTH)
    if source.name == "tiny":
        more["bpe_path"] = str(tiny.MERGES)
    if not repository:
        return SimpleTokenizer(**more)
    # as open_clip does: the tokenizer may lie beside the config file
    if source.config_file and (source.config_file.parent / "tokenizer_config.json").is_file():
        repository = str(source.config_file.parent)
    # unless told not to, transformers would ask on the terminal whether to run code that comes with it
    more |= {"tokenizer_mode": settings.get("tokenizer_mode"), "trust_remote_code": False}
    load = partial(HFTokenizer, **more)
    return from_hub(load, repository, f"{source.name!r} needs the tokenizer")


def _weights_file(source: _Source) -> Path:
    if isinstance(source.weights, Path):
        return source.weights
    assert source.weights is not None
    repository, _, named = source.weights["hf_hub"].rpartition("/")
    # as open_clip does: the safetensors file where there is one
    files = [f"{Path(named).stem}.safetensors", named] if named else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    file = published_file(repository, files)
    if file is None:
        wanted = named or files[0]
        raise BadInput(
            f"model.name: {source.name!r} needs {wanted} of {repository}, "
            f"which {not_at_hand(repository, wanted)}{_by_path(source, wanted)}"
        )
    return file


def _by_path(source: _Source, file: str) -> str:
    """Say how to name published weights that were brought here as a file, where a path says enough."""
    architecture = source.architecture
    if source.model_cfg.get("quick_gelu") and not open_clip.get_model_config(architecture).get("quick_gelu"):
        architecture += "-quickgelu"
    assumed = merge_preprocess_dict(PreprocessCfg(), _common_preprocessing(architecture))
    if source.preprocess_cfg != assumed:
        return ""
    return f"; or give the file itself as '{architecture}:/path/to/{file}'"
