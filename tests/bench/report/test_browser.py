"""The page as a reader meets it: in a real browser, without a window and without a network."""

from __future__ import annotations

import math
import re
import shutil
import sys
import time
from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest

from bench.matrix import Matrix
from bench.report.build import Part, Report, Section
from bench.report.data import Failure
from bench.report.overview import run_table
from bench.report.page import render_page
from bench.report.statistics import mean_interval
from bench.report.styles import styles_of
from bench.report.tables import accuracy_table, cells_of, cost_frame, cost_table
from bench.report.text import bytes_text, digits, operations_text
from bench.report.trust import doubts_table
from tests.bench.report.made import make_run
from tests.bench.report.stored import CLASSES, data_of, settled, stored_of

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
HOSTILE = '<img src=x onerror="window.fired=1">'
METHODS = ("zero_shot", "full_finetune", "flora", "linear_probe")


def written(folder, data, sections=()):
    """The page of some data, as a file's address; made without the report's figures, which it has not."""
    words = "Title", "Overview.", ["A note."]
    report = Report(*words, sections, doubts_table(data.runs), run_table(data), styles_of(data.runs))
    file = folder / "index.html"
    file.write_text(render_page(report, data), encoding="utf-8")
    return file.as_uri()


def sections_of(data):
    """A section a task, of its tables of accuracy and costs."""
    for task, runs in data.runs.groupby("task"):
        first, *others = map(cost_table, cells_of(runs))
        parts = [Part("Accuracy", [accuracy_table(runs)]), Part("Cost", [first], folded=others)]
        yield Section(str(task), parts)


@pytest.fixture(scope="module")
def data():
    """Two tasks, two splits, two numbers of shots, three seeds; a hostile name and a broken invariant."""
    cells = product(METHODS, ("iid", "dirichlet"), (pd.NA, 4, 8), (0, 1, 2))
    made = [settled(method=m, split=s, shots=n, seed=seed, rounds=4) for m, s, n, seed in cells]
    runs = [run for run, _ in made]
    broken = "frozen unchanged: a weight moved"
    runs[-1] |= {"broken": broken, "load.busy": True, "load.others_busy_share": 0.3}
    kept = {run["config_hash"]: stored_of(run, config) for run, config in made}
    kept[runs[-1]["config_hash"]] = stored_of(runs[-1], made[-1][1], broken="a weight moved")
    runs += [make_run(m, task=HOSTILE, seed=seed, rounds=4) for m in ("flora", "x\"'<b>") for seed in (0, 1)]
    failed = make_run(seed=9, status="failed", accuracy=np.nan)
    return data_of(runs, kept, [failed], [Failure("digits/flora/abc", "OSError: disk full")])


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory, data):
    return written(tmp_path_factory.mktemp("page"), data, list(sections_of(data)))


@pytest.fixture
def opened(browser, address):
    """Opens the page at a view; what the browser complains of and asks for is noted in it."""
    contexts = []

    def open_at(view="", **options):
        context = browser.new_context(**{"viewport": DESK, **options})
        context.set_default_timeout(5000)
        contexts.append(context)
        page = context.new_page()
        page.complaints, page.requests = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(f"{address}{view}")
        return page

    yield open_at
    for context in contexts:
        context.close()


