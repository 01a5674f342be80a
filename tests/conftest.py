"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# With a worker per core, the threads of one would wait for those of the others. PyTorch reads it when it is imported.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

# The files that take longest go first, or a worker would still be at one of them when the other has nothing left.
_LONG = ("test_sessions", "test_app", "test_failures", "test_gradients", "test_preproc_brainmask", "test_sr_student")

# Tests of these files go on from what those before them left in the work folder.
_IN_ORDER = ("test_failures", "test_sessions")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of openly licensed real scans beside the checkout; the test is skipped where it is absent."""
    if not (SHARED_DATA / "bids").is_dir():
        pytest.skip(f"real scans not found at {SHARED_DATA}")
    return SHARED_DATA


@pytest.hookimpl(tryfirst=True)  # xdist writes the groups into the names of the tests, in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, in their order, and keep tests that share something costly on one worker."""
    rank = {name: number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    for item in items:
        fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
        if item.path.stem in _IN_ORDER or any(one[-1].scope == "module" for one in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
