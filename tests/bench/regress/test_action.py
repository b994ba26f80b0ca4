"""The action and the workflow that uses it: what they declare, and their steps run in bash."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import bench
from bench.regress.pull_request import COMMENT, MARKER, app
from tests.bench.regress.hosted import Hosted, commit, environment, event_of, git, serving, stand_in

ROOT = Path(bench.__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = ACTION["runs"]["steps"]
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")
}
GATE = WORKFLOWS["gate.yml"]
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")

# compare and ab as they exit: compare by the name of the baseline; what they are called with goes to a file
FLORA_BENCH = """\
printf '%s\\n' "$@" > "called-$1"
test -z "${GITHUB_TOKEN-}" || exit 99
if test "$1" = compare; then what=$2; else what=same; fi
case $what in
  worse*) echo '**1 metric is worse.**'; exit 1;;
  lost*) echo 'flora-bench: no such file' >&2; exit 2;;
  *) echo '**Nothing is worse.**';;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the action's steps are lines of bash")


def names_in(step, context):
    return {*re.findall(rf"\b{context}\.([\w-]+)", json.dumps(step))}


# --- what is declared ----------------------------------------------------------------------------------


def test_every_input_is_used_described_and_has_a_default():
    used = set().union(*(names_in(step, "inputs") for step in STEPS))
    assert used == {*ACTION["inputs"]}
    for declared in ACTION["inputs"].values():
        assert {*declared} == {"description", "default"}
        assert isinstance(declared["default"], str)
        assert "${{" not in declared["description"]


def test_no_input_is_pasted_into_a_script():
    for step in STEPS:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]


def test_the_script_and_the_action_agree_on_variables():
    commands = typer.main.get_command(app).commands
    for name in ("judge", "post"):
        known = {x.envvar for x in commands[name].params if str(x.envvar).startswith("GATE_")}
        step = next(step for step in STEPS if step["run"].endswith(f" {name}"))
        assert {x for x in step["env"] if x.startswith("GATE_")} == known


def test_only_the_step_that_comments_sees_the_token():
    with_token = [step["name"] for step in STEPS if names_in(step, "inputs") & {"token"}]
    assert with_token == ["Comment"]
    assert not any("github.token" in json.dumps(step) or "secrets." in json.dumps(step) for step in STEPS)


def test_this_repositorys_gate_may_do_no_more_than_it_needs():
    assert GATE["permissions"] == {"contents": "read", "pull-requests": "write"}
    [job] = GATE["jobs"].values()
    assert "permissions" not in job
    # YAML reads `on` as true
    assert [*GATE[True]] == ["pull_request"]
    checkout = next(x["with"] for x in job["steps"] if x.get("uses", "").startswith("actions/checkout@"))
    assert checkout == {"fetch-depth": 0, "persist-credentials": False}


def test_no_workflow_runs_a_strangers_code_with_a_token_that_writes():
    for workflow in WORKFLOWS.values():
        assert "pull_request_target" not in json.dumps(workflow)


def test_workflows_use_one_version_of_each_action():
    used = {
        x["uses"] for w in WORKFLOWS.values() for j in w["jobs"].values() for x in j["steps"] if "uses" in x
    }
    others = {x for x in used if x != "./"}
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", x) for x in others)
    assert len({x.partition("@")[0] for x in others}) == len(others)


def test_this_repositorys_gate_gives_inputs_that_there_are_and_lets_no_time_decide():
    [job] = GATE["jobs"].values()
    [step] = [x for x in job["steps"] if x.get("uses") == "./"]
    assert {*step["with"]} <= {*ACTION["inputs"]}
    assert step["with"]["times-decide"] is False
    assert (ROOT / step["with"]["probes"]).is_dir()


