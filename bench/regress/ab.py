"""Two revisions measured in turn, in fresh processes, until it is clear which probes got slower.

What a comparison needs is in the measurements of the two: `bench.regress.compare` judges them, now and later.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure.environment import cpu_name
from bench.measure.load import usable_cores
from bench.regress.decision import EARLY, FALSE_ALARMS, MIN_ROUNDS, Decision, Spread, decide
from bench.regress.interleave import Plan, ProbeRound, Round, Side, measure_round
from bench.regress.judgement import Comparison, Judgement, Verdict
from bench.regress.measurements import Benchmark, Measurements
from bench.regress.metrics import NOISY_SHARE, SECONDS
from bench.regress.worktrees import Repository, Revision, python_of
from flora.errors import BadInput

PROBES = "tests/perf"
BASE, HEAD = "base", "head"

# Of a round, by probe: less says too little, more is better spent on another pair of processes.
_LEAST_SECONDS, _MOST_SECONDS = 0.1, 0.25
_WANTED_ROUNDS = 20
_DECIDED = (Verdict.WORSE, Verdict.BETTER, Verdict.SAME)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """What is measured, and how.

    Attributes:
        probes: a folder or file of pytest-benchmark's tests, relative to the repository; those of the head
            are run on both sides.
        select: of them, as pytest's -k; empty for all.
        limit_seconds: for all of it, from checking out to the last round; a first round is made however long.
        threads: of each process.
        base_environment, head_environment: see `bench.regress.worktrees.python_of`.
        smallest: gives the smallest slowdown of a probe that counts.
        false_alarms: see `bench.regress.decision.decide`.
        early: whether probes that are decided are measured no more.
    """

    probes: str = PROBES
    select: str = ""
    limit_seconds: float = 600.0
    threads: int = 1
    base_environment: str | None = None
    head_environment: str | None = None
    smallest: Callable[[str], float] = lambda probe: NOISY_SHARE
    false_alarms: float = FALSE_ALARMS
    early: bool = True


@dataclass
class Session:
    """What was measured of two revisions, from the first round on.

    Attributes:
        base, head: the revisions.
        probes: those that both have, or would if what they are in could be collected.
        only_base, only_head: those that one has alone.
        times: by probe, of each round the seconds a call of each burst: of the base and of the head.
        extra: figures that the probes left, by side and probe.
        failed: why a probe could not be measured, by probe and side; one failure in any round is enough.
        uncollected: why files could not be collected on either side, by file.
        rounds: how many there were.
        seconds: that it took so far.
        known: the machine's noise, by probe.
    """

    base: Revision
    head: Revision
    probes: Sequence[str] = ()
    only_base: Sequence[str] = ()
    only_head: Sequence[str] = ()
    times: dict[str, tuple[list[list[float]], list[list[float]]]] = field(default_factory=dict)
    extra: dict[str, dict[str, Mapping[str, Any]]] = field(default_factory=lambda: {BASE: {}, HEAD: {}})
    failed: dict[str, Mapping[str, str]] = field(default_factory=dict)
    uncollected: Mapping[str, str] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    known: Mapping[str, Spread] = field(default_factory=dict)
    identity: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def comparisons(self) -> int:
        """How many probes are judged together."""
        return max(1, len(self.probes) - len(self.failed))

    def add(self, found: Mapping[str, ProbeRound]) -> None:
        """Take a round in."""
        self.rounds += 1
        for probe, measured in found.items():
            if measured.failed:
                self.failed[probe] = measured.failed
                self.times.pop(probe, None)
            else:
                base, head = self.times.setdefault(probe, ([], []))
                base.append(measured.base)
                head.append(measured.head)

    def decision(self, probe: str, setting: Setting, share: float = 1.0) -> Decision:
        """Say what is known of a probe, with this share of the false alarms that are allowed."""
        base, head = self.times.get(probe, ([], []))
        return decide(
            base,
            head,
            smallest=setting.smallest(probe),
            false_alarms=share * setting.false_alarms,
            comparisons=self.comparisons,
            known=self.known.get(probe),
        )

    def measurements(self) -> tuple[Measurements, Measurements]:
        """Give what `bench.regress.compare` reads, of the base and of the head."""
        machine = {"cpu": cpu_name(), "cores": len(usable_cores())}
        sides = ((BASE, self.base, 0), (HEAD, self.head, 1))
        base, head = (
            Measurements(
                revision.name,
                benchmarks=[
                    *(self._benchmark(probe, side, place) for probe in self.times),
                    # a probe that fails on the head alone is what the base has and the head lacks
                    *(Benchmark(probe, []) for probe in self.failed if self.lost(probe) and side == BASE),
                ],
                revision={"commit": revision.commit, "dirty": revision.dirty, "time": revision.time},
                machine=machine,
            )
            for side, revision, place in sides
        )
        return base, head

    def told(self, comparison: Comparison) -> Comparison:
        """Add to a comparison of the measurements what they do not hold: what could not be measured."""
        from bench.report.text import counted

        failed = [self._unmeasured(probe) for probe in self.failed]
        unknown = [
            f"{file} was not collected on either side: {why}" for file, why in self.uncollected.items()
        ]
        return replace(
            comparison,
            judgements=[*comparison.judgements, *failed],
            only_base=self.only_base,
            only_new=self.only_head,
            caveats=[
                *comparison.caveats,
                *unknown,
                f"{counted(self.rounds, 'round')} of fresh processes in {self.seconds:.0f} s",
            ],
        )

    def _unmeasured(self, probe: str) -> Judgement:
        sides = self.failed[probe]
        verdict = Verdict.LOST if self.lost(probe) else Verdict.UNJUDGED
        note = "; ".join(f"fails on the {side}: {why}" for side, why in sides.items())
        return Judgement(probe, SECONDS, None, None, verdict, note=note)

    def lost(self, probe: str) -> bool:
        """Say whether a probe that could not be measured fails on the head alone."""
        return BASE not in self.failed[probe]

    def _benchmark(self, probe: str, side: str, place: int) -> Benchmark:
        rounds = self.times[probe][place]
        interleaved: dict[str, Any] = {
            "session": self.identity,
            "rounds": rounds,
            "comparisons": self.comparisons,
        }
        if probe in self.known:
            spread = self.known[probe]
            interleaved["spread"] = {"deviation": spread.deviation, "degrees": spread.degrees}
        extra = {**self.extra[side].get(probe, {}), "interleaved": interleaved}
        return Benchmark(probe, [median(bursts) for bursts in rounds], extra)


def measure(
    repository: Repository,
    base: Revision,
    head: Revision,
    setting: Setting,
    known: Mapping[str, Spread] = {},
    tell: Tell = lambda line: None,
) -> Iterator[Session]:
    """Measure round by round, each a pair of fresh processes, until all is decided or the time is over.

    Args:
        repository: that both revisions are of.
        base: the revision compared with.
        head: the one that may be slower.
        setting: what is measured, and how.
        known: the machine's noise, by probe.
        tell: takes lines of progress.

    Yields:
        the session, after each round; it is always the same object.

    Raises:
        BadInput: there are no probes, a revision does not install, or other code than a revision's was run.
        ProbeProcessEnded: a process of the probes died, or hung.
    """
    began = time.monotonic()
    session = Session(base, head, known=known)
    with _sides(repository, base, head, setting) as (sides, log):
        plan = Plan(_pytest_arguments(setting), setting.threads, _LEAST_SECONDS)
        calls: dict[str, int] = {}
        tell(f"collecting probes, and running each once: {base.name} and {head.name}")
        first, start_seconds = _timed(lambda: measure_round(*sides, plan, calls, 0, log))
        _check_modules(first, sides, repository)
        _take_first(session, first)
        _check_any(session, setting)
        left = [probe for probe in session.probes if probe not in session.failed]
        start_seconds -= first.timed_seconds
        if not left:  # each probe fails, some on the head alone: that is a verdict, too
            yield session
        for number in count(1):
            session.seconds = time.monotonic() - began
            seconds = _probe_seconds(setting, session, len(left), start_seconds)
            plan = Plan(_files_of(left), setting.threads, seconds)
            expected = start_seconds + 1.1 * plan.seconds * len(left)
            over = session.seconds + expected > setting.limit_seconds
            if not left or (over and number > 1):
                break
            found, took = _timed(lambda: measure_round(*sides, plan, calls, number, log, left))  # noqa: B023
            start_seconds = took - found.timed_seconds
            session.add(found.probes)
            session.seconds = time.monotonic() - began
            _check_any(session, setting)
            left = [probe for probe in left if probe not in session.failed]
            if setting.early:
                left = [probe for probe in left if not _decided(session, probe, setting)]
            tell(_headway(session, left, setting))
            if number == 1 and left:
                _warn_of_little_time(session, took, setting, tell)
            yield session


def _warn_of_little_time(session: Session, round_seconds: float, setting: Setting, tell: Tell) -> None:
    """Say after the first round, and not after all of them, that there will not be enough."""
    rounds = 1 + int((setting.limit_seconds - session.seconds) / round_seconds)
    if rounds < MIN_ROUNDS:
        tell(
            f"a round takes {round_seconds:.0f} s: there is time for {max(rounds, 1)} of the {MIN_ROUNDS} "
            "that are needed; give more --limit, or choose probes by -k"
        )


def _timed(work: Callable[[], Round]) -> tuple[Round, float]:
    began = time.monotonic()
    return work(), time.monotonic() - began


def _decided(session: Session, probe: str, setting: Setting) -> bool:
    if session.rounds < MIN_ROUNDS:
        return False
    return session.decision(probe, setting, EARLY).verdict in _DECIDED


def _headway(session: Session, left: Sequence[str], setting: Setting) -> str:
    seconds = f"{session.seconds:.0f} of at most {setting.limit_seconds:.0f} s"
    undecided = f"{len(left)} of {session.comparisons} probes undecided"
    return f"round {session.rounds}: {seconds}, {undecided}"


@contextmanager
def _sides(
    repository: Repository, base: Revision, head: Revision, setting: Setting
) -> Iterator[tuple[tuple[Side, Side], Path]]:
    """Check both revisions out with the head's probes, and find what they run with."""
    path = _probes_path(repository, head, setting.probes)
    with tempfile.TemporaryDirectory(prefix="flora-bench-log-") as folder:
        log = Path(folder) / "log"
        with repository.checked_out([base, head]) as trees:
            repository.copy_probes(path, head, trees)
            environments = (setting.base_environment, setting.head_environment)
            pythons = [
                python_of(environment, tree, f"--{name}-env", log)
                for environment, tree, name in zip(environments, trees, (BASE, HEAD), strict=True)
            ]
            one, other = (
                Side(name, tree, python)
                for name, tree, python in zip((BASE, HEAD), trees, pythons, strict=True)
            )
            log.touch()
            yield (one, other), log


