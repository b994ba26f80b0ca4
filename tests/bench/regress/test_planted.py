"""What is planted is really there, leaves nothing behind, and is found by the comparison; the rest is not."""

from contextlib import nullcontext

import pytest
import torch

from bench import cell, execute
from bench.perf import planted
from bench.perf.experiment import Setting
from flora import client, federation, group, payload
from flora.lora import FLoRA
from flora.method import Method

QUICK = Setting(quick=True)
FLORA, PROBE = planted._METHODS


def measured(plant, folder, fields):
    return planted._measured(planted._cells(QUICK, 1, fields), plant, folder)


def failed(base, new):
    return {judgement.metric.name for judgement in planted._failures(planted._judged(base, new))}


@pytest.fixture(scope="module", autouse=True)
def nothing_warmed_up():
    """No time is measured here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "warm_up", lambda device: 0.0)
        yield


@pytest.fixture(scope="module")
def flora(tmp_path_factory):
    return measured(nullcontext, tmp_path_factory.mktemp("flora"), FLORA)


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    return measured(nullcontext, tmp_path_factory.mktemp("probe"), PROBE)


def test_growth_is_found_in_one_run_by_its_own_metrics_alone(flora, tmp_path):
    grown = {}
    for name, growth in planted._growths(flora).items():
        new = measured(growth.plant, tmp_path / name, FLORA)
        found = failed(flora, new)
        assert growth.metric in found, name
        assert all(metric.startswith(growth.touches) for metric in found), name
        before, after = (side.cells[0].metrics[growth.metric] for side in (flora, new))
        grown[name] = after - before
    assert grown["byte"] == grown["parameter"] == 1
    assert grown["memory"] == int(0.02 * flora.cells[0].metrics["peak_tensor_bytes"])
    # of batches as small as here, less than the 1 % of the experiment's
    assert 0.003 < grown["work"] / flora.cells[0].metrics["train_flops"] < 0.015


@pytest.mark.parametrize("plant", [planted._counts_ignored, planted._rate_halved, planted._test_leaked])
def test_bugs_show_in_what_is_learned(plant, probe, tmp_path):
    found = failed(probe, measured(plant, tmp_path, PROBE))
    assert "learning" in found
    # the one bug that a run itself finds, as the mean is computed once more
    assert ("broken_invariants" in found) is (plant is planted._counts_ignored)


# what is as small as here is not divided among threads
@pytest.mark.parametrize(
    "plant", [x for x in dict.fromkeys(planted._REORDERINGS.values()) if x is not planted._other_threads]
)
def test_reorderings_change_digits_and_no_verdict(plant, flora, tmp_path):
    new = measured(plant, tmp_path, FLORA)
    assert not failed(flora, new)
    assert new.cells[0].losses != flora.cells[0].losses


def test_nothing_planted_stays():
    patched = (
        (Method, "aggregator"),
        (client, "optimizer_over"),
        (group, "optimizer_over"),
        (cell, "_samples_for"),
        (federation, "participants"),
        (client, "order"),
        (payload, "encode"),
        (FLoRA, "prepare"),
        (FLoRA, "closed_form"),
        (FLoRA, "similarities"),
        (FLoRA, "loss"),
    )

    def now():
        found = [getattr(owner, name) for owner, name in patched]
        return [*found, torch.get_num_threads(), torch.backends.mkldnn.enabled]

    before = now()
    plants = [planted._counts_ignored, planted._rate_halved, planted._test_leaked, planted._byte]
    for plant in (*plants, planted._parameter, planted._work, *planted._REORDERINGS.values()):
        with plant():
            assert now() != before
        assert now() == before
