"""A round of two processes: what probes may do, and what becomes of those that do something else."""

import os

import psutil
import pytest

from bench.regress.interleave import (
    PROBER,
    Plan,
    ProbeProcess,
    ProbeProcessEnded,
    Side,
    log_end,
    measure_round,
)

PLACE = "parts/one/tests/test_odd ones.py"
# plugins that are not loaded, and settings that make errors of what they would have known
SETTINGS = "[pytest]\nrequired_plugins = pytest-benchmark\nfilterwarnings = error\nasyncio_mode = auto\n"
PROBES = '''"""Its probes."""

import subprocess
import sys

import numpy as np
import pytest
import metrics

sys.modules["__mp_main__"] = sys.modules["__main__"]  # as multiprocessing does


def test_neighbour(benchmark):
    assert benchmark(metrics.value) == "the revision's"


@pytest.mark.timeout(60)
def test_figures(benchmark):
    benchmark(len, "")
    benchmark.extra_info.update(whole=np.int64(5), share=np.float32(0.5), text="a")
    benchmark.extra_info.update(no={1, 2}, many=np.ones(2))


@pytest.mark.parametrize("odd", ["a b", "ü", "x::y", "a/b", "[z]", "-k", "new\\nline", "quote'\\""])
def test_names(benchmark, odd):
    benchmark(len, odd)


def test_starts(benchmark):
    # what it leaves behind holds neither pipe, and would outlive it
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    benchmark(len, "")
    benchmark.extra_info["process"] = process.pid


def test_twice(benchmark):
    benchmark(len, "")
    benchmark(len, "")


def test_later(benchmark):
    benchmark([1, 2].pop)


def test_unused(benchmark):
    pass


def test_blank(benchmark):
    pytest.fail("", pytrace=False)


@pytest.mark.xfail(reason="on two\\nlines")
def test_expected(benchmark):
    benchmark(len, 3)


def test_skipped(benchmark):
    pytest.skip("not here")


def test_ending(benchmark, request):
    request.addfinalizer(lambda: 1 / 0)
    benchmark(len, "")


def test_last(benchmark):
    benchmark(len, "")
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    files = {
        # a module of this suite has that name, too
        "metrics.py": 'def value():\n    return "the revision\'s"\n',
        "parts/one/pytest.ini": SETTINGS,
        PLACE: PROBES,
        "parts/one/tests/test_broken.py": "import no_such_module\n",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def sides(folder):
    return Side("base", folder), Side("head", folder)


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.regress.interleave.BURST_SECONDS", 0.0001)
        patch.setattr("bench.regress.interleave._LOAD_SECONDS", 0.01)
        return measure_round(*sides(folder), Plan(["parts/one/tests"], seconds=0.0), {}, 0, log)


def probe(name):
    return f"{PLACE}::{name}"


def test_a_module_of_the_revision_is_not_mistaken_for_one_of_the_suite(found, folder):
    assert not found.probes[probe("test_neighbour")].failed
    assert found.modules["head"]["metrics"] == str(folder / "metrics.py")
    assert str(PROBER) not in found.modules["head"].values()


def test_probes_are_named_by_their_path_from_the_folder_whatever_settings_lie_below(found):
    assert {name.partition("::")[0] for name in found.probes} == {PLACE}


def test_odd_names_are_measured(found):
    odd = [measured for name, measured in found.probes.items() if "test_names" in name]
    assert len(odd) == 8
    assert all(len(measured.base) == len(measured.head) == 2 for measured in odd)


def test_figures_are_numbers_and_what_json_does_not_know_is_left_out(found):
    assert found.probes[probe("test_figures")].extra["head"] == {"whole": 5, "share": 0.5, "text": "a"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test_twice", "RuntimeError: a probe may use its benchmark fixture once"),
        ("test_later", "IndexError: pop from empty list"),
        ("test_unused", "does not call benchmark"),
        ("test_blank", "Failed"),
        ("test_expected", "skipped: expected to fail"),
        ("test_skipped", "skipped: not here"),
        ("test_ending", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_probe_that_fails_says_why_in_a_line_and_the_next_is_measured(found, name, why):
    assert found.probes[probe(name)].failed["head"] == why
    assert found.probes[probe("test_last")].head


def test_a_file_that_cannot_be_imported_says_why(found):
    why = {"parts/one/tests/test_broken.py": "ModuleNotFoundError: No module named 'no_such_module'"}
    assert found.uncollected == {"base": why, "head": why}


@pytest.mark.skipif(os.name == "nt", reason="asks for process groups")
def test_what_a_probe_starts_is_gone_with_it(found):
    for extra in found.probes[probe("test_starts")].extra.values():
        try:
            left = psutil.Process(extra["process"]).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            left = False
        assert not left


def test_a_process_that_says_nothing_is_given_up_and_what_it_was_at_is_named(folder, tmp_path):
    plan = Plan(["parts/one/tests"], hang_seconds=0.0)
    with ProbeProcess(Side("head", folder), plan, tmp_path / "log") as process:
        process.doing = "test_it"
        with pytest.raises(ProbeProcessEnded, match=r"^head: .* said nothing for 0 s at test_it$"):
            process.answer("collected")


def test_of_a_log_the_end_is_given_however_much_there_is(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"first\n" + 10**6 * b"x" + b"\n" + b"\xff\n" + b"last\n")
    *_, long, odd, last = log_end(log)
    assert (set(long), odd, last) == ({"x"}, "\ufffd", "last")
    assert len(long) == 200
