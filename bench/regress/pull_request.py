"""What the GitHub action runs: a pull request measured, judged, and told in one comment.

    python -m bench.regress.pull_request judge --event event.json --baseline gate.json --results results
    python -m bench.regress.pull_request post --event event.json

`judge` runs what the pull request brings, and so is given no token; `post` is given one, and runs nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from http.client import HTTPException
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from bench.regress.gate import PYPROJECT
from bench.regress.judgement import Verdict
from bench.regress.metrics import Kind
from flora.errors import BadInput

MARKER = "<!-- flora-bench gate -->"
"""How the comment begins, so that it is found and renewed rather than added to."""

COMMENT_CHARACTERS = 65_536
SUMMARY_CHARACTERS = 2**18
"""GitHub takes a MiB, and a character has up to 4 bytes."""

COMMENT = "comment.md"
PROBED = "probes"

_WORSE = 1
_COMPLETE = "--complete"
_TAIL_LINES = 12
_REPLY_SECONDS = 30.0
_PER_PAGE = 100
_READ_ONLY = dict.fromkeys(
    (401, 403), "; the token of a pull request from a fork, or without `pull-requests: write`, may only read"
)
_TRUSTED = {"OWNER", "MEMBER", "COLLABORATOR"}

Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")]


# --- what GitHub says of the event ---------------------------------------------------------------------


class _End(BaseModel):
    sha: Commit


class _PullRequest(BaseModel):
    number: Annotated[int, Field(gt=0)]
    base: _End
    head: _End


class _Repository(BaseModel):
    full_name: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]


class Event(BaseModel):
    """What is used of the file that GITHUB_EVENT_PATH names.

    Attributes:
        repository: whose event it is.
        pull_request: None where the event is another, such as a push.
        before: of a push, the commit that the branch stood at; only zeros if it is new.
    """

    repository: _Repository
    pull_request: _PullRequest | None = None
    before: Commit | None = None


def read_event(path: Path) -> Event:
    """Read an event.

    Raises:
        BadInput: there is no such file, or it is not an event's.
    """
    try:
        return Event.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"event: {str(path)!r} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(
            f"event: {str(path)!r} is not an event of GitHub: {field}: {first['msg']}; "
            "give the file that GITHUB_EVENT_PATH names"
        ) from error


# --- commands ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What became of a command.

    Attributes:
        code: its exit code.
        out: what it printed.
        log: the last lines of what it said beside that.
    """

    code: int
    out: str
    log: str


Runner = Callable[[Sequence[str]], Ran]


def run_command(command: Sequence[str]) -> Ran:
    """Run a command; what it says on stderr passes on as it comes."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with tempfile.TemporaryFile() as out:
        try:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace"
            )
        except OSError as error:
            return Ran(127, "", f"{command[0]}: {error.strerror}")
        assert process.stderr is not None
        with process:
            for line in process.stderr:
                sys.stderr.write(line)
                tail.append(line)
        out.seek(0)
        return Ran(process.returncode, out.read().decode("utf-8", "replace"), "".join(tail))


# --- judging -------------------------------------------------------------------------------------------


class State(StrEnum):
    """What became of one of the gate's parts, and of the whole; the later one decides."""

    PASSED = "passed"
    WORSE = "worse"
    UNMEASURED = "could not be measured"

    @property
    def exit_code(self) -> int:
        """What a command that ends so exits with."""
        return list(State).index(self)


_ICONS = {State.PASSED: "✅", State.WORSE: "❌", State.UNMEASURED: "⚠️"}
_HEADLINES = {
    State.PASSED: "Gate passed",
    State.WORSE: "Gate failed: something got worse",
    State.UNMEASURED: "Gate could not be measured",
}


@dataclass(frozen=True)
class Part:
    """One comparison of the gate.

    Attributes:
        title: against what, in markdown.
        state: what became of it.
        text: what it found, or why it could not, in markdown.
        decides: whether the gate stops for it.
    """

    title: str
    state: State
    text: str
    decides: bool = True


