"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# With a worker per core, the threads of one would wait for those of the others. PyTorch reads it when it is imported.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of openly licensed real scans beside the checkout; the test is skipped where it is absent."""
    if not (SHARED_DATA / "bids").is_dir():
        pytest.skip(f"real scans not found at {SHARED_DATA}")
    return SHARED_DATA
