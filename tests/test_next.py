"""Other software finds the outputs by its own queries."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from smriprep.utils.bids import collect_derivatives

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.dataset import prepare_output_folder
from moesr_bids.bids.joining import with_joined
from moesr_bids.bids.plan import plan_image
from moesr_bids.bids.sessions import with_references
from moesr_bids.config import OutputSpace, Settings
from moesr_bids.sr.options import SROptions

TEMPLATE = "MNI152NLin2009cAsym"  # fMRIPrep's own
STEMS = ("acq-a_run-1_T1w", "acq-a_run-2_T1w", "acq-b_T1w", "T2w", "run-1_FLAIR", "run-2_FLAIR")


def named(folder: Path, *sessions: str) -> Path:
    """Return an output folder with empty files of all names that images of one participant have, of each session."""
    images = []
    for session in sessions:
        anat = folder / "bids" / "sub-01" / session / "anat"
        anat.mkdir(parents=True)
        for stem in STEMS:
            path = anat / "_".join(part for part in ("sub-01", session, f"{stem}.nii.gz") if part)
            nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)).to_filename(path)
            metadata = {"NonlinearGradientCorrection": False}
            images.append(RawImage(path=path, root=folder / "bids", metadata=metadata))
    coefficients = folder / "scanner.grad"
    coefficients.touch()
    settings = Settings(
        bids_dir=folder / "bids",
        output_dir=folder / "out",
        work_dir=folder / "work",
        analysis_level="participant",
        sr=SROptions(model="moediff"),
        output_spaces=(OutputSpace("MNI152NLin2009aSym"), OutputSpace(TEMPLATE)),
        gradient_coefficients=coefficients,
    )
    prepare_output_folder(settings)
    for image in with_joined(with_references(images), "auto")[0]:
        for output in plan_image(image, settings).outputs:
            for name in (output.path, output.sidecar_path):
                (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "out" / name).write_text("{}" if name.endswith(".json") else "")
    return folder / "out"


@pytest.mark.parametrize("sessions", [("",), ("ses-a",), ("ses-a", "ses-b")])
def test_fmriprep_finds_one_t1w_with_its_mask_and_the_transforms(tmp_path: Path, sessions: tuple[str, ...]) -> None:
    """By the queries of smriprep, which fMRIPrep asks for ``--derivatives``; of several sessions it names one."""
    out = named(tmp_path, *sessions)
    session = sessions[-1].removeprefix("ses-") if len(sessions) > 1 else None
    found = collect_derivatives(out, "01", [TEMPLATE, "fsnative"], session_id=session)
    anat = out / "sub-01" / sessions[-1] / "anat"
    start = "_".join(part for part in ("sub-01", sessions[-1], "acq-a_run-1") if part)
    assert found == {
        "t1w_preproc": str(anat / f"{start}_res-0p7mm_desc-preproc_T1w.nii.gz"),
        "t1w_mask": str(anat / f"{start}_res-0p7mm_desc-brain_mask.nii.gz"),
        "transforms": {
            TEMPLATE: {
                "forward": str(anat / f"{start}_from-T1w_to-{TEMPLATE}_mode-image_xfm.h5"),
                "reverse": str(anat / f"{start}_from-{TEMPLATE}_to-T1w_mode-image_xfm.h5"),
            }
        },
    }
