"""The table of derivatives: it agrees with the workflow and with the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np
import pytest

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.derivatives import DERIVATIVES, descriptions, documentation
from moesr_bids.bids.plan import ImagePlan, plan_image
from moesr_bids.bids.provenance import sidecars
from moesr_bids.bids.resume import finished_record
from moesr_bids.bids.schema import SCHEMA_VERSION
from moesr_bids.bids.status import write_table
from moesr_bids.config import OutputSpace, Settings
from moesr_bids.interfaces.publish import Publish, _earlier_outputs
from moesr_bids.reports.group import build_group
from moesr_bids.reports.individual import build_participant_report
from moesr_bids.run.outcomes import forget_what_is_gone
from moesr_bids.sr.options import SROptions
from moesr_bids.workflows.image import init_image_wf
from tests.app import node_of
from tests.reports_data import brain_mask, moesr, record, registration, segmentation, sr_record

TEMPLATE = "MNI152NLin2009aSym"


@pytest.fixture
def plan(tmp_path: Path) -> ImagePlan:
    """Plan an image that has every kind of derivative."""
    anat = tmp_path / "bids/sub-1/anat"
    anat.mkdir(parents=True)
    images = []
    for suffix in ("T1w", "T2w"):
        path = anat / f"sub-1_{suffix}.nii.gz"
        nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)).to_filename(path)
        images.append(RawImage(path=path, root=tmp_path / "bids", metadata={"NonlinearGradientCorrection": False}))
    coefficients = tmp_path / "scanner.grad"
    coefficients.touch()
    settings = Settings(
        bids_dir=tmp_path / "bids",
        output_dir=tmp_path / "out",
        work_dir=tmp_path / "work",
        analysis_level="participant",
        sr=SROptions(model="moediff"),
        output_spaces=(OutputSpace(TEMPLATE), OutputSpace(TEMPLATE, "1")),
        gradient_coefficients=coefficients,
        gradunwarp="force",
    )
    return plan_image(attrs.evolve(images[1], reference=images[0]), settings)


def test_names_of_all_derivatives(plan: ImagePlan) -> None:
    assert {output.key: Path(output.path).name for output in plan.outputs} == {
        "moesr": "sub-1_res-0p7mm_desc-moesr_T2w.nii.gz",
        "uncertainty": "sub-1_res-0p7mm_desc-uncertainty_T2w.nii.gz",
        "gate-centrum": "sub-1_space-T2w_res-0p7mm_label-centrum_desc-gate_probseg.nii.gz",
        "gate-cortex": "sub-1_space-T2w_res-0p7mm_label-cortex_desc-gate_probseg.nii.gz",
        "gate-junction": "sub-1_space-T2w_res-0p7mm_label-junction_desc-gate_probseg.nii.gz",
        "residual": "sub-1_desc-residual_T2w.nii.gz",
        "corrected": "sub-1_desc-corrected_T2w.nii.gz",
        "mask": "sub-1_space-T2w_res-0p7mm_desc-brain_mask.nii.gz",
        "dseg": "sub-1_space-T2w_res-0p7mm_desc-moesr_dseg.nii.gz",
        "from-orig": "sub-1_from-orig_to-T2w_mode-image_xfm.nii.gz",
        "to-orig": "sub-1_from-T2w_to-orig_mode-image_xfm.nii.gz",
        "jacobian": "sub-1_desc-jacobian_T2w.nii.gz",
        "to-reference": "sub-1_from-T2w_to-T1w_mode-image_xfm.h5",
        "from-reference": "sub-1_from-T1w_to-T2w_mode-image_xfm.h5",
        f"to-{TEMPLATE}": f"sub-1_from-T2w_to-{TEMPLATE}_mode-image_xfm.h5",
        f"from-{TEMPLATE}": f"sub-1_from-{TEMPLATE}_to-T2w_mode-image_xfm.h5",
        f"space-{TEMPLATE}": f"sub-1_space-{TEMPLATE}_res-0p7mm_desc-moesr_T2w.nii.gz",
        f"space-{TEMPLATE}:res-1": f"sub-1_space-{TEMPLATE}_res-1_desc-moesr_T2w.nii.gz",
    }
    assert plan.main.key == "moesr"
    conditions = {"always", "uncertainty", "experts", "unwarped", "aligned", "first"}
    assert {row.when for row in DERIVATIVES} == {*conditions, "alone", "joined"}


def test_every_derivative_comes_from_a_node_of_the_workflow(plan: ImagePlan) -> None:
    workflow = init_image_wf(plan=plan, use_gpu=False)
    for output in plan.outputs:
        assert output.field in node_of(workflow, output.node).interface.output_spec().get(), output.key


def test_sidecars_name_their_sources_and_leave_no_word_in_braces(plan: ImagePlan) -> None:
    contents = sidecars(plan, record())
    assert contents["moesr"]["Sources"] == [
        "bids:raw:sub-1/anat/sub-1_T2w.nii.gz",
        "bids::sub-1/anat/sub-1_desc-corrected_T2w.nii.gz",
    ]
    assert contents["moesr"]["Moesr"]["SchemaVersion"] == SCHEMA_VERSION
    assert contents["mask"]["SpatialReference"] == "bids::sub-1/anat/sub-1_res-0p7mm_desc-moesr_T2w.nii.gz"
    assert contents["to-reference"]["Reference"] == "bids:raw:sub-1/anat/sub-1_T1w.nii.gz"
    assert contents["corrected"]["Description"].startswith(
        "Input with gradient nonlinearity and the bias field removed"
    )
    assert [key for key, content in contents.items() if "SkullStripped" not in content and "Type" not in content] == [
        "gate-centrum",
        "gate-cortex",
        "gate-junction",
        "dseg",
    ]
    for content in contents.values():
        assert "{" not in str({key: text for key, text in content.items() if key != "Moesr"}).strip("{}")


def test_the_documentation_has_the_table() -> None:
    text = Path(__file__).parents[1].joinpath("docs/outputs.md").read_text(encoding="utf-8")
    assert text.partition("<!-- derivatives -->\n")[2].partition("<!-- end of derivatives -->")[0] == documentation()
    described = ["moesr", "preproc", "uncertainty", "gate", "residual", "seen", "corrected", "brain", "jacobian"]
    assert list(descriptions()) == described


DAMAGED = {
    "Outputs is a number": {"Moesr": moesr(Outputs=5)},
    "Moesr is a list": {"Moesr": [1, 2]},
    "Outputs lead out": {"Moesr": moesr(Outputs=["sub-1/anat/a.nii.gz", "../precious.txt"])},
    "Outputs are absolute": {"Moesr": moesr(Outputs=["/etc/passwd"])},
    "empty": {},
    "a list": [],
    "null": None,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_sidecar_counts_as_not_done_and_removes_nothing(plan: ImagePlan, content: object) -> None:
    out = plan.settings.output_dir
    marker = out / plan.main.sidecar_path
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps(content))
    precious = out.parent / "precious.txt"
    precious.touch()
    assert finished_record(plan) is None
    assert _earlier_outputs(marker, out) == set(), "what a publication removes"
    status = out / "logs" / "status" / f"{plan.image.stem}.json"
    status.parent.mkdir(parents=True)
    status.write_text("{}")
    forget_what_is_gone(plan.settings, [plan.image])
    write_table(out)
    build_group(out)
    build_participant_report(out, f"sub-{plan.image.participant}")
    assert precious.exists()


def test_a_sidecar_whose_outputs_lie_inside_says_what_a_publication_removes(plan: ImagePlan) -> None:
    out = plan.settings.output_dir
    marker = out / plan.main.sidecar_path
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps({"Moesr": moesr(Outputs=["sub-1/anat/old.nii.gz"])}))
    assert _earlier_outputs(marker, out) == {out / "sub-1/anat/old.nii.gz"}


def publication(plan: ImagePlan, folder: Path) -> Publish:
    """Return the last step of an image whose files are all of the same few voxels."""
    source = folder / "source.nii.gz"
    nib.Nifti1Image(np.arange(512, dtype=np.float32).reshape(8, 8, 8), np.eye(4)).to_filename(source)
    records = {
        "super_resolve": sr_record(),
        "brain_mask": brain_mask(),
        "segment": segmentation(),
        "n4": {"RangePercent": [-12.5, 14.0]},
        "quality": moesr()["ImageQuality"],
        f"register:{TEMPLATE}": registration(0.95),
    }
    return Publish(
        plan=plan, files=[str(source)] * len(plan.outputs), steps=list(records), records=list(records.values())
    )


def earlier(plan: ImagePlan) -> tuple[Path, Path]:
    """Write the sidecar of an earlier run and an output of it that this run does not have."""
    marker, old = (plan.settings.output_dir / path for path in (plan.main.sidecar_path, "sub-1/anat/old.nii.gz"))
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps({"Moesr": moesr(Outputs=["sub-1/anat/old.nii.gz"])}))
    old.touch()
    return marker, old


def test_a_publication_replaces_what_an_earlier_one_left(plan: ImagePlan, tmp_path: Path) -> None:
    _, old = earlier(plan)
    publication(plan, tmp_path).run(cwd=str(tmp_path))
    assert not old.exists()
    done = finished_record(plan)
    assert done is not None
    assert set(done.outputs) == {path for output in plan.outputs for path in (output.path, output.sidecar_path)}
    (plan.settings.output_dir / plan.outputs[-1].sidecar_path).unlink()
    assert finished_record(plan) is None


def test_the_sidecar_that_says_that_all_is_there_comes_last(plan: ImagePlan, tmp_path: Path) -> None:
    marker, _ = earlier(plan)
    blocked = plan.settings.output_dir / plan.outputs[-1].path
    (blocked / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=blocked.name):
        publication(plan, tmp_path).run(cwd=str(tmp_path))
    assert not marker.exists()
    assert not (plan.settings.output_dir / plan.main.path).exists()