def rows_of(page, table):
    """The texts of a table's body."""
    return page.eval_on_selector_all(
        f"{table} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def heads_of(page, table):
    return [text.strip() for text in page.locator(f"{table} thead th").all_text_contents()]


def column_of(page, table, heading):
    at = heads_of(page, table).index(heading)
    return [row[at] for row in rows_of(page, table)]


def box(page, name):
    """The checkbox of a value in the filter."""
    return page.locator("#fields label").filter(has=page.get_by_text(name, exact=True)).locator("input")


def shown(page):
    return page.text_content("#shown")


def test_it_loads_without_a_complaint_and_asks_for_nothing_but_itself(opened, address):
    page = opened()
    page.select_option("#curves select", "bytes")
    page.locator("button.run").first.click()
    assert page.complaints == []
    assert page.requests == [address]
    assert page.evaluate("window.fired") is None


def test_it_lists_every_run_and_names_those_left_out(opened, data):
    page = opened()
    assert shown(page) == f"{len(data.runs)} of {len(data.runs)} runs shown"
    assert len(rows_of(page, "#run-table")) == 50
    assert page.text_content("#page") == f"1 to 50 of {len(data.runs)}"
    page.click("#after")
    assert page.text_content("#page") == f"51 to {len(data.runs)} of {len(data.runs)}"
    left = page.text_content("main")
    assert "status failed" in left
    assert "digits/flora/abc: OSError: disk full" in left


def test_hostile_names_are_shown_as_they_are(opened):
    page = opened()
    assert box(page, HOSTILE).count() == 1
    page.fill("#search", "x\"'<b>")
    playwright.expect(page.locator("#shown")).to_contain_text("2 of")
    assert "x\"'<b>" in column_of(page, "#method-table", "Method")
    assert page.locator("#run-table b, #run-table img, #fields img").count() == 0


def test_the_filter_shows_what_pandas_chooses(opened, data):
    page, runs = opened(), data.runs
    box(page, "Linear probe").uncheck()
    page.get_by_label("Shots: none").click()
    box(page, "4 shots").check()
    wanted = runs[(runs["method"] != "linear_probe") & (runs["shots"] == 4)]
    assert shown(page).startswith(f"{len(wanted)} of ")
    wanted = wanted.sort_values(["split_label", "method_label"], kind="stable")
    assert column_of(page, "#run-table", "Run") == list(wanted["config_hash"])
    # a value's count is of the runs that ticking it alone would leave
    counts = dict(zip(page.locator("#fields label > span:nth-child(2)").all_text_contents(),
                      page.locator("#fields .count").all_text_contents(), strict=True))  # fmt: skip
    assert counts["Linear probe"] == str((runs["method"].eq("linear_probe") & runs["shots"].eq(4)).sum())
    assert counts["all data"] == str((runs["shots"].isna() & runs["method"].ne("linear_probe")).sum())
    titles = page.locator("#curves .panel p").all_text_contents()
    assert titles == ["cifar10 · IID · 4 shots", "cifar10 · Dirichlet (β = 0.1) · 4 shots"]
    assert "Linear probe" not in page.text_content("#curves .key")
    page.click("#reset")
    assert shown(page).startswith(f"{len(runs)} of ")
    assert box(page, "Linear probe").is_checked()


def test_a_filter_that_nothing_matches_says_so(opened):
    page = opened("#q=nosuchrun")
    assert shown(page).startswith("No run matches")
    assert page.text_content("#curves .more") == "Nothing to draw in the runs chosen."
    assert rows_of(page, "#run-table") == []
    assert page.complaints == []


def test_columns_sort_both_ways_by_number(opened, data):
    page = opened("#split=IID&task=cifar10&shots=all+data")
    runs = data.runs.query("split == 'iid' and task == 'cifar10' and shots.isna()")
    button = page.locator("#run-table").get_by_role("button", name="Train (s)")
    for ascending, way in ((True, "ascending"), (False, "descending")):
        button.click()
        assert button.locator("..").get_attribute("aria-sort") == way
        found = column_of(page, "#run-table", "Train (s)")
        ordered = runs.sort_values("train_seconds", ascending=ascending)["train_seconds"]
        assert found == [digits(value) for value in ordered]
    assert button.evaluate("button => button === document.activeElement")
    assert page.url.endswith("runs=-train_seconds")


def test_the_table_of_methods_has_the_means_and_intervals_of_pandas(opened, data):
    page = opened("#task=cifar10")
    runs = data.runs[data.runs["task"] == "cifar10"]
    runs = runs.assign(bytes=runs["bytes_up"] + runs["bytes_down"])
    by = ["split_label", "shots", "method_label"]
    accuracy, sent = (mean_interval(runs, by, name) for name in ("accuracy", "bytes"))
    assert column_of(page, "#method-table", "Accuracy (%)") == [
        f"{100 * row.mean:.1f} ± {100 * row.half_width:.1f}" for row in _few_first(accuracy)
    ]
    assert column_of(page, "#method-table", "Sent, up + down") == [
        bytes_text(row.mean) for row in _few_first(sent)
    ]
    assert set(column_of(page, "#method-table", "Seeds")) == {"3"}


def _few_first(table):
    """In the page's order: all data before few shots."""
    ordered = table.assign(few=table["shots"].fillna(0)).sort_values(["split_label", "few", "method_label"])
    return list(ordered.itertuples())


def test_enter_in_the_search_changes_nothing(opened, address):
    page = opened(color_scheme="light")
    page.click("#theme")
    page.fill("#search", "seed 1")
    page.press("#search", "Enter")
    page.wait_for_url(re.compile("q=seed"))
    assert page.input_value("#search") == "seed 1"
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.requests == [address]


def test_what_is_typed_is_never_written_over(opened, data):
    page = opened("#q=seed+1")
    # both before the search has waited for the typing to end
    page.evaluate(
        """() => {
            const search = document.getElementById("search");
            for (const text of ["", "linear "]) {
                search.value = text;
                search.dispatchEvent(new Event("input"));
                document.querySelector("#fields input").click();
            }
        }"""
    )
    assert page.input_value("#search") == "linear "
    page.wait_for_url(re.compile("q=linear"))
    assert page.input_value("#search") == "linear "
    assert shown(page).startswith(f"{(data.runs['method'] == 'linear_probe').sum()} of ")


def test_the_focus_stays_where_the_list_ends(opened, data):
    page = opened()
    for button in ("#after", "#before"):
        page.locator(button).press("Enter")
        assert page.locator(button).get_attribute("aria-disabled") == "true"
        listed = page.text_content("#page")
        page.keyboard.press("Enter")
        assert page.text_content("#page") == listed
        assert page.evaluate("document.activeElement.id") == button[1:]


def test_a_view_is_restored_from_its_address(opened):
    first = opened()
    first.get_by_label("Method: none").click()
    box(first, "FLoRA").check()
    first.select_option("#curves select", "seconds")
    first.select_option("#bars select", "peak_memory_bytes")
    first.fill("#search", "seed 1")
    first.wait_for_url(re.compile("q=seed"))
    first.locator("#run-table").get_by_role("button", name="Accuracy").click()
    view = first.url.partition("#")[2]
    second = opened(f"#{view}")
    assert shown(second) == shown(first)
    assert rows_of(second, "#run-table") == rows_of(first, "#run-table")
    assert second.input_value("#search") == "seed 1"
    assert second.input_value("#front select") == "peak_memory_bytes"
    assert second.inner_html("#curves .panels") == first.inner_html("#curves .panels")
    second.get_by_role("link", name="Runs").click()
    assert second.url.partition("#")[2] == view


def test_a_view_of_another_report_is_read_as_far_as_it_goes(opened, data):
    page = opened("#method=Nonesuch&method=FLoRA&cost=nothing&x=years&runs=-nothing&run=0000")
    assert shown(page).startswith(f"{(data.runs['method'] == 'flora').sum()} of ")
    assert page.complaints == []


@pytest.mark.parametrize("how", ["click", "row", "keyboard"])
def test_details_open_and_close_and_the_focus_returns(opened, data, how):
    page = opened()
    run = data.runs.iloc[3]
    button = page.locator(f"button[data-run='{run['config_hash']}']")
    if how == "click":
        button.click()
    elif how == "row":
        button.locator("xpath=ancestor::tr").locator("td").nth(2).click()
    else:
        button.focus()
        page.keyboard.press("Enter")
    assert page.locator("dialog").get_attribute("open") is not None
    assert page.url.endswith(f"run={run['config_hash']}")
    page.keyboard.press("Escape")
    assert page.locator("dialog").get_attribute("open") is None
    assert button.evaluate("button => button === document.activeElement")
    assert "run=" not in page.url


def test_details_say_all_of_a_run(opened, data):
    broken = data.runs[data.runs["broken"].notna()].iloc[0]
    page = opened(f"#run={broken['config_hash']}")
    text = page.text_content("dialog")
    assert page.text_content("#details-title").startswith("Linear probe on cifar10")
    assert "✗ frozen unchanged: did not hold (a weight moved)" in text
    assert "✓ losses finite: held" in text
    assert "Other processes used the machine" in text
    for said in ("packages.torch", "2.15.0", "optimizer.lr", "node-7", "12.3 s", "Definition, method"):
        assert said in text
    assert f"{100 * broken['accuracy']:.1f} %" in text
    bubbles = page.locator("dialog svg.division circle")
    counts = data.divisions.query("fingerprint == @broken['split.fingerprint'] and samples > 0")
    assert bubbles.count() == len(counts)
    names = {title.partition(", ")[2].rpartition(":")[0] for title in bubbles.all_text_contents()}
    assert names == set(CLASSES)
    rounds = rows_of(page, "dialog [aria-label='Rounds']")
    stored = data.rounds[data.rounds["config_hash"] == broken["config_hash"]]
    assert [row[1] for row in rounds] == [f"{100 * value:.2f}" for value in stored["accuracy"].round(4)]
    assert [row[3] for row in rounds] == [digits(float(f"{v:.3g}")) for v in stored["seconds.send"]]
    ledger = rows_of(page, "dialog [aria-label='Ledger']")
    assert [row[1] for row in ledger] == [bytes_text(value) for value in stored["bytes_up"][1:]]
    assert {row[2] for row in ledger} == {"10"}


def test_the_command_of_a_run_repeats_just_that_run(opened, data, tmp_path):
    run = data.runs[data.runs["task"] == "cifar10"].iloc[5]
    page = opened(f"#run={run['config_hash']}")
    command = page.text_content(".command")
    name, text = re.match(r"cat > (\S+) <<'END'\n(.*)\nEND\n", command, re.DOTALL).groups()
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert command.endswith(f"flora-bench run {name} --results repeated")
    assert [cell.hash for cell in Matrix.read(str(tmp_path / name)).cells()] == [run["config_hash"]]


def test_a_run_that_stored_nothing_else_has_details_too(opened, data):
    run = data.runs[data.runs["task"] == HOSTILE].iloc[0]
    page = opened(f"#run={run['config_hash']}")
    assert "Not known of this run" in page.text_content("dialog")
    assert page.complaints == []


def test_figures_are_drawn_of_the_numbers_of_pandas(opened, data):
    page = opened("#task=cifar10&split=IID&shots=4+shots&x=bytes")
    rounds = data.rounds[(data.rounds["split"] == "iid") & (data.rounds["shots"] == 4)]
    rounds = rounds[(rounds["cumulative_bytes"] > 0) & (rounds["method"] != "zero_shot")]
    page.locator("#curves summary").click()
    means = mean_interval(rounds, ["method_label", "round"], "accuracy")
    at = rounds.groupby(["method_label", "round"], observed=True)["cumulative_bytes"].mean()
    found = rows_of(page, "#curves details")
    assert [row[1] for row in found] == list(means["method_label"])
    assert [row[2] for row in found] == [bytes_text(value) for value in at]
    assert [row[3] for row in found] == [
        f"{100 * row.mean:.1f} ± {100 * row.half_width:.1f}" for row in means.itertuples()
    ]


def test_ratios_of_bars_are_those_of_the_cost_table(opened, data):
    page = opened("#task=cifar10&cost=train_seconds")
    page.locator("#bars summary").click()
    frame = cost_frame(data.runs[data.runs["task"] == "cifar10"])
    frame = frame[~frame["method"].isin(["zero_shot", "full_finetune"])]
    wanted = sorted(f"{digits(ratio)}×" for ratio in frame["train_seconds_times_less"])
    assert sorted(row[3] for row in rows_of(page, "#bars details") if row[3] != "–") == wanted


def test_ratios_are_explained_where_there_are_any(opened):
    page = opened("#task=cifar10")
    assert "With ×" in page.locator("#bars .caption").inner_text()
    page.goto(page.url + "&method=FLoRA")
    assert "With ×" not in page.locator("#bars .caption").inner_text()


def test_a_table_that_is_cut_shows_it(opened):
    page = opened(viewport={"width": 900, "height": 800})
    scrolled = page.get_by_role("region", name="Table of runs")
    assert scrolled.evaluate("one => one.scrollWidth > one.clientWidth")
    before = _right_edge(page, scrolled)
    scrolled.evaluate("one => { one.scrollLeft = one.scrollWidth; }")
    assert _right_edge(page, scrolled) != before


def _right_edge(page, element):
    """The picture of a strip of an element's right edge, between two of its rows' texts."""
    box = element.bounding_box()
    at = {"x": box["x"] + box["width"] - 3, "y": box["y"] + box["height"] - 4, "width": 3, "height": 2}
    return page.screenshot(clip=at, full_page=True)


def test_curves_over_shots_end_with_all_data(opened, data):
    page = opened("#task=cifar10&split=IID&method=FLoRA")
    page.locator("#shots summary").click()
    runs = data.runs.query("task == 'cifar10' and split == 'iid' and method == 'flora'")
    means = mean_interval(runs, ["shots"], "accuracy")
    found = {row[2]: row[3] for row in rows_of(page, "#shots details")}
    assert list(found) == ["4", "8", "all"]
    for row in means.itertuples():
        key = "all" if pd.isna(row.shots) else str(row.shots)
        assert found[key] == f"{100 * row.mean:.1f} ± {100 * row.half_width:.1f}"


def test_keys_and_mouse_tell_the_numbers_of_a_mark(opened, data):
    page = opened("#task=cifar10&split=IID&shots=all+data&method=FLoRA")
    rounds = data.rounds.query("task == 'cifar10' and split == 'iid' and shots.isna() and method == 'flora'")
    mean = rounds.groupby("round")["accuracy"].mean().mul(100)
    panel = page.locator("#curves svg[role=img]")
    panel.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    told = page.text_content("#tip")
    assert told.startswith(f"FLoRA{mean[1]:.1f} ± ")
    assert "after round 1" in told
    assert "mean of 3 seeds" in told
    page.keyboard.press("End")
    assert f"{mean.iloc[-1]:.1f} ± " in page.text_content("#tip")
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    box = panel.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 15, box["y"] + 30)
    assert "after round 4" in page.text_content("#tip")
    page.locator("#run-table tbody tr").first.hover()
    assert "Peak memory: " in page.text_content("#tip")
    page.mouse.move(1, 1)
    assert page.locator("#tip").is_hidden()
    page.locator("button.run").nth(2).focus()
    assert "Peak memory: " in page.text_content("#tip")
    page.keyboard.press("Enter")
    page.locator("dialog .panel svg[role=img]").focus()
    page.keyboard.press("Home")
    assert "after round 0" in page.locator("dialog #tip").text_content()


