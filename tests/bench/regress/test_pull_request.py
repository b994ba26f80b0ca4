"""The action's script: what is compared with what, what the comment says, and how it gets to GitHub."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from bench.cli.verdicts import to_dict
from bench.regress import pull_request
from bench.regress.judgement import Comparison, Judgement, Verdict
from bench.regress.metrics import METRICS, SECONDS
from bench.regress.pull_request import (
    COMMENT,
    COMMENT_CHARACTERS,
    MARKER,
    Event,
    Gate,
    GitHub,
    NotPosted,
    Part,
    Ran,
    State,
    base_of,
    cut,
    judged,
    main,
    read_event,
    run_command,
    told,
)
from flora.errors import BadInput
from tests.bench.regress.hosted import REPOSITORY, Hosted, commit, event_of, git, serving

BASE, HEAD, ELSE = "b" * 40, "a" * 40, "c" * 40
EVENT = Event.model_validate(event_of(BASE, HEAD))
GATE = Gate("gate.json", "results", "make it", "tests/perf")
SAME = Ran(0, "**Same.**\n", "")
WORSE = Ran(1, "**Payload grew by 1 byte.**\n", "")
DONE = Ran(0, "", "")
LOST = Ran(2, "", "flora-bench: baseline: there is none\n")


class Script:
    """Runs nothing, and says what was to be run."""

    def __init__(self, **ran):
        self.ran, self.commands = {"merge-base": Ran(0, BASE, ""), "diff": Ran(0, "", ""), **ran}, []

    def __call__(self, command):
        self.commands.append(list(command))
        return self.ran.get(command[1], Ran(0, "", "")) if command[0] != "bash" else self.ran["measure"]

    def asked(self, of):
        return " ".join(next(command for command in self.commands if command[1] == of))


def script(compare=SAME, ab=SAME, measure=DONE, **more):
    return Script(compare=compare, ab=ab, measure=measure, **more)


@pytest.fixture
def hosted():
    return Hosted()


@pytest.fixture
def api(hosted):
    with serving(hosted) as url:
        yield GitHub(url, "secret")


@pytest.fixture
def repository(tmp_path):
    """A branch of one commit, and a base that went on since: (folder, where they parted, base, head)."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    parted = commit(folder, gate="1", code="1")
    git(folder, "switch", "--quiet", "--create", "change")
    head = commit(folder, code="2")
    git(folder, "switch", "--quiet", "main")
    return folder, parted, commit(folder, other="1"), head


def as_job(monkeypatch, tmp_path, event, *arguments, **variables):
    """Set the process up as a job of GitHub's and run the script's command line: its exit code."""
    for name in [*os.environ]:
        if name.startswith(("GITHUB_", "GATE_")):
            monkeypatch.delenv(name)
    path = tmp_path / "event.json"
    path.write_text(event if isinstance(event, str) else json.dumps(event))
    for name, value in {
        "GITHUB_EVENT_PATH": str(path),
        "GATE_OUT": str(tmp_path / "out"),
        **variables,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["pull_request", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0


# --- events --------------------------------------------------------------------------------------------


def test_an_event_gives_number_and_commits(tmp_path):
    path = tmp_path / "event.json"
    path.write_text(json.dumps(event_of(BASE, HEAD, action="opened", sender={"login": "x"})))
    event = read_event(path)
    assert (event.repository.full_name, event.pull_request.number) == (REPOSITORY, 7)
    assert (event.pull_request.base.sha, event.pull_request.head.sha) == (BASE, HEAD)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "the file"),
        ("{", "the file"),
        ("[]", "the file"),
        ("{}", "repository"),
        (b"\xff\xfe", "the file"),
        (json.dumps({"repository": {"full_name": "a/b/../c"}}), "repository.full_name"),
        (json.dumps(event_of("--output=x", HEAD)), "pull_request.base.sha"),
        (json.dumps(event_of(BASE, "main")), "pull_request.head.sha"),
        (json.dumps({**event_of(BASE, HEAD), "pull_request": {"number": 7}}), "pull_request.base"),
    ],
)
def test_a_damaged_event_is_bad_input(tmp_path, content, named):
    path = tmp_path / "event.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=r"^event: .*GITHUB_EVENT_PATH") as raised:
        read_event(path)
    assert f": {named}: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, tmp_path, capsys):
    assert as_job(monkeypatch, tmp_path, "{", "judge", "--probes", "p") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pull_request: event: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "given", [(), ("--baseline", "x"), ("--results", "x"), ("--results", "x", "--probes", "p")]
)
def test_what_is_to_be_compared_must_be_given(monkeypatch, tmp_path, capsys, given):
    assert as_job(monkeypatch, tmp_path, event_of(BASE, HEAD), "judge", *given) == 2
    assert "give a baseline and results, or probes" in capsys.readouterr().err


