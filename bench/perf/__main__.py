"""Run one experiment in this process: what `flora-bench perf` starts for each."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from bench.perf.catalogue import chosen
from bench.perf.experiment import Setting


def main() -> None:
    """Read what to run from the command line, and write its file."""
    parser = argparse.ArgumentParser(prog="python -m bench.perf")
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    for flag in ("quick", "full"):
        parser.add_argument(f"--{flag}", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("bench.perf").setLevel(logging.INFO)
    (experiment,) = chosen([given.name])
    experiment.run(Setting(given.quick, given.full, given.device)).write(given.out)


if __name__ == "__main__":
    main()
