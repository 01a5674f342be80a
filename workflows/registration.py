"""Registration of an image: to the reference of its session, and to each template."""

from __future__ import annotations

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node
from niworkflows.engine.workflows import LiterateWorkflow

from moesr_bids.bids.names import identifier
from moesr_bids.bids.plan import ImagePlan
from moesr_bids.interfaces.registration import Coregister, JoinTransforms, RegisterToTemplate
from moesr_bids.workflows.preproc import ants_inputs


def register_name(template: str) -> str:
    """Return the name of the node that registers to a template."""
    return f"register_{identifier(template)}"


def transform_field(template: str, way: str) -> str:
    """Return the name of an output of this workflow: the transform ``to`` or ``from`` a template."""
    return f"{way}_{identifier(template)}"


def init_registration_wf(*, plan: ImagePlan, name: str = "registration_wf") -> LiterateWorkflow:
    """Build the workflow that registers an image.

    An image with a reference is aligned to it. Its transforms to the templates lead over the reference.

    Parameters
    ----------
    plan : ImagePlan
        Plan of the image.
    name : str
        Name of the workflow.

    Inputs
    ------
    preproc_file, mask_file
        Image and its brain mask, own grid.
    initial_xfm
        Affine transform onto the embedded template.
    reference_file, reference_mask, reference_xfm
        The same of the reference; only if the image has one.
    reference_to_<template>, reference_from_<template>
        Transforms of the reference; only if the image has one.

    Outputs
    -------
    to_<template>, from_<template>
        Transforms, ITK composite.
    warped_file, template_file, template_mask_file
        Image in the space of the first template, that template, and its brain mask.
    coregistered_file
        Image on the grid of the reference; only if the image has one.

    """
    settings = plan.settings
    ways = [(template, way) for template in settings.templates for way in ("to", "from")]
    aligned = plan.reference is not None
    of_reference = ["reference_file", "reference_mask", "reference_xfm"]
    of_reference += [f"reference_{transform_field(*one)}" for one in ways]
    workflow = LiterateWorkflow(name=name)
    workflow.__desc__ = (
        "The images of a session were aligned rigidly to its T1w image or else the sharpest one, and that image was "
        f"registered to {' and '.join(settings.templates)} with an affine and a diffeomorphic transform (SyN) "
        "[@syn; @ants]. "
    )
    inputnode = Node(
        IdentityInterface(fields=["preproc_file", "mask_file", "initial_xfm", *(of_reference if aligned else ())]),
        name="inputnode",
    )
    shown = ["warped_file", "template_file", "template_mask_file", *(["coregistered_file"] if aligned else [])]
    outputnode = Node(IdentityInterface(fields=[*(transform_field(*one) for one in ways), *shown]), name="outputnode")
    ants = ants_inputs(settings)
    resources = {"n_procs": settings.omp_nthreads, "mem_gb": plan.cost.memory_of("register")}
    registrations = {
        template: Node(
            JoinTransforms(template=template, **ants)
            if aligned
            else RegisterToTemplate(template=template, sloppy=settings.sloppy, **ants),
            name=register_name(template),
            **resources,
        )
        for template in settings.templates
    }
    own = [("preproc_file", "in_file"), ("mask_file", "mask_file")]
    with_start = [*own, ("initial_xfm", "initial_xfm")]
    for template, node in registrations.items():
        workflow.connect([(inputnode, node, own if aligned else with_start)])
        workflow.connect(
            [(node, outputnode, [(f"out_{w}_template", transform_field(template, w)) for w in ("to", "from")])]
        )
    first = registrations[settings.templates[0]]
    # fmt: off
    workflow.connect([
        (first, outputnode, [("out_warped", "warped_file"), ("template_file", "template_file"),
                             ("template_mask", "template_mask_file")]),
    ])
    # fmt: on
    if plan.reference is None:
        return workflow
    coregister = Node(
        Coregister(sloppy=settings.sloppy, reference_name=plan.reference.image.stem, **ants),
        name="coregister",
        **resources,
    )
    # fmt: off
    workflow.connect([
        (inputnode, coregister, [*with_start, ("reference_file", "reference_file"),
                                 ("reference_mask", "reference_mask"), ("reference_xfm", "reference_xfm")]),
        (coregister, outputnode, [("out_warped", "coregistered_file")]),
    ])
    for template, node in registrations.items():
        workflow.connect([
            (coregister, node, [("out_to_reference", "to_reference"), ("out_from_reference", "from_reference")]),
            (inputnode, node, [(f"reference_{transform_field(template, way)}", f"reference_{way}_template")
                               for way in ("to", "from")]),
        ])
    # fmt: on
    return workflow