@dataclass(frozen=True)
class Gate:
    """What is asked of a change.

    Attributes:
        baseline: what its results are held against, as `flora-bench compare` reads it; None for nothing.
        results: such a source too.
        measure: lines of bash that leave the results there; they are there already if there are none.
        probes: tests that are timed on the base and on what is checked out, in turn; None for none.
        select: which of them, as pytest's -k has it.
        limit: how long that may take, such as "10m".
        base_env: environment of the base, if another.
        budgets: file of what may get worse.
        times_decide: whether a slowdown stops it, or is reported only.
        out: folder for what was measured of the probes.
    """

    baseline: str | None = None
    results: str | None = None
    measure: str | None = None
    probes: str | None = None
    select: str | None = None
    limit: str | None = None
    base_env: str | None = None
    budgets: str | None = None
    times_decide: bool = True
    out: Path = Path("gate")

    def __post_init__(self) -> None:
        if bool(self.baseline) != bool(self.results) or not (self.baseline or self.probes):
            raise BadInput("baseline, results, probes: give a baseline and results, or probes, or all three")

    def against_baseline(self, run: Runner) -> Part:
        """Measure, and hold the results against those that are kept."""
        title = f"Against `{self.baseline}`"
        if self.measure:
            # what it prints is no result: all of it goes to the log
            ran = run(["bash", "-e", "-o", "pipefail", "-c", f"exec >&2\n{self.measure}"])
            if ran.code:
                return Part(title, State.UNMEASURED, _why("measure", ran))
        compare = self._comparing(self.baseline, self.results, _COMPLETE)
        return self._judged(title, compare, compare, run)

    def against_base(self, base: str, run: Runner) -> Part:
        """Time the probes on both revisions."""
        asked = {
            "--limit": self.limit,
            "-k": self.select,
            "--base-env": self.base_env,
            "--gate": self.budgets,
        }
        given = [x for name, value in asked.items() if value for x in (name, value)]
        # HEAD, not the folder: results and builds that lie about there are no change
        ab = ["flora-bench", "ab", "--base", base, "--head", "HEAD", "--probes", str(self.probes), *given]
        left = self._comparing(self.out / "base.json", self.out / "head.json", _COMPLETE)
        part = self._judged(
            f"Probes against {base[:8]}, interleaved", [*ab, "--out", str(self.out)], left, run
        )
        # what could not be measured would have been times
        return part if part.state is State.WORSE else replace(part, decides=self.times_decide)

    def _comparing(self, base: object, new: object, *options: str) -> list[str]:
        budgets = ["--gate", self.budgets] if self.budgets else []
        return ["flora-bench", "compare", str(base), str(new), *options, *budgets]

    def _judged(self, title: str, command: Sequence[str], again: Sequence[str], run: Runner) -> Part:
        """Run a comparison; `again` is one of the same measurements, to tell times from all else."""
        ran = run([*command, "--markdown"])
        found = ran.out.strip()
        # a crash of Python exits with 1 too, but has nothing to tell
        if ran.code not in (0, _WORSE) or not found:
            why = _why(" ".join(command[:2]), ran)
            return Part(title, State.UNMEASURED, "\n\n".join(filter(None, [why, found])))
        if not ran.code:
            return Part(title, State.PASSED, found)
        decides = self.times_decide or _more_than_times(run([*again, "--json"]), _COMPLETE in again)
        return Part(title, State.WORSE, found, decides)


def _more_than_times(ran: Ran, complete: bool) -> bool:
    """Whether a comparison, given as JSON, fails for more than times; if it does not say, it does."""
    try:
        found = json.loads(ran.out)
        failing = [x for x in found["judgements"] if Verdict(x["verdict"]).fails]
        lacking = complete and bool(found["only_base"])
    except (ValueError, KeyError):
        return True
    return lacking or not failing or any(x["kind"] != Kind.NOISY for x in failing)


