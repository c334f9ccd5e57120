import pytest
from fuzz import fuzz
from fuzz_inputs import WRITERS


@pytest.mark.parametrize("kind", WRITERS)
def test_mutated_files_are_read_or_refused_with_a_data_error(kind):
    num_read, faults = fuzz(kind, 40)
    assert faults == [] and 0 < num_read < 40
