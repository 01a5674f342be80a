"""The workflow of one image, from the raw file to its derivatives."""

from __future__ import annotations

import attrs
from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node
from niworkflows.engine.workflows import LiterateWorkflow

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.gradients import GradientPlan, plan_gradunwarp
from moesr_bids.config import Settings
from moesr_bids.interfaces.ants import BrainMask, N4BiasField
from moesr_bids.interfaces.conform import Conform
from moesr_bids.interfaces.gradients import GradientUnwarp
from moesr_bids.interfaces.mask import ResampleMask
from moesr_bids.interfaces.publish import Publish
from moesr_bids.interfaces.quality import ImageQuality
from moesr_bids.interfaces.registration import Coregister, JoinTransforms, RegisterToTemplate, WarpToSpace
from moesr_bids.interfaces.reportlets import ImageReportlets
from moesr_bids.interfaces.sr import SuperResolve
from moesr_bids.sr.models import get_model
from moesr_bids.workflows.estimates import Estimate, estimate

REPORTLETS_GB = 2.0
WARP_GB = 1.0
_GRADIENTS_TEXT = (
    "Where the scanner had not done it, gradient nonlinearity was corrected with the spherical-harmonic coefficients "
    "[@gradients] or the displacement field of the scanner, in one interpolation by cubic B-splines [@ants]. "
)