def test_pull_requests_are_measured_as_the_tests_measure():
    tox = configparser.RawConfigParser()
    tox.read(ROOT / "tox.ini")
    measured, compared = tox["testenv:gate"]["commands"].split("\n")[1:3]
    [job] = GATE["jobs"].values()
    [given] = [x["with"] for x in job["steps"] if x.get("uses") == "./"]
    bench, results = "{work_dir}/shared/bin/", "{env_tmp_dir}/gate"
    assert given["measure"] == measured.removeprefix(bench).replace(results, given["results"])
    there = f"flora-bench compare {given['baseline']} {results} --complete"
    assert compared.removeprefix(bench) == there


# --- its steps, run ------------------------------------------------------------------------------------


class Job:
    """A job on a pull request's merge, in a clone of its own."""

    def __init__(self, folder, url):
        self.folder, self.url, self.outcomes, self.logs = folder, url, {}, {}
        self.clone = folder / "clone"
        self.clone.mkdir()
        git(self.clone, "init", "--quiet")
        base = commit(self.clone, code="1")
        git(self.clone, "switch", "--quiet", "--create", "change")
        head = commit(self.clone, code="2")
        git(self.clone, "switch", "--quiet", "main")
        git(self.clone, "merge", "--quiet", "--no-ff", "--message", "merged", "change")
        (folder / "event.json").write_text(json.dumps(event_of(base, head)))
        stand_in(folder / "bin", "flora-bench", FLORA_BENCH)

    def run(self, **inputs):
        """Run the action: whether the job is green."""
        defaults = {name: declared["default"] for name, declared in ACTION["inputs"].items()}
        given = {name.replace("_", "-"): value for name, value in inputs.items()}
        self.inputs = {**defaults, "token": "secret", "install": "false", **given}
        failed = False
        for step in STEPS:
            name = step.get("id", step["name"])
            if not self._whether(step.get("if"), failed):
                self.outcomes[name] = "skipped"
                continue
            self.outcomes[name] = "success" if self._bash(step, name) else "failure"
            failed = failed or self.outcomes[name] == "failure"
        return not failed

    @property
    def comment(self):
        return (self.folder / "temp/flora-bench" / COMMENT).read_text()

    @property
    def summary(self):
        return (self.folder / "summary.md").read_text()

    def called(self, command):
        return (self.clone / f"called-{command}").read_text().splitlines()

    def _value(self, text):
        known = {f"inputs.{name}": value for name, value in self.inputs.items()}
        known["runner.temp"] = str(self.folder / "temp")
        known |= {f"steps.{name}.outcome": outcome for name, outcome in self.outcomes.items()}
        return EXPRESSION.sub(lambda found: known[found[1]], text)

    def _whether(self, condition, failed):
        if condition is None:
            return not failed
        [whole] = EXPRESSION.findall(condition)
        terms = whole.split(" && ")
        plain = [term for term in terms if term != "!cancelled()"]
        pairs = [re.fullmatch(r"(\S+) (==|!=) '(\w+)'", term).groups() for term in plain]
        holds = all((self._value(f"${{{{ {x} }}}}") == y) is (sign == "==") for x, sign, y in pairs)
        return holds and ("!cancelled()" in terms or not failed)

    def _bash(self, step, name):
        ours = [str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        variables = {
            "PATH": os.pathsep.join(ours),
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_EVENT_NAME": "pull_request",
            "GITHUB_EVENT_PATH": str(self.folder / "event.json"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            "GITHUB_API_URL": self.url,
            # a system that would write in ASCII
            "LC_ALL": "C",
            "PYTHONCOERCECLOCALE": "0",
            "PYTHONUTF8": "0",
            **{x: self._value(str(value)) for x, value in step.get("env", {}).items()},
        }
        folder = self.clone / self._value(step.get("working-directory", "."))
        done = subprocess.run(
            # as GitHub calls it for `shell: bash`
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=folder,
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )
        self.logs[name] = done.stdout + done.stderr
        return done.returncode == 0


@pytest.fixture
def hosted():
    return Hosted()


@pytest.fixture
def job(tmp_path, hosted):
    with serving(hosted) as url:
        yield Job(tmp_path, url)


EXACT = {"baseline": "same.json", "results": "results", "measure": "mkdir results"}


def test_a_pull_request_that_makes_nothing_worse_is_green_and_commented_on(job, hosted):
    assert job.run(**EXACT, probes="tests/perf")
    assert job.outcomes == {"Install flora-bench": "skipped", "judge": "success", "Comment": "success"}
    [comment] = hosted.comments
    assert comment["body"] == job.comment == job.summary
    assert comment["body"].startswith(f"{MARKER}\n\n## ✅ Gate passed")
    assert comment["body"].count("**Nothing is worse.**") == 2
    assert job.called("compare") == ["compare", "same.json", "results", "--complete", "--markdown"]
    assert "10m" in job.called("ab")
    assert {*hosted.tokens} == {"Bearer secret"}


def test_one_that_makes_something_worse_is_red_and_commented_on(job, hosted):
    assert not job.run(**EXACT | {"baseline": "worse.json"})
    assert (job.outcomes["judge"], job.outcomes["Comment"]) == ("failure", "success")
    assert "❌ Gate failed" in hosted.comments[0]["body"]


def test_what_could_not_be_measured_is_red_and_says_so(job, hosted):
    assert not job.run(**EXACT | {"baseline": "lost.json"})
    assert "⚠️ Gate could not be measured" in hosted.comments[0]["body"]
    assert "flora-bench: no such file" in hosted.comments[0]["body"]


def test_a_second_run_renews_the_comment(job, hosted):
    job.run(**EXACT | {"baseline": "worse.json", "measure": ""})
    job.run(**EXACT | {"measure": ""})
    [comment] = hosted.comments
    assert "✅ Gate passed" in comment["body"]


@pytest.mark.parametrize(("baseline", "green"), [("same.json", True), ("worse.json", False)])
def test_from_a_fork_the_verdict_stands_without_a_comment(job, hosted, baseline, green):
    hosted.refuses["POST"] = 403
    assert job.run(**EXACT | {"baseline": baseline}) is green
    assert job.outcomes["Comment"] == "success"
    assert "a fork" in job.logs["Comment"]
    assert "Gate" in job.summary
    assert hosted.comments == []


def test_no_comment_where_none_is_wanted(job, hosted):
    assert job.run(**EXACT, comment="false")
    assert job.outcomes["Comment"] == "skipped"
    assert hosted.asked == []


def test_inputs_are_never_run(job):
    hostile = "x'\"; touch {0} #$(touch {0})`touch {0}`\n touch {0}"
    reached = job.clone / "reached"
    text = hostile.format(reached)
    names = ("baseline", "results", "budgets", "probes", "select", "time-limit", "base-env")
    assert job.run(**dict.fromkeys(names, text), measure="true")
    assert not reached.exists()
    assert "\n".join(job.called("compare")[1:3]).startswith("x'\"; touch ")


def test_a_folder_named_bench_in_the_pull_request_is_not_run(job):
    (job.clone / "bench").mkdir()
    (job.clone / "bench/__init__.py").write_text("raise SystemExit('taken from the pull request')")
    assert job.run(**EXACT)


def test_it_runs_where_it_is_told_to(job):
    (job.clone / "part").mkdir()
    assert job.run(**EXACT, working_directory="part")
    assert (job.clone / "part/called-compare").exists()


def test_installing_takes_the_actions_own_revision(job):
    stand_in(job.folder / "bin", "python", 'printf "%s\\n" "$@"')
    job.run(**EXACT, install="true")
    assert job.logs["Install flora-bench"].split() == ["-m", "pip", "install", "--quiet", str(ROOT)]


def test_where_installing_fails_nothing_is_said_of_the_pull_request(job, hosted):
    stand_in(job.folder / "bin", "python", "exit 1")
    assert not job.run(**EXACT, install="true")
    assert job.outcomes == {"Install flora-bench": "failure", "judge": "skipped", "Comment": "skipped"}
    assert hosted.asked == []
