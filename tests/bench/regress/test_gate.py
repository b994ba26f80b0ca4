"""Budgets: limits, what is accepted and until when, and what a file of them may not say."""

from dataclasses import replace
from datetime import date

import pytest

from bench.regress.gate import Gate, fields_of
from bench.regress.judgement import Judgement, Verdict
from bench.regress.metrics import METRICS, Better, Kind, metric_of
from flora.errors import BadInput

TODAY = date(2026, 11, 21)
PAYLOAD = METRICS["payload_bytes"]
FLORA = {"method": "flora", "method.rank": 8, "split": "iid", "shots": None}
PROBE = {"probe": "tests/perf/test_steps.py::test_local_step[flora]"}


def gate(tmp_path, text: str) -> Gate:
    file = tmp_path / "gate.toml"
    file.write_text(text)
    return Gate.find(file)


def worse(base: float = 100, new: float = 110, metric=PAYLOAD, verdict=Verdict.WORSE) -> Judgement:
    return Judgement("digits, flora, iid, seed 0", metric, base, new, verdict, new / base - 1, note="a note")


def accepted(tmp_path, more: str = "", until: str = "2026-12-31") -> Gate:
    text = f'[[accepted]]\nmetric = "payload_bytes"\nreason = "a wider rank"\nuntil = {until}\n{more}'
    return gate(tmp_path, text)


# --- limits --------------------------------------------------------------------------------------------


def test_without_budgets_a_metrics_own_limit_holds():
    assert Gate().limit(PAYLOAD, FLORA).allowed(1000) == 0
    assert Gate().limit(METRICS["peak_memory_bytes"], FLORA).allowed(1000) == 10


def test_a_budget_takes_the_place_of_the_metrics_own_limit(tmp_path):
    budgets = gate(
        tmp_path, "[metrics.peak_memory_bytes]\nabsolute = 3\n[metrics.payload_bytes]\nrelative = 0.1"
    )
    assert budgets.limit(METRICS["peak_memory_bytes"], FLORA).allowed(1000) == 3
    assert budgets.limit(PAYLOAD, FLORA).allowed(1000) == 100


def test_of_a_relative_and_an_absolute_limit_the_wider_holds(tmp_path):
    limit = gate(tmp_path, "[metrics.payload_bytes]\nrelative = 0.1\nabsolute = 8").limit(PAYLOAD, FLORA)
    assert (limit.allowed(10), limit.allowed(1000)) == (8, 100)


def test_limits_of_some_cells_hold_there_and_nowhere_else(tmp_path):
    budgets = gate(
        tmp_path,
        "[metrics.payload_bytes]\nat_most = 500\n"
        '[[cells]]\nwhere = ["method=flora", "split=iid", "method.rank>=8"]\n'
        "metrics.payload_bytes.absolute = 8\n",
    )
    assert budgets.limit(PAYLOAD, FLORA).allowed(1000) == 8
    assert budgets.limit(PAYLOAD, FLORA).at_most == 500  # what is not overridden stays
    for other in ({"split": "dirichlet"}, {"method.rank": 4}, {"method.rank": None}):
        assert budgets.limit(PAYLOAD, {**FLORA, **other}).allowed(1000) == 0
    assert budgets.limit(PAYLOAD, PROBE).allowed(1000) == 0


@pytest.mark.parametrize("name", ["*test_local_step*", PROBE["probe"]])
def test_probes_are_named_whole_or_by_a_pattern(tmp_path, name):
    budgets = gate(tmp_path, f'[[cells]]\nwhere = ["probe={name}"]\nmetrics.seconds.relative = 0.2')
    assert budgets.limit(METRICS["seconds"], PROBE).relative == 0.2
    other = {"probe": "tests/perf/test_steps.py::test_evaluation"}
    assert budgets.limit(METRICS["seconds"], other).relative == METRICS["seconds"].relative


def test_brackets_of_a_pattern_are_those_of_a_name(tmp_path):
    budgets = gate(tmp_path, '[[cells]]\nwhere = ["probe=*_step[flora]"]\nmetrics.seconds.relative = 0.2')
    assert budgets.limit(METRICS["seconds"], PROBE).relative == 0.2
    of_a_letter = {"probe": "a.py::test_stepf"}
    assert budgets.limit(METRICS["seconds"], of_a_letter).relative == METRICS["seconds"].relative


