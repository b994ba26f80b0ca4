"""The command line: one module a command, each importing what is heavy only when it runs."""

from __future__ import annotations

import os
import sys

import typer

from bench.cli import (
    ab,
    cache,
    claims,
    compare,
    data,
    diff,
    estimate,
    export,
    history,
    list_,
    merge,
    perf,
    plan,
    pretrain,
    replay,
    report,
    results,
    rm,
    run,
    snapshot,
    status,
    tune,
    variance,
    verify,
)
from flora.errors import BadInput

app = typer.Typer(
    name="flora-bench",
    help="Measure federated, parameter-efficient fine-tuning of vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("estimate")(estimate.estimate)
app.command("plan")(plan.plan)
app.command("status")(status.status)
app.command("tune")(tune.tune)
app.command("variance")(variance.variance)
app.command("list")(list_.list_)
app.command("data")(data.data)
app.command("cache")(cache.cache)
app.command("report")(report.report)
app.command("replay")(replay.replay)
app.command("claims")(claims.claims)
app.command("perf")(perf.perf)
app.command("results")(results.results)
app.command("diff")(diff.diff)
app.command("compare")(compare.compare)
app.command("ab")(ab.ab)
app.command("snapshot")(snapshot.snapshot)
app.command("history")(history.history)
app.command("verify")(verify.verify)
app.command("merge")(merge.merge)
app.command("rm")(rm.rm)
app.command("export")(export.export)
app.command("pretrain")(pretrain.pretrain)


def main() -> None:
    """Run the command line; bad input is one line and exit code 2."""
    # Threads that spin long while they wait for one another stall beside other threads that do the same: with
    # two such processes on 2 cores a round took 30 times as long. Read when torch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        app()
    except BadInput as error:
        sys.exit(_complain(str(error)))


def _complain(message: str) -> int:
    typer.echo(f"flora-bench: {' '.join(message.split())}", err=True)
    return 2
