"""Replay of a finished run under a network: what its rounds would have lasted, nothing trained again.

What a run measured stays: each client's computing, each payload's bytes, the server's work, the accuracy
after each round. What a profile adds is the time on the wire, devices slower than the machine measured,
stragglers and clients that drop out. These change time, not accuracy: the accuracy of a round is that of the
stored run, whose clients all reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, ValidationError

from flora.errors import BadInput, nearest
from flora.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame

CHUNK = 2**17
"""Participants worked on at once: a few MB, whatever the number of clients."""


class Profile(Settings):
    """A network and the devices on it. All clients are alike but for what is drawn at random.

    The named ones are conventions, to be told apart and not to be taken for any one place:

    - ``lan``: 1000BASE-T (IEEE 802.3ab), with a switched round trip of half a millisecond.
    - ``wifi``: fixed broadband behind Wi-Fi, and ``4g``: mobile; the global means of the Speedtest Global
      Index, September 2020: 85.73 down, 45.74 up, 21 ms; and 35.96 down, 11.22 up, 40 ms.
    - ``3g``: "Mobile 3G - Fast" of WebPageTest, also Lighthouse's default: 1.6 down, 0.75 up, 150 ms.
    - Dropouts of ``4g`` and ``3g``: 8 %, the middle of the 6 to 10 % that Bonawitz et al. saw of phones in
      production (arXiv 1902.01046, section 9). That the other two have none, and how far stragglers spread,
      has no source: 0.25 makes the slowest device in forty 1.6 times slower, 0.5 makes it 2.7 times.

    Attributes:
        name: what it is called.
        up_mbps, down_mbps: of one client, in 10^6 bits a second; the server's own line is not a bottleneck.
        latency_ms: round trip, paid once a transfer: asked for and answered, or sent and acknowledged.
        bandwidth_sigma: of the natural logarithm of the factor that a client's bandwidth (both ways) has on
            these, drawn once a client, its median 1; 0 for none.
        straggler_sigma: of the natural logarithm of the factor that a client's computing takes longer by,
            drawn for each client and round, its median 1; 0 for none.
        dropout: probability that a client, once chosen, does not report in a round.
        compute_factor: how many times slower a client's device is than the machine measured.
    """

    name: str = "custom"
    up_mbps: float = Field(gt=0)
    down_mbps: float = Field(gt=0)
    latency_ms: float = Field(ge=0)
    bandwidth_sigma: float = Field(0.0, ge=0, le=5)
    straggler_sigma: float = Field(0.0, ge=0, le=5)
    dropout: float = Field(0.0, ge=0, lt=1)
    compute_factor: float = Field(1.0, gt=0)

    def waits(self, bytes_down: np.ndarray, bytes_up: np.ndarray) -> np.ndarray:
        """Seconds of latency of clients that are sent, and send, so much; nothing is not sent."""
        return self.latency_ms / 1e3 * ((bytes_down > 0) * 1.0 + (bytes_up > 0))

    def transfers(self, bytes_down: np.ndarray, bytes_up: np.ndarray) -> np.ndarray:
        """Seconds on the wire of clients of median bandwidth."""
        return bytes_down * 8e-6 / self.down_mbps + bytes_up * 8e-6 / self.up_mbps


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(name="lan", up_mbps=1000, down_mbps=1000, latency_ms=0.5),
        Profile(name="wifi", up_mbps=45.74, down_mbps=85.73, latency_ms=21, straggler_sigma=0.25),
        Profile(name="4g", up_mbps=11.22, down_mbps=35.96, latency_ms=40, straggler_sigma=0.5, dropout=0.08),
        Profile(name="3g", up_mbps=0.75, down_mbps=1.6, latency_ms=150, straggler_sigma=0.5, dropout=0.08),
    )
}


def describe_profiles() -> dict[str, str]:
    """Give each named profile in a line."""
    return {
        name: f"{x.down_mbps:g} Mbit/s down, {x.up_mbps:g} up, {x.latency_ms:g} ms, "
        f"straggler sigma {x.straggler_sigma:g}, {x.dropout:.0%} drop out"
        for name, x in PROFILES.items()
    }


_SHORT = {
    "up": "up_mbps",
    "down": "down_mbps",
    "latency": "latency_ms",
    "bandwidth": "bandwidth_sigma",
    "straggler": "straggler_sigma",
    "compute": "compute_factor",
}


def read_profile(text: str) -> Profile:
    """Read a profile: a name, `up=10,down=50,latency=40,...`, `wifi,dropout=0.1` or a YAML file's path.

    Fields may be given in short (`up`, `down`, `latency`, `bandwidth`, `straggler`, `compute`); in a file,
    `name` may be that of a known profile, which then holds where the file says nothing.

    Raises:
        BadInput: there is no such profile or field, or a value cannot be.
    """
    if text in PROFILES:
        return PROFILES[text]
    if Path(text).is_file():
        return _profile(_read_yaml(Path(text)), text)
    first, *rest = text.split(",")
    parts = rest if "=" not in first else [first, *rest]
    if "=" not in first and first not in PROFILES:
        raise BadInput(
            f"--profile: there is no profile and no file {first!r}{nearest(first, PROFILES)}; "
            "or give one such as up=10,down=50,latency=40"
        )
    values: dict[str, Any] = {} if "=" in first else {"name": first}
    for part in parts:
        field, equals, value = part.partition("=")
        if not equals:
            raise BadInput(f"--profile {text}: {part!r} must be FIELD=VALUE, such as latency=40")
        values[field.strip()] = value.strip()
    return _profile(values, text)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"--profile {path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadInput(f"--profile {path}: must hold fields with values, such as 'latency_ms: 40'")
    return {"name": path.stem, **content}


def _profile(values: Mapping[str, Any], text: str) -> Profile:
    known = PROFILES.get(str(values.get("name")))
    given = {_SHORT.get(field, field): value for field, value in values.items()}
    if unknown := [field for field in given if field not in Profile.model_fields]:
        valid = [*_SHORT, *Profile.model_fields]
        raise BadInput(f"--profile {text}: there is no field {unknown[0]!r}{nearest(unknown[0], valid)}")
    for field, value in given.items():
        if isinstance(value, bool):  # YAML takes yes, no, on and off for truth values
            raise BadInput(f"--profile {text}: {field}: {value} must be a number, not a truth value")
    if known is not None and given.keys() > {"name"}:
        given = {**known.model_dump(), **given, "name": text}
    try:
        return Profile.model_validate({"name": text, **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0])
        if first["type"] == "missing":
            raise BadInput(f"--profile {text}: {field} is missing; give up, down and latency") from error
        problem = first["msg"].replace("Input should", "must")
        raise BadInput(f"--profile {text}: {field} {first['input']!r} {problem}") from error


def server_seconds(record: Mapping[str, Any]) -> float:
    """Seconds of the server's work in a stored round, evaluation left out.

    Results of before the server's share was kept apart give the time of the aggregation.
    """
    kept = record.get("server_seconds")
    if kept is None:
        kept = {"aggregate": record.get("seconds", {}).get("aggregate")}
    return sum(seconds or 0.0 for phase, seconds in kept.items() if phase != "evaluate")


_SECONDS = ("send_seconds", "train_seconds", "receive_seconds")


def check_stored(
    path: Path | str, rounds: Sequence[Mapping[str, Any]], clients: DataFrame, ledger: DataFrame
) -> None:
    """Refuse what was stored of a run if no time can come of it.

    Args:
        path: of its `run.json`, which the tables lie beside.
        rounds: as `replay` takes them.
        clients: likewise.
        ledger: likewise.

    Raises:
        BadInput: a column is missing, or a number is negative or not finite; the file is named.
    """
    for record in rounds:
        kept = record.get("server_seconds") or {}
        if not isinstance(kept, Mapping) or not all(map(_is_time, kept.values())):
            raise BadInput(
                f"{path}: server_seconds of round {record['round']} must be numbers of at least 0; "
                "run its cell again"
            )
    _check_table(Path(path).with_name("clients.csv"), clients, ("round", "client"), _SECONDS)
    optional = ("wire_bytes",) if "wire_bytes" in ledger else ()
    _check_table(
        Path(path).with_name("ledger.csv"),
        ledger,
        ("round", "client", "payload_bytes"),
        optional,
        ("direction",),
    )


def _is_time(seconds: object) -> bool:
    """Whether it is missing, or finite and not negative."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return seconds is None or (number and 0 <= seconds < math.inf)  # type: ignore[operator]


