"""The bundle: a zip of a report with every run behind it, which anybody can check and repeat."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo, is_zipfile

import yaml

from bench import store
from bench.execute import FAILURE
from bench.report import manifest as manifests
from bench.report.manifest import FIGURES, MANIFEST, TABLES, Manifest, read_manifest
from bench.report.repeat import commands, matrix_text, repeatable, versions_text
from bench.report.text import counted, escape_markdown
from flora.errors import BadInput

REPORT, RUNS = "report", "runs"
"""Folders of a bundle: the report as it was written, and the results that it is made of."""

MATRIX, PAPER, SUMS = "matrix.yaml", "paper.yaml", "SHA256SUMS"
"""Files of a bundle: its runs as a matrix, the settings of its report, and every other file's checksum."""

README, COMMANDS, VERSIONS = "README.md", "COMMANDS.md", "versions.txt"
"""Files of a bundle for its reader: what is in it, and what repeats it with which packages."""

ASKED = "\nWhat the runs were first asked for with:\n\n"
"""Heading, in `COMMANDS`, of what stands in no run."""

MOST_FILES, MOST_BYTES, MOST_BYTES_A_FILE = 200_000, 2 * 2**30, 64 * 2**20
"""What a bundle may unpack to: more than a report of 10,000 runs, less than a disk."""

_PIECE = 2**20  # as much of a file as is in memory at once

_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can hold


def write_bundle(out: Path, results: Path, bundle: Path) -> Path:
    """Pack a report with every run that it is made of; the same report and runs give the same bytes.

    Args:
        out: the report's folder, just written.
        results: the folder of its runs.
        bundle: the zip to write, whole or not at all.

    Returns:
        `bundle`.

    Raises:
        BadInput: the report or a run is not what it was when the report was written; or the file cannot be
            written there, or would be larger than `--check` unpacks.
    """
    check_bundle_path(bundle, out)
    manifest = read_manifest(out)
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        with store.replacing(bundle) as temporary, ZipFile(temporary, "w") as archive:
            sums = {}
            left = _Room(bundle)
            for name, content in _contents(manifest, out, results):
                left.take(name, len(content))
                _put(archive, name, content)
                sums[name] = hashlib.sha256(content).hexdigest()
            lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
            _put(archive, SUMS, lines.encode())
    except OSError as error:
        raise BadInput(f"--bundle: {str(bundle)!r} cannot be written ({error})") from error
    return bundle


def check_bundle_path(bundle: Path, out: Path) -> None:
    """Refuse to write a bundle over something else; to be asked before a report is made, which takes time.

    Args:
        bundle: the zip to write.
        out: the report's folder, which need not be there yet.

    Raises:
        BadInput: there is a folder, or a file that is no bundle, or the report has the place.
    """
    place, report = bundle.resolve(), out.resolve()
    if bundle.is_dir() or report.is_relative_to(place):
        raise BadInput(f"--bundle: {str(bundle)!r} is a folder; name a file, such as bundle.zip")
    below = place.relative_to(report).parts if place.is_relative_to(report) else ()
    if below and (below[0] in (FIGURES, TABLES) or below in _OF_REPORT):
        raise BadInput(f"--bundle: {str(bundle)!r} is the report's own place; name a file elsewhere")
    if bundle.exists() and not _is_bundle(bundle):
        raise BadInput(f"--bundle: {str(bundle)!r} is there and no bundle; remove it or name another file")


_OF_REPORT = tuple((name,) for name in ("index.html", "report.md", "report.tex", MANIFEST))


def _is_bundle(file: Path) -> bool:
    try:
        if not file.is_file() or not is_zipfile(file):
            return False
        with ZipFile(file) as archive:
            return {SUMS, f"{REPORT}/{MANIFEST}"} <= {*archive.namelist()}
    except (BadZipFile, OSError, NotImplementedError, UnicodeError):
        return False


