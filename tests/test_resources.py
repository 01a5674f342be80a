"""Threads of linear algebra and limits of containers: results do not depend on the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from moesr_bids.resources import cpu_quotas, one_blas_thread

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


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "350000 100000\n"}, [3]),
        ({"cpu.max": "50000 100000\n"}, [1]),
        ({"cpu.max": "max 100000\n"}, []),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, [4]),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ({}, []),
    ],
)
def test_limits_of_a_container_are_read(tmp_path: Path, files: dict[str, str], cpus: list[int]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quotas(tmp_path) == cpus
