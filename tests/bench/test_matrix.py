"""A matrix file multiplies lists into cells, and says in one line what is wrong with it."""

from itertools import product
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.config import RunConfig, label
from bench.matrix import MANY_CELLS, PRESETS, Matrix, presets, smoke
from flora.errors import BadInput


@pytest.fixture
def file(tmp_path):
    """Write a matrix file and give its path."""

    def write(text):
        path = tmp_path / "matrix.yaml"
        path.write_text(dedent(text), encoding="utf-8")
        return str(path)

    return write


def cells_of(path, *overrides):
    return Matrix.read(path, overrides).cells()


def refusal(path, *overrides):
    """The one line a matrix is refused with."""
    with pytest.raises(BadInput) as caught:
        cells_of(path, *overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --- multiplication ------------------------------------------------------------------------------------


def test_lists_multiply_and_the_first_written_varies_slowest():
    cells = Matrix(method=["zero_shot", "flora"], rounds=[1, 2], seed=[0, 1]).cells()
    found = [(c.method.name, c.rounds, c.seed.split) for c in cells]
    assert found == list(product(["zero_shot", "flora"], [1, 2], [0, 1]))


FIELDS = {
    "clients": st.integers(1, 50),
    "rounds": st.integers(0, 50),
    "batch_size": st.integers(1, 50),
    "seed": st.integers(0, 50),
    "participation": st.sampled_from([0.1, 0.2, 0.5, 1.0]),
}


@given(
    st.fixed_dictionaries(
        {name: st.lists(x, min_size=1, max_size=3, unique=True) for name, x in FIELDS.items()}
    )
)
def test_cells_are_exactly_the_product(lists):
    cells = Matrix(**lists).cells()
    wanted = [RunConfig.read(dict(zip(lists, values, strict=True))) for values in product(*lists.values())]
    assert cells == wanted


def test_lists_inside_sections_multiply_too():
    cells = Matrix(
        method={"name": "flora", "rank": [2, 4]},
        split={"name": "iid", "shots": [None, 4]},
        seed={"order": [0, 1]},
    ).cells()
    found = [(c.method.rank, c.split.shots, c.seed.order) for c in cells]
    assert found == list(product([2, 4], [None, 4], [0, 1]))


def test_variants_of_a_section_multiply_each_by_its_own_lists():
    cells = Matrix(method=["zero_shot", {"name": "flora", "rank": [1, 2]}]).cells()
    assert [(c.method.name, getattr(c.method, "rank", None)) for c in cells] == [
        ("zero_shot", None),
        ("flora", 1),
        ("flora", 2),
    ]


def test_a_list_of_names_in_a_section_is_many_sections():
    cells = Matrix(optimizer={"name": ["adam", "sgd"], "lr": [0.1, 0.2]}).cells()
    assert [(c.optimizer.name, c.optimizer.lr) for c in cells] == list(product(["adam", "sgd"], [0.1, 0.2]))


def test_a_list_of_names_multiplies_with_the_lists_beside_it(file):
    cells = cells_of(file("rounds: 1"), "split={name: [iid, quantity], shots: [null, 4]}")
    assert [(c.split.name, c.split.shots) for c in cells] == list(product(["iid", "quantity"], [None, 4]))
    (cell,) = Matrix(method={"name": ["flora"], "places": ["text.query", "text.out"]}).cells()
    assert cell.method.places == ("text.query", "text.out")


def test_a_name_that_is_a_mapping_is_refused(file):
    assert refusal(file("split: {name: {a: 1}, shots: [1, 2]}")).startswith("split: ")
    assert refusal(file("method: {name: {a: 1}, rank: [1, 2]}")).startswith("method.name: ")


def test_a_value_that_is_a_list_is_one_value():
    (cell,) = Matrix(
        optimizer={"betas": [0.5, 0.6]}, method={"name": "flora", "places": ["text.query", "text.out"]}
    ).cells()
    assert cell.optimizer.betas == (0.5, 0.6)
    assert cell.method.places == ("text.query", "text.out")


def test_a_list_of_such_values_is_many():
    cells = Matrix(
        optimizer={"betas": [[0.5, 0.6], [0.7, 0.8]]},
        method={"name": "flora", "places": [["text.out"], ["text.query", "text.value"]]},
    ).cells()
    found = [(c.optimizer.betas, c.method.places) for c in cells]
    assert found == list(product([(0.5, 0.6), (0.7, 0.8)], [("text.out",), ("text.query", "text.value")]))


def test_a_list_in_a_list_is_no_value():
    with pytest.raises(BadInput, match=r"^task: \['digits'\] must be a valid string"):
        Matrix(task=[["digits"]]).cells()


@pytest.mark.parametrize("fields", [{"seed": []}, {"method": {"name": "flora", "rank": []}}])
def test_an_empty_list_is_refused_by_its_name(fields):
    with pytest.raises(BadInput, match=r"^(seed|method\.rank): an empty list leaves no cell"):
        Matrix(**fields).cells()


def test_no_fields_are_one_cell_of_defaults():
    assert Matrix().cells() == [RunConfig.read({})]


# --- include and exclude -------------------------------------------------------------------------------


def test_include_adds_the_matrix_with_its_fields_replaced():
    cells = Matrix(
        method=["zero_shot", "flora"], rounds=1, include=[{"method": "flora", "clients": [20, 30]}]
    ).cells()
    assert [(c.method.name, c.clients, c.rounds) for c in cells] == [
        ("zero_shot", 10, 1),
        ("flora", 10, 1),
        ("flora", 20, 1),
        ("flora", 30, 1),
    ]


def test_exclude_drops_the_cells_that_agree_in_all_it_says():
    cells = Matrix(
        method=["zero_shot", "flora"], seed=[0, 1], exclude=[{"method": "flora", "seed": 1}]
    ).cells()
    assert [(c.method.name, c.seed.split) for c in cells] == [
        ("zero_shot", 0),
        ("zero_shot", 1),
        ("flora", 0),
    ]


EXCLUDES = [
    ({"rounds": 1}, {2, 3}),
    ({"rounds": [1, 3]}, {2}),
    ({"method": "flora"}, {1}),
    ({"method": ["flora", "linear_probe"]}, {1}),
    ({"method": {"name": "flora", "rank": 4}}, {1, 2}),
    ({"method": {"rank": [4, 8]}}, {1, 2}),
    ({"seed": 3}, {1, 2}),
    ({"seed": [2, 3]}, {1}),
    ({"seed": {"order": 2}}, {1, 3}),
    ({"method": {"places": ["text.out"]}, "rounds": [2, 3]}, {1}),
    ({"optimizer": {"betas": [0.5, 0.6]}}, {1, 2}),
    ({"model": "tiny", "rounds": 2}, {1, 3}),
    ({"method": {"name": "flora", "rank": 5}}, {1, 2, 3}),
]


@pytest.mark.parametrize(("pattern", "left"), EXCLUDES, ids=[str(pattern) for pattern, _ in EXCLUDES])
def test_patterns_match_names_numbers_lists_and_parts_of_sections(pattern, left):
    first = {"method": "zero_shot", "rounds": 1, "seed": 1}
    cells = Matrix(
        **first,
        include=[
            {"method": "flora", "rounds": 2, "seed": 2},
            {
                "method": {"name": "flora", "rank": 4},
                "rounds": 3,
                "seed": 3,
                "optimizer": {"betas": [0.5, 0.6]},
            },
        ],
        exclude=[pattern],
    ).cells()
    assert {c.rounds for c in cells} == left


def test_numbers_in_exponential_notation_match(file):
    text = """
        optimizer: {lr: [1e-3, 1e-4]}
        exclude: [{optimizer: {lr: 1e-3}}]
    """
    assert [c.optimizer.lr for c in cells_of(file(text))] == [1e-4]


def test_exclude_may_not_leave_nothing():
    with pytest.raises(
        BadInput, match=r"^exclude: leaves none of the 2 cells; let its entries name more fields$"
    ):
        Matrix(seed=[0, 1], exclude=[{"task": "digits"}]).cells()


def test_exclude_of_no_field_is_refused():
    with pytest.raises(BadInput, match=r"^exclude: there is no field 'metod'; did you mean 'method'\?$"):
        Matrix(exclude=[{"metod": "flora"}]).cells()


BAD_EXCLUDES = [
    ({1: 2}, "exclude: 1 must be the name of a field, such as method"),
    ({"split": {1: 2}}, "exclude: 1 must be the name of a field, such as method"),
    ({"split": [{None: 2}]}, "exclude: None must be the name of a field, such as method"),
    ({"task": {"a": 2}}, "exclude: task has no fields within; give a value or a list of values"),
    ({"method": {"rnk": 2}}, "exclude: no cell has a field method.rnk; did you mean 'rank'?"),
    ({"method": [{"rnk": 2}]}, "exclude: no cell has a field method.rnk; did you mean 'rank'?"),
]


@pytest.mark.parametrize(("pattern", "message"), BAD_EXCLUDES, ids=[str(p) for p, _ in BAD_EXCLUDES])
def test_an_exclude_that_could_never_match_is_refused(pattern, message):
    with pytest.raises(BadInput) as caught:
        Matrix(exclude=[pattern]).cells()
    assert str(caught.value) == message


@pytest.mark.parametrize("key", ["include", "exclude"])
@pytest.mark.parametrize("value", ["flora", "{method: flora}", "[flora]", "3"])
def test_include_and_exclude_are_lists_of_mappings(file, key, value):
    assert refusal(file(f"{key}: {value}")).startswith(f"{key}: must be a list of mappings, such as ")


def test_a_cell_that_appears_twice_is_refused(file):
    assert refusal(file("seed: [0, 1, 0]")) == (
        "the matrix holds this cell twice: digits · flora · iid · seed 0; list each value once"
    )
    assert "twice" in refusal(file("method: [flora, {name: flora, rank: 2}]"))
    assert "twice" in refusal(file("include: [{method: flora}]"))


def test_one_bad_cell_among_many_is_refused(file):
    assert refusal(file("clients: [1, 2, 0]")) == "clients: 0 must be greater than or equal to 1"


# --- --set ---------------------------------------------------------------------------------------------


def test_set_replaces_a_field_in_every_cell(file):
    cells = cells_of(file("{method: [zero_shot, flora], rounds: [1, 2]}"), "rounds=7", "task=glyphs")
    assert [(c.method.name, c.rounds, c.task) for c in cells] == [
        ("zero_shot", 7, "glyphs"),
        ("flora", 7, "glyphs"),
    ]


def test_set_takes_lists_and_whole_sections(file):
    cells = cells_of(file("rounds: 1"), "seed=[0, 1]", "split={name: dirichlet, beta: [1, 2]}")
    assert [(c.seed.init, c.split.beta) for c in cells] == [(0, 1.0), (0, 2.0), (1, 1.0), (1, 2.0)]


def test_set_inside_a_section_reaches_the_variants_that_have_the_field(file):
    cells = cells_of(file("method: [zero_shot, flora, {name: flora, rank: 8, alpha: 1}]"), "method.rank=4")
    assert [(c.method.name, getattr(c.method, "rank", None)) for c in cells] == [
        ("zero_shot", None),
        ("flora", 4),
        ("flora", 4),
    ]


def test_set_inside_a_split_reaches_the_splits_that_have_the_field(file):
    cells = cells_of(
        file("split: [iid, dirichlet, {name: quantity, alpha: 1}]"), "split.beta=0.7", "split.shots=2"
    )
    assert [(c.split.name, c.split.shots, getattr(c.split, "beta", None)) for c in cells] == [
        ("iid", 2, None),
        ("dirichlet", 2, 0.7),
        ("quantity", 2, None),
    ]


def test_set_makes_one_of_variants_that_differed_in_its_field_alone(file):
    (cell,) = cells_of(file("method: [{name: flora, rank: 2}, {name: flora, rank: 8}]"), "method.rank=4")
    assert cell.method.rank == 4


def test_set_spells_out_bare_names_seeds_and_what_is_not_there(file):
    (cell,) = cells_of(
        file("{method: flora, seed: 5}"),
        "method.alpha=8",
        "seed.order=1",
        "optimizer.lr=1e-3",
        "model.dtype=float64",
        "data.max_train=100",
        "split.shots=3",
    )
    assert (cell.method.name, cell.method.alpha) == ("flora", 8)
    assert cell.seed.model_dump() == {"split": 5, "participation": 5, "init": 5, "order": 1}
    assert (cell.optimizer.name, cell.optimizer.lr, cell.optimizer.betas) == ("adam", 1e-3, (0.9, 0.98))
    assert (cell.model.name, cell.model.dtype) == ("tiny", "float64")
    assert (cell.data.max_train, cell.split.name, cell.split.shots) == (100, "iid", 3)


def test_set_reaches_seeds_listed_one_by_one(file):
    cells = cells_of(file("seed: [0, 1]"), "seed.split=9")
    assert [(c.seed.split, c.seed.order) for c in cells] == [(9, 0), (9, 1)]


def test_set_holds_for_included_cells_too(file):
    cells = cells_of(file("{rounds: 1, include: [{clients: 3, rounds: 2}]}"), "rounds=5")
    assert [(c.clients, c.rounds) for c in cells] == [(10, 5), (3, 5)]


def test_set_needs_only_one_part_of_the_matrix_to_know_its_field(file):
    path = file("{method: zero_shot, include: [{method: flora}, {rounds: 2}]}")
    cells = cells_of(path, "method.rank=4")
    assert [(c.method.name, getattr(c.method, "rank", None), c.rounds) for c in cells] == [
        ("zero_shot", None, 10),
        ("flora", 4, 10),
        ("zero_shot", None, 2),
    ]
    assert refusal(path, "method.rnk=4") == "--set method.rnk: there is no such field; did you mean 'rank'?"


@pytest.mark.parametrize("override", ["method=flora", "method.name=flora"])
def test_set_of_what_a_cell_is_drops_included_cells_that_are_another(file, override):
    path = file("{method: zero_shot, include: [{method: linear_probe, rounds: 3}, {clients: 3}]}")
    cells = cells_of(path, override)
    assert [(c.method.name, c.rounds, c.clients) for c in cells] == [("flora", 10, 10), ("flora", 10, 3)]


def test_set_of_another_field_is_taken_out_of_included_cells(file):
    path = file("{include: [{clients: 3, seed: 7, optimizer: {lr: 1.0}}, {seed: 8}]}")
    cells = cells_of(path, "seed=[0, 1]", "optimizer=sgd")
    found = [(c.clients, c.seed.split, c.optimizer.name, c.optimizer.lr) for c in cells]
    assert found == [(*one, "sgd", 1e-2) for one in product([10, 3], [0, 1])]


@pytest.mark.parametrize(("override", "count"), [("method=flora", 12), ("seed=0", 30), ("split=iid", 10)])
def test_a_set_on_quick_runs_each_cell_once(override, count):
    assert len(cells_of("quick", override)) == count


def test_the_last_set_wins(file):
    (cell,) = cells_of(file("rounds: 1"), "rounds=2", "rounds=3")
    assert cell.rounds == 3


BAD_SETS = [
    ("rounds", "--set rounds: must be FIELD=VALUE, such as rounds=5"),
    ("=5", "--set =5: must be FIELD=VALUE"),
    ("rouds=5", "rouds: there is no such field; did you mean 'rounds'?"),
    ("clients.x=5", "--set clients.x: 'clients' has no fields within; those that have are model, method"),
    ("nothing.x=5", "--set nothing.x: 'nothing' has no fields within"),
    ("method.rnk=5", "--set method.rnk: there is no such field; did you mean 'rank'?"),
    ("split.bta=5", "--set split.bta: there is no such field; choose from name, overlap, shots"),
    ("seed.ordr=5", "--set seed.ordr: there is no such field; did you mean 'order'?"),
    ("optimizer.momentum=1", "--set optimizer.momentum: there is no such field; choose from betas"),
    ("rounds=[", "--set rounds=[: the value is not valid YAML: expected the node content"),
    ("task=2020-13-45", "--set task=2020-13-45: the value is not valid YAML: month must be in 1..12"),
    ("data={root: a, root: b}", "--set data={root: a, root: b}: the value is not valid YAML: the key 'root'"),
    ("task=\x00", "--set task=\x00: the value is not valid YAML: unacceptable character"),
    ("rounds=-1", "rounds: -1 must be greater than or equal to 0"),
    ("method.rank=0", "method.rank: 0 must be greater than or equal to 1"),
    ("method.name=flroa", "method.name: there is no method 'flroa'; did you mean 'flora'?"),
    ("exclude=[]", "--set exclude=[]: must name a field of a run; exclude belongs in a file"),
    ("include=[]", "--set include=[]: must name a field of a run; include belongs in a file"),
]


@pytest.mark.parametrize(("override", "message"), BAD_SETS, ids=[override for override, _ in BAD_SETS])
def test_a_bad_set_is_refused_in_one_line(file, override, message):
    assert refusal(file("rounds: 1"), override).startswith(message)


@pytest.mark.parametrize("method", ["", "{rank: 2}", "3"])
def test_set_inside_a_method_without_a_name_is_refused(file, method):
    assert refusal(file(f"method: {method}"), "method.rank=2").startswith("method.name: ")


# --- files ---------------------------------------------------------------------------------------------


def test_bad_yaml_is_refused_with_line_and_column(file):
    path = file("task: digits\nrounds: [1, 2\nseed: 0\n")
    assert refusal(path).startswith(f"{path}:3:5: not valid YAML: ")


@pytest.mark.parametrize("value", ["2020-13-45", "9" * 5000, "0x_"], ids=["date", "long", "hexadecimal"])
def test_what_looks_like_a_date_or_a_number_and_is_none_is_refused(file, value):
    path = file(f"rounds: 1\ntask: {value}\n")
    assert refusal(path).startswith(f"{path}:2:7: not valid YAML: ")
    assert ": the value is not valid YAML: " in refusal("quick", f"clients={value}")


def test_a_key_given_twice_is_refused_with_line_and_column(file):
    path = file("seed: 0\nrounds: 1\nseed: 1\n")
    assert refusal(path) == f"{path}:3:1: not valid YAML: the key 'seed' is given twice"
    path = file("method: {name: flora, rank: 2, rank: 4}")
    assert refusal(path) == f"{path}:1:32: not valid YAML: the key 'rank' is given twice"


def test_a_merged_key_may_be_given_again(file):
    text = """
        method: [&small {name: flora, rank: 2}, {<<: *small, rank: 4}]
    """
    assert [c.method.rank for c in cells_of(file(text))] == [2, 4]


@pytest.mark.parametrize("text", ["", "[1, 2]", "digits", "3", "1: 2", "# nothing"])
def test_a_file_without_fields_is_refused(file, text):
    path = file(text)
    assert refusal(path) == f"{path}: must hold fields with values, such as 'task: digits'"


@pytest.mark.parametrize("content", [b"task: \xff\xfe", b"task: \x00"])
def test_a_file_that_is_no_text_is_refused(tmp_path, content):
    path = tmp_path / "matrix.yaml"
    path.write_bytes(content)
    assert refusal(str(path)).startswith(f"{path}")


def test_a_file_that_cannot_be_opened_is_refused(file, monkeypatch):
    path = file("rounds: 1")

    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("pathlib.Path.read_text", denied)
    assert "cannot be read" in refusal(path)
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize("key", ["self", "rouds", "fields"])
def test_an_unknown_field_in_a_file_is_refused(file, key):
    assert refusal(file(f"{key}: 1")).startswith(f"{key}: there is no such field")


def test_a_source_that_is_neither_preset_nor_file_is_refused(tmp_path):
    assert refusal("quik") == "there is no preset and no file 'quik'; did you mean 'quick'?"
    assert refusal(str(tmp_path)).startswith("there is no preset and no file ")


# --- presets -------------------------------------------------------------------------------------------


def test_every_preset_is_described():
    assert set(presets()) == {path.stem for path in PRESETS.glob("*.yaml")}
    assert "quick" in presets()
    assert all(presets().values())


# the paper's data sets have to be fetched first
@pytest.mark.parametrize("name", sorted(set(presets()) - {"paper"}))
def test_every_preset_can_be_run(name):
    from bench.inputs import check

    cells = Matrix.read(name).cells()
    distinct = {(c.task, str(c.split), c.clients, c.seed.split, str(c.data)): c for c in cells}
    for cell in distinct.values():
        check(cell)


def test_quick_is_five_methods_three_splits_two_shots_two_seeds():
    cells = Matrix.read("quick").cells()
    methods = ["zero_shot", "flora", "full_finetune", "linear_probe", "attention_adapter"]
    splits = ["iid", "dirichlet", "pathological"]
    found = {(c.method.name, c.split.name, c.split.shots, c.seed.split) for c in cells}
    assert found == set(product(methods, splits, [None, 4], [0, 1]))
    assert len(cells) == 60
    assert {(c.task, c.model.name) for c in cells} == {("digits", "tiny")}
    assert len({label(c) for c in cells}) == 60


# --- scaled down ---------------------------------------------------------------------------------------


def test_smoke_keeps_one_seed_and_one_shot_and_each_cell_once():
    cells = Matrix(
        method=["zero_shot", "flora"],
        split=[{"name": "iid", "shots": [None, 4, 16]}],
        seed=[3, 4],
        rounds=50,
        clients=7,
    ).cells()
    small = smoke(cells)
    assert [(c.method.name, c.split.shots) for c in small] == [
        ("zero_shot", None),
        ("zero_shot", 1),
        ("flora", None),
        ("flora", 1),
    ]
    assert {(c.rounds, c.seed.split, c.seed.order, c.data.max_per_class, c.clients) for c in small} == {
        (2, 3, 3, 7, 7)
    }
    assert [c.hash for c in smoke(small)] == [c.hash for c in small]


@pytest.mark.parametrize("name", ["quick", "paper", "speed", "fewshot", "splits"])
def test_smoke_leaves_all_else_as_the_preset_has_it(name):
    cells = Matrix.read(name).cells()[:40]
    scaled = {"rounds", "seed", "data", "split"}
    for small in smoke(cells):
        same = small.model_dump(exclude=scaled)
        assert any(same == cell.model_dump(exclude=scaled) for cell in cells)
        assert small.rounds <= 2


def test_the_paper_preset_is_the_papers():
    cells = Matrix.read("paper").cells()
    assert len({cell.task for cell in cells}) == 16
    assert {cell.rounds for cell in cells} == {50}
    assert {cell.seed.split for cell in cells} == {0, 1, 2}
    assert {cell.data.protocol for cell in cells} == {"paper"}
    flora = [cell for cell in cells if cell.method.name == "flora"]
    assert {cell.method for cell in flora} == {RunConfig.read({}).method}  # the default is the paper's
    assert {cell.optimizer for cell in cells} == {RunConfig.read({}).optimizer}
    few_shot = [cell for cell in cells if cell.split.shots]
    assert {cell.split.shots for cell in few_shot} == {1, 2, 4, 8, 16}
    assert all(cell.split.overlap for cell in few_shot)
    # no data set is left out of a division, also where its classes are fewer than ten
    for kind in ("iid", "dirichlet", "pathological"):
        assert len({cell.task for cell in cells if cell.split.name == kind}) == 16


# --- what a file extends -------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Write matrix files by their paths, and give the folder."""

    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('_in_', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(dedent(text), encoding="utf-8")
        return tmp_path

    return write


def test_fields_are_replaced_and_includes_and_excludes_added(files):
    folder = files(
        base="""
            rounds: [1, 2]
            clients: 3
            include: [{clients: 4}]
            exclude: [{clients: 4, rounds: 1}]
        """,
        top="""
            extends: base.yaml
            rounds: [1, 5]
            seed: 7
            include: [{clients: 6}]
            exclude: [{clients: 6, rounds: 5}]
        """,
    )
    found = [(c.clients, c.rounds, c.seed.split) for c in cells_of(str(folder / "top.yaml"))]
    assert found == [(3, 1, 7), (3, 5, 7), (4, 5, 7), (6, 1, 7)]


def test_a_preset_is_extended_by_its_name(files):
    folder = files(mine="extends: quick\nseed: 5")
    quick, mine = cells_of("quick"), cells_of(str(folder / "mine.yaml"))
    assert len(mine) * 2 == len(quick)
    assert {cell.seed.split for cell in mine} == {5}
    exclude = {"seed"}
    assert [c.model_dump(exclude=exclude) for c in mine] == [
        c.model_dump(exclude=exclude) for c in quick[::2]
    ]


def test_files_are_found_from_the_file_that_names_them_and_through_several(files, monkeypatch):
    folder = files(
        a="extends: below/b.yaml\nrounds: 1",
        below_in_b="extends: c.yaml\nclients: 3",
        below_in_c="clients: 2\nbatch_size: 5",
        c="batch_size: 6",
    )
    monkeypatch.chdir(folder.parent)
    (cell,) = cells_of(f"{folder.name}/a.yaml", "rounds=4")
    assert (cell.rounds, cell.clients, cell.batch_size) == (4, 3, 5)


@pytest.mark.parametrize(
    ("texts", "chain"),
    [
        ({"a": "extends: a.yaml"}, "a.yaml → a.yaml"),
        ({"a": "extends: b.yaml", "b": "extends: a.yaml"}, "a.yaml → b.yaml → a.yaml"),
        (
            {"a": "extends: b.yaml", "b": "extends: ./c.yaml", "c": "extends: ../DIR/b.yaml"},
            "a.yaml → b.yaml → c.yaml → b.yaml",
        ),
    ],
)
def test_files_that_extend_one_another_in_a_circle_are_refused(files, texts, chain):
    folder = files()
    files(**{name: text.replace("DIR", folder.name) for name, text in texts.items()})
    wanted = f"extends: {chain} goes round in a circle; let one of them extend nothing"
    assert refusal(str(folder / "a.yaml")) == wanted


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("quik", "there is no preset and no file 'quik'; did you mean 'quick'?"),
        ("[quick, speed]", "['quick', 'speed'] must be one preset's name or one file's path"),
        ("null", "None must be one preset's name or one file's path"),
    ],
)
def test_what_cannot_be_extended_is_refused_with_the_file_that_asks_for_it(files, value, complaint):
    path = files(mine=f"extends: {value}") / "mine.yaml"
    assert refusal(str(path)) == f"{path}: extends: {complaint}"


