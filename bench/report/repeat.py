"""What repeats stored runs: a matrix of exactly their configurations, the commands typed, the versions."""

from __future__ import annotations

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.config import RunConfig
from bench.matrices import load_matrices
from flora.errors import BadInput

# What of a path tells of the machine: all but its last part, at the start of a word or of a value.
_ABOVE = re.compile(r"(?:^|(?<=[=:,\[ ]))(?:~|[A-Za-z]:)?[/\\](?:[^/\\=,\] ]*[/\\])*")
# What pip may be given: a line that a run could smuggle in may name another index.
_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*")

Box = dict[str, tuple[str, ...]]
"""Cells that are a product: by field, its values as JSON."""


def matrix_text(configs: Sequence[Mapping[str, Any]]) -> str:
    """Write a file for `flora-bench run` whose cells are these and no others.

    Every field is written out, so that another version's defaults change nothing. Where data lies is not.

    Args:
        configs: as `run.json` keeps them; at least one, each once.
    """
    first, *rest = _joined([_box(config) for config in configs])
    include = [{name: values for name, values in box.items() if values != first.get(name)} for box in rest]
    content = {**_fields(first), **({"include": [_fields(box) for box in include]} if include else {})}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)


def repeatable(config: Mapping[str, Any], config_hash: str) -> bool:
    """Whether today's suite reads a stored configuration as the run that it was then."""
    try:
        # the device of then need not be there now
        read = RunConfig.read({**config, "device": "cpu"}).model_copy(update={"device": config["device"]})
    except (BadInput, LookupError):
        return False
    return read.hash == config_hash


def commands(results: Path, hashes: Collection[str]) -> list[str]:
    """Give the commands that a folder's runs were asked for by, the latest first, without paths of machines.

    Args:
        results: the folder.
        hashes: of the runs; one that asked for none of them is left out, and so is one of several lines.
    """
    wanted = set(hashes)
    typed = [
        shlex.join(_ABOVE.sub("", str(word)) for word in matrix["command"])
        for matrix in load_matrices(results).values()
        if matrix.get("command") and wanted & {cell["hash"] for cell in matrix["cells"]}
    ]
    return list(dict.fromkeys(command for command in typed if command.isprintable()))


def is_command(text: str) -> bool:
    """Whether a line is one that `commands` gives: nothing in it is for a shell but to start this suite."""
    try:
        words = shlex.split(text)
    except ValueError:
        return False
    return words[:2] == ["flora-bench", "run"] and shlex.join(words) == text


def versions_text(environments: Mapping[str, Mapping[str, Any]]) -> str:
    """Write constraints for pip of the packages that most runs recorded; others' stand in comments.

    Args:
        environments: as `run.json` keeps them, by the path of the run.
    """
    alike = defaultdict[str, list[str]](list)
    for path, environment in environments.items():
        alike[_versions(environment)].append(path)
    most, *others = sorted(alike.items(), key=lambda item: (-len(item[1]), item[0]))
    parts = [f"# {len(most[1])} of {len(environments)} runs:\n{most[0]}"]
    for text, paths in others:
        commented = "".join(f"# {line}\n" for line in text.splitlines())
        parts.append(f"# {len(paths)} others, {', '.join(sorted(paths))}:\n{commented}")
    return "\n".join(parts)


def _versions(environment: Mapping[str, Any]) -> str:
    packages = environment.get("packages") or {}
    commit = environment.get("git_commit")
    changed = ", with changes" if environment.get("git_dirty") else ""
    suite = f"flora-bench {environment.get('suite', 'of an unknown version')}"
    suite += f" (commit {commit}{changed})" if commit else ""
    pins = (f"{name}=={number}" for name, number in sorted(packages.items()) if number)
    about = f"{suite}, Python {environment.get('python', 'of an unknown version')}"
    return "".join(f"{line}\n" for line in (f"# {' '.join(about.split())}", *filter(_PIN.fullmatch, pins)))


def _box(config: Mapping[str, Any]) -> Box:
    """Give the product that is one cell."""
    values = dict(config)
    if isinstance(values.get("data"), dict):
        values["data"] = {**values["data"], "root": None}  # no part of what the run is
    if isinstance(seeds := values.get("seed"), dict) and len(set(seeds.values())) == 1:
        values["seed"] = next(iter(seeds.values()))
    return {name: (json.dumps(value, sort_keys=True),) for name, value in values.items()}


def _joined(boxes: Sequence[Box]) -> list[Box]:
    """Join products that differ in one field alone, the seed first."""
    names = sorted(dict.fromkeys(name for box in boxes for name in box), key=lambda name: name != "seed")
    joined = list(boxes)
    for name in names:
        alike: dict[tuple[tuple[str, tuple[str, ...]], ...], Box] = {}
        for box in joined:
            if name not in box:
                continue
            others = tuple(sorted((key, values) for key, values in box.items() if key != name))
            known = alike.get(others)
            # in one order, so that products of the same values are found to be such; 2 comes before 10
            both = sorted({*(known or box)[name], *box[name]}, key=lambda value: (len(value), value))
            alike[others] = {**box, name: tuple(both)}
        joined = [*alike.values(), *(box for box in joined if name not in box)]
    return joined


def _fields(box: Box) -> dict[str, Any]:
    """Give a product as a matrix is written."""
    listed = {name: [_spelt(json.loads(value)) for value in values] for name, values in box.items()}
    return {name: values if len(values) > 1 else values[0] for name, values in listed.items()}


def _spelt(value: Any) -> Any:
    """Write a section: its name first, and a list in it as a list of one, as others are many values."""
    if not isinstance(value, dict):
        return value
    named = sorted(value.items(), key=lambda item: item[0] != "name")
    return {name: [item] if isinstance(item, list) else item for name, item in named}
