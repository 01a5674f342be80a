"""Which images get a correction of gradient nonlinearity, and the outputs of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import nibabel as nib
import numpy as np
import pytest

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.gradients import coefficient_file, is_coefficients, plan_gradunwarp
from moesr_bids.bids.plan import plan_image
from moesr_bids.bids.resume import settings_hash
from moesr_bids.cli.parser import parse_settings
from moesr_bids.config import Settings
from moesr_bids.preproc.images import to_ants
from moesr_bids.sr.grid import Grid
from moesr_bids.workflows.image import init_image_wf
from tests.app import expected_files, node_of, outputs_of, plans_of, run_app, statuses, validation_errors, work_of
from tests.test_preproc_gradients import HEADER, LINES


def scan(root: Path, metadata: Mapping[str, Any], code: int = 1, zooms: tuple[float, ...] = (1, 1, 1)) -> RawImage:
    path = root / "sub-01/anat/sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.diag([*zooms, 1.0]))
    image.set_sform(image.affine, code)
    image.set_qform(image.affine, code)
    image.to_filename(path)
    return RawImage(path=path, root=root, metadata=metadata)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "coefficients.grad"
    path.write_text(HEADER + "\n".join(LINES) + "\n")
    return Settings(
        bids_dir=tmp_path,
        output_dir=tmp_path / "out",
        work_dir=tmp_path / "work",
        analysis_level="participant",
        gradient_coefficients=path,
    )


@pytest.mark.parametrize(
    ("metadata", "action", "reason"),
    [
        ({}, "none", "does not say"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, "none", "does not say"),
        ({"NonlinearGradientCorrection": True, "ImageType": ["ND"]}, "none", "NonlinearGradientCorrection"),
        ({"ImageType": ["ORIGINAL", "DIS3D"], "NonlinearGradientCorrection": False}, "none", "DIS3D"),
        ({"ImageType": ["ORIGINAL", "DIS2D"]}, "through-plane", "DIS2D"),
        ({"ImageType": ["ORIGINAL", "DIS2D"], "NonlinearGradientCorrection": True}, "through-plane", "DIS2D"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]}, "full", "ND"),
        ({"NonlinearGradientCorrection": False}, "full", "NonlinearGradientCorrection"),
    ],
)
def test_auto_follows_the_sidecar(
    settings: Settings, tmp_path: Path, metadata: dict[str, Any], action: str, reason: str
) -> None:
    image = scan(tmp_path, metadata)
    plan = plan_gradunwarp(image, settings)
    assert plan.action == action
    assert reason in plan.reason
    keys = {output.key for output in plan_image(image, settings).outputs}
    assert ("jacobian" in keys) == plan.corrects == (action != "none")
    assert bool(plan.warnings) == (reason == "does not say" or plan.corrects)
    assert plan_gradunwarp(image, attrs.evolve(settings, gradunwarp="force")).action == "full"
    assert plan_gradunwarp(image, attrs.evolve(settings, gradunwarp="off")).action == "none"
    assert plan_gradunwarp(image, attrs.evolve(settings, gradient_coefficients=None)).action == "none"


def test_positions_must_be_those_of_the_scanner(settings: Settings, tmp_path: Path) -> None:
    metadata = {"NonlinearGradientCorrection": False, "PatientPosition": "FFS"}
    plan = plan_gradunwarp(scan(tmp_path, metadata, code=4), settings)
    assert plan.action == "none"
    assert "xform code 4" in plan.warnings[0]
    plan = plan_gradunwarp(scan(tmp_path, metadata), settings)
    assert (plan.patient_position, plan.warnings) == ("FFS", ())


@pytest.mark.parametrize("name", ["scanner.grad", "scanner.nii.gz"])
def test_a_position_that_nobody_states_is_told(settings: Settings, tmp_path: Path, name: str) -> None:
    settings = attrs.evolve(settings, gradient_coefficients=tmp_path / name)
    stated = {"NonlinearGradientCorrection": False, "PatientPosition": "HFP"}
    assert plan_gradunwarp(scan(tmp_path, stated), settings).warnings == ()
    plan = plan_gradunwarp(scan(tmp_path, {"NonlinearGradientCorrection": False}), settings)
    assert plan.record()["PatientPosition"] == "HFS"
    assert "no PatientPosition: taken to be head first, supine" in plan.warnings[0]


def test_a_large_field_is_declared_to_the_scheduler(settings: Settings, tmp_path: Path) -> None:
    image = scan(tmp_path, {"NonlinearGradientCorrection": False})
    lattice = (60, 50, 40)
    field = tmp_path / "scanner.nii.gz"
    nib.Nifti1Image(np.zeros((*lattice, 1, 3), np.float32), np.diag([5.0, 5, 5, 1])).to_filename(field)

    def declared(source: Path) -> float:
        plan = plan_image(image, attrs.evolve(settings, gradient_coefficients=source))
        workflow = init_image_wf(plan=plan, use_gpu=False)
        return float(node_of(workflow, "gradunwarp").mem_gb)

    assert settings.gradient_coefficients is not None
    more = declared(field) - declared(settings.gradient_coefficients)
    assert more * 2**30 == pytest.approx(250 * np.prod(lattice))


def test_steps_declare_the_memory_of_the_grids_that_they_work_on(settings: Settings, tmp_path: Path) -> None:
    """Of a head as large as usual ones, to 1 and to 0.7 mm."""
    image = scan(tmp_path, {})
    grids = Grid((160, 256, 256), np.eye(4)), Grid((229, 366, 366), np.diag([0.7, 0.7, 0.7, 1.0]))
    coarse = plan_image(image, settings).cost
    same, finer = (attrs.evolve(coarse, input=grids[0], target=target) for target in grids)
    for step in ("conform", "brain_mask", "n4", "register:MNI152NLin2009aSym"):
        assert finer.memory_of(step) == same.memory_of(step) > coarse.memory_of(step)
    for step in ("target_mask", "warp:MNI152NLin2009aSym", "quality", "reportlets", "publish"):
        assert finer.memory_of(step) > same.memory_of(step)
    assert finer.memory_gb >= max(finer.memory_of(step) for step in ("super_resolve", "warp", "quality", "publish"))
    workflow = init_image_wf(plan=plan_image(image, settings), use_gpu=False)
    for name in ("conform", "quality", "reportlets", "publish"):
        assert node_of(workflow, name).mem_gb == coarse.memory_of(name)


def test_slices_are_found(settings: Settings, tmp_path: Path) -> None:
    kind = {"ImageType": ["DIS2D"]}
    unknown = plan_gradunwarp(scan(tmp_path, kind), settings)
    assert unknown.slice_axis == 2
    assert "no key tells along which axis the slices lie" in unknown.warnings[0]
    assert unknown.record()["SliceAxis"] == "k"
    # Sagittal partitions, stored as right, anterior, superior.
    sagittal = {**kind, "ImageOrientationPatientDICOM": [0, 1, 0, 0, 0, -1], "PatientPosition": "HFS"}
    known = plan_gradunwarp(scan(tmp_path, sagittal), settings)
    assert (known.slice_axis, known.warnings) == (0, ())
    assert plan_gradunwarp(scan(tmp_path, kind, zooms=(1, 4, 1)), settings).slice_axis == 1
    stated = {**kind, "SliceEncodingDirection": "i-"}
    assert plan_gradunwarp(scan(tmp_path, stated, zooms=(1, 4, 1)), settings).slice_axis == 0


def test_files_are_found_by_scanner(tmp_path: Path) -> None:
    for name in ("MRC-35008.grad", "Siemens Prisma_fit.grad", "skyra.grad", "skyra.nii.gz", "notes.txt"):
        (tmp_path / name).write_text("")
    prisma = {"Manufacturer": "SIEMENS", "ManufacturersModelName": "Prisma_fit"}
    assert coefficient_file(tmp_path, prisma)[0] == tmp_path / "Siemens Prisma_fit.grad"
    assert coefficient_file(tmp_path, {**prisma, "StationName": "MRC35008"})[0] == tmp_path / "MRC-35008.grad"
    assert "2 files for skyra" in coefficient_file(tmp_path, {"ManufacturersModelName": "Skyra"})[1]
    assert "no file named after the scanner" in coefficient_file(tmp_path, {"ManufacturersModelName": "Trio"})[1]
    assert "names no scanner" in coefficient_file(tmp_path, {})[1]


@pytest.mark.parametrize(("name", "holds"), [("a.grad", True), ("A.GRAD", True), ("a.nii.gz", False)])
def test_files_are_told_apart_by_name(name: str, holds: bool) -> None:
    assert is_coefficients(Path(name)) == holds


def test_other_coefficients_are_other_outputs(settings: Settings, tmp_path: Path) -> None:
    image = scan(tmp_path, {"NonlinearGradientCorrection": False})
    before = settings_hash(plan_image(image, settings), "0")
    assert settings.gradient_coefficients is not None
    settings.gradient_coefficients.write_text(HEADER + LINES[0] + "\n")
    after = settings_hash(plan_image(image, settings), "0")
    # So are those of an image whose reference they correct.
    other = RawImage(path=image.path, root=image.root, reference=image)
    aligned = settings_hash(plan_image(other, settings), "0")
    settings.gradient_coefficients.write_text(HEADER + LINES[1] + "\n")
    assert settings_hash(plan_image(other, settings), "0") != aligned
    assert len({before, after, settings_hash(plan_image(image, attrs.evolve(settings, gradunwarp="off")), "0")}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gradunwarp", "force"], "needs --gradient-coefficients"),
        (["--gradient-coefficients", "missing.grad"], "no such file or folder"),
        (["--gradient-coefficients", "scanner.coef"], "neither .grad nor .nii.gz"),
        (["--gradient-coefficients", "bad.grad"], "no coefficients"),
    ],
)
def test_refusals(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/sub-01/anat").mkdir(parents=True)
    (tmp_path / "scanner.coef").write_text("")
    (tmp_path / "bad.grad").write_text(HEADER)
    with pytest.raises(SystemExit):
        parse_settings(["data", "out", "participant", *arguments])
    assert message in capsys.readouterr().err


def test_the_app_corrects_and_samples_and_says_so(shared_phantom: Path, tmp_path: Path) -> None:
    """Everything that is not the default in one run: gradient nonlinearity, and samples of the mixture of experts."""
    import ants

    shutil.copytree(shared_phantom / "bids", tmp_path / "bids", ignore=shutil.ignore_patterns("sub-02"))
    sidecar = next((tmp_path / "bids").rglob("*_T1w.json"))
    facts = json.loads(sidecar.read_text()) | {"NonlinearGradientCorrection": False, "PatientPosition": "HFS"}
    sidecar.write_text(json.dumps({**facts, "ManufacturersModelName": "Phantom"}))
    folder = tmp_path / "coefficients"
    folder.mkdir()
    (folder / "phantom.grad").write_text(HEADER + "\n".join(LINES) + "\n")
    out = tmp_path / "out"
    options = ("--resolution", "2.5", "--model", "moediff", "--samples", "2", "--sloppy", "--device", "cpu")
    options += ("--gradient-coefficients", str(folder))
    done = run_app(tmp_path / "bids", out, *options, "--clean-workdir")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (work_of(out) / "moesr_wf").exists()
    assert {row["state"] for row in statuses(out).values()} == {"done"}
    assert re.search("WARNING: no GPU is used: moediff will take about .* min", done.stdout)
    assert outputs_of(out) == expected_files(plans_of(tmp_path / "bids", out, *options))
    assert validation_errors(out) == []
    anat = out / "sub-01/anat"
    block = json.loads((anat / "sub-01_res-2p5mm_desc-moesr_T1w.json").read_text())["Moesr"]
    assert block["Guidance"] == ["log_bias", "log_jacobian"]
    assert block["Sampling"]["Samples"] == block["Settings"]["samples"] == 2
    gates = [nib.load(path).get_fdata() for path in anat.glob("*_label-*_desc-gate_probseg.nii.gz")]
    assert gates[0].shape == tuple(block["OutputShape"])
    np.testing.assert_allclose(sum(gates), 1, atol=0.01)
    record = block["GradientNonlinearity"]
    assert record["Action"] == "full"
    assert record["File"] == "phantom.grad"
    assert record["LargestDisplacementMM"] > 1
    assert "gradient nonlinearity" in json.loads((anat / "sub-01_desc-corrected_T1w.json").read_text())["Description"]
    page = (out / "sub-01.html").read_text()
    assert "corrected in three dimensions, by up to" in page
    assert (out / "sub-01/figures/sub-01_desc-gradunwarp_T1w.png").stat().st_size > 20_000
    # The published field does to the raw image what the app did; N4 then divided by a smooth field.
    raw = nib.load(next((tmp_path / "bids").rglob("*_T1w.nii.gz")))
    source = to_ants(raw.get_fdata(dtype=np.float32), raw.affine)
    field = anat / "sub-01_from-orig_to-T1w_mode-image_xfm.nii.gz"
    moved = ants.apply_transforms(source, source, [str(field)], interpolator="bSpline").numpy()
    moved = np.clip(moved, 0, None) * nib.load(anat / "sub-01_desc-jacobian_T1w.nii.gz").get_fdata()
    preproc = nib.load(anat / "sub-01_desc-corrected_T1w.nii.gz").get_fdata()
    inside = moved > 0.3 * np.percentile(moved, 99)
    ratio = np.log(preproc[inside] / moved[inside])
    shifted = np.log(preproc[inside] / np.maximum(raw.get_fdata()[inside], 1))
    assert ratio.std() < 0.5 * shifted.std()
    back = ants.apply_transforms(
        ants.from_numpy(moved.astype(np.float32), source.origin, source.spacing, source.direction),
        ants.from_numpy(moved.astype(np.float32), source.origin, source.spacing, source.direction),
        [str(anat / "sub-01_from-T1w_to-orig_mode-image_xfm.nii.gz")],
    )
    assert np.corrcoef(back.numpy()[inside], raw.get_fdata()[inside])[0, 1] > 0.98
