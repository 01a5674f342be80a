"""GPUs are found as CUDA would see them, and each process gets one of its own.

A script takes the place of ``nvidia-smi``.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import attrs
import nibabel as nib
import numpy as np
import pytest
import torch

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.plan import plan_image
from moesr_bids.cli.parser import parse_settings
from moesr_bids.interfaces import gpus, sr
from moesr_bids.interfaces.gpus import one_gpu, visible_gpus
from moesr_bids.run.workflow import run_workflow
from moesr_bids.sr.device import full_memory_told
from moesr_bids.sr.options import SROptions
from moesr_bids.workflows import execution
from moesr_bids.workflows.execution import make_plugin
from moesr_bids.workflows.image import init_image_wf
from tests.app import node_of

LISTED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aa)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bb)
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "bin" / "nvidia-smi"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return script


@pytest.mark.parametrize(
    ("named", "found"),
    [
        (None, {"GPU-aa": "GPU-aa", "GPU-bb": "GPU-bb"}),
        ("1", {"1": "GPU-bb"}),
        ("1, 0", {"1": "GPU-bb", "0": "GPU-aa"}),
        ("0,-1,1", {"0": "GPU-aa"}),
        ("GPU-bb", {"GPU-bb": "GPU-bb"}),
        ("", {}),
        ("-1", {}),
    ],
)
def test_gpus_are_those_that_cuda_sees(
    driver: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, found: dict[str, str]
) -> None:
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == found
    assert list(visible_gpus()) == list(found)


def test_no_driver_no_gpu(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == {}
    monkeypatch.setenv("PATH", "/nowhere")
    assert visible_gpus() == {}


def test_a_gpu_that_cannot_be_used_is_refused_before_anything_runs(
    driver: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bids" / "sub-01").mkdir(parents=True)
    command = [str(tmp_path / "bids"), str(tmp_path / "out"), "participant", "--device", "cuda"]

    def refused() -> str:
        with pytest.raises(SystemExit):
            parse_settings(command)
        return capsys.readouterr().err

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa")  # which is none
    assert "--device cuda: PyTorch cannot use the GPU" in refused()
    assert parse_settings([*command, "--dry-run"]).dry_run  # it may be for another machine
    assert parse_settings([*command[:-1], "auto"]).sr.device == "auto"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "--device cuda: nvidia-smi lists no GPU that CUDA_VISIBLE_DEVICES shows" in refused()


@pytest.mark.parametrize(("use_gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_the_device_is_decided_for_the_whole_run(tmp_path: Path, use_gpu: bool, device: str) -> None:
    """What the scheduler counts on, each image does, whatever its process finds."""
    scan = tmp_path / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4)), scan)
    options = ["--random-seed", "7", "--resolution", "1.1", "--model", "moediff", "--samples", "3"]
    settings = parse_settings([str(tmp_path / "bids"), str(tmp_path / "out"), "participant", *options])
    image = RawImage(path=scan, root=tmp_path / "bids")
    workflow = init_image_wf(plan=plan_image(image, settings), use_gpu=use_gpu)
    node = node_of(workflow, "super_resolve")
    assert node.inputs.use_gpu == use_gpu
    # All else is as the user chose.
    assert node.inputs.options == attrs.evolve(settings.sr, device=device, contrast="T1w")
    assert (settings.sr.random_seed, settings.sr.samples, settings.sr.resolution) == (7, 3, 1.1)


@pytest.mark.parametrize("count", [0, 2])
def test_the_scheduler_counts_the_gpus(driver: Path, tmp_path: Path, count: int) -> None:
    """The number is always set: left out, Nipype knows no limit where it sees no GPU."""
    (tmp_path / "bids" / "sub-01").mkdir(parents=True)
    settings = parse_settings([str(tmp_path / "bids"), str(tmp_path / "out"), "participant", "--device", "cpu"])
    plugin = make_plugin(settings, gpus=count, callback=lambda node, status: None, beat=lambda: None)
    try:
        assert plugin.n_gpu_procs == count
    finally:
        plugin.pool.shutdown()


@pytest.mark.parametrize(("usable", "slots", "told"), [(True, 2, "runs on 2 GPUs"), (False, 0, "the GPU is not used")])
def test_a_run_takes_all_gpus_or_says_why_not(
    driver: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    usable: bool,
    slots: int,
    told: str,
) -> None:
    found: list[int] = []
    monkeypatch.setattr(gpus, "gpu_problem", lambda: None if usable else "PyTorch cannot use the GPU")
    monkeypatch.setattr(execution, "make_plugin", lambda settings, *, gpus, **_: found.append(gpus))
    scan = tmp_path / "bids" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.eye(4)), scan)
    settings = parse_settings([str(tmp_path / "bids"), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "w")])
    run_workflow([plan_image(RawImage(path=scan, root=tmp_path / "bids"), settings)], settings)
    assert found == [slots]
    assert told in capsys.readouterr().out


def test_each_process_has_a_gpu_of_its_own(driver: Path, tmp_path: Path) -> None:
    third: list[str] = []
    with one_gpu(visible_gpus()) as one:
        code = "from moesr_bids.interfaces.gpus import *\nwith one_gpu(visible_gpus()) as gpu: print(gpu)"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        assert {one, other} == {"GPU-aa", "GPU-bb"}
        with one_gpu({other: other}):

            def wait() -> None:
                with one_gpu(visible_gpus()) as gpu:
                    third.append(gpu)

            waiting = threading.Thread(target=wait)
            waiting.start()
            waiting.join(timeout=1.5)
            assert third == []  # both are taken
        waiting.join(timeout=10)
    assert third == [other]


def test_super_resolution_gets_one_gpu(driver: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[dict[str, str]] = []
    run = subprocess.run

    def watched(command: list[str], **options: Any) -> Any:
        if "moesr_bids.cli.moesr" in command:
            given.append(options["env"])
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", watched)
    image = tmp_path / "image.nii.gz"
    image.write_bytes(b"no image")
    for device in ("auto", "cpu"):
        node = sr.SuperResolve(in_file=str(image), options=SROptions(device=device))
        with pytest.raises(RuntimeError, match="super-resolution failed"):
            node.run(cwd=str(tmp_path))
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in given] == ["GPU-aa", None]


def test_full_memory_is_told_with_the_way_out() -> None:
    with (
        pytest.raises(MemoryError, match=r"^CUDA out of memory: too little .* use a coarser grid, or --device cpu$"),
        full_memory_told("a coarser grid"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 80 GiB")
    with (
        pytest.raises(MemoryError, match=r"^too little memory is free on this machine; use a coarser grid$"),
        full_memory_told("a coarser grid"),
    ):
        torch.empty(2**50, dtype=torch.uint8)
    filled = r"^too little of the GPU's memory is free; use a coarser grid, or --device cpu$"
    with pytest.raises(MemoryError, match=filled), full_memory_told("a coarser grid"):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    with pytest.raises(RuntimeError, match="other"), full_memory_told("nothing"):
        raise RuntimeError("other")
