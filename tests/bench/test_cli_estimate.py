"""`flora-bench estimate` and `flora-bench plan`, run in this process."""

import json
import math

import pytest

from bench import calibration
from bench.calibration import Calibration

SPEED = Calibration((10, 10**9), (1e9, 1e10), 1e9, (10, 10**6), (1e9, 1e9), 1e-5)
MATRIX = """
task: digits
method: [linear_probe, flora]
seed: [0, 1]
rounds: 2
clients: 2
data: {max_train: 20, max_test: 10}
device: cpu
"""


@pytest.fixture(autouse=True)
def calibrated(monkeypatch):
    monkeypatch.setattr(calibration, "calibrate", lambda **_: SPEED)


@pytest.fixture
def matrix(tmp_path):
    file = tmp_path / "matrix.yaml"
    file.write_text(MATRIX)
    return file


def test_methods_stand_side_by_side(run_cli):
    code, out, _ = run_cli("estimate", "--method", "flora", "--method", "full_finetune")
    assert code == 0
    assert "1,536" in out
    assert "1,353,345" in out
    assert "× less" in out
    assert "predicted time" in out


def test_estimates_as_json_have_the_largest_batch(run_cli):
    small = (
        "--set",
        "data.max_train=20",
        "--set",
        "data.max_test=10",
        "--set",
        "clients=2",
        "--set",
        "batch_size=4",
    )
    code, out, _ = run_cli("estimate", *small, "--method", "full_finetune", "--memory", "40MB", "--json")
    (found,) = json.loads(out)
    assert (code, found["how"], found["batch_size"]) == (0, "fake tensors", 4)
    assert found["largest_batch"] > 4
    assert found["seconds"]["step"] > 0


def test_time_can_be_left_out(run_cli, monkeypatch):
    monkeypatch.setattr(calibration, "calibration", None)  # calling it would fail
    code, out, _ = run_cli("estimate", "--method", "linear_probe", "--no-time", "--json")
    assert (code, json.loads(out)[0]["seconds"]) == (0, None)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "ViT-B-33"], "did you mean"),
        (["--method", "flor"], "did you mean 'flora'"),
        (["--memory", "much"], "--memory: 'much' is no size"),
        (["--set", "rank"], "--set"),
        (["--set", "method.rnk=4"], "there is no such field"),
    ],
)
def test_bad_input_is_one_line(run_cli, arguments, complaint):
    code, out, err = run_cli("estimate", "--no-time", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert complaint in err


def test_a_plan_groups_seeds_and_keeps_predictions(run_cli, matrix, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    (results / "predictions.json").write_text('{"another": {"payload_bytes": 1}}')
    code, out, _ = run_cli("plan", str(matrix), "--results", str(results), "--save", "--json")
    planned = json.loads(out)
    assert code == 0
    assert [len(row["config_hashes"]) for row in planned] == [2, 2]
    kept = json.loads((results / "predictions.json").read_text())
    assert set(kept) == {"another", *(name for row in planned for name in row["config_hashes"])}
    flora = kept[planned[1]["config_hashes"][1]]
    assert (flora["trainable_parameters"], flora["bytes_up"]) == (1536, 4 * flora["payload_bytes"])
    assert set(flora) == {
        "trainable_parameters",
        "payload_bytes",
        "bytes_up",
        "bytes_down",
        "train_flops",
        "peak_tensor_bytes",
        "total_seconds",
    }
    assert flora["total_seconds"] > 0
    assert math.isfinite(flora["total_seconds"])


def test_a_plan_writes_nothing_unasked(run_cli, matrix, tmp_path):
    results = tmp_path / "results"
    code, out, _ = run_cli("plan", str(matrix), "--results", str(results), "--no-time")
    assert code == 0
    assert "4 runs to do" in out
    assert "with one client trained at a time" in " ".join(out.split())
    assert not results.exists()


def test_predictions_that_cannot_be_read_are_bad_input(run_cli, matrix, tmp_path):
    (tmp_path / "predictions.json").write_text("[]")
    code, _, err = run_cli("plan", str(matrix), "--results", str(tmp_path), "--save", "--no-time")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds no predictions" in err
