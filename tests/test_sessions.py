"""Sessions of several images: which image is the reference, which are aligned to it, and what happens if it fails."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from benchmarks.phantom import Acquisition, acquire
from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.plan import plan_image
from moesr_bids.bids.resume import session_reference, settings_hash
from moesr_bids.bids.schema import unstructured
from moesr_bids.bids.sessions import registered_by_itself, with_references
from moesr_bids.cli.rerun import read_recipe
from moesr_bids.preproc.template import load_template
from tests.app import (
    expected_files,
    outputs_of,
    plans_of,
    rerun,
    run_app,
    run_here,
    statuses,
    validation_errors,
    work_of,
)
from tests.scans import new_data_set, rigid, save_scan

TEMPLATE = "MNI152NLin2009aSym"
OPTIONS = ("--device", "cpu", "--sloppy", "--resolution", "2", "--output-spaces", f"{TEMPLATE}:res-1")
CUBIC = (*OPTIONS, "--model", "cubic")  # where it is about the reference alone
ANAT = "sub-01/anat/sub-01"
MOVEMENT = rigid((5, -4, 6), (4, -3, 6))
"""Of the head between the two scans of the phantom."""


@pytest.fixture(scope="module")
def session(shared_phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a data set of a T1w at 2 mm and a FLAIR of 4 mm slices of the same head, which moved in between."""
    folder = tmp_path_factory.mktemp("session")
    anat = new_data_set(folder, "session")
    truth = nib.load(shared_phantom / "truth/sub-01_T1w.nii.gz")
    for suffix, zooms, seed in (("T1w", (2.0, 2.0, 2.0), 3), ("FLAIR", (1.5, 1.5, 4.0), 4)):
        scanned = truth
        if suffix == "FLAIR":
            # The contrast of cerebrospinal fluid, grey and white matter turned round.
            data = np.asarray(truth.dataobj)
            scanned = nib.Nifti1Image(np.where(data > 0, 1200 - data, 0).astype(np.float32), truth.affine)
        image = acquire(scanned, Acquisition(participant="01", zooms=zooms, metadata={}, seed=seed))
        position = MOVEMENT if suffix == "FLAIR" else np.eye(4)
        save_scan(image, anat / f"sub-01_{suffix}", {"MRAcquisitionType": "3D"}, position)
    return folder


