"""`flora-bench ab`: two revisions measured in turn, and which probes got slower."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from bench.caching import parse_seconds
from bench.cli.compare import EXIT_NOTHING_JUDGED, EXIT_WORSE, AsJson, AsMarkdown, Everything, GateFile
from bench.cli.run import EXIT_INTERRUPTED
from bench.regress.judgement import Comparison, Verdict
from flora.errors import BadInput

if TYPE_CHECKING:
    from bench.regress.ab import Session, Setting
    from bench.regress.decision import Spread
    from bench.regress.gate import Gate
    from bench.regress.worktrees import Repository, Revision

_NAMED_AT_MOST = 3
ENVIRONMENT = "A virtual environment's folder, an interpreter, or 'install' to have one made"


def ab(
    base: Annotated[
        str | None, typer.Option(metavar="REV", help="Revision to compare with.", show_default=False)
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="REV", help="Revision that may be slower.", show_default="the files as they are"
        ),
    ] = None,
    probes: Annotated[
        str, typer.Option(metavar="PATH", help="Tests with pytest-benchmark's fixture; the head's are run.")
    ] = "tests/perf",
    select: Annotated[str, typer.Option("-k", metavar="EXPR", help="Probes to run, as pytest's -k.")] = "",
    limit: Annotated[
        str, typer.Option(metavar="TIME", help="Stop after so long, such as 60s or 10m.")
    ] = "10m",
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of each process.")] = 1,
    base_env: Annotated[
        str | None, typer.Option(metavar="ENV", help=f"{ENVIRONMENT}, for the base.", show_default="this one")
    ] = None,
    head_env: Annotated[
        str | None, typer.Option(metavar="ENV", help="The same for the head.", show_default="this one")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Measure the head against itself, and record this machine's noise."),
    ] = False,
    noise: Annotated[
        Path | None, typer.Option(help="File of this machine's noise.", show_default="beside the cache")
    ] = None,
    gate: GateFile = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that gets base.json and head.json, for compare.", show_default=False),
    ] = None,
    everything: Everything = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Measure two revisions in turn in fresh processes.

    Exit with 0 if nothing got worse, with 1 if anything did, and with 2 if no time can be judged.
    """
    from bench.regress.ab import Setting
    from bench.regress.gate import PROBE, Gate
    from bench.regress.metrics import SECONDS
    from bench.regress.noise import default_file, known_noise, machine
    from bench.regress.worktrees import Repository
    from bench.store import check_writable

    if (base is None) != calibrate:
        raise BadInput("--base: name the revision to compare with, or give --calibrate, which takes none")
    if as_json and as_markdown:
        raise BadInput("--json and --markdown exclude each other; give one of them")
    if calibrate and (out is not None or as_markdown):
        raise BadInput("--calibrate compares nothing; leave out --out and --markdown")
    budgets = Gate.find(gate)
    setting = Setting(
        probes=probes,
        select=select,
        limit_seconds=parse_seconds(limit, "--limit"),
        threads=threads,
        base_environment=base_env,
        head_environment=head_env,
        smallest=lambda probe: budgets.limit(SECONDS, {PROBE: probe}).relative,
        early=not calibrate,
    )
    if out is not None:
        check_writable(out, "--out")
    repository = Repository(Path.cwd())
    newer = repository.working_tree() if head is None else repository.revision(head, "--head")
    older = newer if base is None else repository.revision(base, "--base")
    _warn(newer)
    if older.commit == newer.commit and not calibrate and base_env == head_env:
        raise BadInput(f"--base: {older.name} is the head, too; give --calibrate to measure the noise")
    noise_file = noise or default_file()
    known = known_noise(noise_file, machine(threads))
    session, interrupted = _measured(repository, older, newer, setting, {} if calibrate else known)
    if calibrate:
        _record(session, setting, noise_file, as_json)
        raise typer.Exit(EXIT_INTERRUPTED if interrupted else 0)
    code = _judge(session, budgets, out, Look(everything, as_json, as_markdown))
    raise typer.Exit(EXIT_INTERRUPTED if interrupted else code)


class Look(NamedTuple):
    """How what was found is shown; see `bench.cli.verdicts.show`."""

    everything: bool
    as_json: bool
    as_markdown: bool


