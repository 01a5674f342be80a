"""When things go wrong: bad images, kills, full disks, missing permissions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from tests.app import (
    MODULE,
    expected_files,
    files_below,
    node_folder,
    outputs_of,
    plans_of,
    run_app,
    run_here,
    statuses,
    validation_errors,
    work_of,
)

# Coarser than anyone would want, so that the good image costs little.
FAST = ("--resolution", "2", "--skip-bids-validation", "--sloppy", "--nprocs", "1")


@pytest.fixture(scope="module")
def phantom(shared_phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy a data set with one good participant, sub-01."""
    folder = tmp_path_factory.mktemp("phantom") / "bids"
    shutil.copytree(shared_phantom / "bids", folder, ignore=shutil.ignore_patterns("sub-02"))
    return folder


def anat(root: Path, participant: str) -> Path:
    folder = root / f"sub-{participant}" / "anat"
    folder.mkdir(parents=True)
    return folder


BAD = {
    "truncated": "truncated or damaged",
    "text": "not a NIfTI image",
    "nan": "no voxel is a finite number",
    "constant": "all voxels have the value",
    "series": "a series of 3 volumes",
    "dangling": "content was not fetched",
    "noise": "brain",
    "zerosform": "affine cannot be inverted",
}
BAD_NAMES = {
    "sub-twins_T1w": "there is a .nii and a .nii.gz of this name",
    "T1w": "does not repeat the labels of its folders",
}


