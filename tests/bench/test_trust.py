"""What the report says of how far its figures can be trusted."""

import json

import pytest

from bench import store
from bench.report.build import build_report
from bench.report.names import label_runs
from bench.report.tables import accuracy_table, further_cost_table
from bench.report.trust import busy_note, checks_note, doubts_table, memory_table, predicted_table
from bench.store import load_results
from flora.errors import BadInput

MEMORY = {
    "by_cause": {
        "parameters": 5e6,
        "gradients": 0,
        "optimizer_state": 1e6,
        "activations": 2e6,
        "buffers": 3e6,
    },
    "by_phase": {"features": 4e6, "train": 11e6, "aggregate": 6e6, "evaluate": 7e6},
}
HOLDS, BROKEN = {"holds": True}, {"holds": False, "reason": "clip.text.x changed"}


def result(method="flora", seed=0, broken=False, busy=False, **summary):
    return {
        "status": "complete",
        "config": {
            "task": "digits",
            "model": {"name": "tiny"},
            "method": {"name": method},
            "split": {"name": "iid", "shots": None},
            "seed": seed,
            "clients": 2,
            "rounds": 1,
            "batch_size": 8,
            "device": "cpu",
        },
        "config_hash": f"{method}{seed}",
        "summary": {
            "accuracy": 0.8,
            "best_accuracy": 0.8,
            "zero_shot_accuracy": 0.5,
            "total_seconds": 2.0,
            "setup_seconds": 1.0,
            "features_seconds": 0.5,
            "train_seconds": 1.0,
            "round_seconds": 1.0,
            "bytes_up": 100,
            "bytes_down": 100,
            "payload_bytes": 100,
            "peak_memory_bytes": 10**9,
            "train_flops": 123456789,
            "peak_tensor_bytes": 11000000,
            "trainable_parameters": 25,
            **summary,
        },
        "rounds": [{"round": 0, "accuracy": 0.5}, {"round": 1, "accuracy": 0.8, "seconds": {"train": 1.0}}],
        "memory": MEMORY,
        "load": {"busy": busy, "others_busy_share": 0.4 if busy else 0.0},
        "invariants": {"frozen_unchanged": BROKEN if broken else HOLDS, "losses_finite": HOLDS},
    }


@pytest.fixture
def kept(tmp_path):
    def keep(*results):
        for one in results:
            store.save_run(store.run_path(tmp_path, one["config"], one["config_hash"]), one)
        return tmp_path

    return keep


def cells(table):
    return {name: [cell.text for cell in row] for name, row in table.rows}


def test_a_broken_invariant_is_listed_marked_and_counted(kept):
    runs = load_results(kept(result(), result(seed=1, broken=True), result("linear_probe")))
    table = doubts_table(runs)
    assert cells(table) == {
        "FLoRA": ["IID", "all data", "1", "frozen unchanged: clip.text.x changed", "flora1"]
    }
    assert "in 1 something did not hold" in checks_note(runs)
    marked = {name: row[0].broken for name, row in accuracy_table(runs).rows}
    assert marked == {"Zero-shot": False, "FLoRA": True, "Linear probe": False}
    assert "‡" in accuracy_table(runs).to_markdown()
    assert "‡" in accuracy_table(runs).to_html()


def test_where_all_held_it_says_so(kept):
    runs = load_results(kept(result(), result(seed=1)))
    assert doubts_table(runs) is None
    assert "checked in 2 of 2 runs" in checks_note(runs)
    assert "all held" in checks_note(runs)


def test_a_busy_machine_is_said(kept):
    runs = load_results(kept(result(), result(seed=1, busy=True)))
    assert "during 1 of 2 runs, up to 40 %" in busy_note(runs)
    assert busy_note(runs[:0]) == ""


def test_live_tensors_by_cause_and_phase(kept):
    table = memory_table(load_results(kept(result())))
    assert [span for _, span in table.groups] == [5, 4]
    assert cells(table)["FLoRA"] == [
        *("5.00 MB", "0 B", "1.00 MB", "2.00 MB", "3.00 MB"),
        *("4.00 MB", "11.0 MB", "6.00 MB", "7.00 MB"),
    ]


def test_predictions_stand_beside_what_was_measured(kept):
    folder = kept(result(), result(seed=1))
    foretold = {
        "payload_bytes": 90,
        "train_flops": 120000000,
        "total_seconds": None,
        "trainable_parameters": 25,
    }
    store.save_predictions(folder, {"flora0": foretold})
    store.save_predictions(folder, {"flora1": foretold})
    table = predicted_table(load_results(folder), store.load_predictions(folder))
    assert [text for text, _ in table.groups] == ["Parameters", "Payload", "Training FLOPs"]
    assert cells(table)["FLoRA"] == ["25", "25", "90 B", "100 B", "120 M", "123 M"]
    assert predicted_table(load_results(folder), {}) is None


def test_runs_whose_clients_were_trained_together_are_left_out_of_what_is_of_one_at_a_time(kept):
    folder = kept(
        result(clients_together=1), result("linear_probe", clients_together=4), result("linear_probe", seed=1)
    )
    foretold = {
        "payload_bytes": 90,
        "train_flops": 120000000,
        "peak_tensor_bytes": 10**7,
        "total_seconds": 3.0,
    }
    store.save_predictions(folder, {"flora0": foretold, "linear_probe0": foretold})
    table = predicted_table(load_results(folder), store.load_predictions(folder))
    assert cells(table)["FLoRA"] == ["90 B", "100 B", "120 M", "123 M", "10.0 MB", "11.0 MB", "3.00", "2.00"]
    assert cells(table)["Linear probe"] == ["90 B", "100 B", *["–"] * 6]
    assert "trained together are left out of FLOPs, memory and time" in table.caption
    alone = predicted_table(load_results(folder), {"flora0": foretold})
    assert "together" not in alone.caption


def test_further_costs_have_a_table_of_their_own(kept):
    table = further_cost_table(load_results(kept(result())))
    assert table.columns == ["Method", "Live tensors"]
    assert cells(table)["FLoRA"] == ["11.0 MB"]


def test_results_from_before_have_none_of_it(kept):
    old = result()
    for field in ("memory", "load", "invariants"):
        del old[field]
    for field in ("train_flops", "peak_tensor_bytes"):
        del old["summary"][field]
    folder = kept(old)
    runs = label_runs(load_results(folder))
    assert doubts_table(runs) is memory_table(runs) is further_cost_table(runs) is None
    assert checks_note(runs) == busy_note(runs) == ""
    build_report(folder, folder / "report")


def test_a_damaged_file_of_predictions_is_one_line(kept):
    folder = kept(result())
    (folder / store.PREDICTIONS).write_text("[1")
    with pytest.raises(BadInput, match="holds no predictions"):
        build_report(folder, folder / "report")
    (folder / store.PREDICTIONS).write_text(json.dumps([1]))
    with pytest.raises(BadInput, match="by configuration"):
        store.load_predictions(folder)


@pytest.mark.parametrize("value", ["1", -1, True, [1], 1e999, 10**400])
def test_a_prediction_that_is_no_amount_is_one_line(tmp_path, value):
    content = json.dumps({"abc": {"payload_bytes": value, "train_flops": None}}).replace("Infinity", "1e999")
    (tmp_path / store.PREDICTIONS).write_text(content)
    with pytest.raises(BadInput, match=r"abc: payload_bytes .* must be a number of at least 0") as raised:
        store.load_predictions(tmp_path)
    assert "\n" not in str(raised.value)
