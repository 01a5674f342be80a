"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

# With a worker per core, the threads of one would wait for those of the others. PyTorch reads it when it is imported.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

# The files that take longest go first, or a worker would still be at one of them when the other has nothing left.
_LONG = ("test_sessions", "test_join", "test_app", "test_failures", "test_gradients", "test_brain")
_LONG += ("test_sr_student",)

# Tests of these files share something costly, or go on from what those before them left in the work folder.
_TOGETHER = (
    "test_app",
    "test_failures",
    "test_install",
    "test_intensities",
    "test_join",
    "test_preproc_bias",
    "test_preproc_coregistration",
    "test_preproc_gradients",
    "test_preproc_registration",
    "test_reports_browser",
    "test_reports_figures",
    "test_segmentation",
    "test_sessions",
    "test_slurm_array",
    "test_sr_consistency",
    "test_sr_joint_positions",
    "test_training",
    "test_training_distillation",
    "test_training_lesions",
    "test_training_mixture",
    "test_training_pairs",
)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of openly licensed real scans beside the checkout; the test is skipped where it is absent."""
    if not (SHARED_DATA / "bids").is_dir():
        pytest.skip(f"real scans not found at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def shared_phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the phantom, ``bids/`` and ``truth/``, made once for all workers: copy what you change."""
    from benchmarks.phantom import build

    here = tmp_path_factory.getbasetemp()
    common = here.parent if "PYTEST_XDIST_WORKER" in os.environ else here
    folder = common / "shared_phantom"
    with FileLock(common / "shared_phantom.lock"):
        if not folder.exists():
            build(here / "building")
            (here / "building").rename(folder)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, in their order."""
    rank = {name: number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    for item in items:
        fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
        if item.path.stem not in _TOGETHER and any(one[-1].scope == "module" for one in fixtures):
            raise pytest.UsageError(f"{item.path.name}: has fixtures of the module; name it in conftest's _TOGETHER")


class _Together(LoadScopeScheduling):
    """Sends the tests of some files to one worker, in their order, and each of the others to the next that is free.

    The groups of pytest-xdist do the same, but not with a pytest that keeps the names of tests to itself (from 9.2 on).
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if Path(file).stem in _TOGETHER else nodeid


@pytest.hookimpl(optionalhook=True)  # it is not there with -p no:xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Schedule as above."""
    return _Together(config, log)