def test_extends_belongs_in_a_file(file):
    assert "extends belongs in a file" in refusal(file("rounds: 1"), "extends=quick")
    with pytest.raises(BadInput, match="extends"):
        Matrix(extends="quick").cells()


def test_a_cell_that_an_extended_file_has_too_is_refused(files):
    folder = files(
        base="rounds: 1\ninclude: [{clients: 4}]", top="extends: base.yaml\ninclude: [{clients: 4}]"
    )
    assert refusal(str(folder / "top.yaml")).startswith("the matrix holds this cell twice: digits · flora")


def test_the_record_of_a_tuning_goes_with_the_values_it_found(files):
    tuning = "{grid: g, trials: 1, chosen: {optimizer.lr: 0.1}, validation_accuracy: 0.5}"
    folder = files(
        base=f"optimizer: {{lr: 0.1}}\ntuning: {tuning}\ninclude: [{{clients: 4, tuning: {tuning}}}]",
        same="extends: base.yaml\nrounds: 1",
        other="extends: base.yaml\noptimizer: sgd",
    )
    assert all(cell.tuning for cell in cells_of(str(folder / "same.yaml")))
    assert not any(cell.tuning for cell in cells_of(str(folder / "other.yaml")))


# --- how many ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quick", "paper", "speed", "fewshot", "splits"])
def test_cells_are_counted_as_they_are_made(name):
    matrix = Matrix.read(name)
    made = Matrix(include=matrix.include, **matrix.fields).cells()
    assert matrix.count() == len(made)
    assert len(matrix.cells()) <= matrix.count()


