"""How a comparison is shown: values, rows, lines of a terminal, Markdown and JSON."""

import json
import sys

import pytest

from bench.cli.verdicts import (
    SHOWN_ROWS,
    rows_of,
    show,
    to_dict,
    to_markdown,
    values_text,
    verdict_line,
)
from bench.regress.calibrated import CALIBRATED
from bench.regress.judgement import Comparison, Judgement, Verdict
from bench.regress.metrics import METRICS, Better, Kind, Metric, metric_of

CELL = "digits, flora, iid, 2 seeds"
PROBE = "tests/perf/test_steps.py::test_local_step[flora]"


def judgement(metric="payload_bytes", base=98304, new=98305, verdict=Verdict.WORSE, **more) -> Judgement:
    numbers = isinstance(base, int | float) and isinstance(new, int | float) and base
    given = {"subject": CELL, "change": new / base - 1 if numbers else None, **more}
    return Judgement(metric=metric_of(metric), base=base, new=new, verdict=verdict, **given)


def comparison(*judgements: Judgement, **more) -> Comparison:
    return Comparison("old.json", "new.json", judgements, **more)


WHOLE = comparison(
    judgement(),
    judgement("payload_bytes_up"),
    judgement(
        "split_fingerprint", "a" * 64, "b" * 64, Verdict.CHANGED, subject="digits, bitfit, iid, seed 0"
    ),
    judgement("seconds", 1.0, 0.9, Verdict.BETTER, subject=PROBE, interval=(-0.12, -0.08)),
    judgement("bytes_up", 5, 5, Verdict.SAME),
    judgement("train_seconds", 1.0, 2.0, Verdict.UNJUDGED, note="plain times are not compared"),
    only_base=["digits, linear_probe, iid, seed 0"],
    caveats=["threads differ"],
)


@pytest.fixture
def shown(capsys):
    def lines(found: Comparison, **options) -> list[str]:
        show(found, **options)
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.fixture
def terminal(shown, monkeypatch):
    def lines(found: Comparison, **options) -> list[str]:
        with monkeypatch.context() as patched:
            patched.setattr(sys.stdout, "isatty", lambda: True)
            patched.setenv("TERM", "dumb")  # 80 columns, without colours
            return shown(found, **options)

    return lines


# --- values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "base", "new", "text"),
    [
        ("payload_bytes", 98304, 98305, "98,304 B -> 98,305 B (+1 B, +0.001 %)"),
        ("payload_bytes", 98304, 90000, "98.3 kB -> 90.0 kB (-8.30 kB, -8.4 %)"),
        ("payload_bytes", 98304, 98304, "98.3 kB"),
        ("payload_bytes", 98304, None, "98.3 kB -> –"),
        ("bytes_up", 0, 5, "0 B -> 5 B (+5 B)"),
        ("bytes_up", 1, 50, "1 B -> 50 B (+49 B, 50 times)"),
        ("trainable_parameters", 33024, 33025, "33,024 -> 33,025 (+1, +0.003 %)"),
        ("flops.train", 2698864640, 2725853286, "2.70 GFLOP -> 2.73 GFLOP (+27.0 MFLOP, +1 %)"),
        ("peak_memory_bytes", 1_000_000_000, 1_020_000_000, "1.00 GB -> 1.02 GB (+2 %)"),
        ("split_fingerprint", "a" * 64, "b" * 64, "aaaaaaaaaaaa… -> bbbbbbbbbbbb…"),
        ("split_fingerprint", "a" * 64, "a" * 63 + "b", f"{'a' * 64} -> {'a' * 63}b"),
        ("accuracy", 0.81234, 0.7, "81.23 % -> 70.00 %"),
        ("seconds", 0.0000123, 0.0000246, "12.3 µs -> 24.6 µs (+100 %)"),
        ("seconds", 0.00813, 0.0138, "8.13 ms -> 13.8 ms (+70 %)"),
        ("seconds", 90.0, 99.0, "0:01:30 -> 0:01:39 (+10 %)"),
        ("learning", 0.5, 0.50000001, "0.5 -> 0.50000001"),
        ("learning", 1.68818600177765, 1.85700460195541, "1.69 -> 1.86"),
        ("flops.evaluate", 100_000_000, 0, "100 MFLOP -> 0 FLOP (-100 MFLOP, -100 %)"),
        ("flops.evaluate", 622_050_304, 622_050_314, "622,050,304 FLOP -> 622,050,314 FLOP (+10 FLOP)"),
        ("learning", None, None, ""),
    ],
)
def test_values_are_as_exact_as_it_takes_to_tell_them_apart(metric, base, new, text):
    assert values_text(judgement(metric, base, new)) == text


