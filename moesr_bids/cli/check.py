"""``moesr check``: resources of this machine, job or container, and whether it computes correctly."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moesr_bids.cluster import environment
from moesr_bids.cluster.environment import Finding
from moesr_bids.resources import available_cpus, available_memory_gb


def add_parser(commands: Any) -> None:
    """Add the command to those of ``moesr``."""
    parser = commands.add_parser(
        "check",
        help="list what this machine, job or container offers, and test whether it computes correctly",
        description="List CPUs, memory and the source of its limit, GPU, folders and their space, templates and "
        "weights. Then super-resolve a small phantom and compare it with known figures. A line per fault says what to "
        "do. Exit code 0: no fault; 1: at least one.",
    )
    parser.add_argument("bids_dir", nargs="?", type=Path, metavar="BIDS_DIR", help="data set to check")
    parser.add_argument("output_dir", nargs="?", type=Path, metavar="OUT", help="output folder to check")
    parser.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        default=Path("work"),
        metavar="DIR",
        help="folder for intermediate files (default: ./work)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="cuda: a missing GPU is a fault; cpu: the GPU is not checked (default: auto)",
    )
    parser.add_argument("--no-phantom", action="store_true", help="leave out the super-resolution of the phantom")


def run(options: argparse.Namespace) -> int:
    """Print the findings; return 1 if there is a fault, else 0."""
    faults = []
    for finding in _findings(options):
        print(f"{'FAULT' if finding.fault else 'ok':5}  {finding.subject}: {finding.told}", flush=True)
        if finding.fault:
            faults.append(finding.fault)
    for fault in faults:
        print(f"moesr check: {fault}")
    print(f"moesr check: {len(faults)} faults" if faults else "moesr check: no fault")
    return 1 if faults else 0


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    yield environment.software(os.environ)
    yield environment.machine()
    yield environment.memory()
    usable = environment.gpu(options.device, os.environ)
    yield usable
    if options.bids_dir is not None:
        yield environment.links(options.bids_dir)
    if options.output_dir is not None:
        yield environment.folder("output folder", options.output_dir, environment.LEAST_OUTPUT_GB)
    yield environment.folder("work folder", options.work_dir, environment.LEAST_WORK_GB)
    yield from environment.temporary_folders(os.environ)
    yield from environment.templates()
    yield from environment.weights()
    if not options.no_phantom:
        yield _phantom("cpu" if usable.fault else options.device)


def _phantom(device: str) -> Finding:
    from moesr_bids.cluster.phantom import super_resolve_phantom

    try:
        result = super_resolve_phantom(device=device, threads=available_cpus(), memory_gb=0.9 * available_memory_gb())
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        return Finding("phantom", "failed", f"the phantom could not be super-resolved: {error}")
    figures = ", ".join(f"{model} {value:.2f} dB" for model, value in result.psnr_db.items())
    fault = f"{result.problem}; the installation or the hardware computes wrongly, results here cannot be trusted"
    told = f"{figures}, on {result.device}, {result.seconds:.1f} s"
    return Finding("phantom", told, fault if result.problem else "")