def test_an_event_that_has_a_strangers_code_run_with_a_token_is_refused(monkeypatch, tmp_path, capsys):
    for command in ("judge", "post"):
        event = event_of(BASE, HEAD)
        assert as_job(monkeypatch, tmp_path, event, command, GITHUB_EVENT_NAME="pull_request_target") == 2
        assert "use pull_request" in capsys.readouterr().err


# --- what is held against what -------------------------------------------------------------------------


def test_of_a_merge_into_the_base_its_first_parent_is_the_base(repository, monkeypatch):
    folder, parted, base, head = repository
    git(folder, "merge", "--quiet", "--no-ff", "--message", "merged", "change")
    monkeypatch.chdir(folder)
    # what the event knows of the base may be older than what GitHub merged into
    assert base_of(Event.model_validate(event_of(parted, head)), run_command) == base


def test_of_a_branch_the_base_is_where_it_left(repository, monkeypatch):
    folder, parted, base, head = repository
    git(folder, "switch", "--quiet", "change")
    monkeypatch.chdir(folder)
    assert base_of(Event.model_validate(event_of(base, head)), run_command) == parted


def test_of_a_push_the_base_is_what_was_there_before(repository, monkeypatch):
    folder, parted, _, _ = repository
    monkeypatch.chdir(folder)
    push = {"repository": {"full_name": REPOSITORY}, "before": parted}
    assert base_of(Event.model_validate(push), run_command) == parted
    for before in ({"before": "0" * 40}, {"before": None}):
        with pytest.raises(BadInput, match="names no commit"):
            base_of(Event.model_validate({**push, **before}), run_command)


def test_a_clone_without_the_base_says_how_to_get_it(repository, monkeypatch, tmp_path):
    folder, _, base, _ = repository
    git(folder, "merge", "--quiet", "--no-ff", "--message", "merged", "change")
    git(tmp_path, "clone", "--quiet", "--depth=1", folder.as_uri(), "shallow")
    monkeypatch.chdir(tmp_path / "shallow")
    with pytest.raises(BadInput, match="fetch-depth: 0"):
        base_of(Event.model_validate(event_of(base, HEAD)), run_command)


def test_the_comment_names_a_changed_baseline(repository, monkeypatch):
    folder, parted, _, head = repository
    git(folder, "switch", "--quiet", "change")
    monkeypatch.chdir(folder)

    def run(command):
        return run_command(command) if command[0] == "git" else SAME

    event = Event.model_validate(event_of(parted, head))
    for same in ("gate", str(folder.parent / "elsewhere")):
        assert "also changes" not in judged(event, Gate(same, "results"), run)[1]
    commit(folder, gate="2")
    text = judged(event, Gate("gate", "results", budgets="code"), run)[1]
    assert "also changes what it is held against: `gate`, `code`.**" in text


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("[project]\nversion = '1'", "[project]\nversion = '2'", False),
        ("", "[tool.flora-bench.gate.metrics]\npayload_bytes.absolute = 8", True),
        ("[tool.flora-bench.gate.metrics]\npayload_bytes.absolute = 8", "[tool.other]", True),
        ("[tool]\nflora-bench = 3", "[tool]\nflora-bench = 4", True),
    ],
)
def test_the_comment_names_changed_budgets_in_the_project_file(tmp_path, monkeypatch, before, after, told):
    git(tmp_path, "init", "--quiet")
    base = commit(tmp_path, **{"pyproject.toml": before})
    head = commit(tmp_path, **{"pyproject.toml": after})
    monkeypatch.chdir(tmp_path)

    def run(command):
        return run_command(command) if command[0] == "git" else SAME

    for budgets, expected in ((None, told), ("gate.toml", False)):
        gate = Gate("gate.json", "results", budgets=budgets)
        text = judged(Event.model_validate(event_of(base, head)), gate, run)[1]
        assert ("the budgets in `pyproject.toml`" in text) == expected


