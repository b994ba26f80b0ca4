"""A small project in a git repository of its own, with probes that need nothing but pytest to start."""

import subprocess
from pathlib import Path

PACKAGE = '''"""What is timed."""

PAYLOAD = {payload}


def work(n=200):
    return sum(i * i for i in range({factor} * n))
'''
PROBES = '''"""Its probes."""

from work import PAYLOAD, work


def test_work(benchmark):
    assert benchmark(work) > 0
    benchmark.extra_info["payload_bytes"] = PAYLOAD


def test_pedantic(benchmark):
    made = []
    total = benchmark.pedantic(sum, setup=lambda: ((made.append(1) or range(3000),), {}), rounds=5)
    assert total == sum(range(3000)) and len(made) >= 2


def test_no_probe():
    raise AssertionError("is not run")
'''


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(folder: Path, message: str = "change") -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def write(folder: Path, factor: int = 1, payload: int = 100, probes: str = PROBES) -> None:
    files = {
        "work/__init__.py": PACKAGE.format(factor=factor, payload=payload),
        "checks/perf/test_work.py": probes,
        # settings that would keep probes from running, were they heeded
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "-m nothing --benchmark-skip"\n',
        ".gitignore": "__pycache__/\n",
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def make_project(folder: Path) -> str:
    """Write and commit it; give the commit."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    write(folder)
    return commit(folder, "first")