@pytest.fixture(scope="module")
def finished(session: Path) -> Path:
    done = run_app(session / "bids", session / "out", *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    return session / "out"


def test_movement_between_the_scans_is_found(finished: Path) -> None:
    import ants

    block = json.loads((finished / f"{ANAT}_res-2mm_desc-moesr_FLAIR.json").read_text())["Moesr"]
    expected = np.rad2deg(Rotation.from_matrix(MOVEMENT[:3, :3]).magnitude())
    assert block["Coregistration"]["Reference"] == "sub-01_T1w"
    assert block["Coregistration"]["RotationDegrees"] == pytest.approx(expected, abs=0.5)
    transform = ants.read_transform(str(finished / f"{ANAT}_from-FLAIR_to-T1w_mode-image_xfm.h5"))
    back = ants.read_transform(str(finished / f"{ANAT}_from-T1w_to-FLAIR_mode-image_xfm.h5"))
    flip = np.array([-1.0, -1.0, 1.0])
    for point in np.array([[0.0, -18, 10], [40, -20, 20], [-40, 10, 0], [0, -60, 40]]):
        there = np.array(transform.apply_to_point(tuple(point * flip))) * flip
        assert np.linalg.norm(there - apply_affine(MOVEMENT, point)) < 1.0  # rough, and slices of 4 mm
        np.testing.assert_allclose(back.apply_to_point(tuple(there * flip)), point * flip, atol=0.01)


def test_both_contrasts_lie_in_the_template(finished: Path) -> None:
    mask = load_template().mask
    assert mask is not None
    brain = np.asarray(mask.dataobj) > 0
    for suffix in ("T1w", "FLAIR"):
        path = f"{ANAT}_space-{TEMPLATE}_res-1_desc-moesr_{suffix}"
        image = nib.load(finished / f"{path}.nii.gz")
        assert image.shape == brain.shape
        np.testing.assert_allclose(image.affine, mask.affine)
        there = image.get_fdata() > 150
        assert 2 * (there & brain).sum() / (there.sum() + brain.sum()) > 0.93
        assert "grid res-1" in json.loads((finished / f"{path}.json").read_text())["Resolution"]


def test_outputs_and_page(session: Path, finished: Path) -> None:
    assert validation_errors(finished) == []
    assert outputs_of(finished) == expected_files(plans_of(session / "bids", finished, *OPTIONS))
    page = (finished / "sub-01.html").read_text()
    assert "Alignment to the reference image of the session" in page
    assert "to sub-01_T1w: moved by" in page
    assert "this image is the reference, or alone in its session" in page


def test_an_image_is_repeated_with_the_reference_that_it_had(finished: Path) -> None:
    sidecar = finished / f"{ANAT}_res-2mm_desc-moesr_FLAIR.json"
    done = rerun(sidecar)
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = json.loads(sidecar.read_text())["Moesr"]["OutputSHA256"]
    assert f"the same: SHA-256 {recorded}" in done.stdout
    assert hashlib.sha256(sidecar.with_suffix(".nii.gz").read_bytes()).hexdigest() == recorded


def test_a_complete_reference_serves_an_image_that_is_not(session: Path, finished: Path) -> None:
    reference = finished / f"{ANAT}_res-2mm_desc-moesr_T1w.nii.gz"
    before = reference.stat().st_mtime_ns
    lost = finished / f"{ANAT}_desc-residual_FLAIR.nii.gz"
    lost.unlink()
    done = run_app(session / "bids", finished, *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: row["state"] for name, row in statuses(finished).items()} == {
        "sub-01_T1w": "skipped",
        "sub-01_FLAIR": "done",
    }
    assert lost.exists()
    assert reference.stat().st_mtime_ns == before
    assert validation_errors(finished) == []


def test_a_reference_that_was_killed_and_is_finished_now_serves(session: Path, finished: Path) -> None:
    out = session / "out-killed"
    shutil.copytree(finished, out)
    sidecar = out / f"{ANAT}_res-2mm_desc-moesr_FLAIR.json"
    recipe = read_recipe(sidecar, session / "bids")
    assert recipe.image.reference is not None
    work = work_of(finished)  # holds most of what is to be done again
    settings = recipe.plan(out, work).settings
    alone = plan_image(attrs.evolve(recipe.image, reference=None, instead_of=recipe.image.reference), settings)
    (out / f"{ANAT}_desc-residual_T1w.nii.gz").unlink()  # the reference is not finished
    content = json.loads(sidecar.read_text())
    content["Moesr"]["SessionReference"] = unstructured(session_reference(alone))
    content["Moesr"]["SettingsHash"] = settings_hash(alone, content["Moesr"]["InputSHA256"])
    sidecar.write_text(json.dumps(content))
    assert "sub-01_FLAIR: complete" in run_here(session / "bids", out, *OPTIONS, "--dry-run").stdout
    done = run_app(session / "bids", out, *OPTIONS, "--skip-bids-validation", "-w", str(work))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done again with their reference, which an earlier run had not: sub-01_FLAIR" in done.stdout
    assert {name: row["state"] for name, row in statuses(out).items()} == {"sub-01_T1w": "done", "sub-01_FLAIR": "done"}
    used = json.loads(sidecar.read_text())["Moesr"]["SessionReference"]["Used"]
    assert used == "sub-01/anat/sub-01_T1w.nii.gz"


@contextmanager
def kept(path: Path) -> Iterator[bytes]:
    """Put a file back afterwards, with its times, by which Nipype tells whether it changed."""
    content, status = path.read_bytes(), path.stat()
    try:
        yield content
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_image_that_does_not_fit_its_reference_is_registered_by_itself(session: Path, finished: Path) -> None:
    """A FLAIR of a much smaller head, as of somebody else."""
    out = session / "out-other"
    shutil.copytree(finished, out)
    path = session / "bids/sub-01/anat/sub-01_FLAIR.nii.gz"
    image = nib.load(path)
    affine = image.affine @ np.diag([0.8, 0.8, 0.8, 1.0])
    affine[:3, 3] += apply_affine(image.affine, np.array(image.shape) / 2) - apply_affine(
        affine, np.array(image.shape) / 2
    )
    small = nib.Nifti1Image(np.asarray(image.dataobj), affine)
    small.set_sform(affine, code=1)
    small.set_qform(affine, code=1)
    options = (*OPTIONS, "--skip-bids-validation", "-w", str(work_of(finished)))
    with kept(path):
        small.to_filename(path)
        done = run_app(session / "bids", out, *options)
        plan = run_here(session / "bids", out, *options, "--dry-run").stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"sub-01_FLAIR, .*: alignment to the session's reference failed", done.stdout)
    assert {name: row["state"] for name, row in statuses(out).items()} == {
        "sub-01_T1w": "skipped",
        "sub-01_FLAIR": "done",
    }
    block = json.loads((out / f"{ANAT}_res-2mm_desc-moesr_FLAIR.json").read_text())["Moesr"]
    assert any(text.startswith("not aligned to sub-01_T1w, but registered by itself: ") for text in block["Warnings"])
    assert not list(out.glob("sub-01/anat/*from-FLAIR_to-T1w*"))
    assert plan.count("complete, would be skipped") == 2


