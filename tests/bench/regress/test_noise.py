"""What is kept of a machine's noise."""

import pytest

from bench.regress.decision import Spread
from bench.regress.noise import known_noise, record_noise
from flora.errors import BadInput


def test_what_is_recorded_is_known_of_that_machine_alone_and_replaced_by_probe(tmp_path):
    file = tmp_path / "kept" / "noise.json"
    assert known_noise(file, "one") == {}
    record_noise(file, "one", {"a": Spread(0.01, 9), "b": Spread(0.02, 9)})
    record_noise(file, "other", {"a": Spread(0.5, 3)})
    record_noise(file, "one", {"b": Spread(0.03, 20)})
    assert known_noise(file, "one") == {"a": Spread(0.01, 9), "b": Spread(0.03, 20)}
    assert known_noise(file, "other") == {"a": Spread(0.5, 3)}
    assert [path.name for path in file.parent.iterdir()] == ["noise.json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no noise of a machine"),
        ("[]", "holds no noise of a machine"),
        ('{"machines": {"one": {"a": {"deviation": "high", "degrees": 3}}}}', "holds no noise of a machine"),
        (
            '{"machines": {"one": {"a": {"deviation": Infinity, "degrees": 3}}}}',
            "holds no noise of a machine",
        ),
        ('{"machines": {"one": {"a": {"deviation": -1.0, "degrees": 3}}}}', "holds no noise of a machine"),
        ('{"schema_version": 9, "machines": {}}', "has schema 9, not 1"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, said):
    file = tmp_path / "noise.json"
    file.write_text(text)
    with pytest.raises(BadInput, match=said):
        known_noise(file, "one")


def test_a_folder_that_takes_no_files_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be (read|written)"):
        record_noise(tmp_path / "file" / "noise.json", "one", {})