def _probes_path(repository: Repository, head: Revision, probes: str) -> Path:
    path = Path(probes)
    inside = path.is_absolute() or ".." in path.parts or not path.parts
    # -e asks whether there is such a file; the commit's tree is asked, not the folder
    if inside or not repository.git("ls-tree", "--name-only", head.commit, "--", path.as_posix()).strip():
        raise BadInput(
            f"--probes: {head.name} has no {probes!r}; name a folder or file of tests with "
            "pytest-benchmark's fixture, relative to the repository"
        )
    return path


def _files_of(probes: Sequence[str]) -> list[str]:
    """Give the files that probes are in: what others import takes time in each round."""
    return list(dict.fromkeys(map(_file_of, probes)))


def _file_of(probe: str) -> str:
    return probe.partition("::")[0]


def _pytest_arguments(setting: Setting) -> list[str]:
    return [setting.probes, *(["-k", setting.select] if setting.select else [])]


def _take_first(session: Session, first: Round) -> None:
    """Take in what the round before all others says: which probes there are, and what they leave."""
    session.failed = {probe: found.failed for probe, found in first.probes.items() if found.failed}
    session.only_base = _alone(session, first, BASE, HEAD)
    session.only_head = _alone(session, first, HEAD, BASE)
    session.probes = list(dict.fromkeys([*first.probes, *session.failed]))
    broken = first.uncollected[BASE]
    session.uncollected = {file: why for file, why in first.uncollected[HEAD].items() if file in broken}
    for probe, found in first.probes.items():
        for side, extra in found.extra.items():
            session.extra[side][probe] = extra