def test_a_broken_reference_does_not_stop_the_others(session: Path, finished: Path) -> None:
    out = session / "out-broken"
    # What the FLAIR needs no reference for lies in the work folder.
    options = (*CUBIC, "--skip-bids-validation", "-w", str(work_of(finished)))
    path = session / "bids/sub-01/anat/sub-01_T1w.nii.gz"
    with kept(path) as whole:
        path.write_bytes(whole[: len(whole) // 2])
        done = run_app(session / "bids", out, *options)
        plan = run_here(session / "bids", out, *options, "--dry-run").stdout
        # As long as the reference is broken in the same way, there is nothing to do again.
        assert "sub-01_FLAIR: complete, would be skipped" in plan
    assert done.returncode == 1
    assert "done again without what could not be used: sub-01_FLAIR" in done.stdout
    assert {name: row["state"] for name, row in statuses(out).items()} == {
        "sub-01_T1w": "failed",
        "sub-01_FLAIR": "done",
    }
    block = json.loads((out / f"{ANAT}_res-2mm_desc-moesr_FLAIR.json").read_text())["Moesr"]
    assert "Coregistration" not in block
    assert block["SessionReference"]["InsteadOf"] == "sub-01/anat/sub-01_T1w.nii.gz"
    assert "sub-01_T1w could not serve as the reference of the session" in block["Warnings"]
    assert "SyN" in block["Registration"][TEMPLATE]["Transform"]


def empty(folder: Path, name: str, zooms: tuple[float, float, float]) -> RawImage:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.diag([*zooms, 1.0])).to_filename(path)
    return RawImage(path=path, root=folder)


def test_choice_of_the_reference(tmp_path: Path) -> None:
    flair = empty(tmp_path, "sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii", (1.0, 1.0, 1.0))
    coarse = empty(tmp_path, "sub-1/ses-a/anat/sub-1_ses-a_run-1_T1w.nii", (1.0, 1.0, 5.0))
    fine = empty(tmp_path, "sub-1/ses-a/anat/sub-1_ses-a_run-2_T1w.nii", (1.0, 1.0, 2.0))
    broken = tmp_path / "sub-1/ses-a/anat/sub-1_ses-a_run-0_T1w.nii"
    broken.write_bytes(b"no image")
    other = empty(tmp_path, "sub-1/ses-b/anat/sub-1_ses-b_T2w.nii", (1.0, 1.0, 4.0))
    images = [flair, coarse, fine, RawImage(path=broken, root=tmp_path), other]
    assert [image.reference for image in with_references(images)] == [fine, fine, None, fine, None]
    assert [image.reference for image in with_references(images, failed=[fine])] == [coarse, None, coarse, coarse, None]
    again = with_references(with_references(images), failed=[coarse, fine, images[3]])
    assert [image.reference for image in again] == [None, flair, flair, flair, None]
    assert again[1].reference is not None
    assert again[1].reference.reference is None


def test_an_image_without_any_fitting_reference_names_the_first_choice(tmp_path: Path) -> None:
    """The next run plans with the first choice, and would else make the image again."""
    t1w = empty(tmp_path, "sub-1/anat/sub-1_T1w.nii", (1.0, 1.0, 1.0))
    flair = empty(tmp_path, "sub-1/anat/sub-1_FLAIR.nii", (1.0, 1.0, 1.0))
    t2w = empty(tmp_path, "sub-1/anat/sub-1_T2w.nii", (1.0, 1.0, 4.0))
    planned = with_references([t1w, flair, t2w], failed=[t1w])[2]
    assert planned.reference == flair
    found = registered_by_itself(planned, "too small")
    assert found.reference is None
    assert found.instead_of == t1w
    assert found.instead_reason == (
        "sub-1_T1w could not serve as the reference of the session; "
        "not aligned to sub-1_FLAIR, but registered by itself: too small"
    )
