"""A configuration is checked field by field, with one line an error, and has one hash."""

import json
from functools import reduce
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.catalogue import method_modules
from bench.config import RunConfig, _resolved, field_models, label, labels
from bench.splits import SPLITS
from flora.errors import BadInput

READ = RunConfig.read


def flat(fields, path=""):
    """Values by dotted path; lists are values."""
    return {
        dotted: inner
        for name, value in fields.items()
        for dotted, inner in (
            flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
        ).items()
    }


def nested(values):
    """The fields that `flat` gave `values` of."""
    fields: dict = {}
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        reduce(lambda inner, name: inner.setdefault(name, {}), parents, fields)[last] = value
    return fields


# --- what is refused, and how --------------------------------------------------------------------------

BAD = [
    # a field that there is not, at each level
    ({"rouds": 5}, "rouds: there is no such field; did you mean 'rounds'?"),
    ({"model": {"nam": "tiny"}}, "model.nam: there is no such field; did you mean 'name'?"),
    ({"method": {"name": "flora", "ranks": 2}}, "method.ranks: there is no such field; did you mean 'rank'?"),
    ({"method": {"name": "zero_shot", "rank": 2}}, "method.rank: there is no such field; choose from name"),
    (
        {"split": {"name": "dirichlet", "betta": 1}},
        "split: 'betta' is no field of dirichlet; did you mean 'beta'?",
    ),
    ({"optimizer": {"lrr": 1}}, "optimizer.lrr: there is no such field; did you mean 'lr'?"),
    ({"seed": {"splt": 1}}, "seed.splt: there is no such field; did you mean 'split'?"),
    ({"data": {"rot": "."}}, "data.rot: there is no such field; did you mean 'root'?"),
    # a field of another optimiser is not its own nearest name
    (
        {"optimizer": {"name": "sgd", "betas": [0, 0]}},
        "optimizer.betas: there is no such field; choose from lr, ",
    ),
    # a name that there is not
    ({"method": "flroa"}, "method.name: there is no method 'flroa'; did you mean 'flora'?"),
    ({"method": {"rank": 2}}, "method.name: None is no method's name; choose from attention_adapter, bitfit"),
    ({"split": "iidd"}, "split: 'iidd' is no split; did you mean 'iid'?"),
    ({"split": {"beta": 1}}, "split: {'beta': 1} has no name; choose from iid, dirichlet"),
    ({"optimizer": "adm"}, "optimizer.name: there is no optimizer 'adm'; did you mean 'adam'?"),
    (
        {"method": {"name": "flora", "places": ["text.ou"]}},
        "method.places.0: 'text.ou' is no place in a CLIP; did",
    ),
    (
        {"method": {"name": "flora", "loss": "mse"}},
        "method.loss: 'mse' must be 'contrastive' or 'cross_entropy'",
    ),
    (
        {"model": {"dtype": "half"}},
        "model.dtype: 'half' must be 'float32', 'float64', 'bfloat16' or 'float16'",
    ),
    ({"acceleration": "fast"}, "acceleration: 'fast' must be 'exact' or 'none'"),
    ({"engine": "ray"}, "engine: 'ray' must be 'local'"),
    ({"optimizer": {"state": "drop"}}, "optimizer.state: 'drop' must be 'keep' or 'reset'"),
    ({"device": "gpu"}, "device: 'gpu' is not on this machine; choose from auto, cpu"),
    ({"device": "cpu:1"}, "device: 'cpu:1' is not on this machine; choose from auto, cpu"),
    # a value out of range
    ({"clients": 0}, "clients: 0 must be greater than or equal to 1"),
    ({"rounds": -1}, "rounds: -1 must be greater than or equal to 0"),
    ({"participation": 0}, "participation: 0 must be greater than 0"),
    ({"participation": 1.5}, "participation: 1.5 must be less than or equal to 1"),
    ({"participation": float("nan")}, "participation: nan must be a finite number"),
    ({"batch_size": 0}, "batch_size: 0 must be greater than or equal to 1"),
    ({"local_epochs": 0}, "local_epochs: 0 must be greater than or equal to 1"),
    ({"local_steps": 0}, "local_steps: 0 must be greater than or equal to 1"),
    ({"method": {"name": "flora", "rank": 0}}, "method.rank: 0 must be greater than or equal to 1"),
    ({"method": {"name": "flora", "alpha": 0}}, "method.alpha: 0 must be greater than 0"),
    ({"method": {"name": "flora", "places": []}}, "method.places: [] must have at least 1 item"),
    ({"split": {"name": "dirichlet", "beta": 0}}, "split.beta: 0 must be greater than 0"),
    ({"split": {"name": "dirichlet", "beta": -0.5}}, "split.beta: -0.5 must be greater than 0"),
    ({"split": {"name": "iid", "shots": 0}}, "split.shots: 0 must be greater than or equal to 1"),
    (
        {"split": {"name": "iid", "overlap": True}},
        "split: overlap true has no meaning without shots; give shots",
    ),
    ({"optimizer": {"lr": 0}}, "optimizer.lr: 0 must be greater than 0"),
    ({"optimizer": {"lr": float("inf")}}, "optimizer.lr: inf must be a finite number"),
    ({"optimizer": {"betas": [0.9, 1]}}, "optimizer.betas.1: 1 must be less than 1"),
    ({"optimizer": {"betas": [0.9]}}, "optimizer.betas.1: [0.9] has a value too few"),
    ({"seed": -1}, "seed.split: -1 must be greater than or equal to 0"),
    ({"clients_per_batch": 0}, "clients_per_batch: 0 must be auto or a whole number from 1"),
    ({"clients_per_batch": "many"}, "clients_per_batch: 'many' must be auto or a whole number from 1"),
    ({"clients_per_batch": 2.5}, "clients_per_batch: 2.5 must be auto or a whole number from 1"),
    ({"data": {"max_train": 0}}, "data.max_train: 0 must be greater than or equal to 1"),
    # a value of another kind
    ({"clients": 2.5}, "clients: 2.5 must be a valid integer"),
    ({"clients": "ten"}, "clients: 'ten' must be a valid integer"),
    ({"rounds": None}, "rounds: None must be a valid integer"),
    ({"task": 3}, "task: 3 must be a valid string"),
    ({"method": 3}, "method: 3 must be a name or a mapping of fields to values"),
    ({"model": [1]}, "model: [1] must be a name or a mapping of fields to values"),
    ({"split": 3}, "split: 3 must be a name or a mapping of fields to values"),
    ({"optimizer": 3}, "optimizer: 3 must be a name or a mapping of fields to values"),
    ({"data": "here"}, "data: 'here' must be a mapping of fields to values"),
    ({"seed": "0"}, "seed: '0' must be a whole number or a mapping of fields to values"),
    ({"seed": [0, 1]}, "seed: [0, 1] must be a whole number or a mapping of fields to values"),
    ({1: 2}, "1: "),
    # a truth value where a number belongs: YAML reads `rounds: on` so
    ({"clients": True}, "clients: True must be a number, not a truth value"),
    ({"clients_per_batch": True}, "clients_per_batch: True must be a number, not a truth value"),
    ({"rounds": False}, "rounds: False must be a number, not a truth value"),
    ({"seed": True}, "seed: True must be a whole number"),
    ({"seed": {"init": True}}, "seed.init: True must be a number, not a truth value"),
    ({"method": {"name": "flora", "rank": True}}, "method.rank: True must be a number, not a truth value"),
    ({"optimizer": {"lr": True}}, "optimizer.lr: True must be a number, not a truth value"),
    ({"split": {"name": "iid", "shots": True}}, "split.shots: True must be a number, not a truth value"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line_that_names_field_value_and_remedy(fields, message):
    with pytest.raises(BadInput) as caught:
        READ(fields)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_the_first_of_several_errors_is_the_one_told():
    with pytest.raises(BadInput, match=r"^clients: 0 must be"):
        READ({"clients": 0, "rounds": -1})


def test_a_number_in_quotes_is_the_number():
    assert READ({"clients": "7", "optimizer": {"lr": "1e-3"}}) == READ(
        {"clients": 7, "optimizer": {"lr": 0.001}}
    )


def test_truth_values_are_fine_where_a_truth_value_is_asked_for():
    split = READ({"split": {"name": "dirichlet", "cap": True, "shots": 2, "overlap": True}}).split
    assert (split.cap, split.overlap) == (True, True)


# --- devices -------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch):
    """Let the machine have so many GPUs."""

    def have(count):
        _resolved.cache_clear()
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    yield have
    _resolved.cache_clear()


def test_a_gpu_that_is_not_there_is_refused(gpus):
    gpus(0)
    assert READ({}).device == "cpu"
    with pytest.raises(BadInput, match=r"^device: 'cuda' is not on this machine; choose from auto, cpu$"):
        READ({"device": "cuda"})


def test_gpus_that_are_there_can_be_chosen(gpus):
    gpus(2)
    assert READ({}).device == "cuda"
    assert READ({"device": "cuda:1"}).device == "cuda:1"
    for absent in ("cuda:2", "cuda:", "cuda:-1", "cuda:x", "mps"):
        with pytest.raises(BadInput, match="choose from auto, cpu, cuda, cuda:0, cuda:1"):
            READ({"device": absent})


# --- the hash ------------------------------------------------------------------------------------------

BASE = {"method": "flora", "split": {"name": "dirichlet"}, "device": "cpu"}

# One other value for every field there is; two that depend on one another are set together.
OTHER = {
    "task": "glyphs",
    "model.name": "ViT-B-32:random",
    "model.dtype": "float64",
    "method.name": "zero_shot",
    "method.blocks": 1,
    "method.rank": 4,
    "method.alpha": 16,
    "method.places": ["text.out", "text.query"],
    "method.loss": "cross_entropy",
    "split.name": "iid",
    "split.beta": 0.5,
    "split.cap": True,
    "split.shots": 4,
    "split.overlap": True,
    "clients": 11,
    "participation": 0.5,
    "rounds": 9,
    "local_epochs": 2,
    "local_steps": 3,
    "batch_size": 64,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-4,
    "optimizer.betas": [0.9, 0.99],
    "optimizer.eps": 1e-7,
    "optimizer.weight_decay": 0.1,
    "optimizer.state": "reset",
    "seed.split": 1,
    "seed.participation": 1,
    "seed.init": 1,
    "seed.order": 1,
    "data.root": "/elsewhere",
    "data.max_train": 100,
    "data.max_test": 100,
    "data.max_per_class": 10,
    "data.protocol": "paper",
    "data.test_domain": "poster",
    "data.base_to_new": True,
    "data.on_corrupt": "skip",
    "evaluation.set": "validation",
    "evaluation.validation_share": 0.5,
    "evaluation.per_client": True,
    "evaluation.retention": "glyphs",
    "mode": "local_only",
    "codec.name": "int8",
    "proximal_mu": 0.1,
    "tuning": {"grid": "rounds=[1]", "trials": 1, "chosen": {"rounds": 1}, "validation_accuracy": 0.5},
    "acceleration": "none",
    "clients_per_batch": 4,
    "compute.threads": 3,
    "compute.channels_last": True,
    "compute.compile": "default",
    "compute.matmul_precision": "high",
    "engine": "other",
    "device": "cuda",
}
WITHOUT_EFFECT = {"data.root", "tuning"}


def changed(path):
    """The base configuration with the field at `path` at its other value."""
    values = flat(READ(BASE).model_dump(mode="json"))
    values[path] = OTHER[path]
    if path == "split.overlap":
        values["split.shots"] = OTHER["split.shots"]
    if path in ("method.name", "split.name"):  # another kind has other fields
        section = path.split(".")[0]
        values = {name: x for name, x in values.items() if name == path or not name.startswith(f"{section}.")}
    return values


def test_every_field_has_an_other_value_here():
    assert set(OTHER) == set(flat(READ(BASE).model_dump(mode="json")))


@pytest.mark.parametrize("path", sorted(set(OTHER) - {"engine", "device"}))
def test_the_hash_tells_fields_that_change_numbers_from_those_that_cannot(path):
    hash_of_other = READ(nested(changed(path))).hash
    assert (hash_of_other == READ(BASE).hash) == (path in WITHOUT_EFFECT)


@pytest.mark.parametrize("path", ["engine", "device"])
def test_the_hash_tells_apart_what_this_machine_may_not_have(path):
    # an engine to come, a GPU that is not here: set past the checks
    assert READ(BASE).model_copy(update={path: OTHER[path]}).hash != READ(BASE).hash


def test_a_changed_copy_has_a_hash_of_its_own():
    config = READ(BASE)
    before = config.hash
    assert config.model_copy(update={"rounds": config.rounds + 1}).hash != before
    assert config.model_copy().hash == config.with_seed(config.seed.model_dump()).hash == before
    assert config.with_seed(99).hash == READ({**BASE, "seed": 99}).hash != before


def test_no_two_changes_share_a_hash():
    paths = set(OTHER) - WITHOUT_EFFECT - {"engine", "device"}
    hashes = {path: READ(nested(changed(path))).hash for path in paths}
    assert not [pair for pair in combinations(paths, 2) if hashes[pair[0]] == hashes[pair[1]]]


def test_other_gpus_that_are_made_visible_are_seen(gpus, monkeypatch):
    gpus(2)
    assert READ({"device": "cuda:1"}).device == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(BadInput, match=r"choose from auto, cpu, cuda, cuda:0$"):
        READ({"device": "cuda:1"})


def test_the_index_of_a_gpu_is_not_in_the_hash(gpus):
    gpus(2)
    hashes = {READ({"device": device}).hash for device in ("auto", "cuda", "cuda:0", "cuda:1")}
    assert len(hashes) == 1
    assert READ({"device": "cpu"}).hash not in hashes


@pytest.mark.parametrize("method", ["flora", "peft:lora"])
def test_places_are_a_set_however_they_are_written(method):
    def hash_of(*places):
        return READ({"method": {"name": method, "places": places}}).hash

    assert hash_of("text.head", "vision.mlp", "text.out") == hash_of("text.out", "text.head", "vision.mlp")
    assert hash_of("text.out", "text.out") == hash_of("text.out") != hash_of("text.out", "text.head")


def test_a_bare_name_and_its_defaults_spelled_out_are_one_run():
    for method in method_modules():
        spelled_out = READ({"method": method}).model_dump(mode="json")
        assert READ(spelled_out).hash == READ({"method": method}).hash
    assert (
        READ({"seed": 3}).hash
        == READ({"seed": dict.fromkeys(("split", "participation", "init", "order"), 3)}).hash
    )
    assert READ({"split": "iid"}).hash == READ({"split": {"name": "iid", "shots": None}}).hash
    assert READ({"optimizer": "adam"}).hash == READ({"optimizer": {"lr": 5e-5}}).hash == READ({}).hash
    assert READ({"participation": 1}).hash == READ({"participation": 1.0}).hash


DEFAULTS = flat(READ({"device": "cpu"}).model_dump(mode="json"))


@given(st.sets(st.sampled_from(sorted(DEFAULTS))))
def test_whichever_defaults_are_spelled_out_the_hash_is_the_same(paths):
    # a section given in part needs its name
    names = {f"{path.split('.')[0]}.name" for path in paths if path.startswith(("method.", "split."))}
    given_fields = nested({path: DEFAULTS[path] for path in sorted(paths | names)})
    assert READ({"device": "cpu", **given_fields}).hash == READ({"device": "cpu"}).hash


CONFIGURATIONS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(sorted(method_modules())),
        "split": st.sampled_from(
            [{"name": name, "classes_per_client": 2} if name == "pathological" else name for name in SPLITS]
        ),
        "optimizer": st.sampled_from(["adam", "adamw", "sgd"]),
        "seed": st.integers(0, 2**40),
        "clients": st.integers(1, 1000),
        "participation": st.floats(0.01, 1),
    }
)