def _why(what: str, ran: Ran) -> str:
    """Say what failed, with the end of its log in a fence that nothing in it closes."""
    longest = max(map(len, re.findall("`+", ran.log)), default=0)
    fence = "`" * max(3, longest + 1)
    log = f"\n\n{fence}text\n{ran.log.rstrip()}\n{fence}" if ran.log.strip() else ""
    return _unmeasured(f"`{what}` ended with exit code {ran.code}") + log


def _unmeasured(why: str) -> str:
    return f"{_ICONS[State.UNMEASURED]} **could not be measured**: {why}"


def judged(event: Event, gate: Gate, run: Runner = run_command) -> tuple[State, str]:
    """Hold a change against what is asked of it: what became of it, and the comment.

    Args:
        event: which change it is.
        gate: what is asked.
        run: runs a command.
    """
    parts = [gate.against_baseline(run)] if gate.baseline else []
    notes = [] if gate.times_decide else ["Times are reported; they decide nothing."]
    try:
        base = base_of(event, run)
    except BadInput as error:
        if gate.probes:
            # of a new branch there is nothing to hold it against: no reason to stop
            decides = gate.times_decide and event.pull_request is not None
            parts.append(Part("Probes against the base", State.UNMEASURED, _unmeasured(str(error)), decides))
    else:
        notes = [*_notes(event, base, gate, run), *notes]
        if gate.probes:
            parts.append(gate.against_base(base, run))
    return overall(parts), told(parts, notes)


def _notes(event: Event, base: str, gate: Gate, run: Runner) -> list[str]:
    notes = [f"Commit {event.pull_request.head.sha[:8]}, base {base[:8]}."] if event.pull_request else []
    references = [path for path in (gate.baseline, gate.budgets) if path]
    changed = [f"`{path}`" for path in changed_references(base, references, run)]
    if not gate.budgets and changed_budgets(base, run):
        changed.append(f"the budgets in `{PYPROJECT}`")
    if changed:
        notes.append(f"**This change also changes what it is held against: {', '.join(changed)}.**")
    return notes


def base_of(event: Event, run: Runner) -> str:
    """Find the commit that the change is held against.

    GitHub checks out a merge of the pull request into its base as that is now: the base is the merge's first
    parent then, without what else came into it since. Elsewhere it is where the branch left its base.

    Raises:
        BadInput: the event knows of none, or the clone lacks it.
    """
    request = event.pull_request
    base = request.base.sha if request else event.before
    if not base or not base.strip("0"):
        raise BadInput("base: the event names no commit to compare with")
    parents = run(["git", "rev-list", "--parents", "--max-count=1", "HEAD"]).out.split()[1:]
    if request and parents[1:] == [request.head.sha]:
        return parents[0]
    found = run(["git", "merge-base", base, "HEAD"])
    if found.code:
        raise BadInput(
            f"base: commit {base[:8]} is not in this clone's history; check out with fetch-depth: 0"
        )
    return found.out.strip()


def changed_references(base: str, paths: Sequence[str], run: Runner) -> list[str]:
    """Name what the gate goes by and the change itself changes: a reader should know of it."""
    return [path for path in paths if run(["git", "diff", "--quiet", base, "HEAD", "--", path]).code == 1]


def changed_budgets(base: str, run: Runner) -> bool:
    """Whether the change itself changes the budgets in `PYPROJECT`, which holds much else."""
    if not changed_references(base, [str(PYPROJECT)], run):
        return False
    before, after = (run(["git", "show", f"{commit}:./{PYPROJECT}"]).out for commit in (base, "HEAD"))
    return _budgets_in(before) != _budgets_in(after)


def _budgets_in(text: str) -> object:
    """Give what a `PYPROJECT` says of the gate; None if nothing, all of it if it cannot be read."""
    try:
        return tomllib.loads(text).get("tool", {}).get("flora-bench", {}).get("gate")
    except (tomllib.TOMLDecodeError, AttributeError):
        return text


