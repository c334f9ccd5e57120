"""Skip the rest of a notebook after its first failed cell: nbval would run it, and report errors that follow from the
first."""

import pytest

failed_notebooks = set()


def pytest_runtest_makereport(item, call):
    if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        failed_notebooks.add(item.path)


def pytest_runtest_setup(item):
    if item.path in failed_notebooks:
        pytest.skip("an earlier cell of this notebook failed")
