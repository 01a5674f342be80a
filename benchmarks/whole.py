"""Time of a whole image, from raw to report, step by step, beside that of ANTs with its defaults for the same steps.

    python -m benchmarks.whole IMAGE [IMAGE ...] [--runs 5] [--threads 2] [--options "--model cubic"]

The images become a session of one participant. `moesr-bids` runs on it in a process of its own, each time with an empty
work folder. After each run `antspyx` does N4 and the registration to the template (affine and SyN) of the first image,
with the defaults of its functions and as many threads. Figures are medians over the runs; ratios are of times in one
run. The estimates of the dry run stand beside them.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import attrs
import nibabel as nib
import numpy as np

from benchmarks.app import APP, children_seconds
from moesr_bids.bids.record import Record
from moesr_bids.preproc.align import quiet
from moesr_bids.preproc.images import image_data, to_ants, use_threads
from moesr_bids.preproc.template import EMBEDDED, load_template
from moesr_bids.reports.derivatives import find_images
from moesr_bids.resources import cpu_name

_TOLD = re.compile(r"about ([\d.]+) GB and (\d+) s$", re.MULTILINE)
_PEERS = {"n4": "ants.n4_bias_field_correction", f"register:{EMBEDDED}": "ants.registration, SyN"}


@attrs.frozen
class Run:
    """One run of the app on all images, and of its peers on the first.

    Attributes
    ----------
    seconds, cpu_seconds : float
        Wall time and processor time of the whole command.
    records : sequence of Record
        Record in the sidecar of each image.
    peers : Mapping
        Wall time of ANTs, by step.

    """

    seconds: float
    cpu_seconds: float
    records: Sequence[Record]
    peers: Mapping[str, float]


def build(images: Sequence[Path], folder: Path) -> Path:
    """Make a BIDS data set of one session of one participant; suffixes are those of the files."""
    anat = folder / "sub-01" / "anat"
    anat.mkdir(parents=True)
    description = {"Name": "whole", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (folder / "dataset_description.json").write_text(json.dumps(description), encoding="utf-8")
    for number, image in enumerate(images, 1):
        suffix = image.name.split(".", 1)[0].rsplit("_", 1)[-1]
        shutil.copyfile(image, anat / f"sub-01_run-{number}_{suffix}.nii.gz")
    return folder


def told(bids_dir: Path, folder: Path, options: Sequence[str]) -> list[tuple[float, float]]:
    """Return memory (GB) and time (s) of each image, as the dry run estimates them."""
    text = subprocess.run(_command(bids_dir, folder, ["--dry-run", *options]), check=True, capture_output=True).stdout
    return [(float(memory), float(seconds)) for memory, seconds in _TOLD.findall(text.decode())]


def run_once(bids_dir: Path, folder: Path, options: Sequence[str], threads: int) -> Run:
    """Run the app and its peers once."""
    before, start = children_seconds(), time.monotonic()
    subprocess.run(_command(bids_dir, folder, options), check=True, stdout=subprocess.DEVNULL)
    seconds, cpu_seconds = time.monotonic() - start, children_seconds() - before
    images = sorted((bids_dir / "sub-01" / "anat").iterdir())
    records = [image.moesr for image in find_images(folder / "out") if image.moesr is not None]
    return Run(seconds, cpu_seconds, records, _peers(images[0], threads))


def table(runs: Sequence[Run], costs: Sequence[tuple[float, float]]) -> Iterator[str]:
    """Yield lines: steps with their medians, ratios to the peers, the whole, and the estimate of the dry run."""
    for number, (memory, seconds) in enumerate(costs):
        records = [run.records[number] for run in runs]
        yield f"image {number + 1}: {' x '.join(map(str, records[0].output_shape))} voxels"
        for place, step in enumerate(records[0].steps):
            measured = [record.steps[place] for record in records]
            line = f"  {step.step:32} {_median(m.seconds for m in measured):7.1f} s"
            line += f" {_median(m.peak_memory_gb for m in measured):6.2f} GB"
            if number == 0 and step.step in runs[0].peers:
                ratios = [
                    m.seconds / run.peers[step.step]
                    for m, run in zip(measured, runs, strict=True)
                    if m.seconds is not None
                ]
                line += f"   {median(ratios):.2f} of {_PEERS[step.step]}"
            yield line
        whole, peak = (_median(getattr(r, name) for r in records) for name in ("seconds", "peak_memory_gb"))
        yield f"  {'all steps':32} {whole:7.1f} s {peak:6.2f} GB   told {seconds:.0f} s, {memory:.1f} GB"
    wall, spent = [run.seconds for run in runs], [run.cpu_seconds for run in runs]
    yield f"from raw to report {median(wall):.1f} s [{min(wall):.1f}, {max(wall):.1f}], {median(spent):.0f} CPU-seconds"


def _command(bids_dir: Path, folder: Path, options: Sequence[str]) -> list[str]:
    command = [*APP, str(bids_dir), str(folder / "out"), "participant"]
    return [*command, "--work-dir", str(folder / "work"), *options]


def _peers(image: Path, threads: int) -> dict[str, float]:
    """Return the wall time of ANTs with the defaults of its functions, by the step that it is compared with."""
    import ants

    use_threads(threads)
    scan = nib.load(image)
    data, template = to_ants(image_data(scan), scan.affine), load_template(EMBEDDED)
    fixed = to_ants(np.asarray(template.image.dataobj, dtype=np.float32), template.image.affine)
    seconds = {}
    with quiet():
        for step, call in (
            ("n4", lambda: ants.n4_bias_field_correction(data)),
            (f"register:{EMBEDDED}", lambda: ants.registration(fixed, data, "SyN")),
        ):
            start = time.monotonic()
            call()
            seconds[step] = time.monotonic() - start
    return seconds


def _median(values: Iterator[float | None]) -> float:
    return median(value or 0.0 for value in values)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole", description=__doc__.split("\n\n")[0])
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="scans of one session, .nii.gz")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="(default: 5)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="(default: 2)")
    parser.add_argument("--options", default="", metavar="WORDS", help="further options of moesr-bids")
    chosen = parser.parse_args(argv)
    options = ["--nprocs", str(chosen.threads), "--omp-nthreads", str(chosen.threads), *shlex.split(chosen.options)]
    print(f"{cpu_name()}, {chosen.threads} threads, {chosen.runs} runs", flush=True)
    runs = []
    with tempfile.TemporaryDirectory() as name:
        bids_dir = build(chosen.images, Path(name) / "bids")
        costs = told(bids_dir, Path(name), options)
        for number in range(chosen.runs):
            folder = Path(name) / f"run{number}"
            runs.append(run_once(bids_dir, folder, options, chosen.threads))
            shutil.rmtree(folder)
    for line in table(runs, costs):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
