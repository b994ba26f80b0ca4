"""Settings: short forms, the paper's values, refusals."""

import pytest
from pydantic import ValidationError

from flora.errors import BadInput, nearest
from flora.settings import SGD, Adam, Seeds, Training


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("adam", Adam()),
        ("adamw", Adam(name="adamw")),
        ("sgd", SGD()),
        ({"lr": 0.5}, Adam(lr=0.5)),
        ({"name": "sgd", "momentum": 0.9}, SGD(momentum=0.9)),
        ({"name": "adamw", "state": "reset"}, Adam(name="adamw", state="reset")),
    ],
)
def test_optimizers_by_name_or_by_values(given, meant):
    assert Training(optimizer=given).optimizer == meant


def test_the_defaults_are_the_papers():
    adam = Training().optimizer
    assert (adam.name, adam.lr, adam.betas, adam.eps) == ("adam", 5e-5, (0.9, 0.98), 1e-6)
    assert (adam.weight_decay, adam.state) == (0.2, "keep")
    assert (Training().batch_size, Training().local_epochs) == (128, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "lion"},
        {"optimizer": {"lr": 0}},
        {"optimizer": {"lr": float("nan")}},
        {"optimizer": {"betas": (0.9, 1.0)}},
        {"optimizer": {"momentum": 0.9}},
        {"optimizer": {"name": "sgd", "betas": (0.9, 0.9)}},
        {"optimizer": {"state": "shared"}},
        {"optimizer": 3},
        {"batch_size": 0},
        {"local_epochs": 0},
        {"local_steps": 0},
        {"epochs": 2},
    ],
    ids=str,
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        Training(**wrong)


def test_settings_do_not_change_once_read():
    with pytest.raises(ValidationError):
        Training().batch_size = 3
    with pytest.raises(ValidationError):
        Seeds(split=-1)


def test_the_nearest_name_is_offered():
    assert nearest("floar", ["flora", "linear_probe"]) == "; did you mean 'flora'?"
    assert nearest("xyz", ["b", "a"]) == "; choose from a, b"
    assert issubclass(BadInput, ValueError)
