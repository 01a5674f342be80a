"""Files that ``moesr sr`` and ``moesr join`` write: names are checked before, and all files appear or none."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import temporary_beside
from ..bids.names import suffix_of
from ..config import SUFFIXES
from ..console import tell

if TYPE_CHECKING:
    import nibabel as nib

_IMAGE_SUFFIXES = (".nii.gz", ".nii")


def output_problem(
    images: Iterable[Path | None],
    others: Iterable[Path | None],
    *,
    folder: Path | None,
    inputs: Iterable[Path | None],
) -> str | None:
    """Return what is wrong with the outputs of a command; None if nothing is.

    Parameters
    ----------
    images
        Images to write. Here and below, None stands for a file that was not asked for.
    others
        Further files to write.
    folder
        Folder for some of the files; it must exist.
    inputs
        Files that are read, and must not be replaced.
    """
    wanted = [path for path in images if path is not None]
    for path in wanted:
        if not path.name.endswith(_IMAGE_SUFFIXES):
            return f"{path}: an output image ends in .nii.gz or .nii"
    if folder is not None and not folder.is_dir():
        return f"{folder}: no such folder; make it first"
    seen = {path.resolve() for path in inputs if path is not None}
    for path in (*wanted, *(path for path in others if path is not None)):
        if path.resolve() in seen:
            return f"{path}: an output may not replace another file of this command"
        seen.add(path.resolve())
        if not path.parent.is_dir():
            return f"{path.parent}: no such folder; make it first"
    return None


def contrast_of(options: argparse.Namespace, scan: Path) -> str:
    """Return the contrast that was asked for, or the one that the name of the scan tells; empty if neither does."""
    suffix = suffix_of(scan)
    return options.contrast or (suffix if suffix in SUFFIXES else "")


def resources(options: argparse.Namespace) -> dict[str, Any]:
    """Return threads and memory (GiB) for a command: as asked for, else the available CPUs and 90 % of free memory."""
    import torch

    from ..resources import available_cpus, available_memory_gb

    return {
        # PyTorch alone would take all cores of a node, whatever share of it this process may use.
        "threads": options.omp_nthreads or min(available_cpus(), torch.get_num_threads()),
        "memory_gb": options.mem or 0.9 * available_memory_gb(),
    }


def stored_uncertainty(std: nib.Nifti1Image, record: Mapping[str, Any]) -> nib.Nifti1Image:
    """Return a map of the standard deviation as it is stored: in steps of its median in the brain, by the record."""
    from ..sr.storage import compact_std

    one_percent = record["NoiseStd"] / record["NoisePercent"]
    return compact_std(std, record["Uncertainty"]["MedianPercent"] * one_percent)


def write_outputs(
    command: str, images: Mapping[Path, nib.Nifti1Image], record: Mapping[str, Any], record_path: Path | None
) -> None:
    """Write images and record, rename them only when all are written, and print the warnings of the record."""
    with ExitStack() as stack:
        for path, image in images.items():
            image.to_filename(stack.enter_context(temporary_beside(path)))
        if record_path:
            text = json.dumps(record, indent=2) + "\n"
            stack.enter_context(temporary_beside(record_path)).write_text(text, encoding="utf-8")
    for warning in record["Warnings"]:
        tell(command, f"note: {warning}")
