"""Tables and documents in LaTeX: what is escaped, how wide tables are, and that it all compiles."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from bench.report.comparisons import best_round_table, paired_table, ranks_table, to_target_table
from bench.report.data import ReportData
from bench.report.figures.pgf import write_pgf
from bench.report.latex import PREAMBLE, escape_latex, latex_document, table_latex
from bench.report.names import label_runs
from bench.report.overview import run_table
from bench.report.styles import Look
from bench.report.tables import (
    Cell,
    Table,
    accuracy_table,
    beyond_table,
    cells_of,
    cost_table,
    deployed_table,
    few_shot_table,
    further_cost_table,
    main_accuracy_tables,
)
from bench.report.trust import doubts_table, memory_table, predicted_table
from tests.bench.report.made import both_ways, make_results, make_run, make_runs

HOSTILE = (
    'a_b 100% $x$ & #1 {c} ~ ^ \\input{x} <script> | `q` "w" äöüß Łódź β Δ × ± – — ▼ ‡ IA³ “s” − 5 µ ≥ … -- '
    "中 \N{ROCKET} \x07 aVeryVeryLongNameWithoutAnyPlaceToBreakItAtAllWhichNoColumnHolds/results/x_y-z"
)
METHODS = (
    "zero_shot", "full_finetune", "linear_probe", "attention_adapter", "clip_adapter", "prompt_tuning",
    "peft:lora", "flora",
)  # fmt: skip

needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")


def table_of(columns, rows, **fields):
    """A table of these texts, row names first."""
    made = [
        (name, [Cell(text) if isinstance(text, str) else text for text in cells]) for name, *cells in rows
    ]
    return Table("name", "Caption.", fields.pop("groups", []), list(columns), made, pd.DataFrame(), **fields)


# Escaping


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b 5% $ & # {x}", r"a\_b 5\% \$ \& \# \{x\}"),
        ("~ ^ \\", r"\textasciitilde{} \textasciicircum{} \textbackslash{}"),
        ("<b> | `c`", r"\textless{}b\textgreater{} \textbar{} \textasciigrave{}c\textasciigrave{}"),
        ("\N{MINUS SIGN}1 ± 2×", r"\ensuremath{-}1 \ensuremath{\pm} 2\ensuremath{\times}"),
        ("β = 0.1", r"\ensuremath{\beta} = 0.1"),
        ("IA³ – “é”", r"IA\textsuperscript{3} -- ``é''"),
        ("95 %, 1\N{NO-BREAK SPACE}B", r"95~\%, 1~B"),
        ('"q"', r"\char34{}q\char34{}"),
        ("--x ''", r"-{}-x '{}'"),
        ("中 ﬁ", "U+4E2D fi"),
        (" a\n b ", "a b"),
    ],
)
def test_texts_are_set_as_they_are(text, expected):
    assert escape_latex(text) == expected


def test_words_too_long_for_a_line_may_break_and_others_may_not():
    assert r"\allowbreak" not in escape_latex("Dirichlet cross-validation adapter/flora")
    path = escape_latex("results/cifar10/full_finetune/0123456789ab/run.json")
    assert r"cifar10/\allowbreak{}full\_\allowbreak{}finetune" in path
    assert escape_latex("x" * 40).count(r"\allowbreak") == 2


# Layout


def environment_of(latex):
    """The kind of float, the size of type and the number of tabulars."""
    kind = re.search(r"\\begin\{(table\*?)\}", latex)[1]
    size = re.search(r"\\(small|footnotesize|scriptsize)\\setlength", latex)[1]
    return kind, size, latex.count(r"\begin{tabular}{@{}")


def wide_table(n_columns):
    """Columns of about 45 points each."""
    headings = ["Method", *(f"Column {index}" for index in range(n_columns))]
    return table_of(headings, [("FLoRA", *["84.1 ± 0.3"] * n_columns)] * 3)


def test_a_table_is_as_wide_as_it_must_be():
    found = [environment_of(table_latex(wide_table(n))) for n in (2, 3, 5, 8, 9, 25)]
    kinds, sizes, blocks = zip(*found, strict=True)
    assert kinds == ("table", "table", "table*", "table*", "table*", "table*")
    assert sizes[0] == sizes[2] == "small"
    assert blocks == (1, 1, 1, 1, 1, 3)


def test_a_wider_paper_takes_a_table_in_a_column():
    table = wide_table(5)
    assert environment_of(table.to_latex())[0] == "table*"
    assert environment_of(table.to_latex(Look(column=6.0, page=12.5)))[0] == "table"


def test_blocks_repeat_the_row_names_and_hold_every_column_once():
    table = wide_table(25)
    latex = table_latex(table)
    assert latex.count("Method") == 3
    assert [latex.count(f"Column {index}}}") + latex.count(f"Column {index}\n") for index in (9, 17)] == [
        1,
        1,
    ]
    assert latex.count("84.1") == 75


def test_groups_cut_by_a_block_keep_their_heading_in_both():
    table = wide_table(24)
    grouped = Table(table.name, "", [("First", 6), ("Second", 18)], table.columns, table.rows, table.data)
    latex = table_latex(grouped)
    assert latex.count("First") == 1
    assert latex.count("Second") >= 2
    assert r"\cmidrule(lr){2-7}" in latex


def test_a_long_table_goes_on_in_a_second_float_under_one_number():
    table = table_of(["Run", "Accuracy"], [(f"run {index}", "80.0") for index in range(100)])
    latex = table_latex(table)
    floats = latex.count(r"\begin{table}")
    assert floats > 1
    assert latex.count(r"\addtocounter{table}{-1}") == floats - 1
    assert latex.count(r"\label{tab:name}") == 1
    assert latex.count("80.0 ") == 100


def test_numbers_are_aligned_and_texts_are_not_taken_for_numbers():
    rows = [
        ("a", "84.1 ± 0.3", "1,234", "98.3 kB", "12.0 ± 0.31", "+1.0"),
        ("b", "100.0 ± 12.7", "0.05", "1.2 GB", "–", "\N{MINUS SIGN}2.0"),
    ]
    latex = table_latex(table_of(["x", "A", "B", "C", "D", "E"], rows))
    assert re.findall(r"S\[table-format=([^]]+)\]", latex) == ["3.1(3)", "4.2", "+1.1"]
    assert "84.1 \\pm 0.3 & 1234 & 98.3 kB & 12.0 \\ensuremath{\\pm} 0.31 & +1.0" in latex
    assert "& -2.0" in latex


def test_marks_and_notes_are_set_without_touching_the_alignment():
    cells = [
        Cell("84.1", best=True),
        Cell("83.0", second=True, below=True),
        Cell("9.0", note="2×", broken=True),
    ]
    latex = table_latex(table_of(["x", "A"], [(str(index), cell) for index, cell in enumerate(cells)]))
    assert r"\fontseries{b}\selectfont 84.1" in latex
    assert r"{\underline{\tablenum[table-format=2.1]{83.0}}\rlap{$^{\blacktriangledown}$}}" in latex
    assert r"9.0 {\rlap{$^{\ddagger}$}}" in latex
    assert r" & {(2\ensuremath{\times})} \\" in latex


def test_columns_with_marks_have_room_for_them_and_others_have_none():
    cells = [Cell("84.1", below=True), Cell("83.0"), Cell("9 kB", below=True, broken=True)]
    latex = table_latex(table_of(["x", "A", "B", "C"], [("a", *cells)]))
    assert (
        r"{@{}lS[table-format=2.1]!{\hphantom{$^{\blacktriangledown}$}}S[table-format=2.1]"
        r"r@{\hphantom{$^{\blacktriangledown\ddagger}$}}}"
    ) in latex


def test_a_percentage_in_a_heading_stays_with_its_sign():
    table = table_of(["x", "Step, 95 % (s)"], [("a", "1.0")])
    assert r"Step,\\ 95~\%" in table_latex(table)


def test_a_table_for_an_authors_own_float_is_the_tabular_alone():
    table = wide_table(25)
    bare = table.to_latex(floating=False)
    assert not any(word in bare for word in (r"\begin{table", r"\caption", r"\label", r"\centering"))
    assert bare.count(r"\begin{tabular}") == table.to_latex().count(r"\begin{tabular}") == 3
    assert all(f"% {line}" in bare for line in PREAMBLE.splitlines())


def test_the_foot_stands_below_a_rule():
    latex = table_latex(table_of(["x", "A"], [("a", "1.0"), ("Mean", "1.0")], foot=1))
    assert re.search(r"a & 1\.0 \\\\\n\\midrule\nMean", latex)


def test_a_table_names_the_packages_that_it_needs():
    latex = table_latex(wide_table(2))
    assert all(f"% {line}" in latex for line in PREAMBLE.splitlines())
    assert "siunitx of version 3" in latex


# Documents


def all_kinds():
    """One table of each kind, of runs with hostile names where names can be."""
    measured = {
        "train_flops": 1e12, "energy_joules": 50.0, "cpu_seconds": 3.0, "peak_gpu_memory_bytes": 1e9,
        "client_worst_accuracy": 0.4, "best_round": 3, "memory.by_cause.parameters": 1e6,
        "memory.by_phase.train": 2e6, "task": HOSTILE,
    }  # fmt: skip
    runs, rounds = make_results(seeds=(0, 1, 2), shots=(pd.NA, 1, 4), splits=("iid", "dirichlet"), rounds=2)
    odd = [make_run(HOSTILE, "iid", 4, seed, broken=HOSTILE, accuracy=0.5) for seed in (0, 1)]
    runs = label_runs(make_runs(*runs.to_dict("records"), *odd).assign(**measured))
    cell = next(cell for cell in cells_of(runs) if HOSTILE in set(cell["method"]))
    predictions = {key: {"train_flops": 9e11} for key in cell["config_hash"]}
    many = make_runs(
        *(
            make_run(method, task=task, seed=seed, accuracy=0.6 + 0.02 * place + 0.003 * seed)
            for task in [HOSTILE, "a%b", *(f"Data set {index}" for index in range(14))]
            for place, method in enumerate(METHODS)
            for seed in (0, 1, 2)
        )
    )
    alone = make_runs(make_run(seed=1), make_run("bitfit"))
    tables = [
        accuracy_table(runs), few_shot_table(runs), paired_table(runs), paired_table(alone),
        *main_accuracy_tables(many), ranks_table(many), best_round_table(cell), beyond_table(cell),
        cost_table(cell), further_cost_table(cell), memory_table(cell), predicted_table(cell, predictions),
        to_target_table(cell, rounds), deployed_table(make_runs(*both_ways("flora", "full_finetune"))),
        doubts_table(runs), run_table(ReportData(runs.assign(path=HOSTILE), rounds, runs[:0])),
    ]  # fmt: skip
    assert None not in tables
    return tables


def compiled(folder, latex, engine="pdflatex"):
    """The log of LaTeX, and what is wrong in it."""
    (folder / "report.tex").write_text(latex, encoding="utf-8")
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    run = subprocess.run(command, cwd=folder, capture_output=True, timeout=300, check=False)
    log = (folder / "report.log").read_text(encoding="utf-8", errors="replace")
    faults = re.findall(
        r"^(?:! |Overfull|LaTeX Warning: Float too large|Missing character|LaTeX Error).*", log, re.M
    )
    assert (run.returncode == 0) is not any(fault.startswith("!") for fault in faults)
    return log, faults


def unscaled(latex):
    """The same without the last safeguard: what is too wide stays so."""
    return re.sub(r"\\(begin|end)\{adjustbox\}(\{[^}]*\})?", "", latex)


@needs_latex
def test_tables_of_all_kinds_compile_with_hostile_names_and_fit(tmp_path):
    latex = latex_document(all_kinds(), [])
    _, faults = compiled(tmp_path, unscaled(latex))
    assert faults == []
    assert compiled(tmp_path, latex)[1] == []


@needs_latex
def test_a_table_too_wide_is_found_by_these_tests_and_made_to_fit_by_the_safeguard(tmp_path):
    latex = latex_document([table_of(["x", "A"], [("a" * 30, "1.0")])], []).replace(
        "a" * 16, r"\hspace*{9in}a"
    )
    assert any("Overfull" in fault for fault in compiled(tmp_path, unscaled(latex))[1])
    assert compiled(tmp_path, latex)[1] == []


@pytest.mark.skipif(shutil.which("lualatex") is None, reason="there is no lualatex")
def test_tables_compile_with_lualatex_too(tmp_path):
    table = table_of([HOSTILE, "Number"], [(HOSTILE, "1.0 ± 0.1"), ("b", Cell("2.0 ± 0.1", best=True))])
    assert compiled(tmp_path, latex_document([table], []), "lualatex")[1] == []


@needs_latex
def test_a_document_has_columns_of_the_widths_asked_for_and_takes_a_hundred_figures(tmp_path):
    (tmp_path / "figures").mkdir()
    for name, width in (("narrow", 3.25), ("wide_1", 6.875)):
        figure = Figure(figsize=(width, 2.0))
        figure.subplots().plot(np.arange(3))
        figure.savefig(tmp_path / "figures" / f"{name}.pdf")
    figures = [
        (f"figures/{name}", f"{HOSTILE} {index}", name == "wide_1", "pdf")
        for index in range(50)
        for name in ("narrow", "wide_1")
    ]
    latex = latex_document([wide_table(3)], figures)
    shown = latex.replace(
        r"\begin{document}", r"\begin{document}\typeout{WIDTHS \the\columnwidth, \the\textwidth}"
    )
    log, faults = compiled(tmp_path, shown)
    assert faults == []
    column, page = map(float, re.search(r"WIDTHS ([\d.]+)pt, ([\d.]+)pt", log).groups())
    assert (column, page) == (pytest.approx(3.25 * 72.27, abs=0.01), pytest.approx(6.875 * 72.27, abs=0.01))
    assert log.count(".pdf Graphic file") >= 2 or "narrow.pdf" in log


@needs_latex
def test_a_figure_higher_than_the_page_is_made_to_fit(tmp_path):
    Figure(figsize=(3.25, 14.0)).savefig(tmp_path / "high.pdf")
    assert compiled(tmp_path, latex_document([], [("high", "A figure.", False, "pdf")]))[1] == []


@needs_latex
def test_a_bare_table_compiles_in_an_article_with_nothing_but_the_packages_named(tmp_path):
    table = table_of(
        ['"x"', "A"], [('a "quoted" name', Cell("1.0", below=True)), ("b", Cell("2.0", best=True))]
    )
    parts = r"\documentclass{article}", PREAMBLE, r"\begin{document}", r"\begin{table}\centering"
    body = *parts, table.to_latex(floating=False), r"\caption{Mine.}\end{table}", r"\end{document}"
    assert compiled(tmp_path, "\n".join(body))[1] == []


@needs_latex
def test_a_figure_as_pgf_is_put_in(tmp_path):
    figure = Figure(figsize=(3.25, 2.0))
    figure.subplots().plot(np.arange(3), label="x")
    write_pgf(figure, tmp_path / "one.pgf")
    latex = latex_document([], [("one", "A figure.", False, "pgf")])
    log, faults = compiled(tmp_path, latex)
    assert faults == []
    assert "one.pgf" in log
    assert Path(tmp_path / "report.pdf").stat().st_size > 0