def test_commands_get_what_was_given(tmp_path):
    run = script()
    judged(EVENT, Gate("a", "b", None, "p", "steps", "10m", "env", "budgets.toml", out=tmp_path), run)
    compare, ab = run.asked("compare"), run.asked("ab")
    assert compare == "flora-bench compare a b --complete --gate budgets.toml --markdown"
    assert ab == (
        f"flora-bench ab --base {BASE} --head HEAD --probes p --limit 10m -k steps --base-env env "
        f"--gate budgets.toml --out {tmp_path} --markdown"
    )


def test_what_is_not_given_is_not_passed_on(tmp_path):
    run = script()
    judged(EVENT, Gate("a", "b", probes="p", out=tmp_path), run)
    assert run.asked("compare") == "flora-bench compare a b --complete --markdown"
    assert run.asked("ab").endswith(f"--probes p --out {tmp_path} --markdown")
    assert not any(command[0] == "bash" for command in run.commands)


# --- verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compare", "ab", "state", "headline"),
    [
        (SAME, SAME, State.PASSED, "✅ Gate passed"),
        (WORSE, SAME, State.WORSE, "❌ Gate failed: something got worse"),
        (SAME, WORSE, State.WORSE, "❌ Gate failed: something got worse"),
        (LOST, SAME, State.UNMEASURED, "⚠️ Gate could not be measured"),
        (SAME, LOST, State.UNMEASURED, "⚠️ Gate could not be measured"),
        (LOST, WORSE, State.WORSE, "❌ Gate failed: something got worse"),
    ],
)
def test_worse_is_told_from_what_could_not_be_measured(compare, ab, state, headline):
    found, text = judged(EVENT, GATE, script(compare, ab))
    assert (found, text.splitlines()[2]) == (state, f"## {headline}")
    assert text.startswith(MARKER)


def test_exit_codes_are_those_of_compare():
    assert [state.exit_code for state in (State.PASSED, State.WORSE, State.UNMEASURED)] == [0, 1, 2]


REPORTED = replace(GATE, times_decide=False)


class Judging(Script):
    """Gives JSON where it is asked for."""

    def __init__(self, *judgements, **ran):
        super().__init__(measure=DONE, **{"compare": SAME, "ab": SAME, **ran})
        self.found = {"judgements": [{"kind": k, "verdict": v} for k, v in judgements], "only_base": []}

    def __call__(self, command):
        found = super().__call__(command)
        return Ran(1, json.dumps(self.found), "") if "--json" in command else found


@pytest.mark.parametrize("part", ["compare", "ab"])
@pytest.mark.parametrize(
    ("judgements", "state"),
    [
        ([("noisy", "worse"), ("exact", "same"), ("statistical", "unsure")], State.PASSED),
        ([("noisy", "worse"), ("exact", "worse")], State.WORSE),
        ([("noisy", "same"), ("rounding", "changed")], State.WORSE),
        ([("noisy", "same"), ("tight", "expired")], State.WORSE),
    ],
)
def test_where_times_do_not_decide_all_else_does(part, judgements, state):
    run = Judging(*judgements, **{part: WORSE})
    found, text = judged(EVENT, REPORTED, run)
    assert found is state
    assert "Times are reported; they decide nothing." in text
    assert WORSE.out.strip() in text
    assert ("(reported only)" in text) == (state is State.PASSED)


def test_times_are_told_apart_in_the_json_that_compare_prints():
    time = Judgement("a probe", SECONDS, 1.0, 2.0, Verdict.WORSE)
    bytes_sent = Judgement("a cell", METRICS["bytes_up"], 1, 2, Verdict.WORSE)
    for judgements, state in (([time], State.PASSED), ([time, bytes_sent], State.WORSE)):
        run = Judging(compare=WORSE)
        run.found = to_dict(Comparison("a", "b", judgements))
        assert judged(EVENT, REPORTED, run)[0] is state


