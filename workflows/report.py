"""Image quality metrics and figures of an image."""

from __future__ import annotations

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node
from niworkflows.engine.workflows import LiterateWorkflow

from moesr_bids.bids.plan import ImagePlan
from moesr_bids.interfaces.quality import ImageQuality
from moesr_bids.interfaces.reportlets import ImageReportlets

_INPUTS = (
    *("preproc_file", "bias_file", "mask_file", "head_file", "prior_file"),
    *("sr_file", "sr_mask_file", "dseg_file", "sr_record", "residual_file"),
    *("warped_file", "template_file", "template_mask_file"),
)


def optional_inputs(plan: ImagePlan) -> list[str]:
    """Return the inputs that not every image has."""
    fields = ["uncertainty_file"] if plan.card.uncertainty else []
    if plan.joined:
        fields.append("residual_files")
    elif plan.card.experts:
        fields.append("map_files")
    if plan.gradients.corrects and not plan.joined:
        fields += ["acquired_file", "unwarped_file", "field_file"]
    if plan.reference is not None:
        fields += ["coregistered_file", "reference_file", "reference_mask_file"]
    return fields


def init_report_wf(*, plan: ImagePlan, name: str = "report_wf") -> LiterateWorkflow:
    """Build the workflow that measures and draws an image.

    Parameters
    ----------
    plan : ImagePlan
        Plan of the image.
    name : str
        Name of the workflow.

    Inputs
    ------
    preproc_file, bias_file, mask_file, head_file
        Bias-corrected image, logarithm of its bias field, brain mask, and all that is not background, own grid.
    prior_file
        Probabilities of white matter, grey matter and CSF, 4-D.
    sr_file, sr_mask_file, dseg_file, sr_record
        Super-resolved image, its brain mask and segmentation, and the record of super-resolution.
    residual_file, uncertainty_file, map_files
        Residual on the grid of the scan; uncertainty and maps of the experts, if the model has them.
    warped_file, template_file, template_mask_file
        Image in the space of the first template, that template and its brain mask.
    acquired_file, unwarped_file, field_file
        Image before and after the correction of gradient nonlinearity, and the displacement field; only if it is
        corrected.
    coregistered_file, reference_file, reference_mask_file
        Image on the grid of its reference, the reference and its brain mask; only of an image with one.
    preproc_file_<n>, residual_files
        Bias-corrected scan, from 1, and the residuals of all; only of a joined image, of which all that is told of the
        input is told of its first scan.

    Outputs
    -------
    figure_files
        Figures, each named ``<desc>.<extension>``.

    """
    optional = optional_inputs(plan)
    workflow = LiterateWorkflow(name=name)
    workflow.__desc__ = "Image quality metrics follow MRIQC [@mriqc]. "
    each = [f"preproc_file_{number}" for number in range(1, len(plan.scans) + 1)] if plan.joined else []
    inputnode = Node(IdentityInterface(fields=[*_INPUTS, *optional, *each]), name="inputnode")
    outputnode = Node(IdentityInterface(fields=["figure_files"]), name="outputnode")
    quality = Node(ImageQuality(), name="quality", mem_gb=plan.cost.memory_of("quality"))
    interface = ImageReportlets(template_name=plan.settings.templates[0])
    if plan.reference is not None:
        interface.inputs.reference_name = plan.reference.image.stem
    reportlets = Node(interface, name="reportlets", mem_gb=plan.cost.memory_of("reportlets"))
    drawn = [field for field in _INPUTS if field not in ("head_file", "prior_file", "sr_mask_file")]
    renamed = {"map_files": "expert_files"}
    # fmt: off
    workflow.connect([
        (inputnode, quality, [("preproc_file", "in_file"), ("bias_file", "bias_file"), ("mask_file", "mask_file"),
                              ("head_file", "head_file"), ("prior_file", "prior_file"), ("sr_file", "sr_file"),
                              ("sr_record", "sr_record"), ("sr_mask_file", "sr_mask_file")]),
        (inputnode, reportlets, [(field, renamed.get(field, field)) for field in (*drawn, *optional)]),
        (quality, reportlets, [("tissue_file", "tissue_file")]),
        (reportlets, outputnode, [("out_files", "figure_files")]),
    ])
    # fmt: on
    if plan.joined:
        scans = Node(Merge(len(each)), name="scan_files")
        links = [(field, f"in{number}") for number, field in enumerate(each, 1)]
        workflow.connect([(inputnode, scans, links), (scans, reportlets, [("out", "scan_files")])])
    return workflow