def _check_table(
    file: Path,
    table: DataFrame,
    needed: Sequence[str],
    may_lack: Sequence[str],
    words: Sequence[str] = (),
) -> None:
    """Refuse a table without the columns, or with numbers that are negative or not finite.

    Args:
        file: it was read from.
        table: of no rows, it needs no columns.
        needed: columns of numbers, each with one in every row.
        may_lack: columns of numbers with none in rows where it was not measured.
        words: other columns.
    """
    import numpy as np
    import pandas as pd

    if not len(table):
        return
    for name in (*needed, *may_lack, *words):
        if name not in table:
            raise BadInput(f"{file}: has no column {name!r}; run its cell again")
        if name in words:
            continue
        numbers = pd.to_numeric(table[name], errors="coerce")
        missing = table[name].isna() if name in may_lack else False
        sound = (numbers >= 0) & np.isfinite(numbers)
        if not (sound | missing).all():
            value = table[name][~(sound | missing)].iloc[0]
            raise BadInput(f"{file}: {name} {value} must be a number of at least 0; run its cell again")


@dataclass(frozen=True)
class _Measured:
    """What the clients of a run measured, one entry a client and round, in a profile's terms.

    Attributes:
        rounds: the round of each.
        clients: the client's position among all that took part.
        waits: seconds of latency.
        transfers: seconds on the wire at median bandwidth.
        computes: seconds of the device, without stragglers.
        n_clients: how many different ones there are.
    """

    rounds: np.ndarray
    clients: np.ndarray
    waits: np.ndarray
    transfers: np.ndarray
    computes: np.ndarray
    n_clients: int


