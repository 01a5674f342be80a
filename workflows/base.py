"""The workflow of a run: one sub-workflow per participant, and in it one per image."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from itertools import groupby

from niworkflows.engine.workflows import LiterateWorkflow

from moesr_bids import __version__
from moesr_bids.bids.collect import RawImage
from moesr_bids.config import Settings
from moesr_bids.workflows.image import connect_reference, init_image_wf

WORKFLOW_NAME = "moesr_wf"


def participant_workflow_name(participant: str) -> str:
    """Return the name of a participant's workflow: letters, digits and underscores."""
    return "sub_" + "".join(letter if letter.isalnum() else "_" for letter in participant) + "_wf"


def init_moesr_wf(*, images: Sequence[RawImage], settings: Settings, use_gpu: bool) -> LiterateWorkflow:
    """Build the workflow of a run.

    Parameters
    ----------
    images : sequence of RawImage
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
    for participant, group in groupby(images, key=lambda image: image.participant):
        single = init_single_subject_wf(participant=participant, images=list(group), settings=settings, use_gpu=use_gpu)
        workflow.add_nodes([single])
        crashes = str(settings.output_dir / "logs" / f"sub-{participant}")
        for node in single._get_all_nodes():
            node.config = deepcopy(workflow.config)
            node.config["execution"]["crashdump_dir"] = crashes
    return workflow


def init_single_subject_wf(
    *, participant: str, images: Sequence[RawImage], settings: Settings, use_gpu: bool
) -> LiterateWorkflow:
    """Build the workflow of one participant: images side by side, each after the reference of its session, if any.

    A reference that is not among ``images``, because its outputs are complete, is preprocessed for the others.
    """
    workflow = LiterateWorkflow(name=participant_workflow_name(participant))
    build = partial(init_image_wf, settings=settings, use_gpu=use_gpu)
    by_image = {image: build(image=image) for image in images}
    for reference in {image.reference for image in images if image.reference is not None} - set(images):
        by_image[reference] = build(image=reference, preproc_only=True)
    workflow.add_nodes(list(by_image.values()))
    for image in images:
        if image.reference is not None:
            connect_reference(workflow, by_image[image.reference], by_image[image], settings)
    return workflow
