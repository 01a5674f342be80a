"""Tissues of scans without a segmentation, as the gate of the mixture of experts learns them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from moesr_bids.cli.moesr import main
from moesr_bids.preproc.brainmask import dice
from moesr_bids.preproc.template import load_template
from moesr_bids.training.tissue import find_segmentation


def template_tissue(name: str) -> np.ndarray:
    """Share of a tissue that nilearn packages with the template, at 2 mm."""
    from nilearn import datasets

    image = getattr(datasets, f"load_mni152_{name}_template")(resolution=2)
    return np.asarray(image.dataobj)


def test_command_labels_what_it_can_and_says_what_it_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = load_template(resolution=2.0)
    assert template.mask is not None
    head = np.asarray(template.image.dataobj, dtype=np.float32) * (np.asarray(template.mask.dataobj) > 0)
    for participant, data in (("01", head * 100), ("02", np.ones((20, 20, 20), np.float32))):
        folder = tmp_path / f"bids/sub-{participant}/anat"
        folder.mkdir(parents=True)
        nib.Nifti1Image(data, template.image.affine).to_filename(folder / f"sub-{participant}_T1w.nii.gz")
    command = ["segment", str(tmp_path / "bids"), str(tmp_path / "out"), "--omp-nthreads", "2"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "sub-02_T1w.nii.gz" in said
    assert "constant" in said
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
    scan = tmp_path / "bids/sub-01/anat/sub-01_T1w.nii.gz"
    tissue = find_segmentation(scan, template.image.affine, [tmp_path / "out"])
    assert tissue is not None
    assert np.array_equal(tissue[0] > 0, labels == 2)
    # What is there is kept.
    before = written.stat().st_mtime_ns
    assert main([*command, "--participant-label", "01"]) == 0
    assert written.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no such folder"),
        (["bids", "--participant-label", "09"], "there is no participant 09"),
        (["bids"], "has no T1w"),
    ],
)
def test_command_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (tmp_path / "bids/sub-01").mkdir(parents=True)
    where, *rest = arguments
    assert main(["segment", str(tmp_path / where), str(tmp_path / "out"), *rest]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
