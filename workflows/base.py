"""The workflow of a run: one sub-workflow per participant, and in it one per image."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import groupby

from niworkflows.engine.workflows import LiterateWorkflow

from moesr_bids import __version__
from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.names import identifier
from moesr_bids.bids.plan import ImagePlan, plan_image
from moesr_bids.config import Settings
from moesr_bids.workflows.image import (
    ALL_PARTS,
    REGISTRATION,
    REPORT,
    SR,
    connect_reference,
    connect_scans,
    init_image_wf,
)

WORKFLOW_NAME = "moesr_wf"


def participant_workflow_name(participant: str) -> str:
    """Return the name of a participant's workflow: letters, digits and underscores."""
    return f"sub_{identifier(participant)}_wf"


def init_moesr_wf(*, plans: Sequence[ImagePlan], settings: Settings, use_gpu: bool) -> LiterateWorkflow:
    """Build the workflow of a run.

    Parameters
    ----------
    plans : sequence of ImagePlan
        Images to process, sorted by participant.
    settings : Settings
        Settings of the run.
    use_gpu : bool
        Whether super-resolution claims GPU slots.

    """
    workflow = LiterateWorkflow(name=WORKFLOW_NAME, base_dir=str(settings.work_dir))
    workflow.__desc__ = (
        f"Anatomical MRI was super-resolved with moesr-bids {__version__}, a BIDS App [@bids; @bidsapps] "
        "built on Nipype [@nipype]. "
    )
    for participant, group in groupby(plans, key=lambda plan: plan.image.participant):
        single = init_single_subject_wf(participant=participant, plans=list(group), use_gpu=use_gpu)
        workflow.add_nodes([single])
        crashes = str(settings.output_dir / "logs" / f"sub-{participant}")
        for node in single._get_all_nodes():
            node.config = deepcopy(workflow.config)
            node.config["execution"]["crashdump_dir"] = crashes
    return workflow


def init_single_subject_wf(*, participant: str, plans: Sequence[ImagePlan], use_gpu: bool) -> LiterateWorkflow:
    """Build the workflow of one participant: images side by side, each after those that it needs.

    These are the reference of its session, and the scans of a joined image. Where they are not among ``plans``,
    because their outputs are complete or not wanted, they go as far as the others need them.
    """
    workflow = LiterateWorkflow(name=participant_workflow_name(participant))
    needed = {plan.image: (plan, ALL_PARTS) for plan in plans}
    for plan in plans:
        _add_needed(plan, needed)
    by_image = {
        image: init_image_wf(plan=plan, use_gpu=use_gpu, parts=parts) for image, (plan, parts) in needed.items()
    }
    # Images that serve others are told of by those, or by one of them where no other has a text of preprocessing.
    prepared = [(len(parts), image) for image, (plan, parts) in needed.items() if not plan.joined]
    told = max(prepared, key=lambda one: one[0])[1]
    for image, (_, parts) in needed.items():
        if REPORT not in parts and image != told:
            _silence(by_image[image])
    workflow.add_nodes(list(by_image.values()))
    for image, (plan, parts) in needed.items():
        if plan.joined:
            connect_scans(workflow, [by_image[scan] for scan in plan.image.scans], by_image[image], plan)
        if plan.reference is not None and REGISTRATION in parts:
            connect_reference(workflow, by_image[plan.reference.image], by_image[image], plan)
    return workflow


def _add_needed(plan: ImagePlan, needed: dict[RawImage, tuple[ImagePlan, frozenset[str]]]) -> None:
    """Add the plans of the images that an image needs, with the parts of their workflows that it takes from."""
    wanted = {scan: {SR} for scan in plan.image.scans}
    if plan.joined:
        wanted[plan.image.scans[0]] |= {REGISTRATION}
    if plan.reference is not None:
        wanted.setdefault(plan.reference.image, set()).add(REGISTRATION)
    for image, parts in wanted.items():
        known = needed.get(image)
        of_image = known[0] if known else plan_image(image, plan.settings)
        before = known[1] if known else frozenset()
        needed[image] = of_image, before | parts
        if REGISTRATION in parts - before:
            _add_needed(of_image, needed)


def _silence(workflow: LiterateWorkflow) -> None:
    """Leave the parts of a workflow without a text for the methods."""
    for part in workflow._graph.nodes():
        if isinstance(part, LiterateWorkflow):
            part.__desc__ = ""
