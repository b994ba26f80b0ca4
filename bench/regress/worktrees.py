"""Revisions checked out beside one another, and the environments they run in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.regress.interleave import log_end
from flora.errors import BadInput

# Within a git hook these point to the hook's repository, whatever folder a command names.
_GIT_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
# What is committed here belongs to no branch, and to nobody.
_NOBODY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "flora-bench"), ("EMAIL", ""))
}
_OF_TESTS = ("tests", "test", "benchmarks")
INSTALL = "install"


@dataclass(frozen=True)
class Revision:
    """A state of a repository.

    Attributes:
        commit: its hash; of a working tree with changes, of a commit made of them that no branch has.
        name: as it was asked for, or the start of its hash.
        dirty: whether it is a working tree with changes.
        time: of the commit, ISO 8601.
        untracked: files of the working tree that git does not know and that so are not in it.
    """

    commit: str
    name: str
    dirty: bool = False
    time: str = ""
    untracked: Sequence[str] = ()


class Repository:
    """A git repository, asked by its command.

    Args:
        folder: anywhere within it.

    Raises:
        BadInput: it is none, or git is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.root = Path(self.git("rev-parse", "--show-toplevel").strip())

    def git(self, *arguments: str) -> str:
        """Give what a git command prints.

        Raises:
            BadInput: it fails.
        """
        own = {name: value for name, value in os.environ.items() if name not in _GIT_ELSEWHERE}
        command = ["git", "-C", str(self.root), "--literal-pathspecs", *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env={**own, **_NOBODY}
            )
        except OSError as error:
            raise BadInput(f"git: cannot be run ({error.strerror}); install it") from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise BadInput(f"git {arguments[0]}: {reason.removeprefix('fatal: ')}")
        return done.stdout

    def revision(self, name: str, option: str) -> Revision:
        """Find a revision by whatever git takes as one.

        Raises:
            BadInput: there is none of that name.
        """
        try:
            commit = self.git(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
            ).strip()
        except BadInput:
            shallow = self.git("rev-parse", "--is-shallow-repository").strip() == "true"
            hint = "; this clone is shallow: fetch more of it" if shallow else ""
            raise BadInput(f"{option}: {name!r} is no revision of {self.root.name}{hint}") from None
        short = commit[:10]
        called = short if commit.startswith(name) else f"{name} ({short})"
        return Revision(commit, called, time=self._time(commit))

    def working_tree(self) -> Revision:
        """Give the files as they are: of the last commit, or with the changes that git has been told of."""
        head = self.revision("HEAD", "--head")
        untracked = self.git("ls-files", "--others", "--exclude-standard").splitlines()
        try:
            # a commit of all changes to known files; neither they nor the index are touched
            changed = self.git("stash", "create").strip()
        except BadInput as error:
            raise BadInput(
                f"--head: git cannot take the files as they are ({error}); a merge may be under way, or a "
                "file added with --intent-to-add: commit them, or name a revision"
            ) from error
        if not changed:
            return Revision(head.commit, head.commit[:10], time=head.time, untracked=untracked)
        name = f"{head.commit[:10]} with changes"
        return Revision(changed, name, dirty=True, time=self._time(changed), untracked=untracked)

    def tracked(self, files: Iterable[Path]) -> set[Path]:
        """Choose, of files that lie anywhere, those that git knows in the working tree."""
        inside = {file for file in files if file.is_relative_to(self.root)}
        known = self.git("ls-files", "-z").split("\0") if inside else []
        return inside & {self.root / name for name in known}

    def _time(self, commit: str) -> str:
        return self.git("show", "--no-patch", "--format=%cI", commit).strip()

    @contextmanager
    def checked_out(self, revisions: Sequence[Revision]) -> Iterator[list[Path]]:
        """Check revisions out, each in a worktree of its own that is gone afterwards."""
        folder = Path(tempfile.mkdtemp(prefix="flora-bench-ab-")).resolve()
        # names of one length: paths are in memory too
        trees = [folder / f"tree{number}" for number in range(len(revisions))]
        try:
            for tree, revision in zip(trees, revisions, strict=True):
                self.git("worktree", "add", "--detach", "--quiet", str(tree), revision.commit)
            yield trees
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self.git("worktree", "prune")

    def copy_probes(self, path: Path, revision: Revision, trees: Sequence[Path]) -> None:
        """Have every worktree hold the probes of one revision, so that both are asked the same.

        Args:
            path: of the probes, relative to the repository. The outermost folder of it that is named as one
                of tests is taken as a whole, as tests use what lies beside them; what lies around that may
                be what is measured, and stays.
            revision: whose they are.
            trees: the worktrees.
        """
        named = [place for place, part in enumerate(path.parts) if part in _OF_TESTS]
        shared = Path(*path.parts[: named[0] + 1]) if named else path
        for tree in trees:
            Repository.at(tree).git(
                "restore", "--source", revision.commit, "--staged", "--worktree", "--", shared.as_posix()
            )

    @classmethod
    def at(cls, root: Path) -> Repository:
        """Give the repository whose root is known."""
        repository = cls.__new__(cls)
        repository.root = root
        return repository


def python_of(environment: str | None, tree: Path, option: str, log: Path) -> str:
    """Find, or make, the interpreter that a revision runs with.

    Args:
        environment: a virtual environment's folder, an interpreter, "install" for a new environment that the
            revision's own project is installed in, None for this very interpreter.
        tree: where the revision is checked out.
        option: as errors call it.
        log: what an installation prints is added to.

    Raises:
        BadInput: there is none, or the revision does not install; then its log's end is told.
    """
    if environment is None:
        return sys.executable
    if environment == INSTALL:
        return _installed(tree, option, log)
    given = Path(environment).expanduser()
    for python in (given / "bin" / "python", given / "Scripts" / "python.exe", given):
        if python.is_file() and os.access(python, os.X_OK):
            return str(python.absolute())  # not resolved: a link is what makes it the environment's
    raise BadInput(
        f"{option}: {environment!r} is neither a virtual environment nor an interpreter; "
        f"give one, or {INSTALL!r} to have one made"
    )


def _installed(tree: Path, option: str, log: Path) -> str:
    folder = tree.parent / f"{tree.name}-environment"
    python = folder / "bin" / "python"
    needed = ["--editable", str(tree), "pytest"]  # so that what is compiled lies where it is imported from
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *needed],
    )
    for step in steps:
        with log.open("ab") as stream:
            code = subprocess.run(
                step, stdout=stream, stderr=subprocess.STDOUT, cwd=tree, check=False
            ).returncode
        if code:
            raise DoesNotInstall(f"{option}: the revision does not install", log)
    return str(python)


class DoesNotInstall(BadInput):
    """A revision does not install; the message is one line, the end of its log stands apart.

    Attributes:
        log: its last lines.
    """

    def __init__(self, message: str, log: Path) -> None:
        self.log = log_end(log)
        super().__init__(f"{message}: {self.log[-1] if self.log else 'no log'}")
