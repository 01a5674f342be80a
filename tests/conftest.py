"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of openly licensed real scans beside the checkout; the test is skipped where it is absent."""
    if not (SHARED_DATA / "bids").is_dir():
        pytest.skip(f"real scans not found at {SHARED_DATA}")
    return SHARED_DATA