class _Room:
    """Counts what a bundle unpacks to, and refuses more than any of ours has."""

    def __init__(self, bundle: Path) -> None:
        self.bundle, self.left = bundle, MOST_BYTES

    def take(self, name: str, size: int) -> None:
        if size > MOST_BYTES_A_FILE:
            most = f"{MOST_BYTES_A_FILE / 2**20:.0f} MiB"
            raise BadInput(f"{self.bundle}: {name!r} unpacks to more than {most}, the most in a bundle")
        self.left -= size
        if self.left < 0:
            most = f"{MOST_BYTES / 2**30:.0f} GiB"
            raise BadInput(f"{self.bundle}: unpacks to more than {most}, the most of a bundle")


@contextmanager
def unpacked(bundle: Path) -> Iterator[Path]:
    """Unpack a bundle of anybody's into a folder that is gone afterwards.

    Raises:
        BadInput: it is no zip, is damaged, or holds what could do harm: paths that lead elsewhere, links,
            a name twice, or more than `MOST_FILES` files, `MOST_BYTES` bytes or `MOST_BYTES_A_FILE`.
    """
    with TemporaryDirectory(prefix="flora-bench-") as folder:
        try:
            with ZipFile(bundle) as archive:
                _unpack(archive, Path(folder), bundle)
        except (BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, UnicodeError) as error:
            raise BadInput(f"{bundle}: is no whole zip ({error}); get it anew") from error
        yield Path(folder)


def read_sums(folder: Path) -> dict[str, str]:
    """Read the checksums of an unpacked bundle, by path.

    Raises:
        BadInput: there are none, or a line is none.
    """
    file = folder / SUMS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return {manifests.inside(line[66:]): _digest(line) for line in lines}
    except (OSError, ValueError) as error:
        raise BadInput(f"{SUMS}: cannot be read ({error}); get the bundle anew") from error


def _digest(line: str) -> str:
    digest = line[:64]
    if line[64:66] != "  " or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError(f"{line[:60]!r} is no checksum and path")
    return digest


def _put(archive: ZipFile, name: str, content: bytes) -> None:
    """Add a file without what would differ on another day or system."""
    entry = ZipInfo(name, _LONG_AGO)
    entry.compress_type = ZIP_DEFLATED
    entry.create_system = 3
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(entry, content)


def _contents(manifest: Manifest, out: Path, results: Path) -> Iterator[tuple[str, bytes]]:
    """Give the files of a bundle, all but the checksums."""
    for file in manifest.files:
        yield f"{REPORT}/{file.path}", _unchanged(out / file.path, file.sha256)
    beside = manifest.model_copy(update={"results": f"../{RUNS}"})
    yield f"{REPORT}/{MANIFEST}", manifests.manifest_text(beside).encode()
    stored = {}
    for run in manifest.runs:
        path = results / run.path
        yield f"{RUNS}/{run.path}", _unchanged(path, run.sha256)
        stored[run.path] = store.load_run(path)
        folder = Path(run.path).parent.as_posix()
        for name, described in sorted(store.side_files(stored[run.path]).items()):
            if name != store.WEIGHTS and path.with_name(name).exists():
                yield f"{RUNS}/{folder}/{name}", _unchanged(path.with_name(name), described["sha256"])
    for failure in manifest.failures:
        # what else is noted of a failure tells of the machine, and no report reads it
        noted = json.dumps({"reason": failure.reason}, indent=1) + "\n"
        yield f"{RUNS}/{failure.folder}/{FAILURE}", noted.encode()
    if manifest.predictions is not None:
        yield f"{RUNS}/{store.PREDICTIONS}", _unchanged(results / store.PREDICTIONS, manifest.predictions)
    again = [run["config"] for run in stored.values() if repeatable(run["config"], run["config_hash"])]
    typed = commands(results, {run.config_hash for run in manifest.runs})
    told = {
        PAPER: paper_text(manifest),
        VERSIONS: versions_text({path: run.get("environment") or {} for path, run in stored.items()}),
        README: readme_text(manifest),
        COMMANDS: commands_text(manifest, typed, len(again)),
        **({MATRIX: matrix_text(again)} if again else {}),
    }
    for name, text in told.items():
        yield name, text.encode()


def paper_text(manifest: Manifest) -> str:
    """Write how the report is set, as `--paper` reads it."""
    return yaml.safe_dump(manifest.paper, sort_keys=False, allow_unicode=True)