def test_lists_in_sections_and_values_that_are_lists_are_counted_right():
    matrix = Matrix(
        method=["zero_shot", {"name": "flora", "rank": [1, 2], "places": ["text.query", "text.out"]}],
        optimizer={"betas": [[0.5, 0.6], [0.7, 0.8]]},
        seed={"order": [0, 1, 2]},
        include=[{"rounds": [1, 2], "seed": 4}],
    )
    assert matrix.count() == len(matrix.cells()) == 3 * 2 * 3 + 3 * 2 * 2


def test_ten_million_cells_are_counted_and_not_made(monkeypatch):
    monkeypatch.setattr(RunConfig, "read", None)  # calling it would fail
    lists = {name: list(range(1, 101)) for name in ("rounds", "clients", "batch_size")}
    assert Matrix(**lists, seed=list(range(10))).count() == 10**7 > MANY_CELLS


# --- seeds, which are read apart -----------------------------------------------------------------------


SEEDS = [0, 3, {"split": 1}, {"split": 1, "order": 2}]


def test_cells_of_many_seeds_are_as_if_each_were_read_alone():
    fields = {"seed": SEEDS, "method": ["flora", "zero_shot"], "rounds": [1, 2]}
    cells = Matrix(**fields).cells()
    alone = [RunConfig.read(dict(zip(fields, values, strict=True))) for values in product(*fields.values())]
    assert cells == alone
    assert [cell.hash for cell in cells] == [cell.hash for cell in alone]
    assert [cell.model_dump() for cell in cells] == [cell.model_dump() for cell in alone]


@pytest.mark.parametrize(
    "wrong", [-1, 2**63, "x", None, True, [], 1.5, {"split": -1}, {"splt": 1}, {"split": True}]
)
def test_a_wrong_seed_among_right_ones_is_refused_as_it_is_alone(wrong):
    def complaint(seed):
        with pytest.raises(BadInput) as caught:
            Matrix(seed=seed).cells()
        return str(caught.value)

    assert complaint([0, wrong]) == complaint([wrong])