def test_panels_beyond_a_dozen_are_counted(browser, tmp_path):
    data = data_of([make_run(task=f"task{index:02}", rounds=2) for index in range(14)])
    page = browser.new_page()
    page.goto(written(tmp_path, data))
    assert page.locator("#curves .panel").count() == 12
    assert page.text_content("#curves .more") == "12 of 14 panels are drawn; filter to see the others."
    page.close()


def test_numbers_are_written_as_in_the_tables(opened):
    page = opened()
    rng = np.random.default_rng(0)
    values = [*(10 ** rng.uniform(-5, 13, 400)), 0.9996, 999.5, 999.6, 1000, 62.25, 0.125, 2.5, 1e12]
    for name, text in (
        ("digits", digits),
        ("UNITS.bytes", bytes_text),
        ("UNITS.operations", operations_text),
    ):
        assert page.evaluate(f"values => values.map((value) => {name}(value))", values) == [
            *map(text, values)
        ]
    shares = [*rng.uniform(0, 1, 200), *(np.arange(401) / 400)]
    assert page.evaluate("values => values.map(UNITS.share)", shares) == [f"{100 * v:.1f}" for v in shares]


def test_one_run_one_round_and_no_seeds_to_compare(browser, tmp_path):
    data = data_of([make_run(rounds=1)])
    page = browser.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(written(tmp_path, data))
    assert shown(page) == "1 of 1 run shown"
    assert column_of(page, "#method-table", "Seeds") == ["1"]
    assert "±" not in page.text_content("#method-table")
    assert page.locator("#curves .band").count() == 0
    assert page.locator("#curves .panel").count() == 1
    assert complaints == []
    page.close()


