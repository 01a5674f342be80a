"""Copy the finished files of an image into the output folder.

niworkflows' DerivativesDataSink is not used. It writes in place, so a kill leaves half a file. It drops entities that
its patterns lack, so two outputs may get one name. It replaces ``Resolution``.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
from nipype.interfaces.base import BaseInterfaceInputSpec, File, Str, traits
from nipype.interfaces.base.support import Bunch

from moesr_bids import atomic
from moesr_bids.bids.names import stem_of
from moesr_bids.bids.plan import ImagePlan
from moesr_bids.bids.provenance import make_record, sidecars
from moesr_bids.bids.record import read_record
from moesr_bids.bids.schema import RecordError, inside
from moesr_bids.digests import sha256
from moesr_bids.interfaces.base import RecordedInterface, RecordedOutputSpec
from moesr_bids.sr.storage import write_compact

_LOG = logging.getLogger(__name__)


class _PublishInputSpec(BaseInterfaceInputSpec):
    plan = traits.Any(mandatory=True, nohash=True, desc="ImagePlan of the image")
    files = traits.List(File(exists=True), mandatory=True, desc="files to publish, in the order of the plan's outputs")
    figure_files = traits.List(File(exists=True), desc="reportlets named <desc>.<extension>")
    steps = traits.List(Str, mandatory=True, desc="step names, in the order of records")
    records = traits.List(traits.Dict, mandatory=True, desc="record of each step")


class _PublishOutputSpec(RecordedOutputSpec):
    out_files = traits.List(Str, desc="published files")


class Publish(RecordedInterface):
    """Write derivatives, sidecars and figures; the sidecar of the main output comes last and marks completeness."""

    input_spec = _PublishInputSpec
    output_spec = _PublishOutputSpec
    # Outputs may have been removed since, which the cache of Nipype does not see.
    _always_run = True

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        plan: ImagePlan = self.inputs.plan
        output_dir = plan.settings.output_dir
        figures = {
            plan.figure_path(stem_of(file), "".join(Path(file).suffixes)): Path(file)
            for file in (self.inputs.figure_files or [])
        }
        steps = list(zip(self.inputs.steps, self.inputs.records, strict=True))
        files = list(zip(plan.outputs, map(Path, self.inputs.files), strict=True))
        record = make_record(plan, steps, output_sha256=sha256(files[0][1]), figures=list(figures))
        contents = sidecars(plan, record)
        marker = output_dir / plan.main.sidecar_path
        # Outputs of an earlier run that this one does not make would be taken for its own.
        for old in _earlier_outputs(marker, output_dir) - {output_dir / name for name in record.outputs}:
            old.unlink(missing_ok=True)
        marker.unlink(missing_ok=True)
        for figure, source in figures.items():
            _publish_file(source, output_dir / figure)
        # The main output comes last: its sidecar says that all others are whole.
        names: dict[Path, Path] = {}
        for output, source in (*files[1:], files[0]):
            if source in names:  # one image under two names is stored once
                _make_room(output_dir / output.path)
                atomic.link_file(names[source], output_dir / output.path)
            elif output.compact:
                _publish_image(source, output_dir / output.path, record.noise_std)
            else:
                _publish_file(source, output_dir / output.path)
            names[source] = output_dir / output.path
            try:
                _publish_json(contents[output.key], output_dir / output.sidecar_path)
            except OSError:
                # A full disk must not leave a file without its sidecar.
                (output_dir / output.path).unlink(missing_ok=True)
                raise
        self._results["out_files"] = [str(output_dir / output.path) for output in plan.outputs]
        return {}


def _earlier_outputs(marker: Path, output_dir: Path) -> set[Path]:
    """Return the files that an earlier run wrote for this image; none if its record cannot be read."""
    if not marker.exists():
        return set()
    try:
        return {inside(output_dir, path) for path in read_record(marker).outputs}
    except RecordError as error:
        _LOG.warning("%s; what it listed is not removed", error)
        return set()


def _publish_file(source: Path, target: Path) -> None:
    _make_room(target)
    atomic.copy_file(source, target)


def _publish_image(source: Path, target: Path, noise: float) -> None:
    """Write a float32 image of the work folder as 16-bit integers, if the noise allows it."""
    _make_room(target)
    with atomic.temporary_beside(target) as path:
        write_compact(nib.load(source), path, noise)


def _publish_json(content: dict[str, Any], target: Path) -> None:
    _make_room(target)
    atomic.write_text(target, json.dumps(content, indent=2) + "\n")


def _make_room(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic.remove_leftovers(target)
