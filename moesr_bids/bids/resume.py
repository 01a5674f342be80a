"""Whether the outputs of an image exist, and are still what a new run would make."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import attrs

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.joining import without_failed
from moesr_bids.bids.plan import ImagePlan, ScanPlan, plan_image
from moesr_bids.bids.record import FailedScan, Record, SessionReference, read_record
from moesr_bids.bids.schema import RecordError, inner_path, inside
from moesr_bids.bids.sidecars import read_metadata
from moesr_bids.bids.status import ImageStatus, read_status, status_path
from moesr_bids.digests import sha256
from moesr_bids.sr.models import weights_sha256

_LOG = logging.getLogger(__name__)


def settings_hash(plan: ImagePlan, input_sha256: str) -> str:
    """Return the digest of everything that decides the outputs of an image.

    Parameters
    ----------
    plan : ImagePlan
        Plan of the image.
    input_sha256 : str
        SHA-256 of the raw files, from `input_digest`.

    """
    facts = {
        "input": input_sha256,
        "metadata": _metadata(plan),
        "weights": weights_sha256(plan.settings.sr.model),
        "gradients": [plan.gradients.action, _coefficients(plan.scans[0])],
        "reference": _digest(plan.reference),
    }
    # Only if there is a mask: outputs of versions that did not know such masks keep their hash.
    facts |= {"mask": digest} if (digest := plan.mask.digest()) else {}
    if plan.joined:
        facts["others"] = [[s.gradients.action, _coefficients(s), s.mask.digest()] for s in plan.scans[1:]]
    return plan.settings.output_hash(facts)


def input_digest(plan: ImagePlan) -> str:
    """Return the SHA-256 of the scan's file; of several scans that of their digests, one a line."""
    digests = [sha256(scan.image.path) for scan in plan.scans]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def failed_scans(plan: ImagePlan) -> tuple[FailedScan, ...]:
    """Return what the record of a joined image tells of the scans that could not be prepared."""
    return tuple(
        FailedScan(source=inner_path(scan.relative), reason=scan.problem, sha256=_voxels(scan))
        for scan in plan.image.failed
    )


def _voxels(image: RawImage) -> str | None:
    try:
        return sha256(image.path)
    except OSError:
        return None  # it cannot be read


def _metadata(plan: ImagePlan) -> Any:
    if plan.joined:
        return [dict(scan.image.metadata) for scan in plan.scans]
    return dict(plan.image.metadata)


def _coefficients(scan: ScanPlan) -> str | None:
    file = scan.gradients.file
    return sha256(file) if scan.gradients.corrects and file else None


def _digest(reference: ScanPlan | None) -> list[str | None] | None:
    """Return the facts of a reference that other images depend on: its voxels, and how they are corrected."""
    if reference is None:
        return None
    voxels = _voxels(reference.image)
    decided = reference.gradients
    strength = reference.image.metadata.get("MagneticFieldStrength")  # it sets the bias field of the reference
    told = [decided.action, decided.patient_position, str(decided.slice_axis)]
    mask = reference.mask.digest()
    return [voxels, *told, _coefficients(reference), str(strength), *([mask] if mask else [])]


def session_reference(plan: ImagePlan) -> SessionReference:
    """Return the record of the session's reference, and of a better one that could not be used."""
    told = SessionReference()
    if plan.reference is not None:
        used = plan.reference.image
        told = SessionReference(used=inner_path(used.relative), used_sha256=sha256(used.path))
    if plan.instead_of is None:
        return told
    better = plan.instead_of.image
    return attrs.evolve(
        told,
        instead_of=inner_path(better.relative),
        instead_of_digest=_digest(plan.instead_of),
        instead_of_finished=finished_record(plan_image(better, plan.settings)) is not None,
        reason=plan.image.instead_reason,
    )


def _as_it_was_made(plan: ImagePlan, told: SessionReference) -> ImagePlan:
    """Return the plan with the reference of the existing outputs, if the better one still cannot be used.

    Without this, every run would make an image beside a broken one again. The plan stays as it is if the better image
    has changed, or was not finished then and is now.
    """
    if plan.reference is None or told.instead_of != plan.reference.image.relative:
        return plan
    if told.instead_of_digest != _digest(plan.reference):
        return plan
    planned = plan.reference.image
    if told.instead_of_finished is False and finished_record(plan_image(planned, plan.settings)) is not None:
        return plan
    used: RawImage | None = None
    if told.used is not None:
        path = plan.image.root / told.used
        used = RawImage(path=path, root=plan.image.root, metadata=read_metadata(path, plan.image.root)[0])
    return plan_image(attrs.evolve(plan.image, reference=used, instead_of=planned), plan.settings)


def _of_its_scans(plan: ImagePlan, record: Record) -> ImagePlan:
    """Return the plan of a joined image without the scans that could not be prepared and have not changed since."""
    told = {scan.source: scan for scan in record.joined.failed} if record.joined else {}
    same = {
        scan: known.reason
        for scan in plan.image.scans
        if (known := told.get(inner_path(scan.relative))) and known.sha256 == _voxels(scan)
    }
    return plan_image(without_failed(plan.image, same), plan.settings) if same else plan


def known_apart(plan: ImagePlan) -> ImageStatus | None:
    """Return the status of a joined image whose scans do not fit together, as an earlier run of this kind found."""
    path = status_path(plan.settings.output_dir, inner_path(plan.image.relative))
    try:
        status = read_status(path)
        same = status.settings_hash == settings_hash(plan, input_digest(plan))
    except (RecordError, OSError):
        return None
    return status if status.state == "apart" and same else None


def finished_record(plan: ImagePlan) -> Record | None:
    """Return the record of an image whose outputs all exist and were made with the same settings and input.

    The sidecar of the main output is written last, so if it exists the other outputs were whole.

    Returns
    -------
    Record or None
        None if the image has to be processed.

    """
    output_dir = plan.settings.output_dir
    sidecar = output_dir / plan.main.sidecar_path
    if not sidecar.exists():
        return None
    try:
        record = read_record(sidecar)
        files = [inside(output_dir, path) for path in record.outputs]
    except RecordError as error:
        _LOG.warning("%s; the image counts as not done", error)
        return None
    if not files or not all(file.is_file() for file in files):
        return None
    made = _as_it_was_made(_of_its_scans(plan, record), record.session_reference)
    if not {output.path for output in made.outputs} <= set(record.outputs):
        return None
    try:
        current = settings_hash(made, input_digest(made))
    except OSError:
        # The input is gone or can no longer be read: the header check says so.
        return None
    return record if record.settings_hash == current else None
