"""What a run has trained, loaded back by PEFT and by plain open_clip."""

import json

import open_clip
import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

from bench import store, tiny
from bench.catalogue import load_method, method_modules
from bench.cli import app
from bench.config import Model, RunConfig
from bench.execute import run_matrix
from bench.models import load_model
from flora import client
from flora.errors import BadInput
from flora.prompts import Prompts

SMALL = {
    "rounds": 2,
    "clients": 2,
    "batch_size": 16,
    "optimizer": {"lr": 5e-3, "weight_decay": 0.0},
    "data": {"max_train": 60, "max_test": 20},
    "device": "cpu",
}
EVERYWHERE = {
    "name": "flora",
    "rank": 2,
    "alpha": 4.0,
    "places": [
        f"{t}.{p}" for t in ("text", "vision") for p in ("query", "key", "value", "out", "mlp", "head")
    ],
}


def stored(tmp_path, method, **fields):
    (outcome,) = run_matrix([RunConfig.read({**SMALL, "method": method, **fields})], tmp_path / "results")
    assert outcome.status == "ran", outcome.reason
    return outcome.path


def exported(run, to, out):
    done = CliRunner().invoke(app, ["export", str(run), "--format", to, "--out", str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout.splitlines()


def trained(run):
    """The run's method with its trained tensors, the plain way."""
    result = store.load_run(run)
    config = RunConfig.read(result["config"])
    model = load_model(Model(name="tiny"), "cpu")
    prompts = Prompts.tokenize(result["data"]["class_names"], model.tokenize)
    method = load_method(config.method.name)(model.clip, prompts, config.method, torch.Generator())
    client.load(method, store.load_weights(run))
    return method


INPUTS = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tokens():
    return load_model(Model(name="tiny"), "cpu").tokenize(["a photo of a 3.", "an unseen text"])


def features(clip):
    with torch.no_grad():
        return clip.encode_image(INPUTS), clip.encode_text(tokens())


PEFT_METHODS = [EVERYWHERE, *(name for name in method_modules() if name.startswith("peft:"))]


@pytest.mark.parametrize("method", PEFT_METHODS, ids=lambda m: m if isinstance(m, str) else m["name"])
def test_peft_loads_the_adapter_onto_the_split_model(tmp_path, method):
    run = stored(tmp_path, method)
    files = exported(run.parent, "peft", tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {f.rpartition("/")[2] for f in files}
    clip = load_model(Model(name="tiny"), "cpu").clip
    before = features(clip)
    loaded = PeftModel.from_pretrained(clip, str(tmp_path / "adapter"))
    after, expected = features(loaded.base_model.model), features(trained(run).clip)
    for ours, theirs in zip(after, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert not torch.allclose(after[1], before[1], atol=1e-4)  # the text tower was trained


@pytest.mark.parametrize(
    "method",
    [EVERYWHERE, "full_finetune", "layernorm_tuning", "bitfit", "peft:dora"],
    ids=lambda m: m if isinstance(m, str) else m["name"],
)
def test_open_clip_loads_the_merged_model(tmp_path, method):
    run = stored(tmp_path, method)
    exported(run, "open_clip", tmp_path / "model")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'model'}").eval()
    with torch.no_grad():
        images, texts, scale = model(INPUTS, tokens())
        logits = scale * images @ texts.T
    clip = trained(run).clip
    ours_images, ours_texts = (torch.nn.functional.normalize(x, dim=-1) for x in features(clip))
    expected = clip.logit_scale.exp() * ours_images @ ours_texts.T
    assert torch.allclose(logits, expected, rtol=0, atol=1e-5)
    original = open_clip.create_model(f"local-dir:{tiny.FOLDER}").eval()
    with torch.no_grad():
        images, texts, scale = original(INPUTS, tokens())
    assert not torch.allclose(logits, scale * images @ texts.T, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "to", "message"),
    [
        ("linear_probe", "open_clip", "linear_probe trains 'weight'"),
        ("linear_probe", "peft", "linear_probe is no adapter of PEFT's"),
        ("full_finetune", "peft", "full_finetune is no adapter of PEFT's"),
    ],
)
def test_what_a_format_has_no_place_for_is_refused(tmp_path, method, to, message):
    run = stored(tmp_path, method, rounds=1)
    done = CliRunner().invoke(app, ["export", str(run), "--format", to, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, BadInput)
    assert message in str(done.exception)


def test_weights_are_kept_by_choice_and_checked(tmp_path):
    config = RunConfig.read({**SMALL, "method": "flora", "rounds": 1})
    (without,) = run_matrix([config], tmp_path, weights="none")
    assert store.load_run(without.path)["weights"] is None
    with pytest.raises(BadInput, match="run its cell again with --fresh --weights all"):
        store.load_weights(without.path)
    (kept,) = run_matrix([config], tmp_path, fresh=True)
    said = store.load_run(kept.path)["weights"]
    file = kept.path.with_name(said["file"])
    assert said["bytes"] == file.stat().st_size
    tensors = store.load_weights(kept.path)
    assert sum(t.numel() for t in tensors.values()) == kept.summary["trainable_parameters"]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BadInput, match="is not what"):
        store.load_weights(kept.path)
    list(run_matrix([config], tmp_path, fresh=True, weights="none"))
    assert not file.exists()


def test_a_run_killed_while_weights_are_written_leaves_none(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    (outcome,) = run_matrix([RunConfig.read({**SMALL, "rounds": 1})], tmp_path)
    assert outcome.status == "failed"
    assert "No space left" in outcome.reason
    left = {path.name for path in outcome.path.parent.iterdir()}
    assert left == {"error.txt", "failure.json", "log.txt"}


def test_a_refused_export_leaves_nothing_behind(tmp_path):
    run = stored(tmp_path, "linear_probe", rounds=1)
    (tmp_path / "file").write_text("x")
    for out, message in (("out", "no adapter of PEFT's"), ("file/below", "cannot be written")):
        command = ["export", str(run), "--format", "peft" if out == "out" else "open_clip"]
        if out != "out":
            command[1] = str(stored(tmp_path, "bitfit", rounds=1))
        done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / out)])
        assert isinstance(done.exception, BadInput)
        assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_written_into(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    done = CliRunner().invoke(app, ["export", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "is there already" in str(done.exception)


def test_the_exported_config_says_what_was_adapted(tmp_path):
    run = stored(tmp_path, {"name": "flora", "rank": 3, "alpha": 8.0}, rounds=1)
    exported(run, "peft", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (3, 24.0, "LORA")
    assert config["base_model_name_or_path"] == "tiny"
    assert all(layer.endswith("out_proj") for layer in config["target_modules"])
