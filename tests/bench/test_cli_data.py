"""`flora-bench data`: what it says, and that it finds damage before a run does."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from bench.tasks import rendered_sst2
from bench.tasks.features import write_features
from tests.bench.conftest import Run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a tiny Rendered SST2."""
    for part in ("train", "valid", "test"):
        for name in ("negative", "positive"):
            folder = tmp_path / "rendered-sst2" / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (9, 7), (number, 0, 0)).save(folder / f"{number}.png")
    monkeypatch.setattr(rendered_sst2.SET, "sizes", (12, 6))
    return tmp_path


def test_a_task_is_one_line_with_its_sizes_and_its_place(run_cli: Run, root: Path) -> None:
    code, out, err = run_cli("data", "rendered_sst2", "digits", "--root", str(root))
    assert code == 0
    folder = root / "rendered-sst2"
    size = sum(file.stat().st_size for file in folder.rglob("*.png")) / 10**6
    assert out.splitlines() == [
        f"rendered_sst2: 12 train, 6 test, 2 classes, {size:.1f} MB in {folder}",
        "digits: 1,347 train, 450 test, 10 classes",
    ]
    assert err.splitlines() == ["rendered_sst2: checking 18 images", "digits: checking 1,797 images"]


def test_json_holds_the_same(run_cli: Run, root: Path) -> None:
    code, out, _ = run_cli("data", "rendered_sst2", "digits", "--root", str(root), "--json")
    assert code == 0
    first, second = json.loads(out)
    assert first["bytes"] == sum(file.stat().st_size for file in root.rglob("*.png"))
    assert first["path"] == str(root / "rendered-sst2")
    assert second == {
        "task": "digits", "train": 1347, "test": 450, "classes": 10, "bytes": None, "path": None,
    }  # fmt: skip


def test_the_environment_variable_names_the_root(
    run_cli: Run, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLORA_BENCH_DATA", str(root))
    code, out, _ = run_cli("data", "rendered_sst2")
    assert code == 0
    assert str(root / "rendered-sst2") in out


def test_a_folder_of_images_is_checked_too(run_cli: Run, root: Path) -> None:
    code, out, _ = run_cli("data", "folder:rendered-sst2", "--root", str(root))
    assert code == 0
    assert f"MB in {root / 'rendered-sst2'}" in out


def test_a_file_of_features_is_the_place(run_cli: Run, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {"classes": torch.ones(2, 3)}
    for part in ("train", "test"):
        tensors |= {f"{part}.features": torch.ones(2, 3), f"{part}.labels": torch.arange(2)}
    file = tmp_path / "f.safetensors"
    write_features(file, tensors, ["a", "b"])
    code, out, _ = run_cli("data", f"features:{file}", "--json")
    (found,) = json.loads(out)
    assert (code, found["path"], found["bytes"]) == (0, str(file), file.stat().st_size)


@pytest.mark.parametrize("form", ["saved", "images"])
def test_a_folder_of_a_data_set_of_hugging_face_is_the_place(
    run_cli: Run, root: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    folder = root / "rendered-sst2"
    if form == "saved":
        datasets.load_dataset(str(folder)).save_to_disk(str(root / "saved"))
        folder = root / "saved"
    code, out, _ = run_cli("data", f"hf:{folder}")
    assert code == 0
    assert out.endswith(f" MB in {folder}\n")


@pytest.mark.parametrize("count", [1, 3])
def test_damaged_images_are_named_and_counted(run_cli: Run, root: Path, count: int) -> None:
    for number in range(count):
        damaged = root / "rendered-sst2" / "test" / "positive" / f"{number}.png"
        damaged.write_bytes(damaged.read_bytes()[:40])
    code, out, err = run_cli("data", "rendered_sst2", "--root", str(root))
    assert (code, out) == (2, "")
    complaint = err.splitlines()[-1]
    first = root / "rendered-sst2" / "test" / "positive" / "0.png"
    assert complaint.startswith(f"flora-bench: image {first} cannot be read (")
    assert ("2 more are damaged" in complaint) == (count == 3)
    assert complaint.endswith(f"or fetch {root / 'rendered-sst2'} anew, or run with data.on_corrupt=skip")


def test_an_incomplete_set_is_refused(run_cli: Run, root: Path) -> None:
    (root / "rendered-sst2" / "train" / "positive" / "0.png").unlink()
    code, _, err = run_cli("data", "rendered_sst2", "--root", str(root))
    assert code == 2
    assert "holds 11 + 6 images, not 12 + 6" in err
    assert len(err.splitlines()) == 1


def test_no_network_is_one_line_that_names_the_file_and_its_place(
    run_cli: Run, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    shutil.rmtree(root / "rendered-sst2")
    code, out, err = run_cli("data", "rendered_sst2", "--root", str(root))
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert rendered_sst2.SET.urls[0] in line
    assert f"place that file in {root} " in line


@pytest.mark.parametrize(("task", "says"), [("cifar-10", "did you mean 'cifar10'"), ("base", "unknown")])
def test_an_unknown_task_is_refused(run_cli: Run, task: str, says: str) -> None:
    code, _, err = run_cli("data", task)
    assert code == 2
    assert says in err
