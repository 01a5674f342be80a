"""The workflow of one image, from the raw file to its derivatives."""

from __future__ import annotations

from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node
from niworkflows.engine.workflows import LiterateWorkflow

from moesr_bids.bids.plan import ImagePlan
from moesr_bids.interfaces.publish import Publish
from moesr_bids.workflows.preproc import init_preproc_wf
from moesr_bids.workflows.registration import init_registration_wf, register_name, transform_field
from moesr_bids.workflows.report import init_report_wf, optional_inputs
from moesr_bids.workflows.sr import guidance_fields, init_sr_wf, warp_name


def init_image_wf(
    *, plan: ImagePlan, use_gpu: bool, preproc_only: bool = False, name: str | None = None
) -> LiterateWorkflow:
    """Build the workflow of one image.

    Preprocessing, registration, super-resolution and report are workflows of their own. Nothing is written to the
    output folder before the last step. `connect_reference` joins the workflow with that of the reference.

    Parameters
    ----------
    plan : ImagePlan
        Plan of the image.
    use_gpu : bool
        Whether super-resolution claims a GPU slot of the scheduler.
    preproc_only : bool
        Stop after the registration: for a reference whose own outputs are complete.
    name : str, optional
        Name of the workflow; by default from the image's file name.

    """
    workflow = LiterateWorkflow(name=name or plan.image.workflow_name)
    preproc, registration = init_preproc_wf(plan=plan), init_registration_wf(plan=plan)
    own = ["preproc_file", "mask_file", "initial_xfm"]
    workflow.connect([(preproc, registration, _links(own))])
    if preproc_only:
        preproc.__desc__ = registration.__desc__ = ""  # the workflows of the other images have the same text
        return workflow
    sr, report = init_sr_wf(plan=plan, use_gpu=use_gpu), init_report_wf(plan=plan)
    optional = optional_inputs(plan)
    of_preproc = ["preproc_file", "bias_file", "mask_file", "atlas_file"]
    of_preproc += [field for field in ("acquired_file", "unwarped_file", "field_file") if field in optional]
    of_registration = ["warped_file", "template_file", "template_mask_file"]
    of_registration += [field for field in ("coregistered_file",) if field in optional]
    of_sr = ["sr_file", "sr_mask_file", "sr_record", "residual_file"]
    of_sr += [field for field in ("uncertainty_file", "map_files") if field in optional]
    transforms = [transform_field(template, "to") for template in plan.settings.templates]
    # fmt: off
    workflow.connect([
        (preproc, sr, _links(["preproc_file", "mask_file", "metadata_file", *guidance_fields(plan)])),
        (registration, sr, _links(transforms)),
        (preproc, report, _links(of_preproc)),
        (registration, report, _links(of_registration)),
        (sr, report, _links(of_sr)),
    ])
    # fmt: on
    _publish(workflow, [preproc, registration, sr, report], plan)
    return workflow


def _links(fields: list[str]) -> list[tuple[str, str]]:
    """Return the connections of outputs of one workflow to inputs of another that have the same names."""
    return [(f"outputnode.{field}", f"inputnode.{field}") for field in fields]


def steps_of(plan: ImagePlan) -> dict[str, str]:
    """Return the steps that are recorded, in order: from their names to the names of their nodes."""
    settings = plan.settings
    return {
        "conform": "conform",
        **({"gradunwarp": "gradunwarp"} if plan.gradients.corrects else {}),
        "brain_mask": "brain_mask",
        "n4": "n4",
        **({"coregister": "coregister"} if plan.reference is not None else {}),
        **{f"register:{template}": register_name(template) for template in settings.templates},
        "super_resolve": "super_resolve",
        "target_mask": "target_mask",
        "quality": "quality",
        **{f"warp:{space}": warp_name(space) for space in settings.output_spaces},
        "reportlets": "reportlets",
    }


def _publish(workflow: LiterateWorkflow, parts: list[LiterateWorkflow], plan: ImagePlan) -> None:
    """Add the step that writes derivatives, sidecars and figures, and connect its inputs."""
    steps = steps_of(plan)
    files = Node(Merge(len(plan.outputs)), name="files")
    records = Node(Merge(len(steps)), name="records")
    for node in (files, records):
        node.inputs.no_flatten = True
    publish = Node(Publish(plan=plan, steps=list(steps)), name="publish", mem_gb=plan.cost.memory_of("publish"))
    part_of = {name: part for part in parts for name in part.list_node_names()}
    for index, output in enumerate(plan.outputs, 1):
        workflow.connect(part_of[output.node], f"{output.node}.{output.field}", files, f"in{index}")
    for index, step in enumerate(steps.values(), 1):
        workflow.connect(part_of[step], f"{step}.record", records, f"in{index}")
    # fmt: off
    workflow.connect([
        (files, publish, [("out", "files")]),
        (records, publish, [("out", "records")]),
        (parts[-1], publish, [("outputnode.figure_files", "figure_files")]),
    ])
    # fmt: on


def connect_reference(
    subject: LiterateWorkflow, reference: LiterateWorkflow, workflow: LiterateWorkflow, plan: ImagePlan
) -> None:
    """Connect the workflow of an image to that of its reference, both in the workflow ``subject`` of a participant."""
    out, into = "preproc_wf.outputnode", "registration_wf.inputnode"
    links = [
        (f"{out}.preproc_file", f"{into}.reference_file"),
        (f"{out}.mask_file", f"{into}.reference_mask"),
        (f"{out}.initial_xfm", f"{into}.reference_xfm"),
        (f"{out}.preproc_file", "report_wf.inputnode.reference_file"),
        (f"{out}.mask_file", "report_wf.inputnode.reference_mask_file"),
    ]
    for template in plan.settings.templates:
        for way in ("to", "from"):
            field = transform_field(template, way)
            links.append((f"registration_wf.outputnode.{field}", f"{into}.reference_{field}"))
    subject.connect([(reference, workflow, links)])
