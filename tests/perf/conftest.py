"""What surrounds every probe: the kernel set, where no other revision is measured in turn with this one."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def kernels(request):
    """Leave in `extra_info` how fast the machine was right before and right after the probe."""
    benchmark = request.getfixturevalue("benchmark")
    # `flora-bench ab` has a fixture of its own, and what it compares needs no calibration
    if not hasattr(benchmark, "stats") or benchmark.disabled:
        yield
        return
    from bench.measure.load import MachineLoad
    from bench.regress.kernels import Kernels, measure_kernels

    before, load = measure_kernels(), MachineLoad()
    yield
    busy = load.result()["busy"]
    benchmark.extra_info["kernels"] = Kernels.around(before, measure_kernels(), busy).to_dict()
