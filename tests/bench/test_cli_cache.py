"""`flora-bench cache`: what it shows, trims and finds damaged; and where the cache is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import bench
from bench.caching import bytes_text, default_folder, default_limit_bytes, parse_bytes, parse_seconds
from flora.errors import BadInput
from flora.shelves import Shelf
from tests.bench.conftest import Run

OLD = {"name": "ViT-B-32:random", "weights": "a" * 64, "stage": "image"}
NEW = {**OLD, "weights": "b" * 64}
DAY = 86400


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of two kinds of rows, one not used for 10 days, that the environment names."""
    import torch

    from flora.cache import FeatureCache

    place = tmp_path / "cache"

    def ones(batches):
        return (torch.ones(len(positions), 5) for positions in batches)

    digests = np.arange(6 * 32, dtype=np.uint8).reshape(6, 32)
    for kind, count in ((OLD, 6), (NEW, 4)):
        FeatureCache(place).rows(kind, digests[:count], ones, 2)
    long_ago = time.time() - 10 * DAY
    os.utime(Shelf.of(place, OLD).path / "used", (long_ago, long_ago))
    monkeypatch.setenv("FLORA_BENCH_CACHE", str(place))
    monkeypatch.delenv("FLORA_BENCH_CACHE_LIMIT", raising=False)
    return place


def kept(folder: Path) -> list[str]:
    return [name for name, kind in (("old", OLD), ("new", NEW)) if Shelf.of(folder, kind).path.exists()]


def shard(folder: Path) -> Path:
    (path,) = Shelf.of(folder, OLD).shards()
    return path


def test_show_is_a_line_for_all_and_one_for_each_kind(run_cli: Run, folder: Path) -> None:
    code, out, err = run_cli("cache")
    assert (code, err) == (0, "")
    whole, new, old = out.splitlines()
    assert whole.startswith(f"{folder}: ")
    assert whole.endswith(" of at most 20.0 GB")
    assert new.startswith(f"{Shelf.of(folder, NEW).path.name}: 4 x F32 [5], ")
    assert old.startswith(f"{Shelf.of(folder, OLD).path.name}: 6 x F32 [5], ")
    assert old.endswith("(ViT-B-32:random, image)")  # what people tell kinds by, not hashes
    assert "a" * 17 not in old
    assert run_cli("cache", "show")[1] == out


def test_json_holds_the_same_in_full(run_cli: Run, folder: Path) -> None:
    code, out, _ = run_cli("cache", "show", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["folder"], found["limit_bytes"]) == (str(folder), 20 * 10**9)
    assert found["bytes"] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert [(entry["kind"], entry["images"], entry["shape"]) for entry in found["shelves"]] == [
        (NEW, 4, [5]),
        (OLD, 6, [5]),
    ]


def test_a_cache_not_yet_made_is_empty(run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLORA_BENCH_CACHE", str(tmp_path / "none"))
    assert run_cli("cache")[:2] == (0, f"{tmp_path / 'none'}: 0 B of at most 20.0 GB\n")
    assert run_cli("cache", "verify")[:2] == (0, f"{tmp_path / 'none'}: 0 files, 0 B, all sound\n")
    assert run_cli("cache", "trim", "--all")[:2] == (0, f"{tmp_path / 'none'}: 0 B removed, 0 B left\n")
    assert not (tmp_path / "none").exists()


def test_an_option_names_another_folder(run_cli: Run, folder: Path, tmp_path: Path) -> None:
    code, out, _ = run_cli("cache", "--folder", str(tmp_path))
    assert (code, out) == (0, f"{tmp_path}: 0 B of at most 20.0 GB\n")


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        (["--all"], []),
        (["--to", "0"], []),
        (["--to", "1GB"], ["old", "new"]),
        (["--to", "1kB"], ["new"]),
        (["--older-than", "9d"], ["new"]),
        (["--older-than", "2w"], ["old", "new"]),
        ([], ["old", "new"]),
    ],
)
def test_trimming(run_cli: Run, folder: Path, options: list[str], stays: list[str]) -> None:
    code, out, err = run_cli("cache", "trim", *options)
    assert (code, err) == (0, "")
    assert kept(folder) == stays
    left = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert out.endswith(f" removed, {bytes_text(left)} left\n")


def test_without_options_the_default_limit_is_trimmed_to(
    run_cli: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLORA_BENCH_CACHE_LIMIT", "1 kB")
    code, out, _ = run_cli("cache", "trim", "--json")
    found = json.loads(out)
    assert (code, kept(folder)) == (0, ["new"])
    assert found["left_bytes"] <= 1000 < found["left_bytes"] + found["removed_bytes"]


def test_verifying_a_sound_cache(run_cli: Run, folder: Path) -> None:
    code, out, err = run_cli("cache", "verify")
    assert (code, err) == (0, "")
    assert out.startswith(f"{folder}: 4 files, ")
    assert out.endswith("all sound\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_verifying_names_and_removes_what_is_damaged(run_cli: Run, folder: Path, as_json: bool) -> None:
    path = shard(folder)
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    code, out, _ = run_cli("cache", "verify", *["--json"] * as_json)
    assert code == 1
    assert not path.exists()
    if as_json:
        (found,) = json.loads(out)["damaged"]
        assert (found["file"], found["removed"]) == (str(path), True)
    else:
        first, last = out.splitlines()
        assert first.startswith(f"{path}: its ")
        assert last.endswith("1 damaged")
    assert run_cli("cache", "verify")[0] == 0


def test_a_damaged_file_does_not_keep_the_rest_from_being_shown(run_cli: Run, folder: Path) -> None:
    shard(folder).write_bytes(b"")
    code, out, _ = run_cli("cache")
    assert code == 0
    assert "4 x F32 [5]" in out
    assert f"{Shelf.of(folder, OLD).path.name}: empty" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["shwo"], "cache: there is no action 'shwo'; did you mean 'show'?"),
        (["verify", "--all"], "cache verify: --all belongs to `cache trim`"),
        (["--to", "5GB"], "cache show: --to belongs to `cache trim`"),
        (["trim", "--all", "--to", "5GB"], "cache trim: --to and --all exclude each other; give one of them"),
        (["trim", "--to", "5XB"], "--to: '5XB' is no size; write one such as 5GB or 500MB"),
        (["trim", "--older-than", "-3d"], "--older-than: '-3d' is no stretch of time; write one such as"),
        (["--folder", "/no/such"], "--folder: '/no/such' is no folder; name one that"),
    ],
)
def test_bad_input_is_one_line(run_cli: Run, folder: Path, arguments: list[str], complaint: str) -> None:
    code, out, err = run_cli("cache", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"flora-bench: {complaint}")
    assert len(err.splitlines()) == 1
    assert kept(folder) == ["old", "new"]


