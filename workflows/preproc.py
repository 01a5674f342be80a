"""Preprocessing of a scan on its own grid: header, gradient nonlinearity, brain mask, bias field."""

from __future__ import annotations

from typing import Any

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node
from niworkflows.engine.workflows import LiterateWorkflow

from moesr_bids.bids.plan import ImagePlan
from moesr_bids.config import Settings
from moesr_bids.interfaces.ants import BrainMask, N4BiasField
from moesr_bids.interfaces.conform import Conform
from moesr_bids.interfaces.gradients import GradientUnwarp

_FIELDS = (*("preproc_file", "bias_file", "mask_file", "head_file", "prior_file", "initial_xfm", "metadata_file"),)
_UNWARPED_FIELDS = ("acquired_file", "unwarped_file", "field_file", "log_jacobian_file")
_GRADIENTS_TEXT = (
    "Where the scanner had not done it, gradient nonlinearity was corrected with the spherical-harmonic coefficients "
    "[@gradients] or the displacement field of the scanner, in one interpolation by cubic B-splines [@ants]. "
)
_GIVEN_TEXT = ", unless one had been made before"


def ants_inputs(settings: Settings) -> dict[str, Any]:
    """Return the inputs that all ITK nodes share. The seed is raised by 1, since ITK takes 0 for no seed."""
    return {"omp_nthreads": settings.omp_nthreads, "random_seed": settings.sr.random_seed + 1}


def init_preproc_wf(*, plan: ImagePlan, name: str = "preproc_wf") -> LiterateWorkflow:
    """Build the workflow that prepares a scan.

    Parameters
    ----------
    plan : ImagePlan
        Plan of the image; its files are the input.
    name : str
        Name of the workflow.

    Outputs
    -------
    preproc_file
        Image on its own grid, corrected for the bias field, and for gradient nonlinearity where that is needed.
    bias_file
        Natural logarithm of the bias field, own grid.
    mask_file
        Brain mask, own grid.
    head_file
        All that is not background, own grid.
    prior_file
        Probabilities of white matter, grey matter and CSF, 4-D, on the grid of the network.
    initial_xfm
        Affine transform onto the embedded template.
    metadata_file
        Merged sidecars as JSON.
    acquired_file, unwarped_file, field_file, log_jacobian_file
        Image before and after the correction of gradient nonlinearity, the displacement field, and the natural
        logarithm of its Jacobian determinant; only where it is corrected.

    """
    settings, cost, decided = plan.settings, plan.cost, plan.gradients
    workflow = LiterateWorkflow(name=name)
    asked = settings.gradient_coefficients and settings.gradunwarp != "off"
    given = _GIVEN_TEXT if settings.derivatives else ""
    workflow.__desc__ = (
        "Each image was checked for a plausible header and finite voxels and kept on its own grid. "
        f"{_GRADIENTS_TEXT if asked else ''}"
        "The brain and its structures were segmented by a convolutional network trained on images of random contrast "
        f"and resolution drawn from label maps [@synthseg; @synthstrip]; the mask is their union{given}. "
        "Intensity non-uniformity was corrected with N4 [@n4] inside the mask. "
    )
    ants = ants_inputs(settings)
    conform = Node(
        Conform(
            in_file=str(plan.image.path),
            metadata=dict(plan.image.metadata),
            warnings=[*plan.image.warnings, *(() if decided.corrects else decided.warnings), *plan.mask.warnings],
        ),
        name="conform",
        mem_gb=cost.memory_of("conform"),
    )
    brain_mask = Node(
        BrainMask(omp_nthreads=settings.omp_nthreads),
        name="brain_mask",
        n_procs=settings.omp_nthreads,
        mem_gb=cost.memory_of("brain_mask"),
    )
    if plan.mask.file is not None:
        brain_mask.inputs.trait_set(given_file=str(plan.mask.file), given_name=plan.mask.name)
    n4 = Node(
        N4BiasField(sloppy=settings.sloppy, **ants),
        name="n4",
        n_procs=settings.omp_nthreads,
        mem_gb=cost.memory_of("n4"),
    )
    fields = [*_FIELDS, *(_UNWARPED_FIELDS if decided.corrects else ())]
    outputnode = Node(IdentityInterface(fields=fields), name="outputnode")
    geometry = conform
    if decided.corrects:
        geometry = _gradunwarp(plan)
        # fmt: off
        workflow.connect([
            (conform, geometry, [("out_file", "in_file")]),
            (conform, outputnode, [("out_file", "acquired_file")]),
            (geometry, outputnode, [("out_file", "unwarped_file"), ("field_file", "field_file"),
                                    ("log_jacobian_file", "log_jacobian_file")]),
        ])
        # fmt: on
    # fmt: off
    workflow.connect([
        (geometry, brain_mask, [("out_file", "in_file")]),
        (geometry, n4, [("out_file", "in_file")]),
        (brain_mask, n4, [("out_mask", "mask_file")]),
        (conform, n4, [("metadata_file", "metadata_file")]),
        (n4, outputnode, [("out_file", "preproc_file"), ("bias_field", "bias_file")]),
        (brain_mask, outputnode, [("out_mask", "mask_file"), ("out_head", "head_file"),
                                  ("out_tissues", "prior_file"), ("initial_xfm", "initial_xfm")]),
        (conform, outputnode, [("metadata_file", "metadata_file")]),
    ])
    # fmt: on
    return workflow


def _gradunwarp(plan: ImagePlan) -> Node:
    settings, decided = plan.settings, plan.gradients
    interface = GradientUnwarp(
        coefficients=str(decided.file),
        patient_position=decided.patient_position,
        action=decided.action,
        slice_axis=decided.slice_axis,
        intensity=not settings.gradunwarp_nojac,
        facts=decided.record(),
        warnings=list(decided.warnings),
        omp_nthreads=settings.omp_nthreads,
    )
    return Node(interface, name="gradunwarp", n_procs=settings.omp_nthreads, mem_gb=plan.cost.memory_of("gradunwarp"))