def init_image_wf(
    *, image: RawImage, settings: Settings, use_gpu: bool, preproc_only: bool = False, name: str | None = None
) -> LiterateWorkflow:
    """Build the workflow of one image.

    The chain is header check, correction of gradient nonlinearity where it applies, brain mask, N4 bias field,
    registration to each template, super-resolution, reportlets and publication. Nothing is written to the output
    folder before the last step. An image with a reference is aligned to that, and goes to the templates by way of it:
    `connect_reference` joins the two workflows.

    Parameters
    ----------
    image : RawImage
        Image to process.
    settings : Settings
        Settings of the run.
    use_gpu : bool
        Whether super-resolution claims a GPU slot of the scheduler.
    preproc_only : bool
        Stop after the registration: for a reference whose own outputs are complete.
    name : str, optional
        Name of the workflow; by default from the image's file name.

    """
    cost = estimate(image, settings)
    card = get_model(settings.sr.model).card
    threads = settings.omp_nthreads
    # ITK takes a seed of 0 for none.
    ants = {"omp_nthreads": threads, "random_seed": settings.sr.random_seed + 1}
    heavy = {"n_procs": threads, "mem_gb": cost.preproc_memory_gb}
    workflow = LiterateWorkflow(name=name or image.workflow_name)
    plan = plan_gradunwarp(image, settings)
    workflow.__desc__ = _methods_text(settings)

    warnings = [*image.warnings, *(() if plan.corrects else plan.warnings)]
    conform = Node(
        Conform(
            in_file=str(image.path),
            metadata=dict(image.metadata),
            warnings=warnings,
        ),
        name="conform",
        mem_gb=cost.preproc_memory_gb,
    )
    gradunwarp = _gradunwarp(plan, settings, mem_gb=cost.gradunwarp_memory_gb) if plan.corrects else None
    straight = gradunwarp or conform
    brain_mask = Node(BrainMask(random_seed=ants["random_seed"]), name="brain_mask", mem_gb=cost.preproc_memory_gb)
    n4 = Node(N4BiasField(sloppy=settings.sloppy, **ants), name="n4", **heavy)
    coregister = Node(Coregister(sloppy=settings.sloppy, **ants), name="coregister", **heavy)
    registrations = {
        template: Node(
            RegisterToTemplate(template=template, sloppy=settings.sloppy, **ants)
            if image.reference is None
            else JoinTransforms(template=template, **ants),
            name=_register(template),
            **heavy,
        )
        for template in settings.templates
    }
    # fmt: off
    workflow.connect([
        (straight, brain_mask, [("out_file", "in_file")]),
        (straight, n4, [("out_file", "in_file")]),
        (brain_mask, n4, [("out_mask", "mask_file")]),
        (conform, n4, [("metadata_file", "metadata_file")]),
    ])
    # fmt: on
    if gradunwarp:
        workflow.connect(conform, "out_file", gradunwarp, "in_file")
    aligned = list(registrations.values())
    if image.reference is not None:
        coregister.inputs.reference_name = image.reference.stem
        aligned.append(coregister)
        for node in registrations.values():
            workflow.connect(coregister, "out_to_reference", node, "to_reference")
            workflow.connect(coregister, "out_from_reference", node, "from_reference")
    for node in aligned:
        workflow.connect(n4, "out_file", node, "in_file")
        workflow.connect(brain_mask, "out_mask", node, "mask_file")
        if node is coregister or image.reference is None:
            workflow.connect(brain_mask, "initial_xfm", node, "initial_xfm")
    if preproc_only:
        return workflow

    super_resolve = Node(
        SuperResolve(
            options=attrs.evolve(
                settings.sr,
                contrast=image.suffix,
                # Decided for the whole run, as the scheduler counts on it; a cluster's nodes decide for themselves.
                device=settings.sr.device if settings.use_plugin else "cuda" if use_gpu else "cpu",
            ),
            experts=list(card.experts),
            uncertainty=card.uncertainty,
            weights_sha256=card.weights_sha256,
            omp_nthreads=threads,
            use_gpu=use_gpu,
            # A node of a cluster knows best what it may use.
            **({} if settings.use_plugin else {"memory_gb": settings.mem_gb}),
        ),
        name="super_resolve",
        # A GPU node counts its processes as GPU slots: more than one would claim several GPUs.
        n_procs=1 if use_gpu else threads,
        mem_gb=cost.sr_memory_gb,
    )
    target_mask = Node(ResampleMask(), name="target_mask", mem_gb=cost.preproc_memory_gb)
    quality = Node(ImageQuality(), name="quality", mem_gb=cost.quality_memory_gb)
    spaces = {
        space: Node(
            WarpToSpace(space=str(space), resolution=settings.sr.resolution, **ants),
            name=f"warp_{_identifier(str(space))}",
            n_procs=threads,
            mem_gb=cost.preproc_memory_gb + WARP_GB,
        )
        for space in settings.output_spaces
    }
    shown = settings.templates[0]
    reportlets = Node(
        ImageReportlets(template_name=shown),
        name="reportlets",
        mem_gb=REPORTLETS_GB + _volume_gb(cost),
    )

    steps = {
        "conform": conform,
        **({"gradunwarp": gradunwarp} if gradunwarp else {}),
        "brain_mask": brain_mask,
        "n4": n4,
        **({"coregister": coregister} if image.reference else {}),
        **{f"register:{template}": node for template, node in registrations.items()},
        "super_resolve": super_resolve,
        "target_mask": target_mask,
        "quality": quality,
        **{f"warp:{space}": node for space, node in spaces.items()},
        "reportlets": reportlets,
    }
    sources = {
        "moesr": (super_resolve, "out_file"),
        **({"uncertainty": (super_resolve, "uncertainty_file")} if card.uncertainty else {}),
        **{f"gate-{name}": (super_resolve, f"gate_{name}") for name in card.experts},
        "residual": (super_resolve, "residual_file"),
        "preproc": (n4, "out_file"),
        "mask": (target_mask, "out_file"),
    }
    if gradunwarp:
        for key, output in (("from-orig", "field_file"), ("to-orig", "inverse_file"), ("jacobian", "jacobian_file")):
            sources[key] = (gradunwarp, output)
    if image.reference is not None:
        sources["to-reference"] = (coregister, "out_to_reference")
        sources["from-reference"] = (coregister, "out_from_reference")
    for template, node in registrations.items():
        sources[f"to-{template}"] = (node, "out_to_template")
        sources[f"from-{template}"] = (node, "out_from_template")
    for space, node in spaces.items():
        sources[f"space-{space}"] = (node, "out_file")
    files = Node(Merge(len(sources)), name="files")
    records = Node(Merge(len(steps)), name="records")
    for node in (files, records):
        node.inputs.no_flatten = True
    publish = Node(
        Publish(image=image, settings=settings, steps=list(steps), gradients=plan.record()),
        name="publish",
        mem_gb=cost.publish_memory_gb,
    )

    # fmt: off
    workflow.connect([
        (n4, super_resolve, [("out_file", "in_file")]),
        (brain_mask, super_resolve, [("out_mask", "mask_file")]),
        (conform, super_resolve, [("metadata_file", "metadata_file")]),
        (brain_mask, target_mask, [("out_mask", "in_file")]),
        (super_resolve, target_mask, [("out_file", "reference_file")]),
        (n4, quality, [("out_file", "in_file"), ("bias_field", "bias_file")]),
        (brain_mask, quality, [("out_mask", "mask_file"), ("out_tissues", "atlas_file")]),
        (super_resolve, quality, [("out_file", "sr_file"), ("record", "sr_record")]),
        (target_mask, quality, [("out_file", "sr_mask_file")]),
        (quality, reportlets, [("tissue_file", "tissue_file")]),
        (n4, reportlets, [("out_file", "preproc_file"), ("bias_field", "bias_file")]),
        (brain_mask, reportlets, [("out_mask", "mask_file")]),
        (super_resolve, reportlets, [("out_file", "sr_file"), ("residual_file", "residual_file"),
                                     ("record", "sr_record")]),
        (registrations[shown], reportlets, [("out_warped", "warped_file"), ("template_file", "template_file"),
                                            ("template_mask", "template_mask_file")]),
        (files, publish, [("out", "files")]),
        (records, publish, [("out", "records")]),
        (reportlets, publish, [("out_files", "figure_files")]),
    ])
    # fmt: on
    for index, (node, output) in enumerate(sources.values()):
        workflow.connect(node, output, files, f"in{index + 1}")
    if gradunwarp:
        workflow.connect(conform, "out_file", reportlets, "acquired_file")
        workflow.connect(gradunwarp, "out_file", reportlets, "unwarped_file")
        workflow.connect(gradunwarp, "field_file", reportlets, "field_file")
        # The map tells how noise differs from place to place, which it does only if the intensities were changed.
        if "log_jacobian" in card.guidance and not settings.gradunwarp_nojac:
            workflow.connect(gradunwarp, "log_jacobian_file", super_resolve, "jacobian_file")
    if "log_bias" in card.guidance:
        workflow.connect(n4, "bias_field", super_resolve, "bias_file")
    if card.uncertainty:
        workflow.connect(super_resolve, "uncertainty_file", reportlets, "uncertainty_file")
    if card.experts:
        workflow.connect(super_resolve, "map_files", reportlets, "expert_files")
    if image.reference is not None:
        reportlets.inputs.reference_name = image.reference.stem
        workflow.connect(coregister, "out_warped", reportlets, "coregistered_file")
    for space, node in spaces.items():
        workflow.connect(super_resolve, "out_file", node, "in_file")
        workflow.connect(registrations[space.template], "out_to_template", node, "to_template")
    for index, node in enumerate(steps.values()):
        workflow.connect(node, "record", records, f"in{index + 1}")
    publish.inputs.keys = list(sources)
    return workflow


