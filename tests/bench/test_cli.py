"""The command line: exit codes, one-line complaints, progress, tables, and a quick start."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bench.cell
from bench import store
from bench.cli import main

KINDS = ("methods", "tasks", "splits", "models", "presets", "aggregators", "codecs", "profiles")
MATRIX = """\
method: [zero_shot, linear_probe]
rounds: 1
clients: 2
data: {max_train: 20, max_test: 20}
device: cpu
"""


@pytest.fixture
def run_cli(monkeypatch, capsys, tmp_path):
    """Run the command line in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "matrix.yaml").write_text(MATRIX)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["flora-bench", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with the results of `MATRIX`, made by the command line itself."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "matrix.yaml").write_text(MATRIX)
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "matrix.yaml"], cwd=folder, env=with_suite_on_path(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def with_suite_on_path():
    return {
        **os.environ,
        "PYTHONPATH": str(Path(bench.cell.__file__).parents[1]),
        "PYTHONIOENCODING": "utf-8",
    }


# --- what there is -------------------------------------------------------------------------------------


def test_help_names_every_command(run_cli):
    for flag in ("--help", "-h"):
        code, out, err = run_cli(flag)
        assert (code, err) == (0, "")
        for command in ("run", "list", "report", "pretrain"):
            assert f" {command} " in out


@pytest.mark.parametrize("command", ["run", "list", "report", "pretrain"])
def test_every_command_has_help(run_cli, command):
    code, out, err = run_cli(command, "--help")
    assert (code, err) == (0, "")
    assert f" {command} " in out


@pytest.mark.parametrize("kind", KINDS)
def test_lists_say_the_same_in_lines_and_in_json(run_cli, kind):
    code, lines, err = run_cli("list", kind)
    assert (code, err) == (0, "")
    code, text, err = run_cli("list", kind, "--json")
    assert (code, err) == (0, "")
    entries = json.loads(text)
    assert entries
    for (name, description), line in zip(entries.items(), lines.splitlines(), strict=True):
        assert line.split(maxsplit=1) == [name, description]


START_UP = """
import sys
import bench.cli
HEAVY = ("torch", "pandas", "open_clip", "matplotlib", "sklearn", "peft")
assert not [name for name in HEAVY if name in sys.modules], "import bench.cli"
for kind in sys.argv[1:]:
    sys.argv = ["flora-bench", "list", kind]
    try:
        bench.cli.main()
    except SystemExit as stopped:
        assert not stopped.code
    assert not [name for name in HEAVY if name in sys.modules], kind
"""


def test_starting_and_listing_load_nothing_heavy():
    done = subprocess.run(
        # only open_clip knows its models, and it loads all there is
        [sys.executable, "-c", START_UP, *(kind for kind in KINDS if kind != "models")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- bad input -----------------------------------------------------------------------------------------

BAD = [
    (["run", "quik"], "there is no preset and no file 'quik'; did you mean 'quick'?"),
    (["run", "matrix.yaml", "--set", "rouds=1"], "rouds: there is no such field; did you mean 'rounds'?"),
    (["run", "matrix.yaml", "--set", "rounds"], "--set rounds: must be FIELD=VALUE, such as rounds=5"),
    (["run", "matrix.yaml", "--set", "rounds=-1"], "rounds: -1 must be greater than or equal to 0"),
    (["run", "matrix.yaml", "--set", "rounds=yes"], "rounds: True must be a number, not a truth value"),
    (["run", "matrix.yaml", "--set", "seed=[0, 0]"], "the matrix holds this cell twice: digits · zero_shot"),
    (
        ["run", "matrix.yaml", "--set", "method=flroa"],
        "method.name: there is no method 'flroa'; did you mean",
    ),
    (
        ["run", "matrix.yaml", "--set", "method.rank=2"],
        "--set method.rank: there is no such field; choose from",
    ),
    (["run", "matrix.yaml", "--set", "task=digts"], "task 'digts' is unknown; did you mean 'digits'?"),
    (
        ["run", "matrix.yaml", "--set", "clients=50"],
        " · iid · seed 0: clients: 50 is more than the 20 training samples; use at most 20",
    ),
    (
        ["run", "matrix.yaml", "--set", "model=tyny"],
        " · iid · seed 0: model.name: open_clip has no architecture 'tyny'; did you mean 'tiny'?",
    ),
    (
        ["run", "matrix.yaml", "--set", "device=gpu"],
        "device: 'gpu' is not on this machine; choose from auto, cpu",
    ),
    (["run", "matrix.yaml", "--results", "matrix.yaml"], "results: cannot write to 'matrix.yaml'"),
    (["run", "broken.yaml"], "broken.yaml:2:5: not valid YAML: "),
    (["run", "empty.yaml"], "empty.yaml: must hold fields with values"),
    (["report", "nowhere"], "results: 'nowhere' is no folder; make some with `flora-bench run`"),
    (["report", "."], "results: '.' holds no <task>/<method>/<hash>/run.json"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(run_cli, tmp_path, arguments, message):
    (tmp_path / "broken.yaml").write_text("rounds: [1\ntask: digits")
    (tmp_path / "empty.yaml").write_text("")
    code, out, err = run_cli(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("flora-bench: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "results").exists() or not any((tmp_path / "results").iterdir())


@pytest.mark.parametrize(
    "arguments", [[], ["nope"], ["list"], ["list", "nope"], ["run", "--nope"], ["pretrain", "x"]]
)
def test_wrong_usage_is_exit_code_2_without_a_traceback(run_cli, arguments):
    code, _, err = run_cli(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_a_damaged_result_is_named_and_not_overwritten(run_cli, results, tmp_path):
    source = next((results / "results").glob("digits/linear_probe/*/run.json"))
    damaged = tmp_path / source.relative_to(results)
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(source.read_bytes()[:-100])
    before = damaged.read_bytes()
    for arguments in (["run", "matrix.yaml"], ["report"]):
        code, out, err = run_cli(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"flora-bench: {damaged.relative_to(tmp_path)}: damaged or cut short")
        assert len(err.splitlines()) == 1
    assert damaged.read_bytes() == before


def test_as_a_module_it_complains_in_one_line_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "quik"], cwd=tmp_path, env=with_suite_on_path(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "flora-bench: there is no preset and no file 'quik'; did you mean 'quick'?\n"


def test_as_a_module_it_has_help(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--help"], cwd=tmp_path, env=with_suite_on_path(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "pretrain" in done.stdout


# --- runs ----------------------------------------------------------------------------------------------


def test_a_run_prints_a_line_a_cell_and_then_tables(results):
    lines = (results / "stderr").read_text().splitlines()
    assert lines[0] == "2 cells"
    assert lines[1].startswith("[1/2] digits · zero_shot · iid · seed 0: accuracy ")
    assert "left)" in lines[1]
    assert lines[2].startswith("[2/2] digits · linear_probe · iid · seed 0: accuracy ")
    assert lines[3:] == ["results are in results; next: flora-bench report results"]
    table = (results / "stdout").read_text()
    assert "Zero-shot" in table
    assert "digits · tiny" in table


def test_a_second_run_keeps_what_is_there(run_cli, results, monkeypatch):
    monkeypatch.chdir(results)
    monkeypatch.setattr(bench.cell, "run_cell", None)  # would raise if called
    code, out, err = run_cli("run", "matrix.yaml", "--json")
    assert (code, err) == (0, "2 cells, 2 kept from before\n")
    records = json.loads(out)
    assert [record["status"] for record in records] == ["kept", "kept"]
    for record in records:
        kept = store.load_run(record["path"])
        assert record["summary"] == kept["summary"]
        assert record["config_hash"] == kept["config_hash"]
        assert record["reason"] is None


def test_set_and_results_reach_the_cells(run_cli, tmp_path):
    code, out, _ = run_cli(
        "run", "matrix.yaml", "--set", "method=zero_shot", "--set", "seed=4", "--results", "here", "--json"
    )
    assert code == 0
    (record,) = json.loads(out)
    assert record["path"].startswith(os.path.join("here", "digits", "zero_shot"))
    assert store.load_run(tmp_path / record["path"])["config"]["seed"]["order"] == 4


def test_a_failed_cell_is_exit_code_1_and_the_others_are_kept(run_cli, monkeypatch):
    right = bench.cell.run_cell

    def planted(config, *args, **options):
        if config.method.name == "zero_shot":
            raise RuntimeError("planted\nfault")
        return right(config, *args, **options)

    monkeypatch.setattr(bench.cell, "run_cell", planted)
    code, out, err = run_cli("run", "matrix.yaml")
    assert code == 1
    assert (
        "[1/2] digits · zero_shot · iid · seed 0: failed: RuntimeError: planted fault (traceback in " in err
    )
    assert "1 of 2 cells have no result" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "Linear" in out


def test_a_cell_refused_while_it_runs_is_exit_code_2(run_cli, monkeypatch):
    from flora.errors import BadInput

    right = bench.cell.run_cell

    def planted(config, *args, **options):
        if config.method.name == "zero_shot":
            raise BadInput("image 3.png cannot be read; repair or remove it")
        return right(config, *args, **options)

    monkeypatch.setattr(bench.cell, "run_cell", planted)
    code, _, err = run_cli("run", "matrix.yaml")
    assert code == 2
    assert "refused: image 3.png cannot be read" in err


INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import bench.cli as c; c.main()"
)


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for another process")
def test_an_interrupt_keeps_what_is_finished_and_says_how_to_go_on(tmp_path):
    seeds = list(range(60))
    (tmp_path / "many.yaml").write_text(
        MATRIX.replace("[zero_shot, linear_probe]", "linear_probe") + f"seed: {seeds}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "run", "many.yaml"], cwd=tmp_path, env=with_suite_on_path(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("[2/"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out == ""
    files = list((tmp_path / "results").glob("digits/linear_probe/*/run.json"))
    assert all(store.load_run(path) for path in files)
    told, *_ = err.splitlines()[-1].removeprefix("interrupted: ").split(" ")
    assert err.splitlines()[-1].endswith(
        f"of {len(seeds)} cells are kept in results; give the same command again to go on"
    )
    # the interrupt may fall between writing a result and counting it
    assert len(files) - int(told) in (0, 1)
    assert 2 <= len(files) < len(seeds)
    assert not list(tmp_path.rglob(".*"))


# --- reports -------------------------------------------------------------------------------------------


def test_report_makes_a_page_of_stored_results(run_cli, results, tmp_path):
    code, out, err = run_cli("report", str(results / "results"), "--out", "page")
    assert code == 0
    assert err.endswith("read; making tables and figures\n")
    assert out == f"report: {Path('page') / 'index.html'}\n"
    assert "Zero-shot" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_one_line(run_cli, results):
    code, out, err = run_cli("report", str(results / "results"), "--out", "matrix.yaml")
    assert (code, out) == (2, "")
    assert err == "flora-bench: --out: cannot write to 'matrix.yaml' (File exists); choose another folder\n"
