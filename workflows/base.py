"""The workflow of a run: one sub-workflow per participant, and in it one per image."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import groupby

from niworkflows.engine.workflows import LiterateWorkflow

from moesr_bids import __version__
from moesr_bids.bids.names import identifier
from moesr_bids.bids.plan import ImagePlan, plan_image
from moesr_bids.config import Settings
from moesr_bids.workflows.image import connect_reference, init_image_wf

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
    """Build the workflow of one participant: images side by side, each after the reference of its session, if any.

    A reference that is not among ``plans``, because its outputs are complete, is preprocessed for the others.
    """
    workflow = LiterateWorkflow(name=participant_workflow_name(participant))
    by_image = {plan.image: init_image_wf(plan=plan, use_gpu=use_gpu) for plan in plans}
    for plan in plans:
        if plan.reference is None:
            continue
        image = plan.reference.image
        if image not in by_image:
            of_reference = plan_image(image, plan.settings)
            by_image[image] = init_image_wf(plan=of_reference, use_gpu=use_gpu, preproc_only=True)
    workflow.add_nodes(list(by_image.values()))
    for plan in plans:
        if plan.reference is not None:
            connect_reference(workflow, by_image[plan.reference.image], by_image[plan.image], plan)
    return workflow