def readme_text(manifest: Manifest) -> str:
    """Write what is in the bundle, and how to check it."""
    used = sum(run.status == "complete" for run in manifest.runs)
    tables, figures = counted(len(manifest.tables), "table"), counted(len(manifest.figures), "figure")
    return f"""\
# {escape_markdown(manifest.paper.get("title", "A report"))}

{tables} and {figures}, made with flora-bench {manifest.suite}, and the {counted(used, "run")} behind them.

| | |
|---|---|
| `report/index.html` | the report as a page; opens without a network |
| `report/tables/`, `report/figures/` | tables and figures for a paper, each with its numbers as CSV |
| `report/report.json` | what the report was made of: checksums, settings, versions |
| `runs/` | every run: configuration, results, environment, and as CSV its ledger, clients and rounds |
| `matrix.yaml`, `COMMANDS.md` | what repeats the runs and the report |
| `paper.yaml` | how the report is set |
| `versions.txt` | the packages that the runs recorded |
| `SHA256SUMS` | every file's checksum |

Trained weights are not here; each `run.json` has the checksum of its own.

To see that no file was changed, in this folder:

    sha256sum -c SHA256SUMS

To see that every number in the tables and figures follows from the runs:

    flora-bench report --check BUNDLE.zip

That makes the report again, of `runs/` alone, and compares. It takes this folder as well as the zip.
"""


def commands_text(manifest: Manifest, typed: Sequence[str], again: int) -> str:
    """Write what repeats runs and report.

    Args:
        manifest: of the report.
        typed: the commands that its runs were first asked for with; they come last.
        again: how many of its runs the matrix asks for.
    """
    which = "All runs"
    if again < len(manifest.runs):
        which = f"{again:,} of {len(manifest.runs):,} runs; the others are of another version of flora-bench"
    asked = "".join(f"    {command}\n" for command in typed)
    first = f"{ASKED}{asked}" if asked else ""
    return f"""\
# Commands that repeat this report

The packages that the runs recorded, in a checkout of flora-bench {manifest.suite}:

    pip install . -c versions.txt

{which}:

    flora-bench run matrix.yaml --results again

Where data sets lie in a folder of their own, add `--set data.root=FOLDER`. On a machine like the one that the
runs name, accuracies, losses and bytes come out the same; times do not.

The report of these runs, that of the new ones, and both side by side:

    flora-bench report runs --paper paper.yaml --out report-of-these
    flora-bench report again --paper paper.yaml --out report-of-new
    flora-bench report runs --beside again --out both
{first}"""


def _unchanged(path: Path, sha256: str) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BadInput(f"{path}: is not what the report was made with; make the report again")
    return content


def _unpack(archive: ZipFile, folder: Path, bundle: Path) -> None:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    if len(entries) > MOST_FILES:
        raise BadInput(f"{bundle}: holds {len(entries):,} files, a bundle at most {MOST_FILES:,}")
    names = [_harmless(entry, bundle) for entry in entries]
    room = _Room(bundle)
    seen = set()
    for name, entry in zip(names, entries, strict=True):
        room.take(name, entry.file_size)
        # on many systems names that differ in case, or in how letters are put together, are one file
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            raise BadInput(f"{bundle}: holds {name!r} twice; no bundle of ours does")
        seen.add(folded)
    for name, entry in zip(names, entries, strict=True):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as packed, file.open("wb") as content:
            shutil.copyfileobj(packed, content, _PIECE)  # which ends where the entry says that it does


def _harmless(entry: ZipInfo, bundle: Path) -> str:
    try:
        name = manifests.inside(entry.filename)
    except ValueError as error:
        raise BadInput(f"{bundle}: {entry.filename!r} {error}; no bundle of ours has such a path") from None
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise BadInput(f"{bundle}: {name!r} is a link or no file; no bundle of ours holds such")
    if entry.flag_bits & 1 or entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise BadInput(f"{bundle}: {name!r} is encrypted or packed in an unusual way; no bundle of ours is")
    return name
