"""The page as text: what is in it, that all of it is escaped, and the report around it."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.report import build
from bench.report.build import make_report, write_report
from bench.report.data import assemble
from bench.report.names import label_runs
from bench.report.overview import notes, overview
from bench.report.page import render_page
from bench.report.page_data import DARK, LIGHT, MOST_COUNTS, as_json, contrast, page_data
from bench.report.paper import Paper
from bench.report.statistics import t_factor
from bench.report.styles import STYLES
from flora.errors import BadInput
from tests.bench.report.made import both_ways, make_results, make_rounds, make_run, make_runs
from tests.bench.report.stored import CLASSES, data_of, settled, stored_of

HOSTILE = 'a_b<script>alert("x")</script>'
TABLES_ALONE = Paper(figures=())


class Reader(HTMLParser):
    """Collects tags with their attributes, the text, and what is within a script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.scripts, self.inside = [], "", [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data


def written(data, paper=TABLES_ALONE):
    return render_page(make_report(data, paper), data)


def decoded(coded):
    """The value of each run."""
    return [coded["values"][place] if place >= 0 else None for place in coded["of"]]


def grown(steps):
    """Numbers from how much each exceeds the one before."""
    differences = [step for step, times in zip(steps[::2], steps[1::2], strict=True) for _ in range(times)]
    return np.cumsum(differences).tolist()


@pytest.fixture(scope="module")
def data():
    """Runs with a hostile name, a failed one, and class names that are tags."""
    made = [settled(method=m, seed=seed, rounds=3) for m in ("zero_shot", "flora") for seed in (0, 1)]
    kept = {run["config_hash"]: stored_of(run, config) for run, config in made}
    runs = [*(run for run, _ in made), *(make_run(HOSTILE, seed=seed, rounds=2) for seed in (0, 1))]
    failed = make_run(seed=9, status="failed", accuracy=np.nan, total_seconds=np.nan)
    return data_of(runs, kept, [failed])


@pytest.fixture(scope="module")
def html(data):
    return written(data)


def test_page_asks_for_nothing_elsewhere(html):
    without_names = html.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", without_names)
    tags = Reader(html).tags
    addresses = [v for _, attrs in tags for key, v in attrs.items() if key in {"src", "href", "srcset"}]
    assert all(address.startswith("#") for address in addresses)
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in tags}
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_page_escapes_names_but_holds_them(html, data):
    reader = Reader(html)
    assert html.count("<script") == 2
    assert HOSTILE in reader.text
    parsed = json.loads(reader.scripts[0])
    assert HOSTILE in parsed["runs"]["method"]["values"]
    assert parsed["classes"]["values"][0] == list(CLASSES)
    assert parsed == json.loads(as_json(page_data(data)))


@pytest.mark.parametrize("text", ["</script>", "<!--", "<script>", "ü\u2028", '"\\', "]]>", "&lt;"])
def test_json_in_the_page_survives_any_text(text):
    written = as_json({text: text})
    assert not re.search(r"[<>&]", written)
    assert json.loads(written) == {text: text}


def test_page_names_every_run_and_what_is_left_out(html, data):
    text = " ".join(Reader(html).text.split())
    assert "6 complete runs of 3 methods on 1 task (cifar10)" in text
    assert "status failed" in text
    assert json.loads(Reader(html).scripts[0])["runs"]["hash"] == list(data.runs["config_hash"])


def test_page_does_not_tell_where_results_lie(tmp_path):
    run, config = settled()
    run |= {"path": f"{tmp_path.as_posix()}/digits/flora/abc/run.json"}
    kept = stored_of(run, config)
    kept["config"]["data"]["root"] = "/home/someone/data"
    frame, rounds = make_runs(run), pd.DataFrame(make_rounds(run))
    data = assemble(frame, rounds, stored={run["config_hash"]: kept}, folder=tmp_path)
    html = written(data)
    assert '"digits/flora/abc/run.json"' in html
    assert tmp_path.as_posix() not in html
    assert "/home/someone" not in html