def replay(
    rounds: Sequence[Mapping[str, Any]],
    clients: DataFrame,
    ledger: DataFrame,
    profile: Profile,
    seed: int | Sequence[int] = 0,
    clients_total: int | None = None,
    participants: int | None = None,
    deadline: float | None = None,
) -> DataFrame:
    """Give the time of each round of a finished run, had its clients been on a network.

    A client takes latency + download + computing + latency + upload. The round lasts until the slowest that
    reports has, and the server's own work after that; evaluation is left out. A client that drops out is
    taken to be noticed at once (a lost connection), so it costs no time; with a `deadline` the server cannot
    know, waits until then if any client is missing, and leaves later ones out, who count as dropped.

    With `clients_total` the run is taken for a sample of a larger federation: each participant of a round
    gets the measured seconds and bytes of a client and round of the run, drawn with replacement. The server's
    work stays what it was for the run's few clients.

    Args:
        rounds: those of `run.json`: `round`, `accuracy`, `server_seconds`.
        clients: one row a client and round: `round, client, send_seconds, train_seconds, receive_seconds`,
            the client's own work on the machine measured.
        ledger: one row a transfer: `round, client, direction` ("up", "down"), `payload_bytes` and, where it
            went over a wire, `wire_bytes`, which then counts.
        profile: the network.
        seed: of everything drawn; the same draws whatever the bandwidth, so that profiles compare.
        clients_total: clients of the larger federation; None for the run's own participants of each round.
        participants: of each round of the larger federation; None for all its clients.
        deadline: seconds after which a round no longer waits for clients.

    Returns:
        one row a round: `round`, `seconds`, `cumulative_seconds`, `accuracy` (of the stored run),
        `participants` (chosen) and `dropped` (of these). Round 0 is the model as it came, after no time.

    Raises:
        BadInput: a number of clients cannot be, or the run has no client's time.
    """
    import numpy as np
    import pandas as pd

    measured = _measured(clients, ledger, profile)
    total = _population(measured, clients_total, participants, deadline)
    streams = np.random.default_rng(seed).spawn(4)
    bandwidth = np.exp(profile.bandwidth_sigma * streams[0].standard_normal(total, dtype=np.float32))
    rows: list[dict[str, Any]] = []
    elapsed = 0.0
    for record in rounds:
        number = int(record["round"])
        chosen, dropped, seconds = 0, 0, 0.0
        if number > 0:
            if clients_total is None:
                of_round = np.flatnonzero(measured.rounds == number)
                who, drawn = measured.clients[of_round], of_round
            else:
                who, drawn = _sample(streams[1], total, participants), None
            chosen = len(who)
            slowest, dropped = _slowest(measured, profile, who, drawn, bandwidth, streams, deadline)
            seconds = slowest + server_seconds(record)
        elapsed += seconds
        rows.append(
            {
                "round": number,
                "seconds": seconds,
                "cumulative_seconds": elapsed,
                "accuracy": record["accuracy"],
                "participants": chosen,
                "dropped": dropped,
            }
        )
    return pd.DataFrame(rows)


