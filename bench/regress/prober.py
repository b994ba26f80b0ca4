"""Runs probes, burst by burst, when told to: the process that `ab` starts once a round and revision.

A probe is a test with pytest-benchmark's `benchmark` fixture. Here the fixture waits for orders on a pipe, so
that two revisions can be timed in turn. This file is run as a script with the revision's own Python: it
imports nothing of the suite, whose other revision may be the one that is measured.

Messages are lines of JSON. To here: `{"run": [probes]}` after the collection, then for each probe
`{"calls": n}` until n is 0. From here: "collected", and of each probe "ready", "burst", "ended" (at any time
if it fails); at last "finished".
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

_WAITED = Path("/proc/thread-self/schedstat")


class Timer:
    """Stands in for pytest-benchmark's fixture: times a probe's calls in bursts, as the other side asks.

    Attributes:
        extra_info: figures that the probe leaves.
        group, name: there because probes may set them; they change nothing.
    """

    def __init__(self, exchange: Exchange, probe: str) -> None:
        self.extra_info: dict[str, Any] = {}
        self.group: str | None = None
        self.name = probe
        self.used = False
        self._exchange = exchange

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Time `function(*args, **kwargs)`, and return what its last call gave."""
        return self._serve(lambda: (args, kwargs), function, None)

    def pedantic(
        self,
        target: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        setup: Callable[[], Any] | None = None,
        teardown: Callable[..., Any] | None = None,
        **_: Any,
    ) -> Any:
        """Time `target`, with `setup` and `teardown` around each call untimed; how often is not its say."""
        given = tuple(args), dict(kwargs or {})

        def arguments() -> tuple[tuple[Any, ...], dict[str, Any]]:
            made = setup() if setup else None
            return given if made is None else (tuple(made[0]), dict(made[1]))

        return self._serve(arguments, target, teardown, one_by_one=setup is not None or teardown is not None)

    def _serve(
        self,
        arguments: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]],
        function: Callable[..., Any],
        teardown: Callable[..., Any] | None,
        one_by_one: bool = False,
    ) -> Any:
        if self.used:
            raise RuntimeError("a probe may use its benchmark fixture once")
        self.used = True

        def burst(calls: int) -> tuple[float, Any]:
            if not one_by_one:
                args, kwargs = arguments()
                return _timed(function, args, kwargs, calls)
            seconds, result = 0.0, None
            for _ in range(calls):
                args, kwargs = arguments()
                more, result = _timed(function, args, kwargs, 1)
                seconds += more
                if teardown:
                    teardown(*args, **kwargs)
            return seconds, result

        # collections between bursts leave alone what is there by now: they would take longer than the bursts
        gc.collect()
        gc.freeze()
        _, result = burst(1)  # what is done once is not what is compared
        self._exchange.tell("ready", probe=self.name)
        while calls := self._exchange.asked("calls"):
            seconds, result = burst(calls)
            self._exchange.tell("burst", seconds=seconds)
        return result


def _timed(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], calls: int
) -> tuple[float, Any]:
    """Time so many calls, and give what the last returned.

    Time in which the thread was ready to run and others had the core does not count; time in which it slept,
    or waited for a disk or another process, does.
    """
    repeats = range(calls)
    result = None
    gc.collect()
    gc.disable()
    waited, worked, began = _waited(), time.thread_time(), time.perf_counter()
    for _ in repeats:
        result = function(*args, **kwargs)
    seconds = time.perf_counter() - began
    worked, waited = time.thread_time() - worked, _waited() - waited
    gc.enable()
    # the three are read one after another: a wait in between may be taken for one of the calls
    return max(seconds - waited, min(worked, seconds)), result


