import pytest

from tests.formulations.goldens import FOLDER, exports


@pytest.mark.parametrize("name", sorted(exports()))
def test_the_export_of_the_toy_is_the_golden_one(name):
    assert exports()[name] == (FOLDER / name).read_text()