def _measured(
    repository: Repository, base: Revision, head: Revision, setting: Setting, known: Mapping[str, Spread]
) -> tuple[Session, bool]:
    """Measure until all is decided, the time is over or somebody interrupts; say whether the last."""
    from bench.interrupt import interruptible
    from bench.regress.ab import measure
    from bench.regress.interleave import ProbeProcessEnded
    from bench.regress.worktrees import DoesNotInstall

    session = None
    try:
        with interruptible():
            for session in measure(repository, base, head, setting, known, _tell):  # noqa: B007
                pass
    except (DoesNotInstall, ProbeProcessEnded) as error:
        for line in error.log:
            typer.echo(f"  {line}", err=True)
        raise BadInput(f"{error}; the end of its log is above") from error
    except KeyboardInterrupt:
        if session is None:
            typer.echo("interrupted before the first round had ended: nothing was measured", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        typer.echo(f"interrupted: below is what {session.rounds} rounds say", err=True)
        return session, True
    assert session is not None
    return session, False


def _judge(session: Session, budgets: Gate, out: Path | None, look: Look) -> int:
    """Print what the rounds say, and keep them; give the exit code."""
    from datetime import date

    from bench.cli.verdicts import show
    from bench.regress.compare import compare_measurements
    from bench.regress.measurements import write_measurements
    from bench.regress.metrics import SECONDS

    measured = session.measurements()
    if out is not None:
        for name, side in zip(("base", "head"), measured, strict=True):
            write_measurements(side, out / f"{name}.json")
    if session.times:
        comparison = session.told(compare_measurements(*measured, budgets, date.today()))
    else:
        comparison = session.told(Comparison(session.base.name, session.head.name, []))
    show(comparison, **look._asdict())
    if comparison.fails:
        return EXIT_WORSE
    times = [x for x in comparison.judgements if x.metric.name == SECONDS.name]
    if all(x.verdict is Verdict.UNJUDGED for x in times):
        _tell("no time could be judged, so that this is no pass")
        return EXIT_NOTHING_JUDGED
    return 0


def _record(session: Session, setting: Setting, file: Path, as_json: bool) -> None:
    """Keep how rounds of the same revision spread, and print it."""
    from bench.regress.ab import spreads
    from bench.regress.noise import machine, record_noise

    found = spreads(session)
    for probe, sides in session.failed.items():
        _tell(f"{probe} could not be measured: {next(iter(sides.values()))}")
    if not found:
        raise BadInput(
            f"--limit: there was time for {session.rounds} rounds, too few to tell noise; give more"
        )
    of = machine(setting.threads)
    record_noise(file, of, found)
    decisions = {probe: session.decision(probe, setting) for probe in found}
    alarms = sum(decision.verdict in (Verdict.WORSE, Verdict.BETTER) for decision in decisions.values())
    if as_json:
        probes = {
            probe: {"deviation": x.deviation, "rounds": x.degrees, "ratio": decisions[probe].ratio,
                    "could_have_seen": decisions[probe].seen}
            for probe, x in found.items()
        }  # fmt: skip
        rate = setting.false_alarms
        typer.echo(json.dumps({"machine": of, "false_alarm_rate": rate, "alarms": alarms, "probes": probes}))
        return
    typer.echo(f"{of}: {session.rounds} rounds of {session.head.name} against itself")
    typer.echo(f"{'spread':>14}  {'found':>7}  {'could see':>14}  probe")
    for probe, spread in found.items():
        ratios = decisions[probe].ratio, decisions[probe].seen
        found_text, seen_text = (f"{100 * (ratio - 1):+.1f} %" for ratio in ratios)
        typer.echo(f"{100 * spread.deviation:>12.1f} %  {found_text:>7}  {seen_text:>14}  {probe}")
    typer.echo(
        f"kept in {file}; about one in {1 / setting.false_alarms:,.0f} comparisons alarms falsely (more "
        f"where processes come in two speeds); this one {'alarms' if alarms else 'does not'}"
    )


def _warn(revision: Revision) -> None:
    if revision.dirty:
        _tell(f"the head is {revision.name}, which no commit has yet")
    if revision.untracked:
        more = len(revision.untracked) - _NAMED_AT_MOST
        shown = ", ".join(revision.untracked[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
        _tell(f"not measured, as git does not know them: {shown}; `git add` them")


def _tell(line: str) -> None:
    typer.echo(f"flora-bench: {line}", err=True)
