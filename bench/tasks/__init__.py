"""The tasks: one module each, named as the task is.

A task module has a docstring whose first line describes it and a function
``load(argument: str | None, root: str | None) -> Task``, where ``argument`` is what followed the colon in
``NAME:ARGUMENT`` and ``root`` the folder that holds data sets. Adding a task is adding such a module.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from bench.tasks.base import Task
from flora.errors import BadInput, nearest

NOT_TASKS = {"base"}


def task_names() -> list[str]:
    """Every task's name, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in NOT_TASKS)


def describe_tasks() -> dict[str, str]:
    """The one-line description of every task, by name."""
    modules = {name: import_module(f"{__name__}.{name}") for name in task_names()}
    return {name: (module.__doc__ or "").partition("\n")[0] for name, module in modules.items()}


def load_task(spec: str, root: str | None = None) -> Task:
    """Load the task called ``spec``.

    Args:
        spec: ``NAME`` or ``NAME:ARGUMENT``, such as ``digits`` or ``folder:PATH``.
        root: the folder that holds data sets; a relative ``PATH`` starts there.

    Raises:
        BadInput: no task has that name, or the task cannot use its argument.
    """
    name, colon, argument = spec.partition(":")
    names = task_names()
    if name not in names:
        raise BadInput(f"task {name!r} is unknown{nearest(name, names)}")
    task: Task = import_module(f"{__name__}.{name}").load(argument if colon else None, root)
    return task
