"""The report as a whole, from synthetic results."""

from __future__ import annotations

import base64
import io
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bench.report import figures, page
from bench.report.names import label_runs
from bench.report.overview import notes, overview
from flora.errors import BadInput
from tests.bench.report.made import (
    both_ways,
    make_results,
    make_rounds,
    make_run,
    make_runs,
)


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with a hostile name, a failed run, and no curves over shots."""
    hostile = [make_run('a_b<script>alert("x")</script>', seed=seed, rounds=2) for seed in (0, 1)]
    failed = make_run(seed=9, status="failed", accuracy=np.nan, total_seconds=np.nan)
    runs, rounds = make_results(
        methods=("zero_shot", "flora"), splits=("iid",), shots=(pd.NA,), rounds=2, extra=[*hostile, failed]
    )
    out = tmp_path_factory.mktemp("report") / "out"
    files = page.write_report(runs, rounds, out, Path("results"))
    return (
        out,
        files,
        (out / "index.html").read_text(encoding="utf-8"),
        (out / "report.md").read_text("utf-8"),
    )


def test_page_asks_for_nothing_elsewhere(report):
    _, _, html, _ = report
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", html)
    tags = Reader(html).tags
    sources = [value for _, attrs in tags for key, value in attrs.items() if key in {"src", "href", "srcset"}]
    assert len(sources) == 4
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).width > 0
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}


def test_page_escapes_names_but_shows_them(report):
    _, _, html, markdown = report
    assert "<script" not in html
    assert 'a_b<script>alert("x")</script>' in Reader(html).text
    assert "<script" not in markdown
    assert "a\\_b&lt;script&gt;" in markdown


def test_page_counts_what_is_left_out_and_lists_every_run(report):
    _, _, html, _ = report
    text = " ".join(Reader(html).text.split())
    assert "6 complete runs of 3 methods on 1 task (cifar10)" in text
    assert "1 run (failed) is left out." in text
    assert html.count("/run.json") == 7
    assert "results/" not in html


def test_page_says_what_is_not_drawn(report):
    out, _, html, _ = report
    assert "at least two numbers of shots" in html
    assert not list(out.glob("figures/shots-*"))


def test_page_has_headings_in_order_and_alternative_texts(report):
    tags = Reader(report[2]).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all("FLoRA" in attrs["alt"] for tag, attrs in tags if tag == "img")


def test_captions_state_seeds_and_interval(report):
    text = " ".join(Reader(report[2]).text.split())
    assert (
        "Figure 1. Test accuracy by round. Mean of n = 2 seeds; for their wide intervals see the tables."
        in text
    )


def test_every_file_is_there_and_links_lead_to_files(report):
    out, files, _, markdown = report
    assert files[0] == out / "index.html"
    assert sorted(files) == sorted(path for path in out.rglob("*") if path.is_file())
    links = re.findall(r"\]\(([^)]+)\)", markdown)
    assert len(links) == 8
    assert all((out / link).is_file() for link in links)
    numbers = pd.read_csv(next(out.glob("tables/accuracy-*.csv")))
    assert {"mean", "half_width", "n", "best", "below_zero_shot"} <= set(numbers.columns)


def test_interrupted_report_leaves_the_old_one_whole(tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("old")
    (tmp_path / "mine.txt").write_text("kept")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "_image", fail)
    results = make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,), seeds=(0,), rounds=1)
    with pytest.raises(KeyboardInterrupt):
        page.write_report(*results, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "index.html": "old",
        "mine.txt": "kept",
    }


def test_report_of_no_complete_run_is_refused(tmp_path):
    runs, rounds = make_runs(make_run(status="failed")), pd.DataFrame(make_rounds(make_run()))
    with pytest.raises(BadInput, match="none of 1 runs is complete"):
        page.write_report(runs, rounds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_build_report_reads_the_store(tmp_path, monkeypatch):
    results = make_results(methods=("zero_shot",), splits=("iid",), shots=(pd.NA,), seeds=(0,))
    monkeypatch.setattr(page, "load_results", lambda folder: results[0])
    monkeypatch.setattr(page, "load_rounds", lambda folder: results[1])
    files = page.build_report(tmp_path / "results", tmp_path / "out")
    assert "no trained method has a round" in files[0].read_text(encoding="utf-8")


def test_overview_of_seeds_of_two_kinds_and_machines():
    runs = label_runs(
        make_runs(
            make_run(), make_run(seed="0-1-0-0", **{"environment.cpu": "Other"}), make_run(seed=2, shots=4)
        )
    )
    text = overview(runs, runs.iloc[:0])
    assert "with all data and 4 shots, seeds 0, 2 and 0-1-0-0." in text
    assert "left out" not in text
    assert any("kinds of machine" in note for note in notes(runs))


def test_notes_say_which_time_is_shown():
    exact, none = (label_runs(make_runs(make_run(acceleration=mode))) for mode in ("exact", "none"))
    assert any("that time stands apart" in note for note in notes(exact))
    assert not any("stands apart" in note for note in notes(none))
    assert any("all that a client without storage would" in note for note in notes(none))
    assert notes(exact)[0].startswith("Every entry is one run")


def test_notes_say_what_came_from_the_cache_and_how_many_clients_were_together():
    rows = [make_run(**{"features.from_cache": 100.0, "clients_together": 8.0}), make_run("linear_probe")]
    told = " ".join(notes(label_runs(make_runs(*rows))))
    assert "1 run of 2 read features from the cache" in told
    assert "up to 8 clients together" in told
    plain = " ".join(notes(label_runs(make_runs(make_run(**{"features.from_cache": 0.0})))))
    assert "read features" not in plain
    assert "one client after another" in plain


def test_curves_of_runs_both_ways_are_drawn_once(tmp_path, monkeypatch):
    drawn = {}

    def draw(kind):
        def noted(frame, **_):
            drawn[kind] = set(frame["method_label"])
            return Figure()

        return noted

    for kind in ("accuracy_over_rounds", "time_bars"):
        monkeypatch.setattr(figures, kind, draw(kind))
    rows = both_ways("flora")
    rounds = pd.DataFrame([record for row in rows for record in make_rounds(row)]).astype({"shots": "Int64"})
    page.write_report(make_runs(*rows), rounds, tmp_path)
    assert drawn == {"accuracy_over_rounds": {"FLoRA"}, "time_bars": {"FLoRA", "FLoRA (as deployed)"}}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Runs as deployed: see the tables." in text
    assert "10.0×" in text