def connect_reference(
    subject: LiterateWorkflow, reference: LiterateWorkflow, workflow: LiterateWorkflow, settings: Settings
) -> None:
    """Give the workflow of an image what it needs of its reference's, both in the workflow of their participant."""
    links = [
        ("n4.out_file", "coregister.reference_file"),
        ("brain_mask.out_mask", "coregister.reference_mask"),
        ("brain_mask.initial_xfm", "coregister.reference_xfm"),
        ("n4.out_file", "reportlets.reference_file"),
        ("brain_mask.out_mask", "reportlets.reference_mask_file"),
    ]
    for node in map(_register, settings.templates):
        links += [(f"{node}.out_{way}_template", f"{node}.reference_{way}_template") for way in ("to", "from")]
    subject.connect([(reference, workflow, links)])


def _register(template: str) -> str:
    return f"register_{_identifier(template)}"


def _gradunwarp(plan: GradientPlan, settings: Settings, *, mem_gb: float) -> Node:
    interface = GradientUnwarp(
        coefficients=str(plan.file),
        patient_position=plan.patient_position,
        action=plan.action,
        slice_axis=plan.slice_axis,
        intensity=not settings.gradunwarp_nojac,
        facts=plan.record(),
        warnings=list(plan.warnings),
        omp_nthreads=settings.omp_nthreads,
    )
    return Node(interface, name="gradunwarp", n_procs=settings.omp_nthreads, mem_gb=mem_gb)


def _identifier(template: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in template)


def _volume_gb(cost: Estimate) -> float:
    return 8 * cost.target_shape[0] * cost.target_shape[1] * cost.target_shape[2] / 1024**3


def _methods_text(settings: Settings) -> str:
    templates, card = " and ".join(settings.templates), get_model(settings.sr.model).card
    return (
        "Each image was checked for a plausible header and finite voxels and kept on its own grid. "
        f"{_GRADIENTS_TEXT if settings.gradient_coefficients and settings.gradunwarp != 'off' else ''}"
        "A brain mask was obtained from tissue classes carried over from the ICBM 152 template by affine and "
        "low-resolution deformable registration [@mni; @ants]. "
        "Intensity non-uniformity was corrected with N4 [@n4] inside the mask. "
        "The images of a session were aligned rigidly to its T1w image or else the sharpest one, and that image was "
        f"registered to {templates} with an affine and a diffeomorphic transform (SyN) [@syn; @ants]. "
        f"Each corrected image was super-resolved to {settings.sr.resolution:g} mm isotropic voxels along its own "
        "axes, and the result was brought into the space of each template in one interpolation by cubic B-splines. "
        "Image quality metrics follow MRIQC [@mriqc]. "
        f"{card.methods_text(settings.sr.sampling)}"
    )
