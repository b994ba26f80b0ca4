"""Tasks: their content, their determinism, the folder layouts and every refusal."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from bench.tasks import describe_tasks, load_task, task_names
from bench.tasks.base import ArrayImages, FileImages, LabelledImages, Task, draw_evenly, stratified_split
from flora.errors import BadInput


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


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(0, 3))
def test_a_stratified_split_parts_every_stratum(strata: list[int], seed: int) -> None:
    every = np.array(strata)
    train, test = stratified_split(every, 0.2, seed)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(strata)))
    in_test = Counter(every[test].tolist())
    for stratum, count in Counter(strata).items():
        assert in_test[stratum] == (0 if count == 1 else max(1, round(0.2 * count)))


# --- the registry ---------------------------------------------------------------------------------------


def test_every_task_is_a_module_with_a_one_line_description() -> None:
    described = describe_tasks()
    assert list(described) == task_names() == ["digits", "folder", "glyphs"]
    assert all(line.endswith(".") for line in described.values())


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="task 'digit' is unknown; did you mean 'digits'"):
        load_task("digit")


@pytest.mark.parametrize("spec", ["digits:", "digits:8", "glyphs:all"])
def test_an_argument_is_refused_where_none_is_taken(spec: str) -> None:
    with pytest.raises(BadInput, match="takes nothing after its name"):
        load_task(spec)


@pytest.mark.parametrize("spec", ["base", "folder", "folder:"])
def test_what_is_no_task_or_lacks_its_argument_is_refused(spec: str) -> None:
    with pytest.raises(BadInput):
        load_task(spec)


def test_tasks_load_without_torch() -> None:
    code = (
        "import sys; from bench.tasks import load_task; load_task('glyphs'); sys.exit('torch' in sys.modules)"
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


def test_a_broken_image_is_named_at_loading(tmp_path: Path) -> None:
    paint_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "b" / "1.png").write_bytes(b"no image at all")
    assert str(tmp_path / "b" / "1.png") in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_image_is_named_at_loading(tmp_path: Path, suffix: str) -> None:
    paint_classes(tmp_path, {"a": 3, "b": 3}, suffix)
    cut = tmp_path / "a" / f"2{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    assert f"image {cut} cannot be read" in refusal(tmp_path)


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