def test_where_times_decide_a_slowdown_alone_stops():
    for part in ("compare", "ab"):
        assert judged(EVENT, GATE, Judging(("noisy", "worse"), **{part: WORSE}))[0] is State.WORSE


def test_where_times_do_not_decide_unclear_failures_do():
    strange = {"judgements": [{"verdict": "terrible", "kind": "noisy"}], "only_base": []}
    none = {"judgements": [], "only_base": []}
    for found in ({}, {"judgements": []}, strange, none):
        run = Judging(compare=WORSE)
        run.found = found
        assert judged(EVENT, REPORTED, run)[0] is State.WORSE


@pytest.mark.parametrize("part", ["compare", "ab"])
def test_where_times_do_not_decide_a_cell_that_is_gone_or_a_probe_that_fails_on_the_head_does(part):
    run = Judging(("noisy", "worse"), **{part: WORSE})
    run.found["only_base"] = ["digits, flora"]
    assert judged(EVENT, REPORTED, run)[0] is State.WORSE


def test_times_that_could_not_be_measured_stop_nothing_where_they_do_not_decide():
    state, text = judged(EVENT, REPORTED, script(ab=LOST))
    assert state is State.PASSED
    assert "could not be measured" in text
    assert LOST.log.strip() in text
    assert judged(EVENT, REPORTED, script(compare=LOST))[0] is State.UNMEASURED


def test_the_figures_that_ab_left_are_those_that_are_told_apart(tmp_path):
    run = Judging(("noisy", "worse"), ab=WORSE)
    judged(EVENT, Gate(probes="p", times_decide=False, out=tmp_path, budgets="b.toml"), run)
    files = f"{tmp_path / 'base.json'} {tmp_path / 'head.json'}"
    assert run.asked("compare") == f"flora-bench compare {files} --complete --gate b.toml --json"


def test_a_crash_is_not_taken_for_a_change():
    crash = Ran(1, "", "Traceback (most recent call last):\nRuntimeError: no\n")
    state, text = judged(EVENT, GATE, script(compare=crash))
    assert state is State.UNMEASURED
    assert "RuntimeError: no" in text


def test_what_was_found_is_told_even_where_nothing_could_be_judged():
    nothing = Ran(2, "**nothing could be judged**\n", "")
    state, text = judged(EVENT, GATE, script(compare=nothing))
    assert state is State.UNMEASURED
    assert "**nothing could be judged**" in text


def test_without_results_nothing_is_compared():
    run = script(measure=Ran(3, "", "no such preset\n"))
    state, text = judged(EVENT, GATE, run)
    assert state is State.UNMEASURED
    assert "exit code 3" in text
    assert "no such preset" in text
    assert not any(command[1] == "compare" for command in run.commands)
    assert any(command[1] == "ab" for command in run.commands)


def test_a_pull_request_without_its_base_is_still_held_against_the_baseline():
    run = script(compare=WORSE, **{"merge-base": Ran(128, "", "fatal: not a commit")})
    state, text = judged(EVENT, GATE, run)
    assert state is State.WORSE
    assert "fetch-depth: 0" in text
    for gate, state in ((GATE, State.UNMEASURED), (REPORTED, State.PASSED)):
        assert judged(EVENT, gate, script(**{"merge-base": Ran(1, "", "")}))[0] is state


def test_a_push_of_a_new_branch_stops_for_no_times():
    push = Event.model_validate({"repository": {"full_name": REPOSITORY}, "before": "0" * 40})
    state, text = judged(push, GATE, script())
    assert state is State.PASSED
    assert "names no commit" in text


# --- commands ------------------------------------------------------------------------------------------


def test_a_command_leaves_its_output_and_the_end_of_its_log(capfd):
    ran = run_command(
        [sys.executable, "-c", "import sys\nfor i in range(99): print(i, file=sys.stderr)\nprint(7)"]
    )
    assert (ran.code, ran.out.strip()) == (0, "7")
    assert ran.log.split() == [str(i) for i in range(87, 99)]
    assert capfd.readouterr().err.split() == [str(i) for i in range(99)]


def test_a_command_that_is_not_there_is_no_traceback():
    ran = run_command(["no-such-command-anywhere"])
    assert ran.code == 127
    assert "no-such-command-anywhere: No such file" in ran.log


