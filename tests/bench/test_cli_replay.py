"""`flora-bench replay`: times of stored runs on networks."""

import json

import pytest

from bench import store

SEEDS = (0, 1)


def make_run(method="flora", seed=0, accuracy=0.8, rounds=2, **fields):
    records = [{"round": 0, "accuracy": 0.5, "seconds": {"evaluate": 9.0}}]
    for number in range(1, rounds + 1):
        reached = 0.5 + (accuracy - 0.5) * number / rounds
        records.append({"round": number, "accuracy": reached, "server_seconds": {"aggregate": 0.25}})
    return {
        "status": "complete",
        "config": {
            "task": "digits",
            "model": {"name": "tiny"},
            "method": {"name": method},
            "split": {"name": "iid", "shots": None},
            "participation": 0.5,
            "seed": dict.fromkeys(("split", "participation", "init", "order"), seed),
        },
        "config_hash": f"{method}{seed}",
        "summary": {"accuracy": accuracy, "zero_shot_accuracy": 0.5},
        "rounds": records,
        **fields,
    }


def keep(folder, run, tables=True, payload_bytes=10**6):
    path = store.run_path(folder, run["config"], run["config_hash"])
    rounds = [record["round"] for record in run["rounds"][1:]]
    if tables:
        clients = [
            {"round": n, "client": c, "samples": 5, "send_seconds": 0.0, "train_seconds": 1.0 + c,
             "receive_seconds": 0.0}
            for n in rounds for c in (0, 1)
        ]  # fmt: skip
        ledger = [
            {"round": n, "client": c, "direction": way, "tensor_bytes": payload_bytes,
             "payload_bytes": payload_bytes, "wire_bytes": None}
            for n in rounds for c in (0, 1) for way in ("down", "up")
        ]  # fmt: skip
        run |= {
            "clients": store.save_table(path, "clients", clients),
            "ledger": store.save_table(path, "ledger", ledger),
        }
    store.save_run(path, run)
    return path


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for seed in SEEDS:
        keep(folder, make_run("flora", seed), payload_bytes=10**5)
        keep(folder, make_run("full_finetune", seed, accuracy=0.7), payload_bytes=10**8)
        keep(folder, make_run("zero_shot", seed, rounds=0), tables=False)
    return folder


def entries(output, **which):
    found = [row for row in json.loads(output) if all(row[key] == value for key, value in which.items())]
    assert found, which
    return found


PLAIN = "up=8,down=16,latency=100"  # 100 kB: 0.1 s up and 0.05 s down


def test_it_gives_the_closed_form_of_each_method_and_says_what_is_left_out(run_cli, results):
    code, out, err = run_cli("replay", str(results), "--profile", PLAIN, "--json")
    assert code == 0
    assert err == "flora-bench: left out, nothing trained: Zero-shot (2)\n"
    (row,) = entries(out, method="FLoRA")
    expected = 0.2 + 0.15 + 2.0 + 0.25
    assert row["round_seconds"] == pytest.approx(expected)
    assert row["total_seconds"] == pytest.approx(2 * expected)
    assert row["total_seconds_half_width"] == pytest.approx(0.0)
    assert (row["task"], row["split"], row["shots"], row["runs"]) == ("digits", "IID", None, 2)
    (full,) = entries(out, method="Full fine-tuning")
    assert full["round_seconds"] == pytest.approx(0.2 + 150.0 + 2.0 + 0.25)


def test_all_four_profiles_are_the_default_and_stand_in_their_order(run_cli, results):
    _, out, _ = run_cli("replay", str(results), "--json")
    rows = entries(out, method="Full fine-tuning")
    assert [row["profile"] for row in rows] == ["lan", "wifi", "4g", "3g"]
    assert [row["total_seconds"] for row in rows] == sorted(row["total_seconds"] for row in rows)


