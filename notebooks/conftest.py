"""nbval runs every cell of a notebook even after one failed; the first failure is the one that tells something."""

import pytest

failed = set()


def pytest_runtest_makereport(item, call):
    if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        failed.add(item.path)


def pytest_runtest_setup(item):
    if item.path in failed:
        pytest.skip("an earlier cell of this notebook failed")