LIGHT = """
import sys
from bench.cli import main
sys.argv = ["flora-bench", "cache", *sys.argv[1:]]
try:
    main()
except SystemExit as stopped:
    assert not stopped.code
assert not {"torch", "numpy", "pandas", "safetensors"} & set(sys.modules)
"""


@pytest.mark.parametrize("arguments", [["show"], ["verify"], ["trim", "--all"]])
def test_nothing_heavy_is_loaded(folder: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments],
        cwd=Path(bench.__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# --- the options of commands that run cells --------------------------------------------------------------

RUN = ["run", "quick", "--results", "results"]
TUNE = ["tune", "quick", "--grid", "rounds=[1]", "--out", "tuned.yaml", "--results", "results"]
EXCLUDE = "--cache and --no-cache exclude each other; give one of them"
NO_FILE = "is a file; name a folder, there or yet to be made"


@pytest.mark.parametrize("command", [RUN, TUNE], ids=["run", "tune"])
@pytest.mark.parametrize(
    ("options", "environment", "complaint"),
    [
        (["--cache", "file"], None, f"--cache: '{{}}/file' {NO_FILE}"),
        (["--cache", "file/below"], None, f"--cache: '{{}}/file' {NO_FILE}"),
        (["--cache", ""], None, "--cache: '' is no folder; name one, or give --no-cache"),
        (["--cache", "new", "--no-cache"], None, EXCLUDE),
        ([], "file", f"FLORA_BENCH_CACHE: '{{}}/file' {NO_FILE}"),
    ],
)
def test_a_cache_that_cannot_be_is_refused_before_anything_runs(
    run_cli: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    options: list[str],
    environment: str | None,
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    if environment is not None:
        monkeypatch.setenv("FLORA_BENCH_CACHE", environment)
    code, out, err = run_cli(*command, *options)
    assert (code, out, err) == (2, "", f"flora-bench: {complaint.format(tmp_path)}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", [RUN, TUNE], ids=["run", "tune"])
@pytest.mark.parametrize(
    ("options", "place"),
    [(["--cache", "new/cache"], "new/cache"), ([], "by variable"), (["--no-cache"], None)],
)
def test_cells_run_with_the_cache_that_was_asked_for(
    run_cli: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    options: list[str],
    place: str | None,
) -> None:
    given = []

    def run_matrix(*arguments: object, **more: object) -> list[object]:
        given.append(more.get("cache", arguments[-1]))
        raise BadInput("far enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLORA_BENCH_CACHE", str(tmp_path / "by variable"))
    monkeypatch.setattr("bench.execute.run_matrix", run_matrix)
    assert run_cli(*command, *options)[2] == "flora-bench: far enough\n"
    (cache,) = given
    assert (None if cache is None else cache.folder) == (place and tmp_path / place)


# --- where, and how much -------------------------------------------------------------------------------


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLORA_BENCH_CACHE", "~/mine")
    assert default_folder() == tmp_path / "mine"
    monkeypatch.delenv("FLORA_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert default_folder() == tmp_path / "xdg" / "flora-bench" / "features"


def test_how_much_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLORA_BENCH_CACHE_LIMIT", raising=False)
    assert default_limit_bytes() == 20 * 10**9
    monkeypatch.setenv("FLORA_BENCH_CACHE_LIMIT", "1.5 GiB")
    assert default_limit_bytes() == 1.5 * 2**30
    monkeypatch.setenv("FLORA_BENCH_CACHE_LIMIT", "much")
    with pytest.raises(BadInput, match=r"^FLORA_BENCH_CACHE_LIMIT: 'much' is no size"):
        default_limit_bytes()


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("12", 12), ("12B", 12), ("5GB", 5 * 10**9), ("0.5 mb", 500_000), (" 2 KiB ", 2048)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text, "--to") == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1,5GB", "1e3", "nan", "inf", "5 G B", "5d", "٣GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadInput, match="is no size"):
        parse_bytes(text, "--to")


def test_stretches_of_time() -> None:
    assert [parse_seconds(text, "") for text in ("90s", "5m", "12h", "1.5d", "2w")] == [
        90, 300, 43_200, 1.5 * DAY, 14 * DAY,
    ]  # fmt: skip
    with pytest.raises(BadInput, match="--older-than: '30' is no stretch"):
        parse_seconds("30", "--older-than")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_304, "98.3 kB"), (999_960, "1.0 MB"),
     (5 * 10**9, "5.0 GB"), (2 * 10**15, "2,000.0 TB")],
)  # fmt: skip
def test_sizes_in_words(size: int, text: str) -> None:
    assert bytes_text(size) == text