def test_an_interval_stands_beside_the_change():
    assert values_text(WHOLE.judgements[3]) == "1.00 s -> 900 ms (-10 %, -12 % to -8 %)"


@pytest.mark.parametrize(
    ("new", "seconds"), [(0.0082, "8.13 ms -> 8.20 ms"), (0.00813, "8.13 ms -> 8.13 ms")]
)
def test_calibrated_times_say_that_the_change_is_none_of_the_seconds(new, seconds):
    found = judgement("seconds", 0.00813, new, Verdict.UNSURE, change=0.3, note=f"{CALIBRATED}, and so on")
    assert values_text(found) == f"{seconds} (in units of the kernel set +30 %)"


def test_a_figure_of_ones_own_has_its_unit():
    metric = Metric("rate", "rate", Kind.TIGHT, Better.HIGHER, "images/s")
    found = Judgement(CELL, metric, 10.0, 5.5, Verdict.WORSE, -0.45)
    assert values_text(found) == "10.0 images/s -> 5.50 images/s (-45 %)"


# --- rows and the line of verdict ----------------------------------------------------------------------


def test_judgements_that_say_the_same_share_a_row():
    alike = [judgement(name, subject=cell) for name in ("payload_bytes", "payload_bytes_up") for cell in "ab"]
    other = judgement(new=98306)
    rows = rows_of([*alike, other])
    assert [(row.metrics, row.subjects) for row in rows] == [
        ("Payload; Payload, up", ("a", "b")),
        ("Payload", (CELL,)),
    ]


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (WHOLE, "worse: 3 metrics of 2 cells (of 5 compared); 1 better; 1 only in BASE"),
        (comparison(judgement()), "worse: 1 metric of 1 cell (of 1 compared)"),
        (
            comparison(judgement(), judgement(subject=PROBE)),
            "worse: 2 metrics of 1 cell and 1 probe (of 2 compared)",
        ),
        (
            comparison(judgement(verdict=Verdict.EXPIRED)),
            "worse: 1 metric of 1 cell (of 1 compared); 1 expired",
        ),
        (comparison(judgement(verdict=Verdict.ACCEPTED)), "none worse (of 1 metric compared); 1 accepted"),
        (comparison(judgement(verdict=Verdict.SAME)), "none worse (of 1 metric compared)"),
        (comparison(judgement(verdict=Verdict.UNJUDGED)), "nothing could be judged (of 1 metric)"),
    ],
)
def test_one_line_says_what_became_of_it(found, line):
    assert verdict_line(found) == line


def test_the_line_says_that_what_new_lacks_fails_where_all_is_asked_for():
    assert verdict_line(WHOLE, complete=True).endswith("; 1 only in BASE, which fails")


# --- terminal and pipe ---------------------------------------------------------------------------------


def test_a_pipe_gets_a_line_a_row_the_worst_first_and_the_verdict_last(shown):
    lines = shown(WHOLE)
    assert lines == [
        "old.json -> new.json",
        f"worse    Payload; Payload, up  98,304 B -> 98,305 B (+1 B, +0.001 %)    {CELL}",
        "changed  Split                 aaaaaaaaaaaa… -> bbbbbbbbbbbb…           digits, bitfit, iid, seed 0",
        f"better   Time                  1.00 s -> 900 ms (-10 %, -12 % to -8 %)  {PROBE}",
        "the same: 1",
        "not judged: 1 (plain times are not compared)",
        "only in BASE: 1: digits, linear_probe, iid, seed 0",
        "note: threads differ",
        "worse: 3 metrics of 2 cells (of 5 compared); 1 better; 1 only in BASE",
    ]


def test_all_shows_what_is_the_same_and_not_judged_too(shown):
    lines = shown(WHOLE, everything=True)
    assert any(line.startswith("same        Sent up") for line in lines)
    assert any(line.startswith("not judged  Training time") for line in lines)
    assert not any(line.startswith("the same:") for line in lines)


def test_a_terminal_is_not_overrun_and_loses_nothing_of_a_row(terminal):
    lines = terminal(WHOLE)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for told in ("98,304 B -> 98,305 B (+1 B, +0.001 %)", CELL, PROBE, "threads differ"):
        assert told in text


