"""Brain masks of the user: which mask an image gets, and how it is used."""

from __future__ import annotations

from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.masks import plan_mask
from moesr_bids.bids.plan import plan_image
from moesr_bids.bids.resume import settings_hash
from moesr_bids.cli.parser import parse_settings
from moesr_bids.config import Settings
from moesr_bids.errors import ImageError
from moesr_bids.interfaces.ants import _mask
from moesr_bids.interfaces.mask import ResampleMask
from moesr_bids.preproc.template import load_template
from moesr_bids.segmentation.brain import dice, find_brain
from moesr_bids.sr.grid import Grid
from moesr_bids.workflows.preproc import init_preproc_wf

GRID = np.diag([2.0, 2.0, 2.0, 1.0])
OTHER = np.diag([1.5, 1.5, 1.5, 1.0])


def save(path: Path, affine: np.ndarray = GRID) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), affine).to_filename(path)
    return path


def scene(tmp_path: Path, name: str, *masks: tuple[str, np.ndarray]) -> tuple[RawImage, Settings]:
    image = save(tmp_path / "bids" / "sub-01" / "anat" / name)
    for mask, affine in masks:
        save(tmp_path / "fmriprep" / "sub-01" / "anat" / mask, affine)
    settings = Settings(
        bids_dir=tmp_path / "bids",
        output_dir=tmp_path / "out",
        analysis_level="participant",
        work_dir=tmp_path / "work",
        derivatives=(tmp_path / "fmriprep",),
    )
    return RawImage(path=image, root=tmp_path / "bids"), settings


@pytest.mark.parametrize(
    ("image", "masks", "taken"),
    [
        ("sub-01_T1w.nii.gz", [("sub-01_desc-brain_mask.nii.gz", OTHER)], 0),
        ("sub-01_T1w.nii.gz", [("sub-01_label-brain_mask.nii", GRID)], 0),
        ("sub-01_T1w.nii.gz", [("sub-01_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz", OTHER)], None),
        ("sub-01_T1w.nii.gz", [("sub-01_desc-lesion_mask.nii.gz", GRID)], None),
        # That of the T1w says nothing of where another contrast's brain is, unless it is on its grid.
        ("sub-01_FLAIR.nii.gz", [("sub-01_desc-brain_mask.nii.gz", OTHER)], None),
        ("sub-01_FLAIR.nii.gz", [("sub-01_desc-brain_mask.nii.gz", GRID)], 0),
        ("sub-01_FLAIR.nii.gz", [("sub-01_space-FLAIR_res-0p7mm_desc-brain_mask.nii.gz", OTHER)], 0),
        ("sub-01_run-2_T1w.nii.gz", [("sub-01_run-1_desc-brain_mask.nii.gz", GRID)], None),
        (
            "sub-01_run-2_T1w.nii.gz",
            [("sub-01_desc-brain_mask.nii.gz", OTHER), ("sub-01_run-2_desc-brain_mask.nii.gz", OTHER)],
            1,
        ),
    ],
)
def test_which_mask_an_image_gets(
    tmp_path: Path, image: str, masks: list[tuple[str, np.ndarray]], taken: int | None
) -> None:
    raw, settings = scene(tmp_path, image, *masks)
    plan = plan_mask(raw, settings)
    assert (plan.file and plan.file.name) == (None if taken is None else masks[taken][0])
    if taken is not None:
        assert plan.name == f"fmriprep: sub-01/anat/{masks[taken][0]}"


def test_a_mask_decides_the_outputs_and_is_given_to_the_step(tmp_path: Path) -> None:
    raw, settings = scene(tmp_path, "sub-01_T1w.nii.gz", ("sub-01_desc-brain_mask.nii.gz", GRID))
    without = attrs.evolve(settings, derivatives=())
    plans = [plan_image(raw, some) for some in (settings, without)]
    assert settings_hash(plans[0], "0") != settings_hash(plans[1], "0")
    node = init_preproc_wf(plan=plans[0]).get_node("brain_mask")
    assert node.inputs.given_file.endswith("sub-01_desc-brain_mask.nii.gz")
    again = Settings.from_recorded(
        settings.recorded(),
        device="cpu",
        **{name: getattr(settings, name) for name in ("bids_dir", "output_dir", "analysis_level", "work_dir")},
    )
    assert again.derivatives == settings.derivatives
    plan = plan_mask(raw, settings, unwarped=True)
    assert plan.file is None
    assert "before gradient nonlinearity was corrected" in plan.warnings[0]


