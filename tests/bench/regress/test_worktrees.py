"""Revisions beside one another, and the environments they run in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.regress.worktrees import Repository, python_of
from flora.errors import BadInput
from tests.bench.regress.project import commit, git, make_project, write


@pytest.fixture
def project(tmp_path):
    make_project(tmp_path / "project")
    return tmp_path / "project"


def test_a_clean_working_tree_is_its_commit(project):
    found = Repository(project / "work").working_tree()
    assert (found.commit, found.dirty, found.untracked) == (git(project, "rev-parse", "HEAD"), False, [])
    assert found.time.startswith("20")


def test_changes_are_measured_as_they_are_and_nothing_is_touched(project):
    write(project, factor=7)
    (project / "added.py").write_text("x = 1\n")
    git(project, "add", "added.py")
    before = git(project, "status", "--short"), git(project, "rev-parse", "HEAD")
    repository = Repository(project)
    found = repository.working_tree()
    assert found.dirty
    with repository.checked_out([repository.revision("HEAD", "--base"), found]) as (base, head):
        assert "range(7 * n)" in (head / "work" / "__init__.py").read_text()
        assert "range(1 * n)" in (base / "work" / "__init__.py").read_text()
        assert (head / "added.py").exists()
        assert len(str(base)) == len(str(head))
    assert not base.exists()
    assert (git(project, "status", "--short"), git(project, "rev-parse", "HEAD")) == before


def test_both_sides_get_the_probes_of_one(project):
    (project / "checks" / "perf" / "old.py").write_text("")
    old = commit(project)
    (project / "checks" / "perf" / "old.py").unlink()
    (project / "checks" / "perf" / "new.py").write_text("")
    commit(project)
    repository = Repository(project)
    revisions = [repository.revision(old, "--base"), repository.revision("HEAD", "--head")]
    with repository.checked_out(revisions) as trees:
        repository.copy_probes(Path("checks/perf"), revisions[1], trees)
        for tree in trees:
            assert sorted(path.name for path in (tree / "checks/perf").glob("*.py")) == [
                "new.py",
                "test_work.py",
            ]


@pytest.mark.parametrize("place", ["work/tests/perf", "work/timed"])
def test_what_lies_around_the_probes_stays_that_of_each_revision(project, place):
    for name in (place, "work/tests"):
        (project / name).mkdir(parents=True, exist_ok=True)
    (project / "work/tests/made.py").write_text("OLD = 1\n")
    (project / place / "test_it.py").write_text("OLD = 1\n")
    old = commit(project)
    write(project, factor=5)
    (project / "work/tests/made.py").write_text("NEW = 1\n")
    (project / place / "test_it.py").write_text("NEW = 1\n")
    commit(project)
    repository = Repository(project)
    revisions = [repository.revision(old, "--base"), repository.revision("HEAD", "--head")]
    with repository.checked_out(revisions) as (base, head):
        repository.copy_probes(Path(place), revisions[1], [base, head])
        assert "range(1 * n)" in (base / "work/__init__.py").read_text()
        assert (base / place / "test_it.py").read_text() == "NEW = 1\n"
        # what tests share is one for both
        assert ("NEW" in (base / "work/tests/made.py").read_text()) is ("tests" in place)


def test_probes_are_never_written_beyond_a_link(project, tmp_path):
    (tmp_path / "kept" / "tests").mkdir(parents=True)
    (tmp_path / "kept" / "tests" / "mine").write_text("")
    (project / "part").symlink_to(tmp_path / "kept")
    old = commit(project)
    (project / "part").unlink()
    (project / "part" / "tests").mkdir(parents=True)
    (project / "part" / "tests" / "test_it.py").write_text("")
    commit(project)
    repository = Repository(project)
    revisions = [repository.revision(old, "--base"), repository.revision("HEAD", "--head")]
    with repository.checked_out(revisions) as trees:
        repository.copy_probes(Path("part/tests"), revisions[1], trees)
        assert (trees[0] / "part" / "tests" / "test_it.py").is_file()
    assert [path.name for path in (tmp_path / "kept" / "tests").iterdir()] == ["mine"]


def test_files_that_git_knows_are_told_from_others(project, tmp_path):
    (project / "new.py").write_text("")
    (tmp_path / "out.py").write_text("")
    known = project / "work" / "__init__.py"
    repository = Repository(project)
    assert repository.tracked([known, project / "new.py", tmp_path / "out.py"]) == {known}


@pytest.mark.parametrize("how", ["merge", "intent"])
def test_files_that_git_cannot_take_as_they_are_are_named(project, how):
    if how == "merge":
        git(project, "checkout", "-q", "-b", "other")
        write(project, factor=2)
        commit(project)
        git(project, "checkout", "-q", "main")
        write(project, factor=3)
        commit(project)
        with pytest.raises(subprocess.CalledProcessError):
            git(project, "merge", "other")
    else:
        (project / "new.py").write_text("")
        git(project, "add", "--intent-to-add", "new.py")
    with pytest.raises(
        BadInput, match=r"^--head: git cannot take the files as they are \(git stash: .*\); a merge"
    ):
        Repository(project).working_tree()


def test_worktrees_go_even_if_what_is_done_in_them_fails(project):
    repository = Repository(project)
    head = repository.revision("HEAD", "--head")
    with pytest.raises(RuntimeError, match="as it happens"), repository.checked_out([head]) as (tree,):
        raise RuntimeError("as it happens")
    assert not tree.exists()
    assert len(git(project, "worktree", "list").splitlines()) == 1


def test_in_a_git_hook_the_repository_named_is_meant(project, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert Repository(project).root == project.resolve()


@pytest.mark.parametrize("name", ["nowhere", "--all", "HEAD~5", ""])
def test_what_is_no_revision_is_named(project, name):
    with pytest.raises(BadInput, match=r"--base: .* is no revision of project"):
        Repository(project).revision(name, "--base")


def test_in_a_shallow_clone_it_is_said_that_more_must_be_fetched(project, tmp_path):
    write(project, factor=2)
    first = git(project, "rev-parse", "HEAD")
    commit(project)
    subprocess.run(
        ["git", "clone", "-q", "--depth", "1", f"file://{project}", str(tmp_path / "shallow")], check=True
    )
    with pytest.raises(BadInput, match="this clone is shallow: fetch more of it"):
        Repository(tmp_path / "shallow").revision(first, "--base")


def test_an_environment_is_a_folder_or_an_interpreter_and_links_stay(tmp_path):
    folder = tmp_path / "environment" / "bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(sys.executable)
    log = tmp_path / "log"
    assert python_of(None, tmp_path, "--base-env", log) == sys.executable
    assert python_of(str(folder.parent), tmp_path, "--base-env", log) == str(folder / "python")
    assert python_of(str(folder / "python"), tmp_path, "--base-env", log) == str(folder / "python")


@pytest.mark.skipif(os.name == "nt", reason="asks for the executable bit")
def test_a_file_that_is_no_program_is_no_environment(tmp_path):
    (tmp_path / "text").write_text("")
    with pytest.raises(BadInput, match=r"--head-env: .* is neither a virtual environment nor an interpreter"):
        python_of(str(tmp_path / "text"), tmp_path, "--head-env", tmp_path / "log")