def test_lines_that_measure_stop_at_the_first_that_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "echo started\nfalse | true\ntouch reached"
    part = Gate("gate.json", "results", lines).against_baseline(run_command)
    assert part.state is State.UNMEASURED
    assert "started" in part.text
    assert not (tmp_path / "reached").exists()


# --- the comment ---------------------------------------------------------------------------------------


def test_a_log_cannot_leave_its_fence():
    log = "```\n</details>\n## ✅ Gate passed\n`````x\n"
    part = Gate("gate.json", "results").against_baseline(script(compare=Ran(2, "", log)))
    assert part.text.count("``````") == 2
    assert part.text.endswith("\n``````")


def test_a_comment_too_long_is_cut_by_lines_and_says_so_at_its_top():
    rows = [f"| row {i} | {'é' * 50} |" for i in range(3000)]
    text = told([Part("Against `x`", State.WORSE, "\n".join(rows))])
    short = cut(text, COMMENT_CHARACTERS)
    assert COMMENT_CHARACTERS - 100 < len(short) <= COMMENT_CHARACTERS
    assert short.splitlines()[:5] == [
        *(MARKER, "", "## ❌ Gate failed: something got worse", ""),
        f"*Only the first {COMMENT_CHARACTERS:,} characters fit; the job's log has all of it.*",
    ]
    assert short.splitlines()[-1] in rows
    assert cut(text[:1000], 1000) == text[:1000]


def test_without_a_token_the_comment_is_written_and_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pull_request, "judged", lambda *_: (State.WORSE, f"{MARKER}\n\n## Told\n"))
    summary = tmp_path / "summary.md"
    summary.write_text("earlier\n")
    variables = {"GITHUB_STEP_SUMMARY": str(summary), "GATE_PROBES": "p"}
    assert as_job(monkeypatch, tmp_path, event_of(BASE, HEAD), "judge", **variables) == 1
    assert "## Told" in capsys.readouterr().out
    assert (tmp_path / "out" / COMMENT).read_text() == f"{MARKER}\n\n## Told\n"
    assert summary.read_text() == f"earlier\n{MARKER}\n\n## Told\n"
    assert as_job(monkeypatch, tmp_path, event_of(BASE, HEAD), "post") == 0
    assert "GITHUB_TOKEN is not set" in capsys.readouterr().out