def test_the_last_of_several_overrides_holds(tmp_path):
    text = "".join(
        f'[[cells]]\nwhere = ["method=flora"]\nmetrics.payload_bytes.absolute = {n}\n' for n in (8, 16)
    )
    assert gate(tmp_path, text).limit(PAYLOAD, FLORA).absolute == 16


def test_phases_have_limits_of_their_own(tmp_path):
    budgets = gate(tmp_path, '[metrics."flops.train"]\nrelative = 0.01')
    assert budgets.limit(metric_of("flops.train"), FLORA).relative == 0.01
    assert budgets.limit(metric_of("flops.evaluate"), FLORA).relative == 0


def test_a_figure_of_ones_own_is_declared(tmp_path):
    metric = gate(tmp_path, '[metrics.images_per_call]\nkind = "exact"\nbetter = "higher"').metric(
        "images_per_call"
    )
    assert (metric.kind, metric.better, metric.unit) == (Kind.EXACT, Better.HIGHER, "")
    assert Gate().metric("images_per_call") is None


def test_fields_are_dotted_and_what_has_a_name_is_called_by_it():
    config = {"task": "digits", "method": {"name": "flora", "rank": 8}, "split": {"name": "iid", "shots": 4}}
    fields = fields_of({**config, "seed": {"split": 1}})
    assert fields["method"] == "flora"
    assert fields["method.rank"] == 8
    assert fields["shots"] == 4
    assert not any(name.startswith("seed") for name in fields)


# --- where budgets are found ---------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["", "gate.", "tool.flora-bench.gate."])
def test_budgets_stand_at_the_top_or_below_a_section(tmp_path, section):
    budgets = gate(tmp_path, f"[{section}metrics.payload_bytes]\nabsolute = 8")
    assert budgets.limit(PAYLOAD, FLORA).absolute == 8


def test_without_a_file_those_of_pyproject_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Gate.find() == Gate()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    assert Gate.find() == Gate()
    (tmp_path / "pyproject.toml").write_text("[tool.flora-bench.gate.metrics.payload_bytes]\nabsolute = 8\n")
    assert Gate.find().limit(PAYLOAD, FLORA).absolute == 8


# --- what is accepted ----------------------------------------------------------------------------------


def test_what_is_accepted_passes_until_its_last_day_and_fails_after_it(tmp_path):
    budgets = accepted(tmp_path)
    last, after = (budgets.settle(worse(), FLORA, date(*day)) for day in ((2026, 12, 31), (2027, 1, 1)))
    assert (last.verdict, after.verdict) == (Verdict.ACCEPTED, Verdict.EXPIRED)
    assert not last.verdict.fails
    assert after.verdict.fails
    assert last.note == "accepted until 2026-12-31: a wider rank; a note"
    assert after.note == "was accepted until 2026-12-31: a wider rank; a note"


@pytest.mark.parametrize("verdict", [Verdict.CHANGED, Verdict.LOST])
def test_all_that_fails_can_be_accepted(tmp_path, verdict):
    assert accepted(tmp_path).settle(worse(verdict=verdict), FLORA, TODAY).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("verdict", [x for x in Verdict if not x.fails])
def test_what_does_not_fail_is_left_as_it_is(tmp_path, verdict):
    assert accepted(tmp_path).settle(worse(verdict=verdict), FLORA, TODAY) == worse(verdict=verdict)


def test_other_metrics_and_cells_are_not_accepted(tmp_path):
    budgets = accepted(tmp_path, 'where = ["method=flora"]')
    other = worse(metric=METRICS["bytes_up"])
    assert budgets.settle(other, FLORA, TODAY) == other
    assert budgets.settle(worse(), {**FLORA, "method": "bitfit"}, TODAY) == worse()
    assert budgets.settle(worse(), FLORA, TODAY).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("bound", ["at_most = 110", "relative = 0.1000001"])