@pytest.mark.parametrize(
    ("view", "scheme"),
    [("page", "light"), ("page", "dark"), ("details", "light"), ("details", "dark"), ("phone", "light")],
)
def test_accessibility_has_no_finding_that_matters(opened, data, view, scheme):
    run = data.runs.iloc[-5]["config_hash"]
    page = opened(
        f"#run={run}" if view == "details" else "#split=IID",
        color_scheme=scheme,
        viewport=PHONE if view == "phone" else DESK,
    )
    if view != "details":
        page.eval_on_selector_all("main details", "all => all.forEach(one => { one.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] != "minor"] == []


def test_headings_are_in_order(opened):
    levels = opened().eval_on_selector_all("h1, h2, h3, h4", "all => all.map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_itself_never_scrolls_sideways(opened, data, width):
    run = data.runs.iloc[0]["config_hash"]
    for view in ("", f"#run={run}"):
        page = opened(view, viewport={"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelector('#details-body').scrollWidth") <= width


def test_the_scheme_can_be_turned_over_and_print_is_light(opened):
    page = opened(color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.click("#theme")
    assert page.evaluate(background) == "rgb(22, 24, 27)"
    page.emulate_media(media="print")
    assert page.evaluate(background) == "rgb(255, 255, 255)"


def test_print_has_tables_and_figures_and_no_controls(opened, data):
    page = opened()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(rows_of(page, "#run-table")) == len(data.runs)
    for control in ("#filter", "nav", "#theme", "#curves select", "#pager"):
        assert page.locator(control).first.is_hidden()
    assert page.locator("#curves .panel > svg").first.is_visible()
    tables = page.locator("figure.table")
    assert all(table.is_visible() for table in tables.all())
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not all(table.is_visible() for table in tables.all())
    assert len(rows_of(page, "#run-table")) == 50


def test_a_thousand_runs_are_small_and_open_fast(browser, tmp_path, capsys):
    methods = (*METHODS, "attention_adapter", "bitfit", "prompt_tuning", "clip_adapter")
    cells = product(range(16), methods, ("iid", "dirichlet"), range(4))
    runs = [make_run(m, split=s, seed=seed, rounds=50, task=f"task{task:02}") for task, m, s, seed in cells]
    _, config = settled()
    kept = {run["config_hash"]: stored_of(run, config | {"task": run["task"]}) for run in runs}
    data = data_of(runs, kept)
    address = written(tmp_path, data)
    size = (tmp_path / "index.html").stat().st_size
    page = browser.new_page()
    began = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("#run-table tbody tr")
    seconds = time.perf_counter() - began
    box(page, "FLoRA").uncheck()
    began = time.perf_counter()
    box(page, "FLoRA").check()
    again = time.perf_counter() - began
    assert shown(page) == f"{len(runs):,} of {len(runs):,} runs shown"
    page.close()
    with capsys.disabled():
        told = f"{size / 1e6:.2f} MB, open in {seconds:.2f} s, filtered in {again:.2f} s"
        sys.stdout.write(f"\n{len(runs)} runs: {told}\n")
    assert len(runs) == 1024
    assert size < 3.5e6  # the tables of such a report take less than 1.5 MB
    assert math.isfinite(seconds)


def test_the_front_joins_no_method_that_zero_shot_beats(browser, tmp_path):
    accuracies = {"linear_probe": 0.5, "flora": 0.7, "full_finetune": 0.8}
    page = browser.new_page()
    page.goto(written(tmp_path, data_of([make_run(m, accuracy=a) for m, a in accuracies.items()])))
    # from FLoRA to full fine-tuning by a corner; the probe is below the zero-shot accuracy of 0.62
    assert page.get_attribute("#front path.front", "d").count("L") == 2
    page.close()