def test_a_folder_without_participants_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, _ = scene(tmp_path, "sub-01_T1w.nii.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        parse_settings([str(raw.root), str(tmp_path / "o"), "participant", "--derivatives", str(tmp_path / "empty")])
    assert "has no sub-* folder" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"/annex/objects/x", b"no image", b"", None])
def test_a_mask_that_cannot_be_read_is_told_where_it_is_used(tmp_path: Path, content: bytes | None) -> None:
    """Not where runs are planned, which would stop all images."""
    raw, settings = scene(tmp_path, "sub-01_T1w.nii.gz", ("sub-01_desc-brain_mask.nii.gz", GRID))
    mask = tmp_path / "fmriprep" / "sub-01" / "anat" / "sub-01_desc-brain_mask.nii.gz"
    mask.unlink()
    mask.symlink_to("nowhere") if content is None else mask.write_bytes(content)
    assert plan_mask(raw, settings).file == mask
    assert plan_image(raw, settings).outputs
    with pytest.raises(ImageError, match=rf"{mask}: .*; or leave --derivatives out"):
        _mask(str(mask))


def test_a_scan_with_an_impossible_header_is_told_by_its_own_step(tmp_path: Path) -> None:
    raw, settings = scene(tmp_path, "sub-01_T1w.nii", ("sub-01_desc-brain_mask.nii.gz", GRID))
    content = bytearray(raw.path.read_bytes())
    content[70:72] = b"\xe7\x03"  # data type 999
    raw.path.write_bytes(content)
    assert plan_image(raw, settings).outputs


def test_hidden_files_are_no_masks(tmp_path: Path) -> None:
    raw, settings = scene(tmp_path, "sub-01_T1w.nii.gz", ("._sub-01_desc-brain_mask.nii.gz", GRID))
    assert plan_mask(raw, settings).file is None


def test_a_given_mask_is_the_result() -> None:
    template = load_template(resolution=2.0)
    assert template.mask is not None
    truth = np.asarray(template.mask.dataobj) > 0
    # A bright shell around, which a search would have to tell from the brain.
    data = np.where(truth, np.asarray(template.image.dataobj, np.float32), np.float32(0.6))
    given = nib.Nifti1Image(truth[:, ::-1].astype(np.uint8), template.mask.affine @ flipped(truth.shape[1]))
    image = nib.Nifti1Image(data, template.image.affine)
    found = find_brain(image, given=given)
    assert found.given
    assert found.facts()["Method"] == "given by the user"
    assert dice(np.asarray(found.mask.dataobj) > 0, truth) > 0.99
    np.testing.assert_allclose(found.to_template, np.eye(4), atol=4)
    inside = np.asarray(found.tissues.dataobj).sum(axis=-1) > 0.5
    assert inside.sum() == pytest.approx(truth.sum(), rel=0.15)  # voxels of 2 mm both


def flipped(n: int) -> np.ndarray:
    """Return the affine of a second axis of n voxels that runs the other way."""
    matrix = np.diag([1.0, -1.0, 1.0, 1.0])
    matrix[1, 3] = n - 1
    return matrix


def test_a_mask_lies_on_the_grid_of_the_output(tmp_path: Path) -> None:
    affine = nib.affines.from_matvec(np.diag([-2.0, 2.0, 5.0]), [20, -30, 10])
    inside = np.zeros((12, 14, 6), np.uint8)
    inside[3:9, 4:10, :4] = 1  # up to the border below
    nib.Nifti1Image(inside, affine).to_filename(tmp_path / "mask.nii.gz")
    target = Grid(inside.shape, affine).isotropic(1.0)
    nib.Nifti1Image(np.zeros(target.shape, np.float32), target.affine).to_filename(tmp_path / "sr.nii.gz")
    step = ResampleMask(in_file=str(tmp_path / "mask.nii.gz"), reference_file=str(tmp_path / "sr.nii.gz"))
    found = nib.load(step.run(cwd=str(tmp_path)).outputs.out_file)
    np.testing.assert_allclose(found.affine, target.affine)
    assert found.get_data_dtype() == np.uint8
    # Edges of voxels coincide, so that each voxel of the input is 2 x 2 x 5 of the output; corners are rounded off.
    expected = inside.repeat(2, 0).repeat(2, 1).repeat(5, 2)
    assert np.mean(np.asarray(found.dataobj) != expected) < 0.005