def test_a_terminal_gets_the_worst_rows_and_a_count_and_a_pipe_all(terminal, shown):
    many = comparison(*(judgement(new=98305 + n, subject=f"cell {n}") for n in range(50)))
    lines = terminal(many)
    assert sum(line.startswith("worse  ") for line in lines) == SHOWN_ROWS
    assert "and 30 more such rows; --all shows them" in lines
    assert "cell 49" in " ".join(lines)  # which grew the most
    assert sum(line.startswith("worse  ") for line in terminal(many, everything=True)) == 50
    assert sum(line.startswith("worse  ") for line in shown(many)) == 50


def test_many_cells_of_a_row_are_counted_on_a_terminal_and_named_elsewhere(terminal, shown):
    many = comparison(*(judgement(subject=f"cell {n}") for n in range(9)))
    assert "and 6 more" in " ".join(terminal(many))
    assert "cell 8" in " ".join(shown(many))


def test_markup_of_a_console_is_printed_as_it_is(shown):
    lines = shown(comparison(judgement(subject="a.py::b[bold]", note="[red]")))
    assert "a.py::b[bold]  [red]" in lines[1]


def test_what_names_hold_does_nothing_to_a_terminal_and_breaks_no_line(terminal, shown):
    evil = "a\x1b[31m\nb\x07"
    found = comparison(
        judgement(subject=evil, note=evil),
        judgement("split_fingerprint", evil, "x", Verdict.CHANGED),
        judgement(verdict=Verdict.UNJUDGED, note=evil),
        only_base=[evil],
        caveats=[evil],
    )
    for lines in (terminal(found), shown(found)):
        assert not {"\x1b", "\x07"} & set("".join(lines))
    assert len(shown(found)) == 7


# --- Markdown and JSON ---------------------------------------------------------------------------------


def test_a_comment_begins_with_the_verdict_and_folds_what_did_not_change():
    text = to_markdown(WHOLE)
    shown, folded = text.split("<details>")
    assert shown.startswith("❌ **worse: 3 metrics of 2 cells (of 5 compared); 1 better; 1 only in BASE**")
    assert "| **worse** | Payload; Payload, up | 98,304 B → 98,305 B (+1 B, +0.001 %) |" in shown
    assert "only in BASE: 1: digits, linear\\_probe, iid, seed 0" in shown
    assert "Training time" in folded
    assert "Sent up" in folded
    assert "threads differ" in folded
    assert folded.endswith("</details>")


def test_a_comment_of_no_change_says_so():
    text = to_markdown(comparison(judgement(verdict=Verdict.SAME)))
    assert text.startswith("✅ **none worse (of 1 metric compared)**\n\n<details>")


def test_a_comment_keeps_its_table_whole_whatever_names_hold():
    text = to_markdown(comparison(judgement(subject="a|b<script>", note="*x*\n| y")))
    (row,) = [line for line in text.splitlines() if line.startswith("| **worse**")]
    assert "a\\|b&lt;script&gt;" in row
    assert row.replace("\\|", "").count("|") == 6


def test_a_comment_of_much_is_short_enough_for_github():
    names = [f"digits, a method of a rather long name {n}, dirichlet, {n} seeds" for n in range(2000)]
    every = [judgement(new=98305 + n, subject=name) for n, name in enumerate(names)]
    text = to_markdown(comparison(*every, only_base=names))
    assert len(text) < 65_536
    assert f"{2000 - SHOWN_ROWS:,} more such rows are below" in text
    told = sum(line.startswith("| **worse**") for line in text.splitlines())
    assert f"{2000 - told:,} more rows are left out" in text


def test_json_has_all_of_it(shown):
    found = json.loads("\n".join(shown(WHOLE, as_json=True)))
    assert found == to_dict(WHOLE)
    assert (found["fails"], found["verdict"]) == (True, verdict_line(WHOLE))
    assert [x["verdict"] for x in found["judgements"]][:3] == ["worse", "worse", "changed"]
    assert found["counts"]["worse"] == 2
    assert len(found["judgements"]) == len(WHOLE.judgements)
    assert found["only_base"] == ["digits, linear_probe, iid, seed 0"]


def test_what_new_lacks_fails_where_all_is_asked_for():
    lacking = comparison(judgement(verdict=Verdict.SAME), only_base=["a cell"])
    assert not to_dict(lacking)["fails"]
    assert to_dict(lacking, complete=True)["fails"]
    assert to_markdown(lacking, complete=True).startswith("❌")


def test_every_metric_can_be_written():
    for metric in METRICS.values():
        assert values_text(Judgement(CELL, metric, 1.0, 2.0, Verdict.WORSE, 1.0))
