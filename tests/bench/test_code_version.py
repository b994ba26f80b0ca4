"""The hash of code follows what code does, through all it imports, and not how it is written."""

import textwrap

import pytest

from bench.code_version import code_version, imported

SOURCES = {
    "pack/__init__.py": '''
        """The package."""
    ''',
    "pack/run.py": '''
        """Runs."""

        from typing import TYPE_CHECKING

        import json
        import pack.by_name
        from pack.parts import leaf
        from . import beside
        from .parts.deep import answer

        if TYPE_CHECKING:
            from pack.for_types import Shown


        def run(x: int, *, y=2) -> "Shown":
            """Run."""
            # one more
            from pack import late

            return f"{x + 1:>{y}} {late.z}"
    ''',
    "pack/by_name.py": "VALUE = 1.5\n",
    "pack/beside.py": "VALUE = 1\n",
    "pack/late.py": "z = 3\n",
    "pack/for_types.py": "class Shown: ...\n",
    "pack/apart.py": "VALUE = 1\n",
    "pack/parts/__init__.py": "FIRST = 1\n",
    "pack/parts/leaf.py": "import other.thing\n",
    "pack/parts/deep.py": "from ..shared import base as answer\n",
    "pack/shared.py": "def base(): return 2 ** 3\n",
    "other/thing.py": "VALUE = 1\n",
}
CLOSURE = {
    f"pack{name}"
    for name in (
        "",
        ".run",
        ".by_name",
        ".beside",
        ".late",
        ".parts",
        ".parts.leaf",
        ".parts.deep",
        ".shared",
    )
}


@pytest.fixture
def tree(tmp_path):
    """Write the packages with some of their text replaced, and give the version of all that runs."""

    def write(**edits):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in SOURCES.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
        for module, (old, new) in edits.items():
            file = folder / "pack" / f"{module.replace('_in_', '/')}.py"
            text = file.read_text("utf-8")
            assert old in text
            file.write_text(text.replace(old, new), encoding="utf-8")
        return folder

    return write


def version(folder):
    return code_version(imported("pack.run", folder, ("pack",)), folder)


def test_all_imports_are_followed_but_those_of_type_checkers_and_of_other_packages(tree):
    assert imported("pack.run", tree(), ("pack",)) == CLOSURE
    assert imported("pack.run", tree(), ("pack", "other")) == CLOSURE | {"other.thing"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# one more", "# two more"),
        ('"""Run."""', '"""Say what is run,\n\n    in many words.\n    """'),
        ('    """Run."""\n', ""),
        ('"""Runs."""\n', ""),
        ("import json\n", "import json\n\n\n"),
        ("x + 1", "(x  +  1)"),
        ("import json", "import json;"),
        ("(x: int, *, y=2)", "(\n    x: int,\n    *,\n    y=2,\n)"),
        ("from pack.for_types import Shown", "from pack.for_types import Shown\n    import pack.apart"),
        ("y=2", "y=0x2"),
    ],
)
def test_the_way_code_is_written_does_not_count(tree, old, new):
    assert version(tree(run=(old, new))) == version(tree())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x + 1", "x - 1"),
        ("x + 1", "x + 2"),
        ("x + 1", "1 + x"),
        ("y=2", "y=2.0"),
        ("y=2", "y=None"),
        ("*, y", "y"),
        (":>{y}}", ":<{y}}"),
        ('return f"', 'assert y\n    return f"'),
        ("def run", "@json\ndef run"),
        ("if TYPE_CHECKING:\n    from pack.for_types import Shown", "from pack.for_types import Shown"),
    ],
)
def test_what_code_computes_counts(tree, old, new):
    assert version(tree(run=(old, new))) != version(tree())


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("by_name", "1.5", "1.25"),
        ("beside", "1", "True"),
        ("late", "3", "4"),
        ("parts_in___init__", "1", "2"),
        ("parts_in_leaf", "other", "another"),
        ("shared", "**", "*"),
    ],
)
def test_a_module_that_is_imported_anywhere_counts(tree, module, old, new):
    assert version(tree(**{module: (old, new)})) != version(tree())


@pytest.mark.parametrize("module", ["apart", "for_types"])
def test_a_module_that_is_not_imported_does_not(tree, module):
    new = "VALUE = 1\nMORE = 2" if module == "apart" else "class Shown: x = 1"
    assert version(tree(**{module: (SOURCES[f"pack/{module}.py"].strip(), new)})) == version(tree())


def test_what_a_package_offers_under_its_own_name_is_not_part_of_its_modules(tree):
    lazy = (
        '"""The package."""',
        "__all__ = ['VALUE']\n\ndef __getattr__(name):\n    from pack.apart import VALUE\n    return VALUE",
    )
    assert imported("pack.run", tree(__init__=lazy), ("pack",)) == CLOSURE
    assert version(tree(__init__=lazy)) == version(tree())


def test_statements_within_any_block_are_followed(tree):
    blocks = """
        try:
            import pack.late
        except ImportError:
            from pack import shared
        else:
            for x in ():
                import pack.beside
        finally:
            with open("x"):
                import pack.by_name
        match 1:
            case 1:
                import pack.parts.deep
        class A:
            async def f(self):
                while True:
                    import pack.parts.leaf
    """
    folder = tree(apart=("VALUE = 1\n", textwrap.dedent(blocks)))
    assert imported("pack.apart", folder, ("pack",)) == CLOSURE - {"pack.run"} | {"pack.apart"}


def test_else_of_a_block_for_type_checkers_runs(tree):
    text = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import json\nelse:\n    import pack.late\n"
    )
    folder = tree(apart=("VALUE = 1\n", text))
    assert imported("pack.apart", folder, ("pack",)) == {"pack", "pack.apart", "pack.late"}


def test_an_unknown_module_is_an_error(tree):
    with pytest.raises(ValueError, match=r"^pack\.nothing is no module in "):
        imported("pack.nothing", tree(), ("pack",))


def test_the_harness_is_what_runs_and_measures_a_cell_and_nothing_that_shows_or_keeps_results():
    harness = imported("bench.cell")
    parts = {name.partition(".")[2].partition(".")[0] for name in harness if name.startswith("bench.")}
    assert {"inputs", "splits", "images", "models", "measure", "config", "tasks", "weights"} <= parts
    assert {"flora.federation", "flora.aggregation", "flora.client", "flora.codecs"} <= harness
    assert not parts & {"cli", "report", "perf", "store", "index", "claims", "execute", "isolate", "estimate"}


def test_the_order_of_modules_does_not_count():
    harness = sorted(imported("bench.cell"))
    assert len(code_version(harness)) == 12
    assert code_version(harness) == code_version(harness[::-1]) != code_version(harness[1:])