def test_no_more_than_what_was_accepted_passes(tmp_path, bound):
    budgets = accepted(tmp_path, bound)
    assert budgets.settle(worse(new=110), FLORA, TODAY).verdict is Verdict.ACCEPTED
    more = budgets.settle(worse(new=111), FLORA, TODAY)
    assert more.verdict is Verdict.WORSE
    assert more.note == "more than was accepted until 2026-12-31: a wider rank; a note"


def test_a_bound_does_not_cover_what_cannot_be_held_to_it(tmp_path):
    lost = replace(worse(verdict=Verdict.LOST), new=None, change=None)
    for bound in ("at_most = 110", "relative = 0.1"):
        assert accepted(tmp_path, bound).settle(lost, FLORA, TODAY).verdict is Verdict.LOST


def test_a_pattern_accepts_several_metrics(tmp_path):
    budgets = gate(tmp_path, '[[accepted]]\nmetric = "payload_bytes*"\nreason = "x"\nuntil = 2026-12-31')
    for name in ("payload_bytes", "payload_bytes_up"):
        assert budgets.settle(worse(metric=METRICS[name]), FLORA, TODAY).verdict is Verdict.ACCEPTED


def test_of_several_acceptances_the_one_that_lasts_longest_holds(tmp_path):
    entry = '[[accepted]]\nmetric = "payload_bytes"\nreason = "{}"\nuntil = {}\n'
    budgets = gate(tmp_path, entry.format("new", "2026-12-31") + entry.format("old", "2026-01-01"))
    settled = budgets.settle(worse(), FLORA, TODAY)
    assert settled.verdict is Verdict.ACCEPTED
    assert "new" in settled.note


# --- entries without an effect -------------------------------------------------------------------------


def test_an_acceptance_that_ran_out_and_is_not_needed_is_named(tmp_path):
    budgets = accepted(tmp_path, until="2026-01-01")
    (caveat,) = budgets.caveats([(worse(verdict=Verdict.SAME), FLORA)], TODAY)
    assert (
        caveat
        == "gate: [[accepted]] 1 (payload_bytes) ran out on 2026-01-01 and is no longer needed: remove it"
    )
    assert not budgets.caveats([(budgets.settle(worse(), FLORA, TODAY), FLORA)], TODAY)


def test_an_acceptance_that_still_holds_need_not_be_needed(tmp_path):
    assert not accepted(tmp_path).caveats([(worse(verdict=Verdict.SAME), FLORA)], TODAY)


def test_entries_that_mean_nothing_are_named_with_what_may_be_meant(tmp_path):
    budgets = accepted(
        tmp_path,
        'where = ["metod=flora"]\n[[cells]]\nwhere = ["method=bitfit"]\nmetrics.payload_bytes.absolute = 8',
    )
    one, other = budgets.caveats([(worse(), FLORA)], TODAY)
    assert one == (
        "gate: [[accepted]] 1 (payload_bytes where metod=flora) means nothing that was compared; "
        "nothing has a field 'metod'; did you mean 'method'"
    )
    assert other == "gate: [[cells]] 1 (method=bitfit) means nothing that was compared"


# --- bad input -----------------------------------------------------------------------------------------

