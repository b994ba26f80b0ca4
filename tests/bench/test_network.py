"""Network replay against closed forms: what a profile adds, and what it leaves alone."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import network
from bench.network import PROFILES, Profile, read_profile, replay, server_seconds
from flora.errors import BadInput

PLAIN = Profile(up_mbps=8, down_mbps=16, latency_ms=100)  # a megabyte: one second up, half of one down


def make_clients(seconds, rounds=1):
    """The same clients in every round, by the seconds each trains."""
    return pd.DataFrame(
        [
            {
                "round": number,
                "client": client,
                "samples": 10,
                "send_seconds": 0.0,
                "train_seconds": trains,
                "receive_seconds": 0.0,
            }
            for number in range(1, rounds + 1)
            for client, trains in enumerate(seconds)
        ]
    )


def make_ledger(clients, payload_bytes, wire_bytes=None):
    return pd.DataFrame(
        [
            {
                "round": number,
                "client": client,
                "direction": direction,
                "tensor_bytes": payload_bytes,
                "payload_bytes": payload_bytes,
                "wire_bytes": wire_bytes,
            }
            for number, client in zip(clients["round"], clients["client"], strict=True)
            for direction in ("down", "up")
        ]
    ).astype({"wire_bytes": float})


def make_rounds(n, server=0.25):
    phases = {"receive": server / 2, "aggregate": server / 2, "evaluate": 1000.0}
    records = [{"round": i, "accuracy": 0.5 + i / 100, "server_seconds": phases} for i in range(1, n + 1)]
    return [{"round": 0, "accuracy": 0.5}, *records]


def replayed(profile, seconds=(1.0, 3.0), payload_bytes=10**6, rounds=2, **options):
    clients = make_clients(seconds, rounds)
    return replay(make_rounds(rounds), clients, make_ledger(clients, payload_bytes), profile, **options)


def test_without_randomness_a_round_is_the_slowest_clients_sum_and_the_servers_work():
    frame = replayed(PLAIN)
    # latency, download, training, latency, upload; then the server
    expected = 0.1 + 0.5 + 3.0 + 0.1 + 1.0 + 0.25
    assert frame["seconds"].tolist() == pytest.approx([0.0, expected, expected])
    assert frame["cumulative_seconds"].tolist() == pytest.approx([0.0, expected, 2 * expected])
    assert frame["accuracy"].tolist() == [0.5, 0.51, 0.52]
    assert frame["participants"].tolist() == [0, 2, 2]
    assert frame["dropped"].tolist() == [0, 0, 0]


def test_twice_the_bytes_are_twice_the_transfer():
    none, once, twice = (replayed(PLAIN, payload_bytes=n)["seconds"].iloc[1] for n in (1, 10**6, 2 * 10**6))
    assert once - none == pytest.approx(1.5, rel=1e-5)
    assert twice - none == pytest.approx(3.0, rel=1e-5)


def test_a_slower_device_takes_longer_to_compute_and_not_to_send():
    slow = PLAIN.model_copy(update={"compute_factor": 4.0})
    assert replayed(slow)["seconds"].iloc[1] - replayed(PLAIN)["seconds"].iloc[1] == pytest.approx(9.0)


def test_what_is_not_sent_costs_no_latency():
    clients = make_clients([2.0])
    none = make_ledger(clients, 0)
    for ledger in (none, none.iloc[:0], pd.DataFrame()):
        assert replay(make_rounds(1), clients, ledger, PLAIN)["seconds"].iloc[1] == pytest.approx(2.25)


def test_bytes_of_the_wire_count_where_there_was_one():
    clients = make_clients([0.0])
    ledger = make_ledger(clients, 10**6, wire_bytes=2 * 10**6)
    assert replay(make_rounds(1), clients, ledger, PLAIN)["seconds"].iloc[1] == pytest.approx(3.45)


def test_a_round_takes_its_own_clients_alone():
    clients = make_clients([1.0, 9.0], rounds=2)
    clients = clients[(clients["round"] == 1) | (clients["client"] == 0)]
    seconds = replay(make_rounds(2), clients, pd.DataFrame(), PLAIN)["seconds"]
    assert seconds.tolist() == pytest.approx([0.0, 9.25, 1.25])


def test_of_the_servers_work_evaluation_is_left_out_and_old_results_have_the_aggregation():
    assert server_seconds({"server_seconds": {"aggregate": 1.0, "receive": 2.0, "evaluate": 9.0}}) == 3.0
    assert server_seconds({"seconds": {"aggregate": 1.5, "train": 9.0}}) == 1.5
    assert server_seconds({}) == 0.0


@settings(max_examples=20)
@given(st.floats(0.1, 1e3), st.floats(0.1, 1e3), st.integers(0, 99))
def test_more_bandwidth_is_never_slower(one, other, seed):
    slow, fast = sorted([one, other])
    times = []
    for mbps in (slow, fast):
        profile = Profile(
            up_mbps=mbps, down_mbps=mbps, latency_ms=1, bandwidth_sigma=0.5, straggler_sigma=0.5, dropout=0.3
        )
        times.append(replayed(profile, (1.0, 2.0, 0.5), seed=seed)["seconds"])
    assert (times[0] >= times[1] - 1e-9).all()


def test_named_profiles_stand_in_the_order_of_their_speed():
    totals = [replayed(PROFILES[name], seed=3)["cumulative_seconds"].iloc[-1] for name in PROFILES]
    assert list(PROFILES) == ["lan", "wifi", "4g", "3g"]
    assert totals == sorted(totals)


def test_dropouts_are_as_many_as_said_and_do_not_touch_who_straggles():
    sure = PLAIN.model_copy(update={"straggler_sigma": 0.5})
    drops = sure.model_copy(update={"dropout": 0.3})
    frame = replayed(drops, clients_total=20_000, rounds=5)
    rates = frame["dropped"].iloc[1:] / 20_000
    assert rates.between(0.28, 0.32).all()
    assert rates.nunique() > 1
    # those left are some of the same clients with the same draws
    without = replayed(sure, clients_total=20_000, rounds=5)
    assert (frame["seconds"] <= without["seconds"]).all()


def test_where_all_drop_out_a_round_is_the_servers_work_or_lasts_to_the_deadline():
    gone = PLAIN.model_copy(update={"dropout": 1 - 1e-12})
    assert replayed(gone)["seconds"].iloc[1] == pytest.approx(0.25)
    assert replayed(gone, deadline=7.0)["seconds"].iloc[1] == pytest.approx(7.25)


def test_a_deadline_leaves_out_who_is_late_and_is_waited_for():
    early = replayed(PLAIN, (1.0, 3.0, 30.0), deadline=10.0)
    assert early["seconds"].iloc[1] == pytest.approx(10.25)
    assert early["dropped"].iloc[1] == 1
    enough = replayed(PLAIN, (1.0, 3.0), deadline=10.0)
    assert enough["seconds"].iloc[1] == pytest.approx(4.95)
    assert enough["dropped"].iloc[1] == 0


def test_the_slowest_of_many_lognormal_stragglers_is_as_theory_has_it():
    n, sigma = 1000, 0.5
    profile = PLAIN.model_copy(update={"straggler_sigma": sigma})
    frame = replayed(profile, (1.0,), payload_bytes=0, rounds=400, clients_total=n)
    slowest = np.log(frame["seconds"].iloc[1:] - 0.25) / sigma
    # E max of n normals: the integral of x over the density of the largest
    x = np.linspace(-2, 8, 20_001)
    phi, density = 0.5 * (1 + np.vectorize(math.erf)(x / 2**0.5)), np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5
    expected = float((x * n * phi ** (n - 1) * density).sum() * (x[1] - x[0]))
    assert slowest.mean() == pytest.approx(expected, abs=5 * slowest.std() / 400**0.5)


def test_the_slowest_of_many_drawn_from_a_run_is_the_runs_slowest():
    frame = replayed(PLAIN, (1.0, 2.0, 5.0), clients_total=1000, rounds=3)
    assert frame["seconds"].iloc[1:].tolist() == pytest.approx([6.95] * 3)
    assert frame["participants"].tolist() == [0, 1000, 1000, 1000]
    # three participants draw with replacement, so now and then none of them is the slowest
    few = replayed(PLAIN, (1.0, 2.0, 5.0), clients_total=1000, participants=3, rounds=60)
    share = (few["seconds"].iloc[1:] < 6.9).mean()
    assert 0.05 < share < 0.6  # (2/3)^3 = 0.30


def test_a_client_keeps_its_bandwidth_from_round_to_round():
    spread = PLAIN.model_copy(update={"bandwidth_sigma": 1.0})
    frame = replayed(spread, (0.0, 0.0, 0.0), rounds=4)
    assert frame["seconds"].iloc[1:].nunique() == 1
    assert frame["seconds"].iloc[1] != pytest.approx(replayed(PLAIN, (0.0,))["seconds"].iloc[1])


def test_a_hundred_thousand_clients_are_the_same_again_and_others_with_another_seed():
    profile = PROFILES["4g"].model_copy(update={"bandwidth_sigma": 0.3})
    one, again, other = (
        replayed(profile, rounds=3, clients_total=100_000, participants=n, seed=seed)
        for n, seed in ((1000, 5), (1000, 5), (1000, 6))
    )
    pd.testing.assert_frame_equal(one, again)
    assert (one["seconds"].iloc[1:] != other["seconds"].iloc[1:]).all()


def test_what_is_worked_on_at_once_is_bounded(monkeypatch):
    whole = replayed(PLAIN, clients_total=1000)
    monkeypatch.setattr(network, "CHUNK", 7)
    pieces = replayed(PLAIN, clients_total=1000)
    pd.testing.assert_frame_equal(whole, pieces)


def test_replaying_leaves_the_global_stream_alone():
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    replayed(PROFILES["3g"], clients_total=100)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"participants": 3}, "--clients"),
        ({"clients_total": 0}, "at least 1"),
        ({"clients_total": 5, "participants": 6}, "from 1 to the 5 clients"),
        ({"clients_total": 5, "participants": 0}, "from 1 to the 5 clients"),
        ({"deadline": 0.0}, "above 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        replayed(PLAIN, **options)


def test_a_run_without_a_clients_time_is_refused():
    with pytest.raises(BadInput, match="nothing to replay"):
        replay(make_rounds(1), pd.DataFrame(), pd.DataFrame(), PLAIN)


def test_profiles_are_read_by_name_by_fields_and_from_files(tmp_path):
    assert read_profile("wifi") is PROFILES["wifi"]
    own = read_profile("up=10,down=50,latency=40,straggler=0.3,dropout=0.1,compute=7,bandwidth=0.2")
    assert own == Profile(
        name=own.name, up_mbps=10, down_mbps=50, latency_ms=40,
        straggler_sigma=0.3, dropout=0.1, compute_factor=7, bandwidth_sigma=0.2,
    )  # fmt: skip
    changed = read_profile("4g,dropout=0.2")
    assert changed == PROFILES["4g"].model_copy(update={"name": "4g,dropout=0.2", "dropout": 0.2})
    path = tmp_path / "village.yaml"
    path.write_text("up_mbps: 1\ndown: 2\nlatency_ms: 300\n")
    assert read_profile(str(path)) == Profile(name="village", up_mbps=1, down_mbps=2, latency_ms=300)
    path.write_text("name: 3g\nlatency: 900\n")
    assert read_profile(str(path)).latency_ms == 900
    assert read_profile(str(path)).up_mbps == PROFILES["3g"].up_mbps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wfi", "did you mean 'wifi'"),
        ("wfi,up=3", "did you mean 'wifi'"),
        ("up=10,down=50", "latency_ms is missing"),
        ("up=10,down=50,latncy=4", "no field 'latncy'.*'latency'"),
        ("4g,dropout", "must be FIELD=VALUE"),
        ("4g,dropout=1.5", "dropout '1.5' must be less than 1"),
        ("up=0,down=50,latency=1", "up_mbps '0' must be greater than 0"),
        ("up=ten,down=50,latency=1", "up_mbps 'ten' must be a valid number"),
        ("4g,bandwidth=inf", "must be"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_in_one_line(text, message):
    with pytest.raises(BadInput, match=message) as caught:
        read_profile(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["- 1\n", "up_mbps: [\n", "3: 4\n"])
def test_a_file_that_is_no_profile_is_refused(tmp_path, content):
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    with pytest.raises(BadInput, match="odd") as caught:
        read_profile(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["yes", "no", "true"])
def test_truth_values_are_no_numbers(tmp_path, value):
    file = tmp_path / "slow.yaml"
    file.write_text(f"up: 1\ndown: 2\nlatency: 3\ndropout: {value}\n")
    with pytest.raises(BadInput, match=r"dropout: (True|False) must be a number, not a truth value"):
        read_profile(str(file))
    with pytest.raises(BadInput, match="up_mbps"):
        read_profile(f"up={value},down=2,latency=3")


@pytest.mark.parametrize("deadline", [math.inf, math.nan, 0.0, -1.0])
def test_a_deadline_is_a_finite_time(deadline):
    with pytest.raises(BadInput, match=r"deadline: .* must be a number of seconds above 0"):
        replayed(PLAIN, deadline=deadline)