@pytest.fixture(scope="module")
def broken(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Put the good participant among every kind of bad one."""
    root = tmp_path_factory.mktemp("broken") / "bids"
    shutil.copytree(phantom, root)
    good = root / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    image = nib.load(good)
    shape = image.shape
    (good.parent / "sub-01_T1w.json").write_text("{broken JSON")
    path = {name: anat(root, name) / f"sub-{name}_T1w.nii.gz" for name in BAD}
    path["truncated"].write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    path["text"].write_text("no image at all")
    nib.Nifti1Image(np.full(shape, np.nan, np.float32), image.affine).to_filename(path["nan"])
    nib.Nifti1Image(np.full(shape, 7, np.int16), image.affine).to_filename(path["constant"])
    nib.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 3, -1), image.affine).to_filename(path["series"])
    path["dangling"].symlink_to("../../.git/annex/objects/none")
    noise = np.random.default_rng(0).gamma(2, 50, shape).astype(np.float32)
    nib.Nifti1Image(noise, image.affine).to_filename(path["noise"])
    zero_sform = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    zero_sform.set_sform(np.diag([0.0, 0.0, 0.0, 1.0]), code=1)
    zero_sform.to_filename(path["zerosform"])
    shutil.copyfile(good, anat(root, "twins") / "sub-twins_T1w.nii.gz")
    image.to_filename(root / "sub-twins" / "anat" / "sub-twins_T1w.nii")
    shutil.copyfile(good, anat(root, "noname") / "T1w.nii.gz")
    (root / "sub-noanat" / "func").mkdir(parents=True)
    return root


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take the right to write away for a while, and see to it that root has not written either."""
    there = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    before = {path: path.stat().st_mtime_ns for path in there}
    for path in there:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield
    assert {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*")) if not path.is_symlink()} == before
    for path in there:
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture(scope="module")
def broken_run(broken: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run on the data set; it may not be written to."""
    out = broken.parent / "out"
    with read_only(broken):
        return out, run_app(broken, out, "--resolution", "2", "--sloppy")


def test_bad_images_do_not_stop_the_good_one(
    broken: Path, broken_run: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    out, done = broken_run
    assert done.returncode == 1
    rows = statuses(out)
    assert rows["sub-01_T1w"]["state"] == "done"
    assert {name for name, row in rows.items() if row["state"] == "failed"} == {
        *(f"sub-{name}_T1w" for name in BAD),
        *BAD_NAMES,
        "sub-noanat",
    }
    assert "Traceback" not in done.stderr
    plans = plans_of(broken, out, "--participant-label", "01", "--resolution", "2")
    crashed = {name: "brain_mask" if name == "noise" else "conform" for name in BAD}
    assert outputs_of(out) == expected_files(plans, crashed=crashed, unnamed=("twins+", "noname+", "noanat"))


@pytest.mark.parametrize("name", BAD)
def test_the_reason_is_told(broken_run: tuple[Path, subprocess.CompletedProcess[str]], name: str) -> None:
    out, done = broken_run
    row = statuses(out)[f"sub-{name}_T1w"]
    assert BAD[name] in row["reason"]
    assert row["step"] == ("brain_mask" if name == "noise" else "conform")
    assert f"FAILED sub-{name}_T1w" in done.stdout
    assert not (out / f"sub-{name}" / "anat").exists()


def test_failed_participants_have_reports_with_the_reason(
    broken_run: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = broken_run
    for name in BAD:
        assert BAD[name] in (out / f"sub-{name}.html").read_text()
    for name, words in BAD_NAMES.items():
        assert words in statuses(out)[name]["reason"]
    assert "no T1w, T2w, FLAIR image" in (out / "sub-noanat.html").read_text()


def test_broken_sidecar_is_a_warning(broken_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = broken_run
    block = json.loads((out / "sub-01/anat/sub-01_res-2mm_desc-moesr_T1w.json").read_text())["Moesr"]
    assert any("not readable JSON" in warning for warning in block["Warnings"])


def test_read_only_input_is_enough(broken_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """`read_only` has seen that nothing was written there."""
    assert statuses(broken_run[0])["sub-01_T1w"]["state"] == "done"


def test_output_with_failures_is_valid_bids(broken_run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert validation_errors(broken_run[0]) == []


def processes_below(pid: int) -> list[int]:
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def processes_running(module: str) -> list[int]:
    """Descendants of this process that run a Python module."""
    found = []
    for pid in processes_below(os.getpid()):
        with suppress(psutil.Error):
            if module in psutil.Process(pid).cmdline():
                found.append(pid)
    return found


def kill_tree(process: subprocess.Popen[str]) -> None:
    for pid in [*processes_below(process.pid), process.pid]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


@pytest.fixture(scope="module")
def restarted(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run that was killed in four of its steps and started again each time."""
    out = tmp_path_factory.mktemp("killed") / "out"
    command = [*MODULE, str(phantom), str(out), "participant", "-w", str(work_of(out)), *FAST]
    for step in ("brain_mask", "register_MNI152NLin2009aSym", "super_resolve", "publish"):
        assert not node_folder(out, step), "an earlier run has come too far"
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
        deadline = time.monotonic() + 600
        while not node_folder(out, step) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3 if step != "publish" else 0.05)
        kill_tree(process)
        assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
        assert node_folder(out, step), "the run was killed before it came so far"
        for name in files_below(out):
            if name.endswith(".nii.gz") and not Path(name).name.startswith("."):
                nib.load(out / name).get_fdata()
    done = run_app(phantom, out, *FAST)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_a_killed_run_can_be_started_again(restarted: Path) -> None:
    assert statuses(restarted)["sub-01_T1w"]["state"] in {"done", "skipped"}
    assert not [name for name in files_below(restarted) if ".part" in name]
    assert validation_errors(restarted) == []


def test_a_run_that_is_ended_takes_its_workers_along_and_shares_no_work_folder(phantom: Path, tmp_path: Path) -> None:
    work = work_of(tmp_path / "out")
    command = [*MODULE, str(phantom), str(tmp_path / "out"), "participant", "-w", str(work), *FAST]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 300
    while not node_folder(tmp_path / "out", "brain_mask") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    other = run_here(phantom, tmp_path / "other", *FAST, "-w", str(work))
    assert other.returncode == 2, other.stdout + other.stderr
    assert f"another run works on sub-01_T1w in the work folder {work}" in other.stderr
    workers = processes_below(process.pid)
    assert workers
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert not [pid for pid in workers if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


def mount_small(folder: Path, size: str) -> None:
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("a small file system needs the right to mount")


def test_what_a_run_has_started_ends_with_it() -> None:
    """Also what does not end when asked to."""
    code = (
        "import signal, subprocess, sys\n"
        "from moesr_bids.run.ending import end_children\n"
        "asked = subprocess.Popen(['sleep', '60'])\n"
        "deaf = subprocess.Popen(['sh', '-c', 'trap \"\" TERM; echo ready; sleep 60'], stdout=subprocess.PIPE)\n"
        "deaf.stdout.readline()\n"
        "end_children()\n"
        "import psutil\n"
        "sys.exit(len(psutil.Process().children(recursive=True)))\n"
    )
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=50).returncode == 0
    assert time.monotonic() - started < 40


def test_full_disk_is_told_and_leaves_no_half_files(phantom: Path, restarted: Path, tmp_path: Path) -> None:
    done_before = work_of(restarted)  # publishing is what needs the disk
    disk = tmp_path / "disk"
    mount_small(disk, "3m")
    try:
        out = disk / "out"
        command = [*MODULE, str(phantom), str(out), "participant", "-w", str(done_before), *FAST]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "No space left on device" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert not [name for name in files_below(out) if ".part" in name]
        assert not list(out.glob("sub-01/anat/*_desc-moesr_T1w.json")), "no sidecar may claim completeness"
        assert validation_errors(out) == []
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def as_ordinary_user(command: list[str]) -> list[str]:
    """Run a command under the permissions that files state: root has to give up two rights for that."""
    if os.geteuid() != 0:
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("as root, permissions only count with setpriv")
    drop = "-dac_override,-dac_read_search"
    return ["setpriv", f"--inh-caps={drop}", f"--bounding-set={drop}", *command]


def test_no_permission_to_read_is_told(phantom: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bids"
    shutil.copytree(phantom, copy)
    (copy / "sub-01/anat/sub-01_T1w.nii.gz").chmod(0)
    command = [*MODULE, str(copy), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work"), *FAST]
    done = subprocess.run(as_ordinary_user(command), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no permission to read it" in statuses(tmp_path / "out")["sub-01_T1w"]["reason"]


def test_no_permission_to_write_is_told(phantom: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    command = [*MODULE, str(phantom), str(locked / "out"), "participant", "-w", str(tmp_path / "work"), *FAST]
    done = subprocess.run(as_ordinary_user(command), capture_output=True, text=True, check=False)
    locked.chmod(0o700)
    assert done.returncode == 2
    assert f"no permission to write to {locked / 'out'}" in done.stderr


def test_empty_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bids").mkdir()
    done = run_here(tmp_path / "bids", tmp_path / "out")
    assert done.returncode == 2
    assert "holds no participant" in done.stderr


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (signal.SIGKILL, MemoryError, "larger --resolution"),
        (signal.SIGSEGV, RuntimeError, "ended by signal SIGSEGV"),
    ],
)
def test_super_resolution_that_dies_says_of_what(
    phantom: Path, tmp_path: Path, number: signal.Signals, error: type[Exception], words: str
) -> None:
    from moesr_bids.interfaces.sr import SuperResolve

    interface = SuperResolve(in_file=str(phantom / "sub-01/anat/sub-01_T1w.nii.gz"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(interface.run, cwd=str(tmp_path))
        # Nipype starts short-lived helpers of its own: only the command itself counts.
        deadline = time.monotonic() + 60
        while not (children := processes_running("moesr_bids.cli.moesr")) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in children:
            os.kill(pid, number)
        with pytest.raises(error, match=words):
            running.result()
