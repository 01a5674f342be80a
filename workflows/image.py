"""The workflow of one image, from the raw file to its derivatives."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node
from niworkflows.engine.workflows import LiterateWorkflow

from moesr_bids.bids.names import identifier
from moesr_bids.bids.plan import ImagePlan, ScanPlan
from moesr_bids.interfaces.publish import Publish
from moesr_bids.workflows.join import SCAN_FIELDS, init_join_wf, scan_fields
from moesr_bids.workflows.preproc import init_preproc_wf
from moesr_bids.workflows.registration import init_registration_wf, register_name, transform_field
from moesr_bids.workflows.report import init_report_wf, optional_inputs
from moesr_bids.workflows.sr import guidance_fields, init_sr_wf, warp_name

REGISTRATION, SR, REPORT = "registration", "sr", "report"
ALL_PARTS = frozenset({REGISTRATION, SR, REPORT})


def init_image_wf(
    *, plan: ImagePlan, use_gpu: bool, parts: Collection[str] = ALL_PARTS, name: str | None = None
) -> LiterateWorkflow:
    """Build the workflow of one image.

    Preprocessing, registration, super-resolution and report are workflows of their own. Nothing is written to the
    output folder before the last step. `connect_reference` joins the workflow with that of the reference, and
    `connect_scans` that of a joined image with those of its scans.

    Parameters
    ----------
    plan : ImagePlan
        Plan of the image.
    use_gpu : bool
        Whether super-resolution claims a GPU slot of the scheduler.
    parts : collection of str
        What is built beside preprocessing: all, or some of `REGISTRATION` and `SR` for an image that others need and
        whose own outputs are complete, or not wanted.
    name : str, optional
        Name of the workflow; by default from the image's file name.

    """
    if plan.joined:
        return _init_joined_wf(plan=plan, name=name or plan.image.workflow_name)
    workflow = LiterateWorkflow(name=name or plan.image.workflow_name)
    preproc = init_preproc_wf(plan=plan)
    workflow.add_nodes([preproc])
    registration, whole = None, REPORT in parts
    if whole or REGISTRATION in parts:
        registration = init_registration_wf(plan=plan)
        workflow.connect([(preproc, registration, _links(["preproc_file", "mask_file", "initial_xfm"]))])
    if whole or SR in parts:
        sr = init_sr_wf(plan=plan, use_gpu=use_gpu, for_others=not whole)
        of_preproc = ["preproc_file", "mask_file", "metadata_file", *guidance_fields(plan)]
        workflow.connect([(preproc, sr, _links(of_preproc))])
    if not whole or registration is None:
        return workflow
    report = init_report_wf(plan=plan)
    optional = optional_inputs(plan)
    of_preproc = ["preproc_file", "bias_file", "mask_file", "head_file", "prior_file"]
    of_preproc += [field for field in ("acquired_file", "unwarped_file", "field_file") if field in optional]
    of_registration = ["warped_file", "template_file", "template_mask_file"]
    of_registration += [field for field in ("coregistered_file",) if field in optional]
    of_sr = ["sr_file", "sr_mask_file", "dseg_file", "sr_record", "residual_file"]
    of_sr += [field for field in ("uncertainty_file", "map_files") if field in optional]
    transforms = [transform_field(template, "to") for template in plan.settings.templates]
    # fmt: off
    workflow.connect([
        (registration, sr, _links(transforms)),
        (preproc, report, _links(of_preproc)),
        (registration, report, _links(of_registration)),
        (sr, report, _links(of_sr)),
    ])
    # fmt: on
    _publish(workflow, [preproc, registration, sr, report], plan)
    return workflow


def _init_joined_wf(*, plan: ImagePlan, name: str) -> LiterateWorkflow:
    """Build the workflow of a joined image, which takes from those of its scans what `connect_scans` gives it."""
    workflow = LiterateWorkflow(name=name)
    sr, report = init_join_wf(plan=plan), init_report_wf(plan=plan)
    own = ["sr_file", "sr_mask_file", "dseg_file", "sr_record", "residual_file", "residual_files"]
    own += ["uncertainty_file"] if plan.card.uncertainty else []
    workflow.connect([(sr, report, _links(own))])
    given = Node(IdentityInterface(fields=list(_of_scans(plan))), name="inputnode")
    workflow.add_nodes([given])
    _publish(workflow, [sr, report], plan, given)
    return workflow


def _links(fields: list[str]) -> list[tuple[str, str]]:
    """Return the connections of outputs of one workflow to inputs of another that have the same names."""
    return [(f"outputnode.{field}", f"inputnode.{field}") for field in fields]


def steps_of(plan: ImagePlan) -> dict[str, str]:
    """Return the steps that are recorded, in order: from their names to the names of their nodes.

    Steps of the scans of a joined image have the name of the scan after a colon, those that register it have that of
    the template.
    """
    settings = plan.settings
    registrations = {
        **({"coregister": "coregister"} if plan.reference is not None else {}),
        **{f"register:{template}": register_name(template) for template in settings.templates},
    }
    before = _preparation(plan.scans[0]) | registrations
    if plan.joined:
        before = {
            f"{step}:{scan.image.stem}": node
            for scan in plan.scans
            for step, node in (_preparation(scan) | {"super_resolve": "super_resolve"}).items()
        } | registrations
    return {
        **before,
        "super_resolve": "super_resolve",
        "target_mask": "target_mask",
        "segment": "segment",
        "quality": "quality",
        **{f"warp:{space}": warp_name(space) for space in settings.output_spaces},
        "reportlets": "reportlets",
    }


def _preparation(scan: ScanPlan) -> dict[str, str]:
    steps = ["conform", *(["gradunwarp"] if scan.gradients.corrects else []), "brain_mask", "n4"]
    return {step: step for step in steps}


def _of_scans(plan: ImagePlan) -> dict[str, tuple[int, str]]:
    """Return what a joined image publishes and records of its scans: by a name the number of the scan, and its node.

    Its transforms are those of the first scan, in whose position it lies.
    """
    found = {}
    for step, node in steps_of(plan).items():
        kind, _, name = step.partition(":")
        number = next((n for n, scan in enumerate(plan.scans) if scan.image.stem == name), None)
        if kind in ("coregister", "register"):
            number = 0
        if number is not None:
            found[identifier(f"record_{step}")] = number, f"{node}.record"
    for output in plan.outputs:
        if output.node.startswith(("coregister", "register_")):
            found[f"{output.node}_{output.field}"] = 0, f"{output.node}.{output.field}"
    return found


def _publish(
    workflow: LiterateWorkflow, parts: list[LiterateWorkflow], plan: ImagePlan, given: Node | None = None
) -> None:
    """Add the step that writes derivatives, sidecars and figures, and connect what it takes; ``given`` is of scans."""
    steps = steps_of(plan)
    files = Node(Merge(len(plan.outputs)), name="files")
    records = Node(Merge(len(steps)), name="records")
    for node in (files, records):
        node.inputs.no_flatten = True
    publish = Node(Publish(plan=plan, steps=list(steps)), name="publish", mem_gb=plan.cost.memory_of("publish"))
    part_of = {name: part for part in parts for name in part.list_node_names()}
    of_scans = _of_scans(plan) if given else {}

    def source(name: str, node: str, field: str) -> tuple[LiterateWorkflow | Node, str]:
        return (given, name) if name in of_scans else (part_of[node], f"{node}.{field}")

    for index, output in enumerate(plan.outputs, 1):
        workflow.connect(*source(f"{output.node}_{output.field}", output.node, output.field), files, f"in{index}")
    for index, (step, node) in enumerate(steps.items(), 1):
        workflow.connect(*source(identifier(f"record_{step}"), node, "record"), records, f"in{index}")
    # fmt: off
    workflow.connect([
        (files, publish, [("out", "files")]),
        (records, publish, [("out", "records")]),
        (parts[-1], publish, [("outputnode.figure_files", "figure_files")]),
    ])
    # fmt: on


def connect_scans(
    subject: LiterateWorkflow, scans: Sequence[LiterateWorkflow], workflow: LiterateWorkflow, plan: ImagePlan
) -> None:
    """Give the workflow of a joined image what it needs of those of its scans, all in that of their participant."""
    for number, scan in enumerate(scans):
        links = [
            (f"{SCAN_FIELDS[field]}.outputnode.{field}", f"sr_wf.inputnode.{field}_{number + 1}")
            for field in scan_fields(plan)
        ]
        part_of = {full.rpartition(".")[2]: full for full in scan.list_node_names()}
        for name, (wanted, path) in _of_scans(plan).items():
            if wanted == number:
                node, _, field = path.partition(".")
                links.append((f"{part_of[node]}.{field}", f"inputnode.{name}"))
        links += [("preproc_wf.outputnode.preproc_file", f"report_wf.inputnode.preproc_file_{number + 1}")]
        if number == 0:
            links += _links_of_first(plan)
        subject.connect([(scan, workflow, links)])


def _links_of_first(plan: ImagePlan) -> list[tuple[str, str]]:
    """Return what a joined image takes of the scan in whose position it lies."""
    optional = optional_inputs(plan)
    of_sr = ("preproc_file", "mask_file")
    links = [(f"preproc_wf.outputnode.{field}", f"sr_wf.inputnode.{field}") for field in of_sr]
    for template in plan.settings.templates:
        field = transform_field(template, "to")
        links.append((f"registration_wf.outputnode.{field}", f"sr_wf.inputnode.{field}"))
    of_report = {
        "preproc_wf": ["preproc_file", "bias_file", "mask_file", "head_file", "prior_file"],
        "registration_wf": ["warped_file", "template_file", "template_mask_file"]
        + (["coregistered_file"] if "coregistered_file" in optional else []),
    }
    for part, fields in of_report.items():
        links += [(f"{part}.outputnode.{field}", f"report_wf.inputnode.{field}") for field in fields]
    return links


def connect_reference(
    subject: LiterateWorkflow, reference: LiterateWorkflow, workflow: LiterateWorkflow, plan: ImagePlan
) -> None:
    """Connect the workflow of an image to that of its reference, both in the workflow ``subject`` of a participant."""
    out, into = "preproc_wf.outputnode", "registration_wf.inputnode"
    links = []
    if workflow.get_node("report_wf") is not None:
        links += [
            (f"{out}.preproc_file", "report_wf.inputnode.reference_file"),
            (f"{out}.mask_file", "report_wf.inputnode.reference_mask_file"),
        ]
    if workflow.get_node("registration_wf") is None:  # it has that of its first scan
        subject.connect([(reference, workflow, links)])
        return
    links += [
        (f"{out}.preproc_file", f"{into}.reference_file"),
        (f"{out}.mask_file", f"{into}.reference_mask"),
        (f"{out}.initial_xfm", f"{into}.reference_xfm"),
    ]
    for template in plan.settings.templates:
        for way in ("to", "from"):
            field = transform_field(template, way)
            links.append((f"registration_wf.outputnode.{field}", f"{into}.reference_{field}"))
    subject.connect([(reference, workflow, links)])