def _alone(session: Session, first: Round, side: str, other: str) -> list[str]:
    """Give the probes of a side that the other has not; those that it could not collect have failed on it."""
    broken = {_file_of(place): why for place, why in first.uncollected[other].items()}
    known = set(first.collected[other])
    alone = [probe for probe in first.collected[side] if probe not in known]
    for probe in alone:
        if _file_of(probe) in broken:
            session.failed[probe] = {other: f"not collected: {broken[_file_of(probe)]}"}
    return [probe for probe in alone if probe not in session.failed]


def _check_any(session: Session, setting: Setting) -> None:
    """See that there is something to measure.

    Raises:
        BadInput: there is not.
    """
    if not session.probes:
        chosen = f" that -k {setting.select!r} selects" if setting.select else ""
        broken = "".join(f"; {file} was not collected: {why}" for file, why in session.uncollected.items())
        raise BadInput(
            f"--probes: the revisions have no probe in common in {setting.probes!r}{chosen}{broken}"
        )
    if len(session.failed) == len(session.probes) and not any(map(session.lost, session.failed)):
        probe = session.probes[0]
        side, why = next(iter(session.failed[probe].items()))
        raise BadInput(f"--probes: none could be measured; {probe} fails on the {side}: {why}")


def _check_modules(first: Round, sides: tuple[Side, Side], repository: Repository) -> None:
    """See that each process ran its own revision, and not one that is installed in its environment.

    Raises:
        BadInput: it did not.
    """
    for side in sides:
        files = {name: Path(file).resolve() for name, file in first.modules[side.name].items()}
        tree = side.folder.resolve()
        elsewhere = {name: file for name, file in files.items() if not file.is_relative_to(tree)}
        own = _top_level(tree) - sys.stdlib_module_names
        # an editable installation is of the working tree, wherever in it its packages lie
        installed = repository.tracked(elsewhere.values())
        for name, file in elsewhere.items():
            if name in own or file in installed:
                raise BadInput(
                    f"{side.name}: {name!r} was imported from {str(file)!r} and not from the revision; "
                    "its environment has another one that comes first"
                )


def _top_level(tree: Path) -> set[str]:
    """Name the modules and packages that can be imported from a checkout as it is."""
    places = (tree, tree / "src")
    packages = {path.parent.name for place in places for path in place.glob("*/__init__.py")}
    return packages | {path.stem for place in places for path in place.glob("*.py")}


def _probe_seconds(setting: Setting, session: Session, probes: int, start_seconds: float) -> float:
    """Give the time that a probe gets in a round, such that there is time for enough rounds."""
    rounds = max(_WANTED_ROUNDS - session.rounds, 2)
    left = (setting.limit_seconds - session.seconds) / rounds - start_seconds
    return min(max(left / max(probes, 1), _LEAST_SECONDS), _MOST_SECONDS)


def spreads(session: Session) -> dict[str, Spread]:
    """Give how the rounds of one revision against itself spread, by probe."""
    from bench.regress.decision import log_ratio, spread_of

    found = {}
    for probe, (base, head) in session.times.items():
        ratios = [log_ratio(one, other) for one, other in zip(base, head, strict=True)]
        if len(ratios) >= MIN_ROUNDS and all(map(math.isfinite, ratios)):
            found[probe] = spread_of(ratios, centre=0.0)
    return found