def _waited() -> float:
    """Seconds that this thread was ready to run and had no core; 0 where the system does not say."""
    try:
        return int(_WAITED.read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


class Exchange:
    """Lines of JSON to and from the process that asked for this one."""

    def __init__(self, orders: int, answers: int) -> None:
        self._orders = os.fdopen(orders, encoding="utf-8")
        self._answers = os.fdopen(answers, "w", encoding="utf-8")

    def tell(self, event: str, **content: Any) -> None:
        """Send a message."""
        self._answers.write(json.dumps({"event": event, **content}) + "\n")
        self._answers.flush()

    def asked(self, what: str) -> Any:
        """Wait for an order and give what it says.

        Raises:
            SystemExit: nobody is there any more.
        """
        line = self._orders.readline()
        if not line:
            os._exit(1)
        return json.loads(line)[what]


class Prober:
    """The pytest plugin: gives probes their timer, runs those asked for, and tells how each ended."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._timer: Timer | None = None
        self._failed: str | None = None
        self._uncollected: dict[str, str] = {}

    @pytest.fixture
    def benchmark(self, request: pytest.FixtureRequest) -> Timer:
        """Give the timer."""
        self._timer = Timer(self._exchange, request.node.nodeid)
        return self._timer

    def pytest_configure(self, config: pytest.Config) -> None:
        """Declare what pytest-benchmark would."""
        config.addinivalue_line("markers", "benchmark: options of pytest-benchmark")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep why a file could not be collected: its probes are not known, but not gone either."""
        if report.failed:
            self._uncollected[report.nodeid] = _reason(report)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Tell which probes there are, and keep those asked for, in the order asked for."""
        probes = {x.nodeid: x for x in items if "benchmark" in getattr(x, "fixturenames", ())}
        self._exchange.tell("collected", probes=list(probes), uncollected=self._uncollected)
        items[:] = [probes[name] for name in self._exchange.asked("run")]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Tell how a probe ended."""
        self._timer, self._failed = None, None
        yield
        timer = self._timer
        if self._failed is None and (timer is None or not timer.used):
            self._failed = "does not call benchmark"
        extra: dict[str, Any] = timer.extra_info if timer else {}
        self._exchange.tell("ended", probe=item.nodeid, failed=self._failed, extra=_plain(extra))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep why a probe failed, or was skipped."""
        if not report.passed and self._failed is None:
            self._failed = _reason(report)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Say in a line why a probe failed or was skipped, or a file could not be collected."""
    if report.skipped:
        told = report.longrepr[2] if isinstance(report.longrepr, tuple) else "expected to fail"
        return f"skipped: {_first_line(told.removeprefix('Skipped: '))}"
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(getattr(crash, "message", report.longrepr))
    raised = [line.removeprefix("E ") for line in text.splitlines() if line.startswith("E ")]
    return _first_line(raised[-1] if raised else text)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0]


def _plain(extra: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a probe's figures what JSON does not know; scalars of NumPy and torch are numbers."""
    kept = {}
    for name, value in extra.items():
        try:
            kept[str(name)] = json.loads(json.dumps(value, default=lambda scalar: scalar.item()))
        except (AttributeError, RuntimeError, TypeError, ValueError):
            continue
    return kept


def _modules() -> dict[str, str]:
    """Give a file of each module and package that was imported, this one apart, by its name without a dot."""
    found: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file != __file__:
            found.setdefault(name.partition(".")[0], file)
    return found


def main() -> None:
    """Collect the probes named on the command line, and run them as asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("orders", type=int)
    parser.add_argument("answers", type=int)
    parser.add_argument("pytest", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    # where this script lies comes first, and its neighbours would stand in for modules of the revision
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here]
    exchange = Exchange(given.orders, given.answers)
    # what one revision cannot import leaves the other probes alone
    settings = [
        "--override-ini",
        "addopts=",
        "--override-ini",
        "required_plugins=",
        # names of probes are paths from here, whichever folder's settings pytest finds
        "--rootdir",
        ".",
        # options and marks of plugins that are not loaded, where the settings make errors of warnings
        "-W",
        "ignore::pytest.PytestConfigWarning",
        "-W",
        "ignore::pytest.PytestUnknownMarkWarning",
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
    ]
    code = pytest.main([*settings, *given.pytest], plugins=[Prober(exchange)])
    exchange.tell("finished", code=int(code), modules=_modules())


if __name__ == "__main__":
    main()
