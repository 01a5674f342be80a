"""Threads of linear algebra: results do not depend on the environment."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from moesr_bids.resources import one_blas_thread

COUNT = "import numpy, threadpoolctl; print(*(p['num_threads'] for p in threadpoolctl.threadpool_info()))"


def blas_threads() -> list[int]:
    """Threads of each loaded BLAS."""
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("environment", [{}, {"OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}])
def test_blas_has_one_thread_here_and_in_children(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    np.dot(np.eye(2), np.eye(2))  # loaded
    before, variables = blas_threads(), dict(os.environ)
    assert before
    with one_blas_thread():
        assert set(blas_threads()) == {1}
        child = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
        assert set(child.stdout.split()) == {"1"}
    assert blas_threads() == before
    assert dict(os.environ) == variables
