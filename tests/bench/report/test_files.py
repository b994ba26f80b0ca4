"""The files of figures: formats, fonts, checksums, and PGF that a document sets."""

from __future__ import annotations

import re
import shutil
import subprocess

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter
from PIL import Image

from bench.report import figures
from bench.report.figures.pgf import in_latex
from bench.report.styles import SANS, Look
from flora.errors import BadInput
from tests.bench.report.made import labelled, make_results, make_run, make_runs, make_small

SHA = "0123456789abcdef" * 4
with_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
FORMATS = [pytest.param(name, marks=with_latex if name == "pgf" else ()) for name in figures.FORMATS]
ODD = 'a_b % $ & # {c} ~ ^ \\ < > β³ × ± – ü <script> "q" --x | ` \' ▼'


@pytest.mark.parametrize("name", FORMATS)
def test_two_builds_give_the_same_bytes_and_no_version(name, tmp_path):
    runs, _ = labelled(make_small())
    (first,), (again,) = (
        figures.save(figures.time_bars(runs), tmp_path / stem, [name], data_sha256=SHA)
        for stem in ("a.1", "b")
    )
    assert first.name == f"a.1.{name}"
    assert first.read_bytes() == again.read_bytes()
    assert mpl.__version__.encode() not in first.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_says_which_data_it_shows(name, tmp_path):
    figure = figures.memory_bars(make_runs(make_run()))
    (marked,) = figures.save(figure, tmp_path / "a", [name], data_sha256=SHA)
    (bare,) = figures.save(figure, tmp_path / "b", [name])
    assert figures.read_data_sha256(marked) == SHA
    assert figures.read_data_sha256(bare) is None
    if name == "png":
        assert Image.open(marked).text == {"data-sha256": SHA}


def test_formats_that_are_not_known_are_refused(tmp_path):
    for refuse in (figures.check_formats, lambda names: figures.save(Figure(), tmp_path / "a", names)):
        with pytest.raises(BadInput, match=r"format: 'jpg' .* must be one of pdf, svg, png, pgf"):
            refuse(["pdf", "jpg"])
    assert not list(tmp_path.iterdir())


def test_pgf_without_a_latex_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="format pgf needs pdflatex"):
        figures.check_formats(["pgf"])
    figures.check_formats(["pdf", "svg", "png"])


@pytest.mark.parametrize("font", ["sans", "serif"])
def test_pdf_embeds_its_fonts_as_type_42_alone(font, tmp_path):
    look = Look(font)
    runs = make_runs(make_run(), make_run("peft:ia3"), make_run(ODD))
    (path,) = figures.save(figures.time_bars(runs, look=look), tmp_path / "a", ["pdf"], look)
    pdf = path.read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    assert (b"STIXGeneral" in pdf) == (font == "serif")
    assert (b"DejaVu" in pdf) == (font == "sans")


def test_png_has_the_width_of_the_page(tmp_path):
    (path,) = figures.save(figures.time_bars(make_small()[0]), tmp_path / "a", ["png"])
    assert Image.open(path).width == int(SANS.page * 200)


@pytest.mark.parametrize("names", [["pdf", "svg", "png"], pytest.param(["pgf"], marks=with_latex)])
def test_saving_lays_out_once_and_leaves_the_figure_and_settings_as_they_were(names, monkeypatch, tmp_path):
    figure = figures.accuracy_over_bytes(make_small()[1])
    engine, canvas, settings = figure.get_layout_engine(), figure.canvas, dict(mpl.rcParams)
    runs = []
    execute = type(engine).execute
    monkeypatch.setattr(type(engine), "execute", lambda self, fig: [runs.append(1), execute(self, fig)])
    figures.save(figure, tmp_path / "a", names)
    assert len(runs) == 1
    assert (figure.get_layout_engine(), figure.canvas, figure.dpi) == (engine, canvas, 100)
    assert dict(mpl.rcParams) == settings
    assert isinstance(figure.axes[0].xaxis.get_major_formatter(), EngFormatter)
    assert [text.get_text() for text in figure.legends[0].get_texts()][1:] == ["Full fine-tuning", "FLoRA"]


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("a_b & 5%", r"a\_b \& 5\%"),
        (r" _\$x\$", r" \_\textdollar{}x\textdollar{}"),
        ("3 $ a piece", r"3 \textdollar{} a piece"),
        (r"cost $\mathdefault{10^{-2}}$ of 5_%", r"cost ${10^{-2}}$ of 5\_\%"),
        ("IA³\nβ × ü", "IA\\textsuperscript{3}\n\\ensuremath{\\beta} \\ensuremath{\\times} ü"),
        ("中", "U+4E2D"),
        ("\N{MINUS SIGN}0.5 s", r"\ensuremath{-}0.5 s"),
    ],
)
def test_texts_are_written_for_latex(text, latex):
    assert in_latex(text) == latex


@with_latex
@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("engine", ["pdflatex", "lualatex"])
def test_pgf_is_set_by_a_document_in_its_own_font_without_an_overfull_box(engine, width, tmp_path):
    if shutil.which(engine) is None:
        pytest.skip(f"needs {engine}")
    look = Look("sans", width)
    results = labelled(
        make_results(methods=("zero_shot", "flora", "peft:ia3", ODD), splits=("iid", "dirichlet"), rounds=2)
    )
    drawn = [
        figures.accuracy_over_bytes(results[1], look=look),
        figures.accuracy_over_seconds(results[1], look=look),
        figures.few_shot_curves(results[0].assign(shots=results[0]["shots"].fillna(1)), look=look),
        figures.time_bars(results[0], look=look),
        figures.memory_bars(results[0], look=look),
        odd_ticks(look),
    ]
    for index, figure in enumerate(drawn):
        figures.save(figure, tmp_path / str(index), ["pgf"], look, SHA)
    inputs = "\n".join(rf"\noindent\input{{{index}.pgf}}\par" for index in range(len(drawn)))
    (tmp_path / "paper.tex").write_text(
        rf"""\documentclass{{article}}
\usepackage{{mathptmx,amssymb,pgf}}
\usepackage[textwidth={look.column if width == "column" else look.page}in,textheight=9.5in]{{geometry}}
\begin{{document}}
{inputs}
\end{{document}}
""",
        "utf-8",
    )
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "paper.log").read_text("utf-8", "replace")
    assert not re.search(r"Overfull \\hbox|Missing character", log)
    assert "DejaVu" not in log


def odd_ticks(look):
    """Tick labels that only a formatter knows, an offset, and a label of mathematics."""
    with look.drawing():
        figure = Figure((look.column, 2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 3e9], [1e-9, 2e-9])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0e} & 5_%"))
        axes.set_xticks([0, 1.5e9])
        axes.set_xlabel(r"$\alpha_1$ & 5 % of \$3")
        axes.text(1e9, 1e-9, "#1\n~{}", rotation=30)
    return figure


@with_latex
def test_a_text_that_latex_cannot_set_is_bad_input(tmp_path):
    figure = Figure()
    figure.text(0.5, 0.5, r"$\undefinedcommand$", parse_math=False)
    with pytest.raises(BadInput, match="format pgf: Undefined control sequence"):
        figures.save(figure, tmp_path / "a", ["pgf"])
    assert not list(tmp_path.iterdir())
    # and the next figure is set as if nothing had happened
    assert figures.save(figures.memory_bars(make_runs(make_run())), tmp_path / "b", ["pgf"])
