"""A cell is all that its numbers follow from; what has changed of it is said in words."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench import code_version as versions
from bench import definition
from bench.config import RunConfig
from bench.definition import Definition, definition_of
from bench.matrix import Matrix
from flora.errors import BadInput

READ = RunConfig.read
THEN = Definition("c", "d", "", "m", "h", "x", "t")


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Have the versions taken of a copy of the code, in which a text can be replaced."""
    for package in versions.PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.npz")
        shutil.copytree(versions.ROOT / package, tmp_path / "code" / package, ignore=ignored)
    caches = (definition._harness_version, definition._method_version, definition._task_version)
    caches += (versions.imported, versions._module, versions._file)

    def forget():
        for cache in caches:
            cache.cache_clear()

    def edit(file, old, new):
        path = tmp_path / "code" / file
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        forget()

    monkeypatch.setattr(definition, "imported", lambda name: versions.imported(name, tmp_path / "code"))
    monkeypatch.setattr(
        definition, "code_version", lambda names: versions.code_version(names, tmp_path / "code")
    )
    forget()
    yield edit
    forget()


def changes(now, then, method="flora", task="digits"):
    return now.changes(then, READ({"method": method, "task": task}))


# --- which code a cell depends on ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("baselines/clip_adapter.py", "0.2", "0.3", []),
        ("bench/report/page.py", "import", "import os\nimport", []),
        ("bench/tasks/glyphs.py", "import", "import os\nimport", []),
        ("flora/lora.py", "options.alpha * rank", "options.alpha / rank", ["method flora changed"]),
        ("bench/tasks/digits.py", "TEST_SHARE = 0.25", "TEST_SHARE = 0.2", ["task digits changed"]),
        ("flora/aggregation.py", "import", "import os\nimport", ["harness changed"]),
        ("bench/measure/traffic.py", "import", "import os\nimport", ["harness changed"]),
        ("flora/aggregation.py", "class Agg", "# a comment\nclass Agg", []),
    ],
)
def test_a_cell_changes_with_its_own_code_alone(code, file, old, new, changed):
    config = READ({"method": "flora", "task": "digits"})
    before = definition_of(config)
    code(file, old, new)
    after = definition_of(config)
    assert after.changes(before, config) == changed
    assert (after.hash == before.hash) == (not changed)


def test_a_method_changes_with_what_it_imports(code):
    config = READ({"method": "peft:dora"})
    before = definition_of(config)
    code("flora/lora.py", "options.alpha * rank", "options.alpha / rank")  # whose options it shares
    assert definition_of(config).changes(before, config) == ["method peft:dora changed"]


def test_a_task_whose_retention_is_measured_counts(code):
    plain, retaining = READ({}), READ({"evaluation": {"retention": "glyphs"}})
    before = definition_of(plain), definition_of(retaining)
    code("bench/tasks/glyphs.py", "import", "import os\nimport")
    assert definition_of(plain) == before[0]
    assert definition_of(retaining).changes(before[1], retaining) == ["task digits changed"]


def test_tasks_that_share_a_module_change_with_it(code):
    def task_of(name):
        return definition._task_version(name)

    before = task_of("dtd"), task_of("digits")
    code("bench/tasks/vision_dataset.py", "import", "import os\nimport")
    assert task_of("dtd") != before[0]
    assert task_of("digits") == before[1]


# --- what a cell is of ---------------------------------------------------------------------------------


def test_of_two_folders_of_one_name_the_images_tell_cells_apart(tmp_path):
    def folder(where, grey):
        for part in ("train", "test"):
            for kind in ("cat", "dog"):
                file = tmp_path / where / "pets" / part / kind / "1.png"
                file.parent.mkdir(parents=True)
                Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(file)
        return definition_of(READ({"task": "folder:pets", "data": {"root": str(tmp_path / where)}}))

    here, there, moved = folder("here", 10), folder("there", 20), folder("moved", 10)
    assert here == moved
    assert here.config == there.config
    assert here.hash != there.hash
    assert changes(there, here, task="folder:pets") == ["images changed"]


def test_cells_of_many_seeds_look_at_images_once(monkeypatch):
    looked = []
    monkeypatch.setattr("bench.sources.sources", lambda config: looked.append(config) or dict(FOUND))
    seen = {}
    cells = Matrix(method=["flora", "zero_shot"], split=["iid", "dirichlet"], seed=list(range(5))).cells()
    assert len({definition_of(cell, seen).hash for cell in cells}) == len(looked) * len(cells) == 20
    drawn = Matrix(method=["flora", "zero_shot"], data={"max_train": 50}, seed=list(range(5))).cells()
    assert len([definition_of(cell, seen) for cell in drawn]) == 10
    assert len(looked) == 1 + 5  # of every seed other images


FOUND = {"data": "d", "suites": "", "model": "m"}


@pytest.mark.parametrize(
    "data", [{"protocol": "paper"}, {"max_train": 50}, {"max_test": 50}, {"max_per_class": 5}]
)
def test_images_that_the_seed_draws_are_its_own(data):
    first, second = (definition_of(READ({"data": data, "seed": seed})) for seed in (0, 1))
    assert first.data != second.data


def test_images_that_are_not_there_are_bad_input(tmp_path):
    with pytest.raises(BadInput, match="nowhere"):
        definition_of(READ({"task": f"folder:{tmp_path}/nowhere"}))


# --- in words, and as kept -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("data", "images changed"),
        ("suites", "images changed"),
        ("model", "weights changed"),
        ("harness", "harness changed"),
        ("method", "method flora changed"),
        ("task", "task digits changed"),
        ("config", "configuration changed"),
    ],
)
def test_each_part_that_differs_is_named(part, words):
    now = replace(THEN, **{part: "another"})
    assert changes(now, THEN) == changes(THEN, now) == [words]
    assert now.hash != THEN.hash


def test_several_changes_are_named_once_each():
    now = replace(THEN, data="1", suites="2", harness="3")
    assert changes(now, THEN) == ["images changed", "harness changed"]
    assert changes(THEN, THEN) == []


def test_a_result_from_before_versions_were_kept_says_so_and_what_else_it_knows():
    kept = Definition.read({"hash": "", "config": "c", "data": "d", "suites": "", "model": "old"})
    assert kept.hash == ""
    words = "made before code versions were kept"
    assert changes(THEN, kept) == ["weights changed", words]
    assert changes(THEN, None) == [words]


def test_a_definition_is_read_back_as_it_was_kept():
    kept = THEN.to_dict()
    assert (len(kept["hash"]), all(isinstance(value, str) for value in kept.values())) == (16, True)
    assert Definition.read(kept) == THEN


@pytest.mark.parametrize("kept", [None, {}, "text", 3, {"config": 3}, {"config": "c", "data": None}, [1]])
def test_anything_else_is_no_definition(kept):
    assert Definition.read(kept) is None
