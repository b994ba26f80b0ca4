"""The preset `gate`: all that can break in small, and exact figures that nothing but the code changes."""

import gc
import json
from pathlib import Path

import pytest

from bench.catalogue import method_modules
from bench.cell import run_cell
from bench.config import OPTIMIZERS, RunConfig
from bench.matrix import Matrix
from bench.regress.measurements import measurements_of_runs, read_measurements
from bench.regress.metrics import Kind, metric_of
from bench.splits import SPLITS
from flora.settings import CODECS

REFERENCE = Path(__file__).parents[3] / "results" / "reference" / "gate.json"
LARGEST_BYTES = 300_000


@pytest.fixture(scope="module")
def cells():
    return Matrix.read("gate").cells()


def test_all_that_can_be_chosen_is_there(cells):
    assert {cell.method.name for cell in cells} == set(method_modules())
    assert {cell.split.name for cell in cells} == set(SPLITS)
    assert {cell.codec.name for cell in cells} == set(CODECS)
    assert {cell.optimizer.name for cell in cells} == set(OPTIMIZERS)
    assert {cell.mode for cell in cells} == {"federated", "local_only", "centralized"}
    assert {cell.acceleration for cell in cells} == {"exact", "none"}
    assert {cell.clients_per_batch for cell in cells} == {1, 4}
    assert any(cell.participation < 1 for cell in cells)
    assert any(cell.split.shots for cell in cells)
    assert any(cell.proximal_mu for cell in cells)


def test_nothing_of_it_depends_on_the_machine(cells):
    assert {cell.device for cell in cells} == {"cpu"}
    assert {cell.model.name for cell in cells} == {"tiny"}, "random weights follow the processor"
    assert {cell.model.dtype for cell in cells} <= {"float32", "float64"}, "half precision does too"
    assert len({str(cell.seed) for cell in cells}) == 1


def test_the_reference_holds_the_cells_of_the_preset(cells):
    kept = {json.dumps(cell.config, sort_keys=True) for cell in read_measurements(REFERENCE).cells}
    named = {json.dumps(cell.model_dump(mode="json"), sort_keys=True) for cell in cells}
    hint = "run the preset again: flora-bench snapshot DIR --exact --out results/reference/gate.json"
    assert kept == named, hint


def test_the_reference_is_small_and_sound():
    found = read_measurements(REFERENCE)
    assert REFERENCE.stat().st_size < LARGEST_BYTES
    for cell in found.cells:
        assert (cell.metrics["broken_invariants"], cell.broken) == (0, "")
        assert cell.kernels is None, "its times would decide"
        assert None not in [value for name, value in cell.metrics.items() if is_exact(name)]


def is_exact(name):
    metric = metric_of(name)  # what tells processes apart is none
    return metric is not None and metric.kind is Kind.EXACT


def measured(config):
    """Run a cell and give what is compared of it, as a result on disk would."""
    run = {**run_cell(config), "config": config.model_dump(mode="json")}
    return measurements_of_runs([(Path("run.json"), json.loads(json.dumps(run)))], "here").cells[0]


def exact(cell):
    return {name: value for name, value in cell.metrics.items() if is_exact(name)}


@pytest.fixture(scope="module")
def plain(cells):
    """The preset's first cell of FLoRA, and what it gives."""
    config = next(cell for cell in cells if cell.method.name == "flora")
    return config, measured(config)


def test_figures_do_not_depend_on_when_garbage_is_collected(plain):
    config, first = plain
    gc.disable()
    try:
        again = measured(config)
    finally:
        gc.enable()
    assert len(exact(first)) > 20
    assert exact(first) == exact(again)
    assert first.losses == again.losses


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        ({"method": {"name": "flora", "rank": 3}}, {"trainable_parameters", "payload_bytes", "flops.train"}),
        ({"batch_size": 9}, {"flops.train", "peak_tensor_bytes.train"}),
        ({"seed": 1}, {"split_fingerprint", "data_fingerprint"}),
    ],
)
def test_a_change_of_what_is_run_shows(plain, change, moves):
    config, cell = plain
    one, other = exact(cell), exact(measured(RunConfig.read({**config.model_dump(), **change})))
    assert moves <= {name for name in one if one[name] != other[name]}