ACCEPTED = '[[accepted]]\nmetric = "payload_bytes"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[metrics.payload_byte]\nrelative = 0.1",
            "no metric is called 'payload_byte'; did you mean 'payload_bytes'?",
        ),
        ("[metrics.mine]\nrelative = 0.1", "a figure of your own needs its kind"),
        (
            "[metrics.payload_bytes]\nrelative = -0.1",
            "metrics.payload_bytes.relative: -0.1 must be at least 0",
        ),
        ("[metrics.payload_bytes]\nrelative = true", "metrics.payload_bytes.relative: True must be a number"),
        (
            "[metrics.payload_bytes]\nrelative = '2 %'",
            "metrics.payload_bytes.relative: '2 %' must be a number",
        ),
        (
            "[metrics.payload_bytes]\nat_most = inf",
            "metrics.payload_bytes.at_most: inf must be a finite number",
        ),
        ("[metrics.payload_bytes]\nrelativ = 1", "there is no field 'relativ'; did you mean 'relative'?"),
        (
            "[metrics.payload_bytes]\nkind = 'tight'",
            "metrics.payload_bytes.kind: is the suite's to say; leave it out",
        ),
        ("[metrics.mine]\nkind = 'loose'", "metrics.mine.kind: 'loose' must be 'exact', 'tight' or 'noisy'"),
        ("[metrics.mine]\nunit = 'B'", "metrics.mine: has no kind"),
        ("[metrics.learning]\nrelative = 1", "metrics.learning.relative: any change of it counts"),
        (
            "[metrics.accuracy]\nrelative = 0.1",
            "metrics.accuracy.relative: an accuracy has an absolute limit alone",
        ),
        ("[metrics.seconds]\nat_most = 1", "metrics.seconds.at_most: seconds depend on the machine"),
        (ACCEPTED + "until = 2026-12-31", "[[accepted]] 1: reason: is missing; say why it is accepted"),
        (ACCEPTED + "reason = ' '\nuntil = 2026-12-31", "[[accepted]] 1: reason: ' ' says nothing"),
        (ACCEPTED + "reason = 'x'", "[[accepted]] 1: until: is missing; say to which day"),
        (ACCEPTED + "reason = 'x'\nuntil = '2026'", "[[accepted]] 1: until: '2026' must be a day"),
        (
            ACCEPTED
            + "reason = 'x'\nuntil = 2026-12-31\n[[accepted]]\nmetric = 'payload_byts'\nreason = 'x'\n"
            "until = 2026-12-31",
            "[[accepted]] 2: metric: no metric is called 'payload_byts'; did you mean 'payload_bytes'?",
        ),
        *(
            (
                f"[[accepted]]\nmetric = '{metric}'\nreason = 'x'\nuntil = 2026-12-31\nat_most = 1",
                "[[accepted]] 1: at_most: would let pass any loss of",
            )
            for metric in ("accuracy", "*accuracy", "*", "learning")
        ),
        ("a = " + "[" * 5000, "is no TOML"),
        (
            ACCEPTED + "reason = 'x'\nuntil = 2026-12-31\nwhere = ['flora']",
            "[[accepted]] 1: where: 'flora' must be FIELD=VALUE",
        ),
        (
            "[[cells]]\nwhere = ['a<b']\nmetrics.payload_bytes.absolute = 8",
            "'a<b' compares what is no number",
        ),
        (
            "[[cells]]\nwhere = []\nmetrics.payload_bytes.absolute = 8",
            "[[cells]] 1: where: [] must have an entry",
        ),
        ("[[cells]]\nwhere = ['a=b']", "[[cells]] 1: metrics: is missing; say what is limited"),
        (
            "[[cells]]\nwhere = ['a=b']\nmetrics.payload_bytes.absolut = 8",
            "there is no field 'absolut'; did you mean",
        ),
        ("[cells]\nwhere = ['a=b']", "must be a list: write [[cells]] above each"),
        ("budget = 3", "there is no field 'budget'; choose from accepted, cells, metrics"),
        ("[metrics", "is no TOML"),
        ("[tool]\nflora-bench = 3", "there is no field 'tool'"),
        ("[tool.flora-bench]\ngate = 3", "3 must be a table of fields and values"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_field_and_what_is_right(tmp_path, text, problem):
    with pytest.raises(BadInput) as raised:
        gate(tmp_path, text)
    message = str(raised.value)
    assert message.startswith(str(tmp_path / "gate.toml"))
    assert problem in message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"none.toml: cannot be read \(No such file"):
        Gate.find(tmp_path / "none.toml")


def test_budgets_of_the_repository_hold_in_its_folders_and_not_beyond(tmp_path, monkeypatch):
    table = "[tool.flora-bench.gate.metrics.peak_memory_bytes]\nrelative = 0.3\n"
    (tmp_path / "pyproject.toml").write_text(table)
    inner = tmp_path / "repository" / "part"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert Gate.find().metrics["peak_memory_bytes"].relative == 0.3
    (inner / "pyproject.toml").write_text("[tool.other]\n")
    assert Gate.find().metrics
    (inner.parent / ".git").mkdir()
    assert not Gate.find().metrics
