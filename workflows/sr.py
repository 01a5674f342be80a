"""Super-resolution of an image, and its result on other grids."""

from __future__ import annotations

import attrs
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node
from niworkflows.engine.workflows import LiterateWorkflow

from moesr_bids.bids.names import identifier
from moesr_bids.bids.plan import ImagePlan
from moesr_bids.interfaces.mask import ResampleMask
from moesr_bids.interfaces.registration import WarpToSpace
from moesr_bids.interfaces.segmentation import Segment
from moesr_bids.interfaces.sr import SuperResolve
from moesr_bids.workflows.preproc import ants_inputs
from moesr_bids.workflows.registration import transform_field

_INPUTS = ("preproc_file", "mask_file", "metadata_file")


def warp_name(space: object) -> str:
    """Return the name of the node that warps to an output space."""
    return f"warp_{identifier(str(space))}"


def init_sr_wf(*, plan: ImagePlan, use_gpu: bool, for_others: bool = False, name: str = "sr_wf") -> LiterateWorkflow:
    """Build the workflow that super-resolves an image.

    Parameters
    ----------
    plan : ImagePlan
        Plan of the image.
    use_gpu : bool
        Whether super-resolution claims a GPU slot of the scheduler.
    for_others : bool
        Nothing but the super-resolution: for a scan of a joined image whose own outputs are complete, or not wanted.
    name : str
        Name of the workflow.

    Inputs
    ------
    preproc_file, mask_file
        Bias-corrected image and its brain mask, own grid.
    metadata_file
        Merged sidecars as JSON.
    bias_file, log_jacobian_file
        Natural logarithms of bias field and Jacobian determinant, own grid; for models that take them.
    to_<template>
        Transforms to the templates of the output spaces.

    Outputs
    -------
    sr_file, sr_mask_file, dseg_file
        Super-resolved image, its brain mask and its segmentation, target grid.
    residual_file
        Input minus A(output) in units of the noise, grid of the scan.
    uncertainty_file
        Standard deviation of the error, target grid; of models that predict it.
    map_files
        Gate and difference maps; of mixtures of experts.
    sr_record
        Record that ``moesr sr`` wrote.

    """
    settings, card = plan.settings, plan.card
    workflow = LiterateWorkflow(name=name)
    workflow.__desc__ = (
        f"Each corrected image was super-resolved to {settings.sr.resolution:g} mm isotropic voxels along its own "
        "axes, and the result was brought into the space of each template in one interpolation by cubic B-splines. "
        f"{card.methods_text(settings.sr.sampling)} "
    )
    guidance = guidance_fields(plan)
    transforms = [transform_field(template, "to") for template in settings.templates]
    inputnode = Node(IdentityInterface(fields=[*_INPUTS, *guidance, *transforms]), name="inputnode")
    more = [*(["uncertainty_file"] if card.uncertainty else []), *(["map_files"] if card.experts else [])]
    outputnode = Node(
        IdentityInterface(fields=["sr_file", "sr_mask_file", "dseg_file", "residual_file", "sr_record", *more]),
        name="outputnode",
    )
    super_resolve = _super_resolve(plan, use_gpu=use_gpu)
    # fmt: off
    workflow.connect([
        (inputnode, super_resolve, [("preproc_file", "in_file"), ("mask_file", "mask_file"),
                                    ("metadata_file", "metadata_file"),
                                    *((field, GUIDANCE[field]) for field in guidance)]),
        (super_resolve, outputnode, [("out_file", "sr_file"), ("residual_file", "residual_file"),
                                     ("record", "sr_record"), *((field, field) for field in more)]),
    ])
    # fmt: on
    if not for_others:
        add_other_grids(workflow, plan)
    return workflow


def add_other_grids(workflow: LiterateWorkflow, plan: ImagePlan) -> None:
    """Add what is made of the super-resolved image: mask and segmentation, and that image in each template's space.

    Used are ``preproc_file``, ``mask_file`` and ``to_<template>`` of ``inputnode``, and ``out_file`` of
    ``super_resolve``.
    """
    settings = plan.settings
    inputnode, super_resolve, outputnode = map(workflow.get_node, ("inputnode", "super_resolve", "outputnode"))
    target_mask = Node(ResampleMask(), name="target_mask", mem_gb=plan.cost.memory_of("target_mask"))
    # With one thread it runs beside the metrics, which have one as well; figures wait for both.
    segment = Node(Segment(), name="segment", mem_gb=plan.cost.memory_of("segment"))
    # fmt: off
    workflow.connect([
        (inputnode, target_mask, [("mask_file", "in_file")]),
        (inputnode, segment, [("preproc_file", "scan_file"), ("mask_file", "scan_mask_file")]),
        (super_resolve, target_mask, [("out_file", "reference_file")]),
        (super_resolve, segment, [("out_file", "in_file")]),
        (target_mask, segment, [("out_file", "mask_file")]),
        (target_mask, outputnode, [("out_file", "sr_mask_file")]),
        (segment, outputnode, [("out_file", "dseg_file")]),
    ])
    # fmt: on
    for space in settings.output_spaces:
        # With one thread, for the same reason.
        one_thread = {**ants_inputs(settings), "omp_nthreads": 1}
        warp = Node(
            WarpToSpace(space=str(space), resolution=settings.sr.resolution, **one_thread),
            name=warp_name(space),
            mem_gb=plan.cost.memory_of("warp"),
        )
        # fmt: off
        workflow.connect([
            (super_resolve, warp, [("out_file", "in_file")]),
            (inputnode, warp, [(transform_field(space.template, "to"), "to_template")]),
        ])
        # fmt: on


GUIDANCE = {"bias_file": "bias_file", "log_jacobian_file": "jacobian_file"}
"""From inputs of the workflow to inputs of the node."""


def guidance_fields(plan: ImagePlan) -> list[str]:
    """Return the guidance maps that the model takes of this image."""
    told = plan.card.guidance
    fields = ["bias_file"] if "log_bias" in told else []
    # The map says how noise differs from place to place. It differs only if the intensities were changed.
    if "log_jacobian" in told and plan.gradients.corrects and not plan.settings.gradunwarp_nojac:
        fields.append("log_jacobian_file")
    return fields


def _super_resolve(plan: ImagePlan, *, use_gpu: bool) -> Node:
    settings, card = plan.settings, plan.card
    interface = SuperResolve(
        options=attrs.evolve(
            settings.sr,
            contrast=plan.image.suffix,
            # Decided for the whole run, since the scheduler relies on it; nodes of a cluster decide for themselves.
            device=settings.sr.device if settings.use_plugin else "cuda" if use_gpu else "cpu",
        ),
        experts=list(card.experts),
        uncertainty=card.uncertainty,
        weights_sha256=card.weights_sha256,
        omp_nthreads=settings.omp_nthreads,
        use_gpu=use_gpu,
        # On a cluster each node finds its own limit of memory.
        **({} if settings.use_plugin else {"memory_gb": settings.mem_gb}),
    )
    # A GPU node counts its processes as GPU slots: more than one would claim several GPUs.
    slots = 1 if use_gpu else settings.omp_nthreads
    return Node(interface, name="super_resolve", n_procs=slots, mem_gb=plan.cost.sr_memory_gb)