def test_time_to_a_target_or_that_it_was_not_reached(run_cli, results, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = run_cli("replay", str(results), "--profile", PLAIN, "--target", "0.75", "--json")
    (flora,) = entries(out, method="FLoRA")
    assert (flora["reached"], flora["target"]) == (2, 0.75)
    assert flora["to_target_seconds"] == pytest.approx(flora["total_seconds"])
    (full,) = entries(out, method="Full fine-tuning")
    assert (full["reached"], full["to_target_seconds"], full["best_not_reached"]) == (0, None, 0.7)
    _, out, _ = run_cli("replay", str(results), "--profile", PLAIN, "--target", "0.75")
    assert "not reached, best 70.0%" in " ".join(out.split())


def test_the_table_names_methods_once_and_profiles(run_cli, results, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run_cli("replay", str(results), "--profile", "lan", "--profile", "3g")
    assert code == 0
    assert "digits · tiny · IID, all data" in out
    assert out.count("FLoRA") == 1
    assert out.count("3g") == 2


def test_a_larger_federation_takes_the_runs_share_unless_told(run_cli, results):
    arguments = ("replay", str(results), "--profile", "4g", "--clients", "1000", "--json")
    _, one, _ = run_cli(*arguments)
    _, share, _ = run_cli(*arguments, "--participants", "500")
    _, few, _ = run_cli(*arguments, "--participants", "5")
    _, other, _ = run_cli(*arguments, "--seed", "1")
    assert one == share
    assert entries(few)[0]["total_seconds"] < entries(one)[0]["total_seconds"]
    assert one != other
    # seeds of one method draw on their own
    assert entries(one)[0]["total_seconds_half_width"] > 0


def test_results_of_before_the_ledger_are_named_and_alone_are_bad_input(run_cli, tmp_path):
    keep(tmp_path, make_run(), tables=False)
    code, out, err = run_cli("replay", str(tmp_path))
    assert (code, out) == (2, "")
    first, last = err.splitlines()
    assert "--fresh" in first
    assert "FLoRA (1)" in first
    assert "holds no run that can be replayed" in last


def test_unfinished_and_centralized_runs_are_left_out(run_cli, tmp_path):
    keep(tmp_path, make_run("flora"))
    keep(tmp_path, make_run("linear_probe", status="running"))
    central = make_run("full_finetune")
    central["config"]["mode"] = "centralized"
    keep(tmp_path, central)
    code, _, err = run_cli("replay", str(tmp_path), "--json")
    assert code == 0
    assert len(err.splitlines()) == 1
    assert "not complete: Linear probe (1)" in err
    assert "centralized" in err


def test_a_table_that_was_tampered_with_is_refused(run_cli, tmp_path):
    path = keep(tmp_path, make_run())
    table = path.with_name("ledger.csv")
    table.write_text(table.read_text().replace("1000000", "1000001"))
    code, _, err = run_cli("replay", str(tmp_path))
    assert code == 2
    assert "ledger.csv: is not what" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "wfii"), "did you mean 'wifi'"),
        (("--target", "80"), "up to 1"),
        (("--participants", "5"), "--clients"),
        (("--clients", "5", "--participants", "9"), "from 1 to the 5 clients"),
        (("--deadline", "inf"), "deadline: inf must be"),
        (("--deadline", "nan"), "deadline: nan must be"),
        (("--deadline", "0"), "deadline: 0 must be"),
        (("--profile", "4g", "--profile", "4g"), "2 are called '4g'; name them apart"),
        (("--profile", "name=a,up=1,down=1,latency=1", "--profile", "name=a,up=2,down=2,latency=2"), "'a'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run_cli, results, arguments, message):
    code, out, err = run_cli("replay", str(results), *arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


def planted(folder, table, **columns):
    """A run with columns of a table replaced, or left out where None."""
    run = make_run()
    path = keep(folder, run)
    frame = store.load_table(path, table).assign(**columns)
    frame = frame.drop(columns=[name for name, value in columns.items() if value is None])
    store.save_run(path, run | {table: store.save_table(path, table, frame)})


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ("clients", {"train_seconds": None}, "has no column 'train_seconds'"),
        ("clients", {"send_seconds": [0.0, 0.0, -1.0, 0.0]}, "send_seconds -1.0 must be"),
        ("clients", {"receive_seconds": float("inf")}, "receive_seconds inf must be"),
        ("clients", {"train_seconds": "soon"}, "train_seconds soon must be"),
        ("clients", {"round": [1.0, 1.0, 2.0, float("nan")]}, "round nan must be"),
        ("ledger", {"direction": None}, "has no column 'direction'"),
        ("ledger", {"payload_bytes": -5}, "payload_bytes -5 must be"),
        ("ledger", {"payload_bytes": float("nan")}, "payload_bytes nan must be"),
        ("ledger", {"wire_bytes": -1.0}, "wire_bytes -1.0 must be"),
    ],
)
def test_tables_that_no_time_can_come_of_are_named(run_cli, tmp_path, table, columns, message):
    planted(tmp_path, table, **columns)
    code, out, err = run_cli("replay", str(tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{table}.csv: {message}" in err


def test_times_that_were_not_measured_do_not_count(run_cli, tmp_path):
    planted(tmp_path, "clients", send_seconds=float("nan"))
    code, out, _ = run_cli("replay", str(tmp_path), "--profile", PLAIN, "--json")
    assert code == 0
    assert entries(out)[0]["round_seconds"] == pytest.approx(0.2 + 1.5 + 2.0 + 0.25)


@pytest.mark.parametrize("seconds", [-0.5, True, "1"])
def test_a_servers_seconds_that_cannot_be_are_named(run_cli, tmp_path, seconds):
    run = make_run()
    run["rounds"][1]["server_seconds"]["aggregate"] = seconds
    path = keep(tmp_path, run)
    code, _, err = run_cli("replay", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert f"{path}: server_seconds of round 1" in err


def test_who_dropped_out_is_counted_and_rounds_without_anyone_are_said(run_cli, results):
    arguments = ("replay", str(results), "--profile", PLAIN, "--json", "--deadline")
    _, out, err = run_cli(*arguments, "2")
    (flora,) = entries(out, method="FLoRA")  # its clients take 1.35 s and 2.35 s, for 2 rounds of 2 seeds
    assert (flora["participants"], flora["dropped"], flora["silent_rounds"]) == (8, 4, 0)
    (full,) = entries(out, method="Full fine-tuning")
    assert (full["dropped"], full["silent_rounds"]) == (8, 4)
    (note,) = [line for line in err.splitlines() if "nobody reported" in line]
    assert "Full fine-tuning" in note
    assert "in 4 rounds of 2 runs" in note
    _, out, err = run_cli(*arguments, "1000")
    assert all(row["dropped"] == 0 for row in json.loads(out))
    assert "nobody" not in err


def test_what_is_not_in_the_times_is_said(run_cli, tmp_path):
    keep(tmp_path, make_run(client_times="shared"))
    _, out, _ = run_cli("replay", str(tmp_path))
    assert "time is shared out" in " ".join(out.split())
    assert "frozen towers" not in out
    accelerated = make_run("linear_probe")
    accelerated["config"]["acceleration"] = "exact"
    keep(tmp_path, accelerated)
    _, out, _ = run_cli("replay", str(tmp_path))
    assert "frozen towers is not in a client's time" in " ".join(out.split())


# The files


def test_a_table_is_kept_and_read_back(tmp_path):
    path = keep(tmp_path, make_run())
    frame = store.load_table(path, "clients")
    assert frame["train_seconds"].tolist() == [1.0, 2.0, 1.0, 2.0]
    assert store.load_table(path, "ledger")["wire_bytes"].isna().all()
    described = store.load_run(path)["clients"]
    assert (described["file"], described["rows"]) == ("clients.csv", 4)


def test_a_frame_and_its_rows_are_the_same_file(tmp_path):
    path = keep(tmp_path, make_run())
    frame = store.load_table(path, "clients")
    assert store.save_table(path, "clients", frame) == store.load_run(path)["clients"]
    assert not list(path.parent.glob("*.tmp"))


def test_an_empty_table_is_read_back_as_one(tmp_path):
    run = make_run()
    path = store.run_path(tmp_path, run["config"], run["config_hash"])
    store.save_run(path, run | {"ledger": store.save_table(path, "ledger", [])})
    assert store.load_table(path, "ledger").empty


def test_a_table_that_is_missing_or_was_never_kept_is_bad_input(tmp_path):
    path = keep(tmp_path, make_run())
    with pytest.raises(store.BadInput, match="no predictions was kept"):
        store.load_table(path, "predictions")
    path.with_name("ledger.csv").unlink()
    with pytest.raises(store.BadInput, match="cannot be read"):
        store.load_table(path, "ledger")