# --- telling -------------------------------------------------------------------------------------------


def overall(parts: Sequence[Part]) -> State:
    """Say what becomes of the gate: what got worse counts for more than what could not be measured."""
    states = {part.state for part in parts if part.decides}
    return next((x for x in (State.WORSE, State.UNMEASURED) if x in states), State.PASSED)


def told(parts: Sequence[Part], notes: Sequence[str] = ()) -> str:
    """Write the comment: the verdict, the notes on it, and what each part found."""
    state = overall(parts)
    blocks = [MARKER, f"## {_ICONS[state]} {_HEADLINES[state]}", " ".join(notes)]
    for part in parts:
        ignored = not part.decides and part.state is not State.PASSED
        blocks += [f"### {part.title}{' (reported only)' if ignored else ''}", part.text]
    return "\n\n".join(filter(None, blocks)) + "\n"


def cut(text: str, characters: int) -> str:
    """Shorten a comment to what GitHub takes, by whole lines; its top says so, whatever is open below."""
    if len(text) <= characters:
        return text
    note = f"*Only the first {characters:,} characters fit; the job's log has all of it.*"
    marker, headline, rest = text.split("\n\n", 2)
    head = f"{marker}\n\n{headline}\n\n{note}\n\n"
    return head + rest[: characters - len(head) - 1].rpartition("\n")[0] + "\n"


# --- GitHub's API --------------------------------------------------------------------------------------


class NotPosted(Exception):
    """GitHub did not do what it was asked; the message is one line."""


class _User(BaseModel):
    type: str


class _Comment(BaseModel):
    id: int
    html_url: str
    body: str = ""
    author_association: str = ""
    user: _User | None = None

    def is_ours(self) -> bool:
        """Whether it is the gate's; a stranger's that begins like it could be changed by the stranger."""
        bot = self.user is not None and self.user.type == "Bot"
        return (bot or self.author_association in _TRUSTED) and self.body.startswith(MARKER)