def _population(
    measured: _Measured, clients_total: int | None, participants: int | None, deadline: float | None
) -> int:
    """Give the number of clients to draw for."""
    if clients_total is None:
        if participants is not None:
            raise BadInput("participants: goes with a number of clients in all (--clients)")
    elif clients_total < 1:
        raise BadInput(f"clients: {clients_total} must be at least 1")
    elif participants is not None and not 1 <= participants <= clients_total:
        raise BadInput(f"participants: {participants} must be from 1 to the {clients_total} clients")
    if deadline is not None and not 0 < deadline < math.inf:
        raise BadInput(f"deadline: {deadline:g} must be a number of seconds above 0")
    return clients_total or measured.n_clients


def _measured(clients: DataFrame, ledger: DataFrame, profile: Profile) -> _Measured:
    import numpy as np

    if not len(clients):
        raise BadInput("clients: the run has no client's time, so there is nothing to replay")
    down, up = (_bytes(ledger, clients, direction) for direction in ("down", "up"))
    works = clients[list(_SECONDS)].fillna(0.0)
    distinct, positions = np.unique(clients["client"], return_inverse=True)
    return _Measured(
        rounds=clients["round"].to_numpy(),
        clients=positions,
        waits=profile.waits(down, up),
        transfers=profile.transfers(down, up),
        computes=profile.compute_factor * works.sum(axis=1).to_numpy(float),
        n_clients=len(distinct),
    )


def _bytes(ledger: DataFrame, clients: DataFrame, direction: str) -> np.ndarray:
    """Add up what went in one direction, for each row of `clients`; 0 where nothing did."""
    import numpy as np

    if not len(ledger):
        return np.zeros(len(clients))
    size = ledger["payload_bytes"]
    if "wire_bytes" in ledger:
        size = ledger["wire_bytes"].fillna(size)
    sent = ledger.assign(size=size)[ledger["direction"] == direction]
    sums = sent.groupby(["round", "client"], as_index=False)["size"].sum()
    joined = clients[["round", "client"]].merge(sums, on=["round", "client"], how="left")
    return joined["size"].fillna(0.0).to_numpy(float)


def _sample(rng: np.random.Generator, total: int, participants: int | None) -> np.ndarray:
    """Draw the clients of a round."""
    import numpy as np

    if participants is None or participants == total:
        return np.arange(total, dtype=np.int32)
    return rng.choice(total, participants, replace=False, shuffle=False)


def _slowest(
    measured: _Measured,
    profile: Profile,
    who: np.ndarray,
    drawn: np.ndarray | None,
    bandwidth: np.ndarray,
    streams: Sequence[np.random.Generator],
    deadline: float | None,
) -> tuple[float, int]:
    """Give what the slowest client of a round takes that reports, and how many do not.

    Args:
        measured: what clients and rounds took.
        profile: the network.
        who: the participants, as indices of `bandwidth`.
        drawn: for each, which entry of `measured` is its; None to draw them.
        bandwidth: factor of each client.
        streams: of bandwidths, entries, stragglers and dropouts, in this order.
        deadline: seconds; None for none.
    """
    import numpy as np

    slowest, dropped = 0.0, 0
    for start in range(0, len(who), CHUNK):
        part = who[start : start + CHUNK]
        n = len(part)
        picked = (
            streams[1].integers(len(measured.waits), size=n)
            if drawn is None
            else drawn[start : start + CHUNK]
        )
        computes = measured.computes[picked]
        if profile.straggler_sigma:
            computes = computes * np.exp(profile.straggler_sigma * streams[2].standard_normal(n))
        taken = measured.waits[picked] + measured.transfers[picked] / bandwidth[part] + computes
        reports = streams[3].random(n) >= profile.dropout if profile.dropout else np.ones(n, bool)
        if deadline is not None:
            reports &= taken <= deadline
        dropped += n - int(reports.sum())
        slowest = max(slowest, float(taken.max(where=reports, initial=0.0)))
    return (deadline if deadline is not None and dropped else slowest), dropped
