"""Running the workflow, and again for images that failed because of the reference of their session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from moesr_bids.bids.collect import RawImage, with_scans
from moesr_bids.bids.crashes import Crash, crash_files, crashes_by_image
from moesr_bids.bids.joining import FIRST_APART, of_scans, without_failed
from moesr_bids.bids.plan import ImagePlan, plan_image
from moesr_bids.bids.resume import finished_record
from moesr_bids.bids.sessions import registered_by_itself, with_references
from moesr_bids.config import Settings
from moesr_bids.console import counted, say, waiting
from moesr_bids.run.citation import write_citation
from moesr_bids.run.ending import end_children
from moesr_bids.run.progress import Progress
from moesr_bids.run.reporting import Reporter

# Steps that an image needs to serve as a reference, and steps in which other images are aligned to it.
_REFERENCE_STEPS = ("conform", "gradunwarp", "brain_mask", "n4", "register_")
_ALIGNMENT_STEPS = ("coregister", "register_")
# And what a scan of a joined image has to go through.
_SCAN_STEPS = ("conform", "gradunwarp", "brain_mask", "n4", "super_resolve")


@attrs.frozen
class Runs:
    """Result of running images.

    Attributes
    ----------
    plans : tuple of ImagePlan
        Plans of the images, with their last references.
    crashes : Mapping
        First failure by image.
    error : Exception or None
        Error that ended the last run of the workflow.

    """

    plans: tuple[ImagePlan, ...]
    crashes: Mapping[RawImage, Crash] = attrs.field(factory=dict)
    error: Exception | None = None

    def crash_of(self, plan: ImagePlan) -> Crash | None:
        """Return what failed of an image; of a joined image without a failure of its own, what failed of its scans."""
        found = (self.crashes.get(image) for image in (plan.image, *plan.image.scans))
        return next((crash for crash in found if crash is not None), None)


def run_with_references(todo: Sequence[ImagePlan], images: Sequence[RawImage], settings: Settings) -> Runs:
    """Run the workflow until every image is done, or has failed for a reason of its own.

    Images whose reference failed get the next reference, or none. Images that could not be aligned to theirs get none.

    Parameters
    ----------
    todo : sequence of ImagePlan
        Images to process.
    images : sequence of RawImage
        All images of the run; the references are among them.
    settings : Settings
        Settings of the run.

    """
    waiting, logs = list(todo), settings.output_dir / "logs"
    # Scans of joined images are processed, whether or not they are images of the run.
    files = with_scans(images)
    plans = {plan.image: plan for plan in todo}
    crashes: dict[RawImage, Crash] = {}
    useless: set[RawImage] = set()
    unfit: dict[RawImage, str] = {}
    error = None
    while waiting:
        earlier = crash_files(logs, files)
        error = run_workflow(waiting, settings)
        found = crashes_by_image(logs, files, earlier=earlier)
        crashes |= found
        if settings.stop_on_first_crash:
            break
        useless |= {image for image, crash in found.items() if crash.step.startswith(_REFERENCE_STEPS)}
        unfit |= {image: crash.reason for image, crash in found.items() if crash.step.startswith(_SCAN_STEPS)}
        waiting = _plan_again(waiting, [image for image in files if not image.scans], found, useless, unfit)
        for plan in waiting:
            plans[plan.image] = plan
            crashes.pop(plan.image, None)
        if waiting:
            names = ", ".join(plan.image.stem for plan in waiting)
            say(f"done again without what could not be used: {names}")
    return Runs(tuple(plans.values()), crashes, error)


def _plan_again(
    plans: Sequence[ImagePlan],
    files: Sequence[RawImage],
    crashes: Mapping[RawImage, Crash],
    useless: set[RawImage],
    unfit: Mapping[RawImage, str],
) -> list[ImagePlan]:
    """Return new plans for images that failed because of their reference, or of one of their scans."""
    again = []
    replanned = {image: image for image in with_references(files, failed=useless)}
    for plan in plans:
        crash = crashes.get(plan.image)
        if plan.joined:
            image = _join_again(plan, replanned, crashes, unfit)
            again += [plan_image(image, plan.settings)] if image else []
        elif plan.reference is None:
            continue
        elif crash is not None and crash.step.startswith(_ALIGNMENT_STEPS):
            again.append(plan_image(registered_by_itself(plan.image, crash.reason), plan.settings))
        elif crash is None and plan.reference.image in useless and finished_record(plan) is None:
            again.append(plan_image(replanned[plan.image], plan.settings))
    return again


def _join_again(
    plan: ImagePlan,
    replanned: Mapping[RawImage, RawImage],
    crashes: Mapping[RawImage, Crash],
    unfit: Mapping[RawImage, str],
) -> RawImage | None:
    """Return a joined image without the scans that kept it from being done; None where that is of no help."""
    crash = crashes.get(plan.image)
    if finished_record(plan) is not None or (crash is not None and FIRST_APART not in crash.reason):
        return None
    scans = [replanned[scan] for scan in plan.image.scans]
    first = crashes.get(scans[0])
    if first is not None and scans[0].reference is not None and first.step.startswith(_ALIGNMENT_STEPS):
        scans[0] = registered_by_itself(scans[0], first.reason)
    failed = {**unfit, scans[0]: "it does not fit the other scans"} if crash is not None else unfit
    image = without_failed(of_scans(plan.image, scans), failed)
    same = image.scans == plan.image.scans and image.reference == plan.image.reference
    return None if same else image


def run_workflow(plans: Sequence[ImagePlan], settings: Settings) -> Exception | None:
    """Run the workflow of images once; return the error that ended it, if any."""
    from moesr_bids.workflows.execution import configure_nipype, make_plugin

    try:
        gpus = _count_gpus(settings)
    except RuntimeError as error:
        return error
    configure_nipype(settings)
    _tell_cost(plans, settings, gpus)
    with waiting("the workflow is being built"):
        workflow = build_workflow(plans, settings, use_gpu=gpus > 0)
    if settings.write_graph:
        graph = settings.output_dir / "logs" / "graph.dot"
        workflow.write_hierarchical_dotfile(dotfilename=str(graph), colored=True)
        say(f"wrote {graph}")
    earlier = crash_files(settings.output_dir / "logs", [plan.image for plan in plans])
    reporter = Reporter(plans, settings, earlier=earlier)
    progress = Progress(plans, began=reporter.began, ended=reporter.ended)
    try:
        try:
            workflow.run(plugin=make_plugin(settings, gpus=gpus, callback=progress, beat=progress.beat))
        finally:
            progress.close()
    except Exception as error:  # Failures of images are read from the crash files.
        if settings.stop_on_first_crash or isinstance(error, OSError):
            end_children()  # Nipype does not end its workers
        return error
    return None


def build_workflow(plans: Sequence[ImagePlan], settings: Settings, *, use_gpu: bool) -> Any:
    """Build the workflow of images, and write their methods text."""
    from moesr_bids.workflows.base import init_moesr_wf, participant_workflow_name

    workflow = init_moesr_wf(plans=plans, settings=settings, use_gpu=use_gpu)
    logs = settings.output_dir / "logs"
    write_citation(workflow.visit_desc(), logs)
    for participant in dict.fromkeys(plan.image.participant for plan in plans):
        # One for each participant: that of the last run is not true of participants whom it did not process.
        single = workflow.get_node(participant_workflow_name(participant))
        write_citation(workflow.__desc__ + single.visit_desc(), logs / f"sub-{participant}")
    return workflow


def _count_gpus(settings: Settings) -> int:
    """Count the GPUs that the run may use, and print what super-resolution runs on.

    Raises
    ------
    RuntimeError
        If a GPU was asked for and none can be used.

    """
    from moesr_bids.interfaces.gpus import gpu_problem, visible_gpus

    device = settings.sr.device
    gpus = 0 if device == "cpu" else len(visible_gpus())
    if settings.use_plugin:
        return gpus
    if device != "cpu" and (problem := gpu_problem()):
        if device == "cuda":
            raise RuntimeError(f"--device cuda: {problem}")
        if gpus:
            say(f"WARNING: the GPU is not used: {problem}")
        gpus = 0
    say("super-resolution runs on " + (counted(gpus, "GPU") if gpus else "the CPU"))
    return gpus


def _tell_cost(plans: Sequence[ImagePlan], settings: Settings, gpus: int) -> None:
    """Print memory and time of a mixture of experts, which needs much of both."""
    from moesr_bids.sr.models import DEFAULT_MODEL

    if not plans or not plans[0].card.experts:
        return
    model = settings.sr.model
    memory = max(plan.cost.sr_memory_gb for plan in plans)
    say(f"{model} needs up to {memory:.1f} GB for an image" + (", or what the GPU has free" if gpus else ""))
    if gpus or (settings.use_plugin and settings.sr.device != "cpu"):
        return
    this = sum(plan.seconds for plan in plans)
    default = sum(plan.seconds_of(DEFAULT_MODEL) for plan in plans)
    say(
        f"WARNING: no GPU is used: {model} will take about {this / 60:.0f} min for these images one after the other, "
        f"{DEFAULT_MODEL} would take {default / 60:.0f} min"
    )
