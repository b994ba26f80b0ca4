"""Tasks: their content, their determinism, their protocols, the folder layouts and every refusal."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from bench.splits import DomainSplit, make_split
from bench.tasks import describe_tasks, load_task, task_names
from bench.tasks.base import (
    ArrayImages,
    FileImages,
    JoinedImages,
    LabelledImages,
    Task,
    damages,
    draw_evenly,
    stratified_split,
)
from flora.errors import BadInput

# Photographs of four domains, for those who keep them beside the checkout.
OFFICE = Path(__file__).parents[3] / "shared" / "data" / "office-caltech10"


def paint(path: Path, shade: int = 0, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 7), shade).convert(mode).save(path)


def paint_classes(top: Path, classes: dict[str, int], suffix: str = ".png") -> None:
    for name, count in classes.items():
        for index in range(count):
            paint(top / name / f"{index}{suffix}", shade=index)


def small_task(labels: list[int], classes: int = 3) -> Task:
    pixels = np.arange(len(labels) * 4, dtype=np.uint8).reshape(-1, 2, 2)
    part = LabelledImages(ArrayImages(pixels), np.array(labels, dtype=np.int64))
    return Task("small", tuple("abc"[:classes]), "a {}.", part, part)


def counts(part: LabelledImages) -> Counter[int]:
    return Counter(part.labels.tolist())


# --- views, limits, fingerprints ------------------------------------------------------------------------


def test_a_selection_of_a_selection_gives_the_chosen_images_labels_and_domains() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1)
    whole = LabelledImages(ArrayImages(pixels), np.arange(6), np.arange(6) * 10)
    part = whole.select([5, 3, 1]).select([2, 0])
    assert [image.getpixel((0, 0)) for image in part.images] == [(1, 1, 1), (5, 5, 5)]
    assert part.labels.tolist() == [1, 5]
    assert part.domains is not None
    assert part.domains.tolist() == [10, 50]


def test_labels_must_fit_the_images() -> None:
    with pytest.raises(ValueError, match="2 images"):
        LabelledImages(ArrayImages(np.zeros((2, 1, 1), np.uint8)), np.zeros(3, np.int64))


def test_prompts_fill_the_template_in_class_order() -> None:
    assert small_task([0, 1, 2]).prompts == ["a a.", "a b.", "a c."]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 70), st.integers(0, 5))
def test_an_even_draw_takes_as_many_as_asked_and_no_class_lags_unless_it_is_exhausted(
    labels: list[int], most: int, seed: int
) -> None:
    every = np.array(labels)
    drawn = draw_evenly(every, most, np.random.default_rng(seed))
    assert len(drawn) == min(most, len(labels))
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    taken, there = Counter(every[drawn].tolist()), Counter(labels)
    for label, available in there.items():
        assert taken[label] >= min(available, max(taken.values(), default=0) - 1)


def test_limits_depend_on_the_seed_and_on_nothing_else() -> None:
    task = small_task([0, 1, 2] * 20)
    same, again, other = (task.limited(9, None, seed) for seed in (1, 1, 2))
    assert same.fingerprint == again.fingerprint != other.fingerprint
    assert counts(same.train) == {0: 3, 1: 3, 2: 3}
    assert len(same.test) == 60


def test_a_limit_beyond_the_task_changes_nothing() -> None:
    task = small_task([0, 1, 2, 2])
    assert task.limited(100, None, 0).fingerprint == task.fingerprint


@pytest.mark.parametrize(("limits", "field"), [((2, None), "max_train"), ((None, 0), "max_test")])
def test_a_limit_below_one_image_a_class_is_refused(
    limits: tuple[int | None, int | None], field: str
) -> None:
    with pytest.raises(BadInput, match=f"data.{field} .* 3 or more"):
        small_task([0, 1, 2, 2]).limited(*limits, 0)


def test_a_fingerprint_sees_one_pixel_one_label_one_domain_and_every_name() -> None:
    pixels, labels = np.zeros((2, 1, 1), np.uint8), np.array([0, 1])
    changed_pixels = pixels.copy()
    changed_pixels[1] = 1

    def fingerprint(
        pixels: np.ndarray = pixels,
        labels: np.ndarray = labels,
        domains: np.ndarray | None = None,
        template: str = "{}",
        name: str = "a",
    ) -> str:
        part = LabelledImages(ArrayImages(pixels), labels, domains)
        return Task("t", (name, "b"), template, part, part).fingerprint

    variants = [
        fingerprint(),
        fingerprint(pixels=changed_pixels),
        fingerprint(labels=labels[::-1].copy()),
        fingerprint(domains=labels),
        fingerprint(template="x {}"),
        fingerprint(name="c"),
    ]
    assert len(set(variants)) == len(variants)
    assert fingerprint() == variants[0]


def test_a_fingerprint_takes_in_the_task_but_not_how_its_argument_was_typed(tmp_path: Path) -> None:
    paint_classes(tmp_path / "pets", {"cat": 3, "dog": 3})
    specs = (f"folder:{tmp_path / 'pets'}", f"folder:{tmp_path}/./pets/", "folder:pets")
    assert len({load_task(spec, root=str(tmp_path)).fingerprint for spec in specs}) == 1
    task = small_task([0, 1, 2])
    assert replace(task, name="other").fingerprint != task.fingerprint


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(0, 3))
def test_a_stratified_split_parts_every_stratum(strata: list[int], seed: int) -> None:
    every = np.array(strata)
    train, test = stratified_split(every, 0.2, seed)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(strata)))
    in_test = Counter(every[test].tolist())
    for stratum, count in Counter(strata).items():
        assert in_test[stratum] == (0 if count == 1 else max(1, round(0.2 * count)))


# --- names and labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        ("abc", [0, 3], "task t has 4 labels but 3 class names; give one name a label"),
        ("abc", [0, -1], "task t has the label -1; labels count from 0"),
        ("aba", [0, 1], "task t has two classes called 'a'; give every class a name of its own"),
        ("a ", [0, 1], "task t: the name of class 1 is empty; give every class a name"),
    ],
)
def test_labels_and_class_names_that_do_not_fit_are_refused(
    names: str, labels: list[int], message: str
) -> None:
    sound = LabelledImages(ArrayImages(np.zeros((2, 1, 1), np.uint8)), np.array([0, 1]))
    part = replace(sound, labels=np.array(labels))
    for train, test in ((part, sound), (sound, part)):
        with pytest.raises(BadInput) as caught:
            Task("t", tuple(names), "{}", train, test)
        assert str(caught.value) == message


# --- protocols ------------------------------------------------------------------------------------------


def numbered_task(
    n_train: int, n_test: int, classes: int = 3, domains: int = 0, one_base: bool = False
) -> Task:
    """Image i of the training and then the test set shows the number i; classes and domains take turns."""
    numbers = np.arange(n_train + n_test)
    pixels = (numbers[:, None, None] // [1, 256] % 256).astype(np.uint8)
    domain_of = numbers // classes % domains if domains else None
    whole = LabelledImages(ArrayImages(pixels), numbers % classes, domain_of)
    if one_base:
        train, test = whole.select(numbers[:n_train]), whole.select(numbers[n_train:])
    else:
        train, test = (
            LabelledImages(
                ArrayImages(pixels[part]), numbers[part] % classes, domain_of[part] if domains else None
            )
            for part in (slice(n_train), slice(n_train, None))
        )
    names = tuple(f"class {number}" for number in range(classes))
    return Task("t", names, "{}", train, test, tuple("pqrs"[:domains]))


def numbers_of(part: LabelledImages) -> list[int]:
    return [int(np.asarray(image)[0, :, 0] @ [1, 256]) for image in part.images]


@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 5), st.booleans(), st.sampled_from([0, 2]))
@settings(max_examples=40, deadline=None)
def test_a_redrawn_task_parts_the_merged_images_four_to_one(
    n_train: int, n_test: int, seed: int, one_base: bool, domains: int
) -> None:
    task = numbered_task(n_train, n_test, domains=domains, one_base=one_base)
    drawn = task.redrawn(seed)
    assert len(drawn.test) == round(0.2 * (n_train + n_test))
    train, test = numbers_of(drawn.train), numbers_of(drawn.test)
    assert sorted(train + test) == list(range(n_train + n_test))
    for part, numbers in ((drawn.train, train), (drawn.test, test)):
        assert part.labels.tolist() == [number % 3 for number in numbers]
        if domains:
            assert part.domains is not None
            assert part.domains.tolist() == [number // 3 % 2 for number in numbers]
        else:
            assert part.domains is None


def test_a_redrawn_test_set_depends_on_the_seed_and_mixes_both_official_parts() -> None:
    task = numbered_task(200, 100)
    tests = [numbers_of(task.redrawn(seed).test) for seed in (1, 1, 2)]
    assert tests[0] == tests[1] != tests[2]
    assert 20 < sum(number < 200 for number in tests[0]) < 60


def test_a_redrawn_test_set_is_not_drawn_class_by_class() -> None:
    task = numbered_task(300, 0)
    assert len({tuple(sorted(counts(task.redrawn(seed).test).items())) for seed in range(20)}) > 5


@pytest.mark.parametrize("one_base", [False, True])
def test_leaving_a_domain_out_tests_on_all_of_it_and_trains_on_the_rest(one_base: bool) -> None:
    task = numbered_task(24, 12, domains=3, one_base=one_base)
    left = task.leaving_out("q")
    inside = [number for number in range(36) if number // 3 % 3 == 1]
    assert numbers_of(left.test) == inside
    assert numbers_of(left.train) == [number for number in range(36) if number not in inside]
    assert left.train.domains is not None
    assert set(left.train.domains.tolist()) == {0, 2}
    assert left.test.labels.tolist() == [number % 3 for number in inside]


@pytest.mark.parametrize(
    ("task", "domain", "message"),
    [
        (numbered_task(12, 6), "p", "data.test_domain: 'p' needs a task with domains, and t has none; "),
        (numbered_task(12, 6, domains=2), "x", "data.test_domain: 'x' is no domain of t; choose from p, q"),
        (numbered_task(12, 6, domains=1), "p", "data.test_domain: 'p' leaves no images for training; "),
    ],
)
def test_a_domain_that_cannot_be_left_out_is_refused(task: Task, domain: str, message: str) -> None:
    with pytest.raises(BadInput, match=f"^{message}"):
        task.leaving_out(domain)


@pytest.mark.parametrize(("classes", "base"), [(4, 2), (5, 3), (10, 5)])
def test_base_and_new_halve_the_classes_in_order_and_number_each_half_from_0(classes: int, base: int) -> None:
    task = numbered_task(40, 20, classes=classes)
    halves = task.base_and_new()
    assert [len(half.class_names) for half in halves] == [base, classes - base]
    assert halves[0].class_names + halves[1].class_names == task.class_names
    for half, start in zip(halves, (0, base), strict=True):
        for part, whole in ((half.train, range(40)), (half.test, range(40, 60))):
            expected = [n for n in whole if start <= n % classes < start + len(half.class_names)]
            assert numbers_of(part) == expected
            assert part.labels.tolist() == [n % classes - start for n in expected]


def test_fewer_than_four_classes_have_no_halves() -> None:
    with pytest.raises(BadInput, match=r"^data.base_to_new: t has 3 classes; 4 or more are needed"):
        numbered_task(9, 3).base_and_new()


def test_every_protocol_gives_a_task_of_its_own_fingerprint() -> None:
    task = numbered_task(40, 20, classes=5, domains=2)
    views = [task, task.redrawn(0), task.leaving_out("p"), task.leaving_out("q"), *task.base_and_new()]
    assert len({view.fingerprint for view in views}) == len(views)
    twice = task.redrawn(0).leaving_out("p").base_and_new()[0]
    assert twice.fingerprint == task.redrawn(0).leaving_out("p").base_and_new()[0].fingerprint


def test_joined_images_are_those_of_each_set_in_turn(tmp_path: Path) -> None:
    paint(tmp_path / "0.png", shade=7)
    (tmp_path / "1.png").write_bytes(b"")
    arrays = ArrayImages(np.arange(3, dtype=np.uint8).reshape(3, 1, 1))
    files = FileImages(tmp_path, ["0.png", "1.png"], [1, 2])
    none = ArrayImages(np.zeros((0, 1, 1), np.uint8))
    joined = JoinedImages([arrays, none, files])
    assert len(joined) == 5
    assert [joined[index].getpixel((0, 0))[0] for index in range(4)] == [0, 1, 2, 7]
    assert [joined.identity(index) for index in (2, 4)] == [arrays.identity(2), files.identity(1)]
    assert joined.damage(3) is None
    assert "1.png" in str(joined.damage(4))
    assert joined.place() is None
    assert JoinedImages([files, files]).place() == tmp_path


def test_joined_views_of_two_sets_keep_to_their_own_set() -> None:
    first, second = (
        LabelledImages(ArrayImages(np.full((4, 1, 1), shade, np.uint8)), np.arange(4)).select([1, 3])
        for shade in (5, 9)
    )
    joined = first.joined(second)
    assert [image.getpixel((0, 0))[0] for image in joined.images] == [5, 5, 9, 9]
    assert joined.labels.tolist() == [1, 3, 1, 3]


# --- the registry ---------------------------------------------------------------------------------------


def test_every_task_is_a_module_with_a_one_line_description() -> None:
    described = describe_tasks()
    assert list(described) == task_names() == sorted(described)
    assert {"digits", "features", "folder", "glyphs", "hf", "synthetic"} <= set(described)
    assert all(line.endswith(".") for line in described.values())


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="task 'digit' is unknown; did you mean 'digits'"):
        load_task("digit")


@pytest.mark.parametrize("spec", ["digits:", "digits:8", "glyphs:all"])
def test_an_argument_is_refused_where_none_is_taken(spec: str) -> None:
    with pytest.raises(BadInput, match="takes nothing after its name"):
        load_task(spec)


@pytest.mark.parametrize("spec", ["base", "folder", "folder:", "features", "hf", "hf:"])
def test_what_is_no_task_or_lacks_its_argument_is_refused(spec: str) -> None:
    with pytest.raises(BadInput):
        load_task(spec)


def test_tasks_load_without_torch() -> None:
    code = (
        "import sys; from bench.tasks import describe_tasks, load_task; describe_tasks(); load_task('glyphs')"
        "; sys.exit(str({'torch', 'datasets', 'safetensors'} & set(sys.modules) or '') or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- digits and glyphs ----------------------------------------------------------------------------------


def test_digits_are_all_there_split_by_class_and_scaled_to_white() -> None:
    task = load_task("digits")
    assert (len(task.train), len(task.test)) == (1347, 450)
    assert task.prompts[7] == "a photo of the number 7"
    image = task.train.images[0]
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert max(np.asarray(image).max() for image in task.train.images) == 255
    for label in range(10):
        in_test, in_all = counts(task.test)[label], counts(task.train)[label] + counts(task.test)[label]
        assert abs(in_test - in_all / 4) <= 0.5


@pytest.mark.parametrize("there", [True, False])
def test_digits_are_those_of_scikit_learn_however_they_are_read(there, monkeypatch) -> None:
    from sklearn.datasets import load_digits

    from bench.tasks import digits

    monkeypatch.setattr(Path, "is_file", lambda _: there)
    ink, labels = digits._scanned()
    assert np.array_equal(ink, load_digits().images)
    assert np.array_equal(labels, load_digits().target)
    assert labels.dtype == np.int64


def test_digits_share_no_image_between_train_and_test_positions() -> None:
    task = load_task("digits")
    positions = [*task.train.images.indices.tolist(), *task.test.images.indices.tolist()]  # type: ignore[attr-defined]
    assert sorted(positions) == list(range(1797))


def test_glyphs_hold_every_class_in_every_style() -> None:
    task = load_task("glyphs")
    assert (len(task.train), len(task.test)) == (1440, 360)
    assert (task.prompts[7], task.prompts[20]) == (
        "a photo of the number 7.",
        "a photo of the capital letter K.",
    )
    assert len(task.domain_names) == 5
    for part, each in ((task.train, 8), (task.test, 2)):
        assert part.domains is not None
        cells = Counter(zip(part.domains.tolist(), part.labels.tolist(), strict=True))
        assert set(cells.values()) == {each}
        assert len(cells) == 5 * 36


def test_glyphs_show_ink_in_every_image() -> None:
    task = load_task("glyphs")
    assert min(np.asarray(image, dtype=float).std() for image in task.test.images) > 15


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_loading_twice_gives_the_same_task(name: str) -> None:
    assert load_task(name).fingerprint == load_task(name).fingerprint


# --- folders --------------------------------------------------------------------------------------------


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    paint_classes(tmp_path / "train", {"polar_bear": 3, "ant": 2})
    paint_classes(tmp_path / "test", {"polar_bear": 1, "ant": 1})
    task = load_task(f"folder:{tmp_path}")
    assert task.class_names == ("ant", "polar bear")
    assert task.prompts[1] == "a photo of a polar bear."
    assert (counts(task.train), counts(task.test)) == ({0: 2, 1: 3}, {0: 1, 1: 1})
    assert task.train.images[0].size == (9, 7)
    assert task.domain_names == ()


@pytest.mark.parametrize("held_out", ["val", "valid"])
def test_a_validation_folder_stands_in_for_test_only_where_there_is_none(
    tmp_path: Path, held_out: str
) -> None:
    paint_classes(tmp_path / "train", {"a": 2, "b": 2})
    paint_classes(tmp_path / held_out, {"a": 3, "b": 3})
    assert len(load_task(f"folder:{tmp_path}").test) == 6
    paint_classes(tmp_path / "test", {"a": 1, "b": 1})
    assert len(load_task(f"folder:{tmp_path}").test) == 2


def test_class_folders_are_split_four_to_one_the_same_way_each_time(tmp_path: Path) -> None:
    paint_classes(tmp_path, {"a": 10, "b": 20})
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    task = load_task(f"folder:{tmp_path}")
    assert (counts(task.train), counts(task.test)) == ({0: 8, 1: 16}, {0: 2, 1: 4})
    assert task.train.domains is None
    assert task.fingerprint == load_task(f"folder:{tmp_path}").fingerprint


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    paint_classes(tmp_path, {"train": 5, "test": 5})
    assert load_task(f"folder:{tmp_path}").class_names == ("test", "train")


def test_folders_with_the_same_classes_are_domains(tmp_path: Path) -> None:
    paint_classes(tmp_path / "web_cam", {"a": 5, "b": 10})
    paint_classes(tmp_path / "art", {"a": 10, "b": 5})
    task = load_task(f"folder:{tmp_path}")
    assert task.domain_names == ("art", "web cam")
    assert task.test.domains is not None
    cells = Counter(zip(task.test.domains.tolist(), task.test.labels.tolist(), strict=True))
    assert cells == {(0, 0): 2, (0, 1): 1, (1, 0): 1, (1, 1): 2}


def test_a_relative_path_starts_at_the_data_root(tmp_path: Path) -> None:
    paint_classes(tmp_path / "pets", {"cat": 2, "dog": 2})
    assert load_task("folder:pets", root=str(tmp_path)).class_names == ("cat", "dog")


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    prints = []
    for place in ("here", "there"):
        paint_classes(tmp_path / place / "pets", {"cat": 3, "dog": 3})
        prints.append(load_task("folder:pets", root=str(tmp_path / place)).fingerprint)
    assert prints[0] == prints[1]
    paint(tmp_path / "here" / "pets" / "cat" / "3.png")
    assert load_task("folder:pets", root=str(tmp_path / "here")).fingerprint != prints[0]


@pytest.mark.parametrize("suffix", [".bmp", ".pgm"])
@pytest.mark.parametrize("side", [1, 20, 170, 500])  # bytes: a few, below and above both ends, far above
def test_the_fingerprint_sees_new_pixels_in_a_file_of_the_same_size(
    tmp_path: Path, suffix: str, side: int
) -> None:
    paint_classes(tmp_path, {"a": 2, "b": 2}, suffix)
    pixels = np.zeros((side, side), np.uint8)
    prints = set()
    for row in {0, side - 1}:
        for shade in (1, 2):
            pixels[row, 0] = shade
            Image.fromarray(pixels).save(tmp_path / "a" / f"0{suffix}")
            prints.add(load_task(f"folder:{tmp_path}").fingerprint)
    assert len(prints) == 2 * len({0, side - 1})


def test_a_file_gone_before_the_fingerprint_is_named(tmp_path: Path) -> None:
    paint_classes(tmp_path, {"a": 2, "b": 2})
    task = load_task(f"folder:{tmp_path}")
    (tmp_path / "b" / "1.png").unlink()
    with pytest.raises(BadInput, match=r"b/1\.png cannot be read"):
        _ = task.fingerprint


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_images_of_any_mode_come_out_rgb(tmp_path: Path, mode: str) -> None:
    paint_classes(tmp_path, {"b": 2})
    for index in range(2):
        paint(tmp_path / "a" / f"{index}.PNG", mode=mode)
    task = load_task(f"folder:{tmp_path}")
    assert {image.mode for image in task.train.images} == {"RGB"}


def refusal(top: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_task(f"folder:{top}")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert "holds no images" in refusal(tmp_path)


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    paint(tmp_path / "0.png")
    assert "two or more" in refusal(tmp_path)


@pytest.mark.parametrize("layout", ["", "train", "art"])
def test_a_single_class_is_refused(tmp_path: Path, layout: str) -> None:
    paint_classes(tmp_path / layout, {"a": 4})
    if layout == "train":
        paint_classes(tmp_path / "test", {"a": 4})
    assert "only the class a" in refusal(tmp_path)


def test_one_image_a_class_is_refused_where_a_split_is_to_be_made(tmp_path: Path) -> None:
    paint_classes(tmp_path, {"a": 1, "b": 1})
    assert "one image a class" in refusal(tmp_path)


def test_a_train_folder_without_a_test_folder_is_refused(tmp_path: Path) -> None:
    paint_classes(tmp_path / "train", {"a": 2, "b": 2})
    assert "test, val, valid" in refusal(tmp_path)


@pytest.mark.parametrize(("train", "test"), [("ab", "abz"), ("abz", "ab")])
def test_differing_classes_of_train_and_test_are_refused_by_name(
    tmp_path: Path, train: str, test: str
) -> None:
    paint_classes(tmp_path / "train", dict.fromkeys(train, 2))
    paint_classes(tmp_path / "test", dict.fromkeys(test, 2))
    assert "only in one: z" in refusal(tmp_path)


def test_differing_classes_of_domains_are_refused_by_name(tmp_path: Path) -> None:
    paint_classes(tmp_path / "art", {"a": 2, "b": 2, "z": 2})
    paint_classes(tmp_path / "web", {"a": 2, "b": 2})
    assert "web has no images of z" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("top", "empty"), [("", "c"), ("train", "train/c"), ("art", "art/c"), ("art/a", "b"), ("", "a/deeper")]
)
def test_a_folder_without_images_beside_folders_with_images_is_refused(
    tmp_path: Path, top: str, empty: str
) -> None:
    paint_classes(tmp_path / top, {"a": 4, "b": 4})
    if top == "train":
        paint_classes(tmp_path / "test", {"a": 4, "b": 4})
    (tmp_path / empty).mkdir()
    (tmp_path / empty / "notes.txt").write_text("x")
    (tmp_path / ".git").mkdir()
    if empty == "a/deeper":  # it hides no image
        assert len(load_task(f"folder:{tmp_path}").train) == 6
        return
    assert f": {empty} holds no images, but its neighbours are " in refusal(tmp_path)


def test_an_empty_domain_is_refused(tmp_path: Path) -> None:
    for domain in ("art", "web"):
        paint_classes(tmp_path / domain, {"a": 4, "b": 4})
    (tmp_path / "photo").mkdir()
    assert ": photo holds no images, but its neighbours are domains; remove it" in refusal(tmp_path)


@pytest.mark.parametrize("top", ["", "train/", "art/"])
def test_images_below_the_level_of_the_classes_are_refused(tmp_path: Path, top: str) -> None:
    paint_classes(tmp_path / top, {"a": 4, "b": 4})
    if top == "train/":
        paint_classes(tmp_path / "test", {"a": 4, "b": 4})
    paint(tmp_path / top / "b" / "more" / "0.png")
    assert f": {top}b holds images in folders of its own, but stands among the" in refusal(tmp_path)


def test_a_domain_beside_folders_that_hold_images_is_refused(tmp_path: Path) -> None:
    paint_classes(tmp_path, {"a": 4, "b": 4})
    paint_classes(tmp_path / "web", {"a": 4, "b": 4})
    assert ": web holds images in folders of its own, but stands among the classes (a, b)" in refusal(
        tmp_path
    )


def test_folders_of_one_name_are_both_named(tmp_path: Path) -> None:
    paint_classes(tmp_path, {"a_b": 2, "a b": 2})
    assert "the folders 'a b' and 'a_b' both give the name 'a b'; rename or merge them" in refusal(tmp_path)


def test_names_come_without_needless_blanks(tmp_path: Path) -> None:
    paint_classes(tmp_path, {"_x_": 2, "y__ z": 2})
    assert load_task(f"folder:{tmp_path}").prompts == ["a photo of a x.", "a photo of a y z."]


# --- damaged images -------------------------------------------------------------------------------------


def cut_short(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("spoil", [cut_short, lambda path: path.write_bytes(b"no image at all")])
def test_verifying_names_a_damaged_image_amid_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object], suffix: str
) -> None:
    monkeypatch.setattr("bench.tasks.base.CHECKED_AT_ONCE", 3)
    paint_classes(tmp_path, {"a": 20, "b": 20}, suffix)
    task = load_task(f"folder:{tmp_path}")
    assert task.verified() is task
    spoil(tmp_path / "a" / f"11{suffix}")
    with pytest.raises(BadInput) as caught:
        load_task(f"folder:{tmp_path}").verified()
    assert str(caught.value).startswith(f"image {tmp_path / 'a' / f'11{suffix}'} cannot be read (")
    assert "\n" not in str(caught.value)


def test_verifying_looks_at_test_images_too_and_only_at_those_in_use(tmp_path: Path) -> None:
    for split in ("train", "test"):
        paint_classes(tmp_path / split, {"a": 3, "b": 3})
    cut_short(tmp_path / "test" / "b" / "1.png")
    task = load_task(f"folder:{tmp_path}")
    with pytest.raises(BadInput, match=r"test/b/1\.png cannot be read"):
        task.verified()
    replace(task, test=task.test.select([0, 1, 2, 3])).verified()


def test_what_is_wrong_is_told_in_the_order_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(ArrayImages):
        def damage(self, index: int) -> str | None:
            return f"{index} is odd" if index % 2 else None

    monkeypatch.setattr("bench.tasks.base.CHECKED_AT_ONCE", 7)
    images = Odd(np.zeros((50, 1, 1), np.uint8))
    assert list(damages(images)) == [f"{index} is odd" if index % 2 else None for index in range(50)]
    twice = LabelledImages(images, np.arange(50)).select(np.arange(50)[::-1])
    assert next(damages(twice.joined(twice).images)) == "49 is odd"


def test_without_damaged_images_the_rest_stays_as_it_was(tmp_path: Path) -> None:
    for split in ("train", "test"):
        paint_classes(tmp_path / split, {"a": 4, "b": 4})
    whole = load_task(f"folder:{tmp_path}")
    assert whole.without_damaged() == (whole, 0)
    for damaged in ("train/a/2.png", "train/b/0.png", "test/b/3.png"):
        cut_short(tmp_path / damaged)
    task, dropped = load_task(f"folder:{tmp_path}").without_damaged()
    assert dropped == 3
    assert (counts(task.train), counts(task.test)) == ({0: 3, 1: 3}, {0: 4, 1: 3})
    shades = [image.getpixel((0, 0))[0] for image in task.train.images]
    assert shades == [0, 1, 3, 1, 2, 3]
    task.verified()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", "data.on_corrupt: skip leaves no training image of 'b'"),
        ("test", "data.on_corrupt: skip leaves no test image"),
    ],
)
def test_a_class_or_a_test_set_that_is_all_damaged_is_refused(
    tmp_path: Path, split: str, message: str
) -> None:
    for part in ("train", "test"):
        paint_classes(tmp_path / part, {"a": 2, "b": 2})
    for path in (tmp_path / split).rglob("b/*" if split == "train" else "*.png"):
        path.write_bytes(b"")
    with pytest.raises(BadInput, match=message):
        load_task(f"folder:{tmp_path}").without_damaged()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".gif", ".bmp", ".webp"])
def test_whichever_byte_is_flipped_the_file_is_decoded_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # a flipped width shall not take seconds
    stream = np.random.default_rng(0)
    path = tmp_path / f"0{suffix}"
    Image.fromarray(stream.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    sound = path.read_bytes()
    images = FileImages(tmp_path, [path.name], [len(sound)])
    said = []
    for place in range(len(sound)):
        for flipped in (0, 5, 255, int(stream.integers(256))):  # 5 turns a number of a TIFF into a fraction
            path.write_bytes(sound[:place] + bytes([flipped]) + sound[place + 1 :])
            said.append(images.damage(0))
    assert any(said)
    assert all(line is None or line.startswith(f"image {path} cannot be read (") for line in said)


@pytest.mark.parametrize(
    "error", [TypeError, struct.error, IndexError, KeyError, EOFError, zlib.error, OverflowError]
)
def test_whatever_pillow_raises_the_file_is_named_or_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    for part in ("train", "test"):
        paint_classes(tmp_path / part, {"a": 2, "b": 2})
    damaged, sound_open = tmp_path / "train" / "b" / "1.png", Image.open

    def opened(path: Path) -> Image.Image:
        if path == damaged:
            raise error
        return sound_open(path)

    monkeypatch.setattr(Image, "open", opened)
    task = load_task(f"folder:{tmp_path}")
    for ask in (task.verified, lambda: task.train.images[3]):
        with pytest.raises(BadInput, match=f"^image {damaged} cannot be read \\({error.__name__}\\)"):
            ask()
    assert task.without_damaged()[1] == 1


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_greys_of_sixteen_bits_are_scaled_and_not_clipped_to_white(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 128, 200, 257, 30000, 40000, 65535]])
    suffix = ".png" if mode == "I;16" else ".tif"
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.fromarray(values.astype(np.int32 if mode == "I" else order))
    assert image.mode == mode
    image.save(tmp_path / f"0{suffix}")
    shown = np.asarray(FileImages(tmp_path, [f"0{suffix}"], [1])[0])[0, :, 0]
    assert shown.tolist() == np.rint(values[0] / 257).astype(int).tolist()


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    paint_classes(tmp_path, {"a": 3, "b": 3})
    link = tmp_path / "b" / "x.jpg"
    link.symlink_to(tmp_path / "gone.jpg")
    assert f"{link} cannot be read" in refusal(tmp_path)


def test_a_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint_classes(tmp_path, {"a": 3, "b": 3})
    locked, scandir = tmp_path / "b", os.scandir

    def scan(path: Path) -> object:  # taking the permission away would not stop a test run as root
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert f"{locked} cannot be read (Permission denied)" in refusal(tmp_path)


def test_names_that_are_not_utf8_are_taken(tmp_path: Path) -> None:
    try:
        paint_classes(tmp_path, {"a": 5, "caf\udce9": 5})
        paint(tmp_path / "a" / "\udcff.png")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    task = load_task(f"folder:{tmp_path}")
    assert len(task.fingerprint) == 64
    assert task.prompts[1].encode() == rb"a photo of a caf\udce9."


def test_an_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    paint_classes(tmp_path / "train", {"a": 1, "b": 1}, suffix=".jpg")
    paint_classes(tmp_path / "test", {"a": 1, "b": 1}, suffix=".jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (9, 7)).save(tmp_path / "train" / "b" / "0.jpg", exif=exif)
    task = load_task(f"folder:{tmp_path}")
    assert [image.size for image in task.train.images] == [(9, 7), (7, 9)]


def test_malformed_exif_does_not_spoil_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Image.Image) -> Image.Image:
        raise struct.error("required argument is not an integer")

    paint(tmp_path / "0.jpg")
    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    assert FileImages(tmp_path, ["0.jpg"], [1])[0].size == (9, 7)


def test_an_image_damaged_after_loading_is_named_when_it_is_decoded(tmp_path: Path) -> None:
    paint_classes(tmp_path / "train", {"a": 1, "b": 1}, suffix=".jpg")
    paint_classes(tmp_path / "test", {"a": 1, "b": 1}, suffix=".jpg")
    task = load_task(f"folder:{tmp_path}")
    cut = tmp_path / "train" / "b" / "0.jpg"
    cut.write_bytes(cut.read_bytes()[:-30])
    with pytest.raises(BadInput, match=r"0\.jpg cannot be read"):
        task.train.images[1]


@pytest.mark.skipif(not OFFICE.is_dir(), reason="the photographs are not there")
@pytest.mark.parametrize("domain", ["amazon", "caltech", "dslr", "webcam"])
def test_photographs_of_one_domain_can_be_left_out_and_the_others_mixed(domain: str) -> None:
    task = load_task(f"folder:{OFFICE}").leaving_out(domain)
    assert len(task.train) + len(task.test) == 2533
    assert len(task.test) == sum(1 for _ in (OFFICE / domain).rglob("*.jpg"))
    split = make_split(DomainSplit(domains_per_client=2), task.train.labels, 6, 0, task.train.domains)
    assert task.train.domains is not None
    assert all(len(set(task.train.domains[own])) == 2 for own in split.indices)
    assert task.train.images[0].mode == "RGB"
