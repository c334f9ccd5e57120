import pytest
from fuzz import fuzz


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_mutated_images_are_read_or_refused_with_a_data_error(tmp_path):
    assert fuzz(200, tmp_path) == []