def test_page_has_headings_in_order(html):
    levels = [int(tag[1]) for tag, _ in Reader(html).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_tables_stand_folded_where_there_are_many_sections():
    few = written(data_of([make_run(rounds=1)]))
    many = written(data_of([make_run(task=task, rounds=1) for task in ("one", "two")]))
    assert '<details class="section" open>' in few
    assert '<details class="section" open>' not in many
    assert many.count('<details class="section">') == 3


def test_data_of_runs_are_those_of_the_frame(data):
    runs = page_data(data)["runs"]
    frame = data.runs
    assert decoded(runs["method"]) == list(frame["method_label"])
    assert decoded(runs["shots"]) == ["all data"] * len(frame)
    assert decoded(runs["seed"]) == list(frame["seed"])
    assert runs["figures"]["accuracy"] == list(frame["accuracy"])
    assert runs["figures"]["bytes"] == list(frame["bytes_up"] + frame["bytes_down"])
    assert runs["figures"]["train_seconds"] == pytest.approx(list(frame["train_seconds"]), rel=5e-6)
    assert "peak_gpu_memory_bytes" not in runs["figures"]  # no run had a GPU


def test_data_of_rounds_are_those_of_the_frame(data):
    rounds = page_data(data)["rounds"]
    place = {key: index for index, key in enumerate(data.runs["config_hash"])}
    frame = data.rounds.sort_values("config_hash", key=lambda keys: keys.map(place), kind="stable")
    assert rounds["count"] == [sum(frame["config_hash"] == key) for key in place]
    for name in ("round", "bytes_up", "cumulative_bytes"):
        assert grown(rounds[name]) == list(frame[name])
    assert np.array(rounds["accuracy"]) / 1e4 == pytest.approx(frame["accuracy"].to_numpy(), abs=6e-5)
    train = np.array(rounds["seconds"]["train"], dtype=float)
    assert train == pytest.approx(frame["seconds.train"].to_numpy(), rel=6e-3)
    assert rounds["seconds"]["other"] == pytest.approx(frame["seconds.count"].to_numpy(), rel=6e-3)
    assert rounds["loss"].count(None) == len(place)


def test_what_runs_stored_is_kept_by_field(data):
    kept = page_data(data)
    assert decoded(kept["config"]["method.name"])[:4] == ["zero_shot", "zero_shot", "flora", "flora"]
    assert decoded(kept["config"]["method.name"])[4:] == [None, None]
    assert kept["environment"]["packages.torch"] == {"values": ["2.15.0"], "of": [0, 0, 0, 0, -1, -1]}
    assert kept["environment"]["gpu"]["values"] == [None]  # a value, not an absence
    assert decoded(kept["invariants"]["losses_finite"])[:4] == [""] * 4
    division = kept["divisions"][list(kept["divisions"])[kept["division"][2]]]
    stored = data.stored[data.runs["config_hash"].iloc[2]]["split"]
    assert division == {"sizes": stored["client_sizes"], "counts": stored["class_counts"]}


def test_a_broken_invariant_is_kept_with_its_reason():
    run, config = settled()
    kept = page_data(data_of([run], {run["config_hash"]: stored_of(run, config, "a weight moved")}))
    assert decoded(kept["invariants"]["frozen_unchanged"]) == ["a weight moved"]


def test_divisions_beyond_the_room_are_kept_as_sizes():
    run, config = settled()
    stored = stored_of(run, config)
    clients, classes = 10, MOST_COUNTS // 10 + 1
    stored["split"]["class_counts"] = np.ones((clients, classes), int).tolist()
    stored["data"]["class_names"] = [str(index) for index in range(classes)]
    (division,) = page_data(data_of([run], {run["config_hash"]: stored}))["divisions"].values()
    assert division == {"sizes": [classes] * clients}


def test_data_of_bare_frames_lack_what_was_not_stored():
    kept = page_data(assemble(*make_results(methods=("flora",), splits=("iid",), shots=(pd.NA,), rounds=2)))
    assert kept["config"] == kept["divisions"] == kept["invariants"] == {}
    assert kept["division"] == [-1, -1]
    assert grown(kept["rounds"]["round"]) == [0, 1, 2, 0, 1, 2]


def test_intervals_have_the_factors_of_the_statistics(data):
    kept = page_data(data)
    assert kept["t_factors"] == [None, None, t_factor(2)]
    assert kept["fewest"] == 3


def test_an_author_s_digits_and_reference_reach_the_page(data):
    kept = page_data(data, Paper(digits={"accuracy": 2, "cost": 4}, reference="flora"))
    assert kept["digits"] == {"accuracy": 2, "cost": 4}
    assert kept["reference"] == "flora"


@pytest.mark.parametrize("method", STYLES)
def test_colours_are_the_paper_s_and_seen_on_dark(method):
    drawn = next(iter(page_data(data_of([make_run(method)]))["methods"].values()))
    assert drawn["light"] == STYLES[method].colour
    assert drawn["marker"] == STYLES[method].marker
    assert contrast(drawn["dark"], DARK) >= 3
    assert contrast(LIGHT, "#000000") == pytest.approx(21)


def test_the_style_sheet_has_the_backgrounds_that_colours_are_made_for():
    style = (Path(build.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    assert f"--page: light-dark({LIGHT}, {DARK});" in style


def test_every_file_is_there_and_links_lead_to_files(tmp_path, data):
    files = write_report(data, tmp_path / "out", Paper(figures=("rounds",), formats=("svg",)))
    out = tmp_path / "out"
    assert files[0] == out / "index.html"
    assert sorted(files) == sorted(path for path in out.rglob("*") if path.is_file())
    markdown = (out / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", markdown)
    assert len(links) == 2
    assert all((out / link).is_file() for link in links)
    assert "<script" not in markdown
    assert "a\\_b&lt;script&gt;" in markdown
    numbers = pd.read_csv(next(out.glob("tables/accuracy-*.csv")))
    assert {"mean", "half_width", "n"} <= set(numbers.columns)


def test_interrupted_report_leaves_the_old_one_whole(tmp_path, monkeypatch, data):
    (tmp_path / "index.html").write_text("old")
    (tmp_path / "mine.txt").write_text("kept")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build.page, "render_page", fail)
    with pytest.raises(KeyboardInterrupt):
        write_report(data, tmp_path, TABLES_ALONE)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "index.html": "old",
        "mine.txt": "kept",
    }


def test_report_of_no_complete_run_is_refused():
    with pytest.raises(BadInput, match="none of 1 runs is complete"):
        assemble(make_runs(make_run(status="failed")), pd.DataFrame(make_rounds(make_run())))


def test_overview_of_seeds_of_two_kinds_and_machines():
    other = make_run(seed="0-1-0-0", **{"environment.cpu": "Other"})
    runs = make_runs(make_run(), other, make_run(seed=2, shots=4))
    data = assemble(runs, pd.DataFrame(make_rounds(make_run())))
    text = overview(data)
    assert "with all data and 4 shots, seeds 0, 2 and 0-1-0-0." in text
    assert "left out" not in text
    assert any("kinds of machine" in note for note in notes(data.runs))


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


def test_curves_of_runs_both_ways_are_drawn_once():
    rows = both_ways("flora")
    rounds = pd.DataFrame([record for row in rows for record in make_rounds(row)])
    report = make_report(assemble(make_runs(*rows), rounds), Paper(figures=("rounds", "time")))
    drawn = {figure.kind: figure for figure in report.drawn}
    assert set(drawn["rounds"].points["method_label"]) == {"FLoRA"}
    assert set(drawn["time"].points["method_label"]) == {"FLoRA", "FLoRA (as deployed)"}
    assert "Runs as deployed: see the tables." in drawn["rounds"].caption
