"""Joining of scans that were prepared and super-resolved each in a workflow of its own."""

from __future__ import annotations

import attrs
from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline.engine import Node
from niworkflows.engine.workflows import LiterateWorkflow

from moesr_bids.bids.plan import ImagePlan
from moesr_bids.interfaces.join import JoinScans
from moesr_bids.workflows.registration import transform_field
from moesr_bids.workflows.sr import add_other_grids

SCAN_FIELDS = {
    "preproc_file": "preproc_wf",
    "mask_file": "preproc_wf",
    "metadata_file": "preproc_wf",
    "sr_file": "sr_wf",
    "sr_record": "sr_wf",
    "uncertainty_file": "sr_wf",
}
"""What is needed of each scan, and the part of its workflow that gives it."""


def scan_fields(plan: ImagePlan) -> list[str]:
    """Return what is needed of each scan of an image."""
    return [field for field in SCAN_FIELDS if field != "uncertainty_file" or plan.card.uncertainty]


def init_join_wf(*, plan: ImagePlan, name: str = "sr_wf") -> LiterateWorkflow:
    """Build the workflow that joins scans.

    Parameters
    ----------
    plan : ImagePlan
        Plan of the joined image.
    name : str
        Name of the workflow.

    Inputs
    ------
    preproc_file_<n>, mask_file_<n>, metadata_file_<n>, sr_file_<n>, sr_record_<n>, uncertainty_file_<n>
        Of the n-th scan, from 1: bias-corrected image and brain mask on its own grid, merged sidecars, and what the
        model made of it alone.
    preproc_file, mask_file, to_<template>
        Of the first scan once more: image, brain mask, and transforms to the templates of the output spaces.

    Outputs
    -------
    sr_file, sr_mask_file, dseg_file, uncertainty_file
        Joined image, its brain mask and segmentation, and the standard deviation of its error; the last of models that
        know one.
    residual_file
        Residual of the first scan, on its grid.
    residual_files
        And of each.
    sr_record
        What ``moesr join`` recorded.

    """
    settings, fields = plan.settings, scan_fields(plan)
    workflow = LiterateWorkflow(name=name)
    workflow.__desc__ = (
        "Scans of one contrast and session were joined: their rigid positions, gains and the weights of their slices "
        "were found by comparing each of them, through its own acquisition operator, with the image of the others; the "
        "super-resolved images of the scans were averaged, each weighted at every spatial frequency by what its scan "
        "measured there, and the mean was corrected by the data of all scans in a least-squares sense. "
    )
    count = len(plan.scans)
    transforms = [transform_field(template, "to") for template in settings.templates]
    each = [f"{field}_{number}" for field in fields for number in range(1, count + 1)]
    inputnode = Node(IdentityInterface(fields=[*each, "preproc_file", "mask_file", *transforms]), name="inputnode")
    outputs = ["sr_file", "sr_mask_file", "dseg_file", "residual_file", "residual_files", "sr_record"]
    outputs += ["uncertainty_file"] if plan.card.uncertainty else []
    outputnode = Node(IdentityInterface(fields=outputs), name="outputnode")
    join = Node(
        JoinScans(
            options=attrs.evolve(settings.sr, contrast=plan.image.suffix, device="cpu"),
            sources=[scan.image.relative for scan in plan.scans],
            uncertainty=plan.card.uncertainty,
            omp_nthreads=settings.omp_nthreads,
            **({} if settings.use_plugin else {"memory_gb": settings.mem_gb}),
        ),
        name="super_resolve",
        n_procs=settings.omp_nthreads,
        mem_gb=plan.cost.sr_memory_gb,
    )
    for field in fields:
        together = Node(Merge(count), name=f"{field}s")
        together.inputs.no_flatten = True
        links = [(f"{field}_{number}", f"in{number}") for number in range(1, count + 1)]
        workflow.connect([(inputnode, together, links), (together, join, [("out", f"{field}s")])])
    # fmt: off
    workflow.connect([
        (join, outputnode, [("out_file", "sr_file"), ("record", "sr_record"), ("residual_1", "residual_file"),
                            ("residual_files", "residual_files")]),
    ])
    # fmt: on
    if plan.card.uncertainty:
        workflow.connect(join, "uncertainty_file", outputnode, "uncertainty_file")
    add_other_grids(workflow, plan)
    return workflow
