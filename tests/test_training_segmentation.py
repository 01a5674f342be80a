"""Tissues of scans without a segmentation, as the gate of the mixture of experts learns them."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from moesr_bids.cli.moesr import main
from moesr_bids.errors import ImageError
from moesr_bids.preproc.template import load_template
from moesr_bids.segmentation.brain import dice
from moesr_bids.training.tissue import find_segmentation


def template_tissue(name: str) -> np.ndarray:
    """Share of a tissue that nilearn packages with the template, at 2 mm."""
    from nilearn import datasets

    image = getattr(datasets, f"load_mni152_{name}_template")(resolution=2)
    return np.asarray(image.dataobj)


def test_command_labels_what_it_can_and_says_what_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = load_template(resolution=2.0)
    assert template.mask is not None
    head = np.asarray(template.image.dataobj, dtype=np.float32) * (np.asarray(template.mask.dataobj) > 0)
    constant, slices = np.ones((20, 20, 20), np.float32), np.diag([1.0, 1.0, 4.0, 1.0])
    for participant, data, affine in (
        ("01", head * 100, template.image.affine),
        ("02", constant, template.image.affine),
        ("03", constant, slices),
    ):
        folder = tmp_path / f"bids/sub-{participant}/anat"
        folder.mkdir(parents=True)
        nib.Nifti1Image(data, affine).to_filename(folder / f"sub-{participant}_T1w.nii.gz")
    command = ["segment", str(tmp_path / "bids"), str(tmp_path / "out"), "--omp-nthreads", "2"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert re.search(r"failed: .*sub-02_T1w.nii.gz: .*constant", said)
    assert re.search(r"left out: .*sub-03_T1w.nii.gz: voxels of 1 x 1 x 4 mm are no sharp target", said)
    found = [path.relative_to(tmp_path / "out").as_posix() for path in sorted((tmp_path / "out").rglob("*.*"))]
    assert found == ["sub-01/anat/sub-01_desc-T1w_dseg.nii.gz"]
    written = tmp_path / "out" / found[0]
    labels = np.asarray(nib.load(written).dataobj)
    assert labels.shape == head.shape
    # White matter of the atlas; its grey matter but for what lies deep.
    assert dice(labels == 2, template_tissue("wm") > 0.5) > 0.85
    i, j, k = np.nonzero(labels == 3)
    assert np.mean(template_tissue("gm")[i, j, k] > 0.4) > 0.85
    thalamus = np.linalg.inv(template.image.affine) @ (12, -20, 8, 1)
    around = labels[tuple(slice(int(c) - 2, int(c) + 3) for c in thalamus[:3])]
    assert not np.isin(around, (3, 24)).any()
    assert np.mean(around == 0) > 0.5
    scan = tmp_path / "bids/sub-01/anat/sub-01_T1w.nii.gz"
    tissue = find_segmentation(scan, template.image, [tmp_path / "out"])
    assert tissue is not None
    assert np.array_equal(tissue[0] > 0, labels == 2)
    # What is there is kept.
    before = written.stat().st_mtime_ns
    assert main([*command, "--participant-label", "01", "03"]) == 0
    assert written.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere"], 2, "no such folder"),
        (["bids", "--participant-label", "09"], 2, "there is no participant 09"),
        (["bids"], 1, "has no T1w"),
    ],
)
def test_command_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    (tmp_path / "bids/sub-01").mkdir(parents=True)
    where, *rest = arguments
    assert main(["segment", str(tmp_path / where), str(tmp_path / "out"), *rest]) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def write_map(folder: Path, name: str, value: int, affine: np.ndarray | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    nib.Nifti1Image(np.full((4, 4, 4), value, np.uint8), np.eye(4) if affine is None else affine).to_filename(path)
    return path


def test_a_scan_gets_its_own_map_and_folders_count_in_their_order(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4))
    ours, others = tmp_path / "ours", tmp_path / "others"
    write_map(ours, "sub-01_run-1_desc-T1w_dseg.nii.gz", 2)
    write_map(ours, "sub-01_run-2_desc-T1w_dseg.nii.gz", 3)
    write_map(ours, "sub-02_desc-FLAIR_dseg.nii.gz", 2)
    write_map(others, "sub-01_seg-aparcaseg_dseg.nii.gz", 10)
    write_map(others, "sub-02_seg-aparcaseg_dseg.nii.gz", 3, np.diag([2.0, 2.0, 2.0, 1.0]))

    def found(scan: str, *folders: Path) -> list[int] | None:
        tissue = find_segmentation(Path(scan), image, folders)
        return None if tissue is None else [int(part.max()) for part in tissue]

    assert found("sub-01_run-1_T1w.nii.gz", ours) == [1, 0]
    assert found("sub-01_run-2_T1w.nii.gz", ours) == [0, 1]
    assert found("sub-01_run-1_T1w.nii.gz", others, ours) == [0, 0]
    assert found("sub-02_T1w.nii.gz", ours) is None  # that of another contrast
    assert found("sub-02_T1w.nii.gz", others) is None  # on another grid
    nib.Nifti1Image(np.zeros((4, 4, 3), np.uint8), np.eye(4)).to_filename(ours / "sub-03_desc-T1w_dseg.nii.gz")
    assert found("sub-03_T1w.nii.gz", ours) is None
    (ours / "sub-04_desc-T1w_dseg.nii.gz").write_bytes(b"no image")
    with pytest.raises(ImageError, match="not a readable segmentation"):
        found("sub-04_T1w.nii.gz", ours)
