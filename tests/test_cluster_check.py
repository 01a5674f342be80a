"""``moesr check``: facts of the machine, faults, and the exit code."""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs
import pytest

import moesr_bids.resources as resources
from moesr_bids.cli.moesr import main
from moesr_bids.cluster import environment
from moesr_bids.cluster.phantom import KNOWN_PSNR_DB, TOLERANCE_DB, super_resolve_phantom
from moesr_bids.sr.models import DEFAULT_MODEL, weights_path

GIB = 1024**3


def test_the_phantom_reaches_its_figures_and_a_wrong_one_is_told() -> None:
    result = super_resolve_phantom(device="cpu", threads=1, memory_gb=4)
    assert result.problem == ""
    assert result.psnr_db[DEFAULT_MODEL] > result.psnr_db["cubic"] + 1  # the model is of use
    broken = attrs.evolve(result, psnr_db={"cubic": KNOWN_PSNR_DB["cubic"] - 2 * TOLERANCE_DB})
    assert "cubic reaches" in broken.problem


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_the_limit_of_a_control_group_is_named(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(str(GIB // 2))
    monkeypatch.setattr(resources, "_CGROUPS", tmp_path)
    found = environment.memory()
    assert found.told == f"0.5 GB (limit of {tmp_path / file})"
    assert "ask for at least 4 GB" in found.fault


def test_limits_of_slurm_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "300")
    assert environment.machine().told.startswith("1 (")
    assert environment.memory().told == "0.3 GB (SLURM_MEM_PER_NODE)"


@pytest.mark.parametrize(
    ("variables", "way"),
    [
        ({"APPTAINER_CONTAINER": "/image.sif"}, "--nv"),
        ({"CH_RUNNING": "yes"}, "ch-fromhost --nvidia"),
        ({"CH_RUNNING": "yes", "CUDA_VISIBLE_DEVICES": ""}, ""),
    ],
)
def test_a_driver_that_the_container_hides_is_told(
    variables: dict[str, str], way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi, as in a container without the driver's files
    driver = tmp_path / "version"
    assert environment.driver_hidden(variables, driver=driver) == ""
    driver.write_text("NVRM version")
    told = environment.driver_hidden(variables, driver=driver)
    assert bool(told) == bool(way)
    assert way in told


@pytest.mark.parametrize(
    ("file", "name"),
    [("run/.containerenv", "Podman"), (".dockerenv", "Docker"), (".singularity.d", "Apptainer"), ("x", "")],
)
def test_containers_are_told_apart(file: str, name: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert environment.container({}, tmp_path) == name


def test_a_folder_that_lacks_permission_or_space_is_a_fault(tmp_path: Path) -> None:
    assert environment.folder("work folder", tmp_path / "a/b", 0.001).fault == ""
    assert not (tmp_path / "a").exists()
    assert "cannot be written to" in environment.folder("work folder", Path("/proc/none"), 0.001).fault
    assert "at least 1e+09 are needed" in environment.folder("work folder", tmp_path, 1e9).fault


def test_links_that_lead_nowhere_name_what_to_bind(tmp_path: Path) -> None:
    anat = tmp_path / "data/sub-01/anat"
    anat.mkdir(parents=True)
    (anat / "sub-01_T2w.nii.gz").touch()
    assert environment.links(tmp_path / "data").fault == ""
    (anat / "sub-01_T1w.nii.gz").symlink_to(tmp_path / "disk2/scans/01.nii.gz")
    fault = environment.links(tmp_path / "data").fault
    assert fault.startswith("1 images are links") and fault.endswith(f"bind {tmp_path}/disk2 as well")
    (anat / "sub-01_T1w.nii.gz").unlink()
    (anat / "sub-01_T1w.nii.gz").symlink_to("../../.git/annex/objects/x/01.nii.gz")
    assert "datalad get" in environment.links(tmp_path / "data").fault
    assert "is not here" in environment.links(tmp_path / "none").fault


def test_weights_that_are_not_whole_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = weights_path(DEFAULT_MODEL)
    assert packaged is not None
    copy = tmp_path / packaged.name
    copy.write_bytes(packaged.read_bytes()[:-1])
    shutil.copy(packaged.with_suffix(".json"), tmp_path)
    assert all(len(found.told) == len("SHA-256 ") + 64 and not found.fault for found in environment.weights())
    monkeypatch.setattr("moesr_bids.sr.models.weights_path", lambda name: copy if name == DEFAULT_MODEL else None)
    assert "not the file that its card" in next(environment.weights()).fault


def test_templates_are_told_of_where_there_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("TEMPLATEFLOW_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # nor a name
    found = next(environment.templates())
    assert "MNI152NLin2009aSym (197 x 233 x 189)" in found.told and not found.fault


def test_the_command_says_what_to_do_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--device", "cpu", "--no-phantom", "-w", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("moesr check: no fault\n")
    assert main(["check", "--device", "cpu", "--no-phantom", "-w", "/proc/work"]) == 1
    told = capsys.readouterr().out
    assert "FAULT  work folder: /proc/work" in told
    assert "moesr check: work folder /proc/work cannot be written to" in told
    assert told.endswith("moesr check: 1 faults\n")