@dataclass(frozen=True)
class GitHub:
    """The part of GitHub's API that comments need.

    Attributes:
        url: without a slash at its end.
        token: of whom the comment is.
    """

    url: str
    token: str

    def comment(self, repository: str, number: int, text: str) -> str:
        """Write a pull request's comment, over the earlier one if there is one; say where it is.

        Raises:
            NotPosted: GitHub refused, or cannot be reached.
        """
        issues = f"/repos/{repository}/issues"
        try:
            earlier = self._earlier(f"{issues}/{number}/comments")
            if earlier is None:
                reply = self._request("POST", f"{issues}/{number}/comments", {"body": text})
            else:
                reply = self._request("PATCH", f"{issues}/comments/{earlier}", {"body": text})
            return _Comment.model_validate_json(reply).html_url
        except urllib.error.HTTPError as error:
            raise NotPosted(f"{error.code} {error.reason}{_READ_ONLY.get(error.code, '')}") from error
        except (OSError, HTTPException, ValueError) as error:
            raise NotPosted(" ".join(str(error).split())) from error

    def _earlier(self, comments: str) -> int | None:
        for page in count(1):
            reply = self._request("GET", f"{comments}?per_page={_PER_PAGE}&page={page}")
            found = TypeAdapter(list[_Comment]).validate_json(reply)
            ours = [comment.id for comment in found if comment.is_ours()]
            if ours or len(found) < _PER_PAGE:
                break
        return ours[0] if ours else None

    def _request(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> bytes:
        request = urllib.request.Request(
            self.url + path,
            data=None if content is None else json.dumps(content).encode(),
            headers={"Accept": "application/vnd.github+json", "Content-Type": "application/json"},
            method=method,
        )
        # not for whom a reply redirects to
        request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        with urllib.request.urlopen(request, timeout=_REPLY_SECONDS) as reply:
            return bytes(reply.read())


# --- the command line ----------------------------------------------------------------------------------

app = typer.Typer(
    help="A pull request measured, judged, and told in one comment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
EventFile = Annotated[
    Path, typer.Option(envvar="GITHUB_EVENT_PATH", help="The event, as GitHub describes it.")
]
Out = Annotated[
    Path,
    typer.Option(
        envvar="GATE_OUT", help=f"Folder for the comment ({COMMENT}) and the probes' figures ({PROBED})."
    ),
]


@app.command()
def judge(
    event: EventFile,
    baseline: Annotated[
        str | None, typer.Option(envvar="GATE_BASELINE", help="What the results are held against.")
    ] = None,
    results: Annotated[
        str | None, typer.Option(envvar="GATE_RESULTS", help="What is held against the baseline.")
    ] = None,
    measure: Annotated[
        str | None, typer.Option(envvar="GATE_MEASURE", help="Lines of bash that make the results.")
    ] = None,
    budgets: Annotated[str | None, typer.Option(envvar="GATE_BUDGETS", help="File of budgets.")] = None,
    probes: Annotated[str | None, typer.Option(envvar="GATE_PROBES", help="Tests that are timed.")] = None,
    select: Annotated[
        str | None, typer.Option("-k", envvar="GATE_SELECT", help="Which of them, as pytest has it.")
    ] = None,
    limit: Annotated[
        str | None, typer.Option(envvar="GATE_LIMIT", help="How long the timing may take.")
    ] = None,
    base_env: Annotated[
        str | None, typer.Option(envvar="GATE_BASE_ENV", help="Environment of the base, if another.")
    ] = None,
    times_decide: Annotated[
        bool, typer.Option(envvar="GATE_TIMES_DECIDE", help="Whether a slowdown fails the gate.")
    ] = True,
    out: Out = Path("gate"),
) -> None:
    """Measure, judge, write the comment; exit with 0 if none got worse, 1 if any did, 2 if unmeasured."""
    (out / COMMENT).unlink(missing_ok=True)
    known = _known(event)
    gate = Gate(
        baseline, results, measure, probes, select, limit, base_env, budgets, times_decide, out / PROBED
    )
    state, text = judged(known, gate)
    _write(text, out)
    raise typer.Exit(state.exit_code)


def _known(event: Path) -> Event:
    if os.environ.get("GITHUB_EVENT_NAME") == "pull_request_target":
        raise BadInput("event: pull_request_target runs a stranger's code with a token; use pull_request")
    return read_event(event)


def _write(text: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / COMMENT).write_text(cut(text, COMMENT_CHARACTERS), encoding="utf-8")
    typer.echo(text)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as stream:
            stream.write(cut(text, SUMMARY_CHARACTERS))


@app.command()
def post(event: EventFile, out: Out = Path("gate")) -> None:
    """Post the comment that `judge` wrote; that it cannot be posted is said, and fails nothing."""
    known = _known(event)
    try:
        text = (out / COMMENT).read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"out: {str(out / COMMENT)!r} cannot be read: {error.strerror}; judge writes it"
        ) from error
    if known.pull_request is None:
        typer.echo("no comment: this event is not a pull request's")
        return
    token = os.environ.get("GITHUB_TOKEN")
    if not token:
        typer.echo("no comment: GITHUB_TOKEN is not set")
        return
    api = GitHub(os.environ.get("GITHUB_API_URL", "https://api.github.com").rstrip("/"), token)
    try:
        typer.echo(api.comment(known.repository.full_name, known.pull_request.number, text))
    except NotPosted as error:
        typer.echo(f"::warning title=flora-bench gate::no comment: {error}; the job's summary has it")


def main() -> None:
    """Run the command line; bad input is one line and exit code 2."""
    try:
        app()
    except BadInput as error:
        typer.echo(f"pull_request: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
