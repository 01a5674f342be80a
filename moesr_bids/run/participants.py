"""Participant level: collect, plan and run, then report on every image."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from moesr_bids import __version__
from moesr_bids.bids.collect import RawImage, collect_images, participant_labels, with_scans
from moesr_bids.bids.dataset import prepare_output_folder, save_settings
from moesr_bids.bids.joining import with_joined
from moesr_bids.bids.plan import ImagePlan, plan_image
from moesr_bids.bids.resume import finished_record, known_apart
from moesr_bids.bids.sessions import with_references
from moesr_bids.bids.source import other_source
from moesr_bids.bids.status import ImageStatus, write_status
from moesr_bids.bids.steps import step_words
from moesr_bids.config import Settings
from moesr_bids.console import counted, lines_kept, say, waiting
from moesr_bids.errors import UsageError
from moesr_bids.run.dryrun import print_plans
from moesr_bids.run.export import export_raw
from moesr_bids.run.outcomes import (
    forget_what_is_gone,
    image_status,
    outcome,
    rejected_status,
    skipped_status,
    statuses_without_images,
)
from moesr_bids.run.reporting import rewrite_reports, tabulate, write_reports
from moesr_bids.run.workflow import Runs, build_workflow, run_with_references
from moesr_bids.run.worklock import working_on


def run_participants(settings: Settings) -> int:
    """Run the participant level.

    Returns
    -------
    int
        0 if nothing failed, else 1.

    Raises
    ------
    UsageError
        If the run cannot begin.

    """
    if settings.reports_only:
        return rewrite_reports(settings)
    with lines_kept() as write_lines_to:
        return _run(settings, write_lines_to)


def _run(settings: Settings, write_lines_to: Callable[[Path], None]) -> int:
    say(f"moesr-bids {__version__} reads {settings.bids_dir}")
    with waiting(f"{settings.bids_dir} is being read"):
        found = _collect(settings)
        plans = {image: plan_image(image, settings) for image in found if not image.problem}
    _refuse_second_resolution(plans.values())
    if settings.dry_run:
        print_plans(found, plans, settings)
        return 0
    _prepare(found, settings)
    if settings.boilerplate_only:
        build_workflow(list(plans.values()), settings, use_gpu=False)
        say(f"wrote {settings.output_dir / 'logs' / 'CITATION.md'}")
        return 0
    # Tasks of a cluster array start within one second of each other.
    name = f"run-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    write_lines_to(settings.output_dir / "logs" / f"{name}.log")
    if not settings.skip_bids_validation:
        say(f"the BIDS validator reads {settings.bids_dir}; --skip-bids-validation goes without")
        _validate(settings)
    save_settings(settings, name)
    with working_on(plans, settings):
        return _process(found, list(plans.values()), settings)


def _collect(settings: Settings) -> list[RawImage]:
    try:
        found, notes = with_joined(with_references(collect_images(settings)), settings.join)
    except ValueError as refusal:  # of PyBIDS, most often: an entity that it does not know
        source = settings.bids_filter_file or settings.bids_database_dir or settings.bids_dir
        raise UsageError(f"{source}: {str(refusal).partition(' If you')[0]}") from None
    for note in notes:
        say(note)
    return found


def _prepare(found: Sequence[RawImage], settings: Settings) -> None:
    """Refuse a run without images, and make the output folder."""
    if not found and (narrowed_by := settings.bids_filter_file or settings.bids_database_dir):
        raise UsageError(f"{narrowed_by} leaves no image of those that the other options select; correct or delete it")
    if earlier := other_source(settings.bids_dir, settings.output_dir):
        say(f"WARNING: {settings.output_dir} was made from {earlier}; from now on its sources mean {settings.bids_dir}")
    prepare_output_folder(settings)


def _process(found: Sequence[RawImage], plans: Sequence[ImagePlan], settings: Settings) -> int:
    """Run the images that are not complete, report on all, and return the exit code."""
    finished, todo = _skip_finished(found, plans, settings)
    images = [plan.image for plan in plans]
    runs = run_with_references(todo, images, settings)
    outdated = [] if runs.error and settings.stop_on_first_crash else _outdated(finished, runs)
    if outdated:
        names = ", ".join(plan.image.stem for plan in outdated)
        say(f"done again with their reference, which an earlier run had not: {names}")
        more = run_with_references(outdated, images, settings)
        runs = Runs((*runs.plans, *more.plans), {**runs.crashes, **more.crashes}, more.error or runs.error)
    statuses = [outcome(plan, runs.crash_of(plan), runs.error) for plan in runs.plans]
    for plan, status in zip(runs.plans, statuses, strict=True):
        if status.state == "apart" and (crash := runs.crash_of(plan)):
            crash.path.unlink(missing_ok=True)  # nothing has failed
    statuses += [rejected_status(image) for image in found if image.problem]
    statuses += statuses_without_images(found, settings)
    return _conclude(found, statuses, settings, skipped=len(finished) - len(outdated))


def _skip_finished(
    found: Sequence[RawImage], plans: Sequence[ImagePlan], settings: Settings
) -> tuple[list[ImagePlan], list[ImagePlan]]:
    """Return the plans of images that are complete, and of those to process; write the status of each."""
    settled: dict[RawImage, ImageStatus] = {}
    for plan in plans:
        if (record := finished_record(plan)) is not None:
            settled[plan.image] = skipped_status(plan.image, record)
        elif plan.joined and (status := known_apart(plan)) is not None:
            settled[plan.image] = status
    forget_what_is_gone(settings, found)
    for plan in plans:
        waiting = image_status(plan.image, state="waiting")
        write_status(settings.output_dir, settled.get(plan.image, waiting))
    # This table remains if the run is killed. Tasks of an array begin together, so a young table is kept.
    tabulate(settings, unless_younger_s=10)
    finished = [plan for plan in plans if plan.image in settled]
    todo = [plan for plan in plans if plan.image not in settled]
    say(
        f"{counted(len(found), 'image')} of {counted(len({image.participant for image in found}), 'participant')}: "
        f"{len(todo)} to process, {len(finished)} already complete"
    )
    if settings.write_graph and not todo:
        say("no graph was written: every image is complete")
    return finished, todo


def _outdated(finished: Sequence[ImagePlan], runs: Runs) -> list[ImagePlan]:
    """Return the plans of complete images whose better reference was finished in this run."""
    done = {plan.image for plan in runs.plans}
    return [
        plan
        for plan in finished
        if plan.reference is not None and plan.reference.image in done and finished_record(plan) is None
    ]


def _conclude(found: Sequence[RawImage], statuses: Sequence[ImageStatus], settings: Settings, *, skipped: int) -> int:
    """Write statuses and reports, print failures, and return the exit code."""
    for status in statuses:
        write_status(settings.output_dir, status)
    table = tabulate(settings) or f"moesr status {settings.output_dir}"
    shown = {image.participant for image in found} | {s.participant_id.removeprefix("sub-") for s in statuses}
    reports_written = write_reports(settings, sorted(shown))
    if settings.export_raw is not None:
        export_raw(settings.output_dir, settings.export_raw, sorted(shown))
    _tell_unselected(settings, shown)
    failed = [status for status in statuses if status.state == "failed"]
    for status in statuses:
        if status.state == "apart":
            say(f"{status.key} is not made: {status.reason}")
    for status in failed:
        say(f"FAILED {status.key} at step {step_words(status.step)}: {status.reason}")
    done = sum(status.state == "done" for status in statuses)
    say(f"{done} done, {skipped} skipped, {len(failed)} failed; status of every image: {table}")
    if settings.clean_workdir and not failed:
        _clean(settings, [image for image in found if not image.problem])
    return 1 if failed or not reports_written else 0


def _validate(settings: Settings) -> None:
    from moesr_bids.bids.validation import count_errors

    try:
        with waiting("the BIDS validator reads"):
            errors = count_errors(settings.bids_dir)
    except RuntimeError as error:
        raise UsageError(str(error)) from None
    if errors:
        listed = "; ".join(f"{code} in {counted(files, 'file')}" for code, files in list(errors.items())[:5])
        say(f"the BIDS validator finds errors in {settings.bids_dir}: {listed}. Images that can be read are processed.")


def _refuse_second_resolution(plans: Iterable[ImagePlan]) -> None:
    """Refuse to mix resolutions: names of residual, figures and status do not depend on it."""
    for plan in plans:
        for path in plan.outputs_of_other_resolutions():
            raise UsageError(
                f"{plan.settings.output_dir} holds {path.name}, of another resolution; "
                f"choose another output folder for {plan.settings.sr.resolution:g} mm"
            )


def _tell_unselected(settings: Settings, shown: set[str]) -> None:
    others = [label for label in participant_labels(settings) if label not in shown]
    if others:
        say(f"the options select no image of {counted(len(others), 'participant')}: {', '.join(others[:10])}")
        if settings.bids_database_dir is not None:
            say(f"{settings.bids_database_dir} may be older than the data set; delete it if images were added")


def _clean(settings: Settings, images: Sequence[RawImage]) -> None:
    """Remove the intermediate files of these images; files of other runs may be beside them."""
    from moesr_bids.workflows.base import WORKFLOW_NAME, participant_workflow_name

    folder = settings.work_dir / WORKFLOW_NAME
    for image in with_scans(images):
        participant = folder / participant_workflow_name(image.participant)
        shutil.rmtree(participant / image.workflow_name, ignore_errors=True)
        for empty in (participant, folder):
            with suppress(OSError):  # it is not empty
                empty.rmdir()
    say(f"removed the intermediate files in {folder}")