@given(CONFIGURATIONS)
def test_a_configuration_survives_json(fields):
    config = READ(fields)
    again = READ(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config
    assert again.hash == config.hash


# --- the rest ------------------------------------------------------------------------------------------


def test_a_read_configuration_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        READ({}).clients = 3


def test_training_is_what_the_configuration_says_of_it():
    training = READ({"batch_size": 7, "local_steps": 2, "optimizer": "sgd"}).training
    assert (training.batch_size, training.local_steps, training.optimizer.name) == (7, 2, "sgd")


def test_the_label_names_the_cell():
    assert label(READ({"method": "zero_shot"})) == "digits · zero_shot · iid · seed 0"
    few = READ({"split": {"name": "dirichlet", "shots": 4}, "seed": {"order": 2}})
    assert label(few) == "digits · flora · dirichlet 4-shot · seeds 0-0-0-2"


def test_the_label_tells_options_that_are_not_the_defaults():
    method = {"name": "flora", "rank": 8, "places": ["text.out", "text.head"]}
    split = {"name": "dirichlet", "beta": 1.0, "shots": 4}
    words = "flora (places text.out+text.head, rank 8) · dirichlet (beta 1.0) 4-shot"
    assert label(READ({"method": method, "split": split})) == f"digits · {words} · seed 0"
    method, split = {"name": "flora", "loss": "cross_entropy"}, {"name": "dirichlet", "cap": True}
    words = "flora (loss cross_entropy) · dirichlet (cap true)"
    assert label(READ({"method": method, "split": split})) == f"digits · {words} · seed 0"
    assert "pathological (classes_per_client null) ·" in label(
        READ({"split": {"name": "pathological", "classes_per_client": None}})
    )


def test_fields_of_a_section_are_those_of_what_it_names():
    names = {name for model in field_models("split", {"name": "dirichlet"}) for name in model.model_fields}
    assert "beta" in names
    assert "beta" not in field_models("split", {"name": "iid"})[0].model_fields
    assert "momentum" in field_models("optimizer", {"name": "sgd"})[0].model_fields
    assert "betas" in field_models("optimizer", {})[0].model_fields


def test_a_home_directory_in_a_folder_task_is_written_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert READ({"task": "folder:~/pets/"}).task == f"folder:{tmp_path}/pets"


def test_labels_tell_every_cell_apart_by_what_differs():
    cells = [
        READ({"optimizer": {"lr": lr}, "seed": seed, "device": "cpu"})
        for seed in (0, 1)
        for lr in (1e-3, 1e-2)
    ]
    cells.append(READ({"method": "zero_shot", "device": "cpu"}))
    named = labels(cells)
    assert len(set(named.values())) == 5
    assert named[cells[0].hash] == f"{label(cells[0])} (optimizer.lr 0.001)"
    assert named[cells[4].hash] == label(cells[4])
