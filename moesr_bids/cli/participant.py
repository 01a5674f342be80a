"""The participant level: collect, plan, run, and tell what became of every image."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from moesr_bids.bids.collect import RawImage, collect_images, participant_labels
from moesr_bids.bids.crashes import Crash, crash_files, crashes_by_image
from moesr_bids.bids.dataset import prepare_output_folder, save_settings
from moesr_bids.bids.outputs import finished_record, output_paths, sidecar_of
from moesr_bids.bids.sessions import alone, with_references
from moesr_bids.bids.source import other_source
from moesr_bids.bids.status import more_statuses_than, read_statuses, write_status, write_table
from moesr_bids.cli.checks import UsageError
from moesr_bids.cli.console import Progress, say
from moesr_bids.cli.ending import end_children
from moesr_bids.cli.outcomes import (
    forget_what_is_gone,
    image_status,
    outcome,
    rejected_status,
    skipped_status,
    statuses_without_images,
)
from moesr_bids.cli.plan import print_plan
from moesr_bids.cli.worklock import working_on
from moesr_bids.config import Settings

# Steps after which an image serves as a reference, and those in which another image meets it.
_REFERENCE_STEPS = ("conform", "gradunwarp", "brain_mask", "n4", "register_")
_ALIGNMENT_STEPS = ("coregister", "register_")
_FEW_IMAGES = 100  # a table of more is not made anew for each: it takes a read of every status file


def run_participants(settings: Settings) -> int:
    """Run the participant level.

    Returns
    -------
    int
        0 when every image is done, 1 when anything failed.

    """
    if settings.reports_only:
        return _reports_only(settings)
    try:
        found = with_references(collect_images(settings))
    except ValueError as refusal:  # of PyBIDS, most often: an entity that it does not know
        source = settings.bids_filter_file or settings.bids_database_dir or settings.bids_dir
        raise UsageError(f"{source}: {str(refusal).partition(' If you')[0]}") from None
    _refuse_second_resolution(found, settings)
    images = [image for image in found if not image.problem]
    if settings.dry_run:
        print_plan(found, settings)
        return 0
    if not found and (narrowed_by := settings.bids_filter_file or settings.bids_database_dir):
        raise UsageError(f"{narrowed_by} leaves no image of those that the other options select; correct or delete it")
    if earlier := other_source(settings.bids_dir, settings.output_dir):
        say(f"WARNING: {settings.output_dir} was made from {earlier}; from now on its sources mean {settings.bids_dir}")
    prepare_output_folder(settings)
    if settings.boilerplate_only:
        _build(images, settings, use_gpu=False)
        say(f"wrote {settings.output_dir / 'logs' / 'CITATION.md'}")
        return 0
    if not settings.skip_bids_validation:
        say(f"the BIDS validator reads {settings.bids_dir}; --skip-bids-validation goes without")
        _validate(settings)
    # Tasks of a cluster array start within one second of each other.
    save_settings(settings, f"run-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")

    with working_on(images, settings):
        return _process(found, images, settings)


def _process(found: Sequence[RawImage], images: Sequence[RawImage], settings: Settings) -> int:
    """Run what is not complete, and tell what became of it."""
    finished = {image: record for image in images if (record := finished_record(image, settings)) is not None}
    todo = [image for image in images if image not in finished]
    forget_what_is_gone(settings, found)
    for image in finished:
        write_status(settings.output_dir, skipped_status(image, finished[image]))
    for image in todo:
        write_status(settings.output_dir, image_status(image, state="waiting"))
    # A run that is killed leaves this table behind. The tasks of an array begin at once.
    _write_table(settings, unless_younger_s=10)
    say(
        f"{len(found)} images of {len({image.participant for image in found})} participants: "
        f"{len(todo)} to process, {len(finished)} already complete"
    )
    if settings.write_graph and not todo:
        say("no graph was written: every image is complete")
    todo, crashes, error = _run_all(todo, images, settings)
    outdated = [image for image in finished if image.reference in todo and finished_record(image, settings) is None]
    if outdated and not (error and settings.stop_on_first_crash):
        say(f"done again with their reference, which an earlier run had not: {', '.join(i.stem for i in outdated)}")
        more, more_crashes, more_error = _run_all(outdated, images, settings)
        todo, crashes, error = [*todo, *more], crashes | more_crashes, more_error or error
        for image in outdated:
            del finished[image]
    statuses = [outcome(image, settings, crashes.get(image), error) for image in todo]
    statuses += [rejected_status(image) for image in found if image.problem]
    statuses += statuses_without_images(found, settings)
    for status in statuses:
        write_status(settings.output_dir, status)
    told = _write_table(settings) or f"moesr status {settings.output_dir}"
    shown = {image.participant for image in found} | {s.participant_id.removeprefix("sub-") for s in statuses}
    reports_written = _write_reports(settings, sorted(shown))
    _tell_unselected(settings, shown)
    failed = [status for status in statuses if status.state == "failed"]
    for status in failed:
        say(f"FAILED {status.key} at {status.step}: {status.reason}")
    done = sum(status.state == "done" for status in statuses)
    say(f"{done} done, {len(finished)} skipped, {len(failed)} failed; status of every image: {told}")
    if settings.clean_workdir and not failed:
        _clean(settings, images)
    return 1 if failed or not reports_written else 0


def _write_table(settings: Settings, *, unless_younger_s: float = 0.0) -> Path | None:
    """Write the table of statuses; in a large cohort the group level does, or every task would read those of all."""
    if settings.participant_label and more_statuses_than(_FEW_IMAGES, settings.output_dir):
        return None
    return write_table(settings.output_dir, unless_younger_s=unless_younger_s)


def _build(images: Sequence[RawImage], settings: Settings, *, use_gpu: bool) -> Any:
    from moesr_bids.cli.citation import write_citation
    from moesr_bids.workflows.base import init_moesr_wf, participant_workflow_name

    workflow = init_moesr_wf(images=images, settings=settings, use_gpu=use_gpu)
    write_citation(workflow.visit_desc(), settings.output_dir / "logs")
    for participant in dict.fromkeys(image.participant for image in images):
        # That of the last run is not that of a participant whom it did not process.
        single = workflow.get_node(participant_workflow_name(participant))
        write_citation(workflow.__desc__ + single.visit_desc(), settings.output_dir / "logs" / f"sub-{participant}")
    return workflow


def _run_all(
    todo: list[RawImage], images: Sequence[RawImage], settings: Settings
) -> tuple[list[RawImage], dict[RawImage, Crash], Exception | None]:
    """Run the workflow, and again for images that the reference of their session has kept from being done.

    Those whose reference failed get the next one, or none; those that could not be aligned to theirs get none.

    Returns
    -------
    todo, crashes, error
        The images with the references that they had, what failed, and the error with which the last run ended.

    """
    waiting, error = todo, None
    crashes: dict[RawImage, Crash] = {}
    useless: set[RawImage] = set()
    while waiting:
        earlier = crash_files(settings.output_dir / "logs", images)
        error = run_workflow(waiting, settings)
        found = crashes_by_image(settings.output_dir / "logs", images, earlier=earlier)
        crashes |= found
        if settings.stop_on_first_crash:
            break
        useless |= {image for image, crash in found.items() if crash.step.startswith(_REFERENCE_STEPS)}
        again = {}
        replanned = {image: image for image in with_references(images, failed=useless)}
        for image in waiting:
            if image.reference is None:
                continue
            crash = found.get(image)
            if crash is not None and crash.step.startswith(_ALIGNMENT_STEPS):
                again[image] = alone(image, crash.reason)
                del crashes[image]
            elif crash is None and image.reference in useless and finished_record(image, settings) is None:
                again[image] = replanned[image]
        if again:
            names = ", ".join(image.stem for image in again)
            say(f"done again without the reference of their session: {names}")
        waiting = list(again.values())
        todo = [again.get(image, image) for image in todo]
    return todo, crashes, error


def run_workflow(images: Sequence[RawImage], settings: Settings) -> Exception | None:
    """Run the workflow; return the error with which Nipype ended, if any."""
    from moesr_bids.interfaces.gpus import gpu_problem, visible_gpus
    from moesr_bids.workflows.execution import configure_nipype, make_plugin

    gpus = 0 if settings.sr.device == "cpu" else len(visible_gpus())
    if settings.sr.device != "cpu" and not settings.use_plugin and (problem := gpu_problem()):
        if settings.sr.device == "cuda":
            return RuntimeError(f"--device cuda: {problem}")
        if gpus:
            say(f"WARNING: the GPU is not used: {problem}")
        gpus = 0
    if not settings.use_plugin:
        say("super-resolution runs on " + (f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else "the CPU"))
    configure_nipype(settings)
    _tell_cost(images, settings, gpus)
    workflow = _build(images, settings, use_gpu=gpus > 0)
    if settings.write_graph:
        graph = settings.output_dir / "logs" / "graph.dot"
        workflow.write_hierarchical_dotfile(dotfilename=str(graph), colored=True)
        say(f"wrote {graph}")
    table_s = 0.0 if len(images) <= _FEW_IMAGES else 60.0
    earlier = crash_files(settings.output_dir / "logs", images)
    try:
        progress = Progress(
            images,
            references=[image.reference for image in images if image.reference],
            began=lambda image: _begin(image, settings, table_s=table_s),
            ended=lambda image: _settle(image, settings, earlier=earlier, table_s=table_s),
        )
        try:
            workflow.run(plugin=make_plugin(settings, gpus=gpus, callback=progress))
        finally:
            progress.settle()
    except Exception as error:  # What failed, and why, is read per image from the crash files.
        if settings.stop_on_first_crash or isinstance(error, OSError):
            end_children()  # Nipype has left its workers to themselves
        return error
    return None


def _tell_cost(images: Sequence[RawImage], settings: Settings, gpus: int) -> None:
    """Say what a model that takes its time and memory will take."""
    from moesr_bids.sr.models import DEFAULT_MODEL, get_model
    from moesr_bids.workflows.estimates import estimate

    model = settings.sr.model
    if not get_model(model).card.experts:
        return
    these = [estimate(image, settings) for image in images]
    memory = max((one.sr_memory_gb for one in these), default=0.0)
    say(f"{model} needs up to {memory:.1f} GB for an image" + (", or what the GPU has free" if gpus else ""))
    if gpus or (settings.use_plugin and settings.sr.device != "cpu"):
        return
    this = sum(one.seconds for one in these)
    fast = attrs.evolve(settings, sr=attrs.evolve(settings.sr, model=DEFAULT_MODEL))
    default = sum(estimate(image, fast).seconds for image in images)
    say(
        f"WARNING: no GPU is used: {model} will take about {this / 60:.0f} min for these images one after the other, "
        f"{DEFAULT_MODEL} would take {default / 60:.0f} min"
    )


def _validate(settings: Settings) -> None:
    from moesr_bids.bids.validation import count_errors

    try:
        errors = count_errors(settings.bids_dir)
    except RuntimeError as error:
        raise UsageError(str(error)) from None
    if errors:
        listed = "; ".join(f"{code} in {files} files" for code, files in list(errors.items())[:5])
        say(f"the BIDS validator finds errors in {settings.bids_dir}: {listed}. Images that can be read are processed.")


def _begin(image: RawImage, settings: Settings, *, table_s: float) -> None:
    write_status(settings.output_dir, image_status(image, state="running"))
    _write_table(settings, unless_younger_s=table_s)


def _settle(image: RawImage, settings: Settings, *, earlier: Collection[Path], table_s: float) -> None:
    """Write status and report as soon as an image is published or has failed: a long run shows what it has."""
    crash = crashes_by_image(settings.output_dir / "logs", [image], earlier=earlier).get(image)
    write_status(settings.output_dir, outcome(image, settings, crash, None))
    _write_table(settings, unless_younger_s=table_s)
    _write_reports(settings, [image.participant], quiet=True)


def _reports_only(settings: Settings) -> int:
    """Write the reports of all selected participants that the output folder knows of."""
    if not settings.output_dir.is_dir():
        raise UsageError(f"output folder {settings.output_dir} does not exist; run without --reports-only first")
    known = {status.participant_id for status in read_statuses(settings.output_dir)}
    known |= {path.name for path in settings.output_dir.glob("sub-*") if path.is_dir()}
    labels = [label for label in participant_labels(settings) if f"sub-{label}" in known]
    if not labels:
        raise UsageError(f"output folder {settings.output_dir} has nothing of the selected participants to report")
    return 0 if _write_reports(settings, labels) else 1


def _refuse_second_resolution(images: Sequence[RawImage], settings: Settings) -> None:
    """Refuse to mix resolutions: residual, figures and status have one name whatever the resolution."""
    for image in images:
        wanted = settings.output_dir / sidecar_of(output_paths(image, settings)["moesr"])
        others = wanted.name.replace(f"_res-{settings.resolution_label}_", "_res-*_")
        for path in wanted.parent.glob(others):
            if path != wanted:
                raise UsageError(
                    f"{settings.output_dir} holds {path.name}, of another resolution; "
                    f"choose another output folder for {settings.sr.resolution:g} mm"
                )


def _tell_unselected(settings: Settings, shown: set[str]) -> None:
    others = [label for label in participant_labels(settings) if label not in shown]
    if others:
        say(f"the options select no image of {len(others)} participants: {', '.join(others[:10])}")
        if settings.bids_database_dir is not None:
            say(f"{settings.bids_database_dir} may be older than the data set; delete it if images were added")


def _write_reports(settings: Settings, participants: Sequence[str], *, quiet: bool = False) -> bool:
    """Write the reports; False when one could not be written."""
    from moesr_bids.reports.individual import build_participant_report

    written = True
    for label in participants:
        try:
            single = settings.report_format == "single"
            path = build_participant_report(settings.output_dir, f"sub-{label}", single_file=single)
        except Exception as error:  # A report that cannot be written must not hide the others, nor the exit code.
            say(f"FAILED report of sub-{label}: {error}")
            written = False
        else:
            if not quiet:
                say(f"report: {path}")
    return written


def _clean(settings: Settings, images: Sequence[RawImage]) -> None:
    """Remove the intermediate files of these images; other runs may have theirs beside them."""
    from moesr_bids.workflows.base import WORKFLOW_NAME, participant_workflow_name

    folder: Path = settings.work_dir / WORKFLOW_NAME
    for image in images:
        participant = folder / participant_workflow_name(image.participant)
        shutil.rmtree(participant / image.workflow_name, ignore_errors=True)
        for empty in (participant, folder):
            with suppress(OSError):  # it is not empty
                empty.rmdir()
    say(f"removed the intermediate files in {folder}")