def test_variables_say_what_options_do_and_empty_ones_nothing(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(pull_request, "judged", lambda *given: seen.append(given) or (State.PASSED, "x"))
    variables = {
        "GATE_BASELINE": "gate.json",
        "GATE_RESULTS": "results",
        "GATE_MEASURE": "",
        "GATE_BUDGETS": "",
        "GATE_PROBES": "tests/perf",
        "GATE_SELECT": "",
        "GATE_LIMIT": "10m",
        "GATE_BASE_ENV": "",
        "GATE_TIMES_DECIDE": "false",
    }
    assert as_job(monkeypatch, tmp_path, event_of(BASE, HEAD), "judge", **variables) == 0
    probed = tmp_path / "out" / "probes"
    expected = Gate("gate.json", "results", probes="tests/perf", limit="10m", times_decide=False, out=probed)
    assert [gate for _, gate in seen] == [expected]


def test_a_comment_of_an_earlier_run_is_not_left_to_be_posted(monkeypatch, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / COMMENT).write_text("## ✅ of before")
    assert as_job(monkeypatch, tmp_path, event_of(BASE, HEAD), "judge", "--baseline", "x") == 2
    assert as_job(monkeypatch, tmp_path, event_of(BASE, HEAD), "post") == 2
    assert "judge writes it" in capsys.readouterr().err


# --- GitHub --------------------------------------------------------------------------------------------


def test_a_comment_is_made_once_and_renewed_afterwards(api, hosted):
    hosted.add("Nice work!", kind="User")
    first = api.comment(REPOSITORY, 7, f"{MARKER}\none")
    assert api.comment(REPOSITORY, 7, f"{MARKER}\ntwo") == first
    assert [x["body"] for x in hosted.comments] == ["Nice work!", f"{MARKER}\ntwo"]
    assert [x.split()[0] for x in hosted.asked] == ["GET", "POST", "GET", "PATCH"]
    assert {*hosted.tokens} == {"Bearer secret"}


@pytest.mark.parametrize("before", [99, 100, 101, 200, 250])
def test_the_earlier_comment_is_found_on_any_page(api, hosted, before):
    for i in range(before):
        hosted.add(f"comment {i}", kind="User")
    api.comment(REPOSITORY, 7, f"{MARKER}\none")
    api.comment(REPOSITORY, 7, f"{MARKER}\ntwo")
    assert len(hosted.comments) == before + 1
    assert hosted.comments[-1]["body"] == f"{MARKER}\ntwo"


def test_a_strangers_comment_is_never_taken_for_the_gates(api, hosted):
    strange = hosted.add(f"{MARKER}\n✅", kind="User", association="CONTRIBUTOR")
    quoting = hosted.add(f"> {MARKER}\n> ✅", kind="User", association="OWNER")
    hosted.comments.append({**hosted.add(f"{MARKER}\nof one who left"), "user": None, "id": 1})
    hosted.comments.pop(-2)
    api.comment(REPOSITORY, 7, f"{MARKER}\nnew")
    assert len(hosted.comments) == 4
    assert (strange["body"], quoting["body"]) == (f"{MARKER}\n✅", f"> {MARKER}\n> ✅")


def test_a_members_own_token_renews_its_comment(api, hosted):
    hosted.add(f"{MARKER}\none", kind="User", association="MEMBER")
    api.comment(REPOSITORY, 7, f"{MARKER}\ntwo")
    assert [x["body"] for x in hosted.comments] == [f"{MARKER}\ntwo"]


@pytest.mark.parametrize(("method", "renewed"), [("POST", False), ("PATCH", True), ("GET", False)])
def test_a_token_that_may_only_read_is_told_and_fails_nothing(
    monkeypatch, tmp_path, capsys, api, hosted, method, renewed
):
    if renewed:
        hosted.add(f"{MARKER}\none")
    hosted.refuses[method] = 403
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / COMMENT).write_text(MARKER)
    variables = {"GITHUB_API_URL": api.url, "GITHUB_TOKEN": "secret"}
    assert as_job(monkeypatch, tmp_path, event_of(BASE, HEAD), "post", **variables) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    assert out.startswith("::warning ")
    assert "403 Forbidden; the token of a pull request from a fork" in out
    assert "secret" not in out


@pytest.mark.parametrize("reply", [b"<html>", b"{}", b'[{"id": "x"}]', b""])
def test_a_reply_that_is_none_of_githubs_is_one_line(api, hosted, monkeypatch, reply):
    monkeypatch.setattr(hosted, "answer", lambda *_: (200, reply))
    with pytest.raises(NotPosted) as raised:
        api.comment(REPOSITORY, 7, MARKER)
    assert "\n" not in str(raised.value)


def test_a_server_that_fails_or_is_not_there_is_one_line(api, hosted):
    hosted.refuses["POST"] = 502
    with pytest.raises(NotPosted, match=r"^502 Bad Gateway$"):
        api.comment(REPOSITORY, 7, MARKER)
    with serving(hosted) as gone:
        pass
    with pytest.raises(NotPosted, match="refused"):
        GitHub(gone, "secret").comment(REPOSITORY, 7, MARKER)


def test_the_token_is_not_sent_to_where_a_reply_redirects(api, hosted):
    other = Hosted()
    with serving(other) as url:
        hosted.redirect = url
        with pytest.raises(NotPosted):
            api.comment(REPOSITORY, 7, MARKER)
    assert other.tokens
    assert {*other.tokens} == {None}


def test_a_push_is_not_commented_on(monkeypatch, tmp_path, capsys, api, hosted):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / COMMENT).write_text(MARKER)
    push = {"repository": {"full_name": REPOSITORY}, "before": BASE}
    variables = {"GITHUB_API_URL": api.url, "GITHUB_TOKEN": "secret"}
    assert as_job(monkeypatch, tmp_path, push, "post", **variables) == 0
    assert "not a pull request" in capsys.readouterr().out
    assert hosted.asked == []


def test_the_script_needs_nothing_heavy():
    code = "import sys, bench.regress.pull_request; print(*{'torch', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
