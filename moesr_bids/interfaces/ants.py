"""Brain mask and bias field as Nipype interfaces (antspyx has no command lines to wrap)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
from nipype.interfaces.base import BaseInterfaceInputSpec, File, traits
from nipype.interfaces.base.support import Bunch
from nipype.utils.filemanip import fname_presuffix

from moesr_bids.digests import sha256
from moesr_bids.errors import ImageError
from moesr_bids.interfaces.base import RecordedInterface, RecordedOutputSpec
from moesr_bids.interfaces.processes import in_own_process
from moesr_bids.nifti import open_image, read_voxels
from moesr_bids.resources import measured


def named(source: str, suffix: str, folder: str, extension: str | None = None) -> Path:
    """Return the path of an output named after an input."""
    name = fname_presuffix(source, suffix=suffix, newpath=folder)
    return Path(name) if extension is None else Path(str(name).removesuffix(".gz").removesuffix(".nii") + extension)


class ThreadedInputSpec(BaseInterfaceInputSpec):
    """Inputs of interfaces that run ITK."""

    omp_nthreads = traits.Range(low=1, value=1, usedefault=True, nohash=True, desc="ITK threads, set once per process")
    random_seed = traits.Int(1, usedefault=True, desc="seed of the metric's sampling")


class MaskedInputSpec(ThreadedInputSpec):
    """Inputs of interfaces that work in the brain of an image."""

    in_file = File(exists=True, mandatory=True, desc="3-D structural image")
    mask_file = File(exists=True, mandatory=True, desc="brain mask on the same grid")


class _BrainMaskInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="3-D structural image, with or without skull")
    given_file = File(exists=True, desc="brain mask of the user's own, in the space of the image")
    given_name = traits.Str("", usedefault=True, desc="how the record calls it")
    omp_nthreads = traits.Range(low=1, value=1, usedefault=True, nohash=True, desc="CPU threads of the network")


class _BrainMaskOutputSpec(RecordedOutputSpec):
    out_mask = File(exists=True, desc="brain mask on the image's own grid, uint8")
    out_head = File(exists=True, desc="all that is not background, on the image's own grid, uint8")
    out_tissues = File(exists=True, desc="probability of white matter, grey matter and CSF, 4-D")
    initial_xfm = File(exists=True, desc="ITK affine (.mat) that brings the image onto the embedded template")


class BrainMask(RecordedInterface):
    """Find the brain; in an image without a head the step fails, and says why.

    It runs in a process of its own, so that the memory of the network is free afterwards.
    """

    input_spec = _BrainMaskInputSpec
    output_spec = _BrainMaskOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        from moesr_bids.preproc.align import inverse, write_affine

        given = self.inputs.given_file or None
        found, peak_memory_gb = in_own_process(
            _find_brain, self.inputs.in_file, given, self.inputs.omp_nthreads, what="the search for the brain"
        )
        for name, suffix, image in (
            ("out_mask", "_mask", found.mask),
            ("out_head", "_head", found.head),
            ("out_tissues", "_tissues", found.tissues),
        ):
            path = named(self.inputs.in_file, suffix, runtime.cwd)
            image.to_filename(path)
            self._results[name] = str(path)
        # ITK transforms map points from the fixed image, here the template, to the moving one.
        transform = write_affine(inverse(found.to_template), Path(runtime.cwd) / "initial.mat")
        self._results["initial_xfm"] = str(transform)
        source = {"Source": self.inputs.given_name, "SourceSHA256": sha256(Path(given))} if given else {}
        return {**found.facts(), **source, "PeakMemoryGB": peak_memory_gb}


def _find_brain(path: str, given: str | None, threads: int) -> tuple[Any, float]:
    """Return the brain of an image, and the peak memory of the search in GiB."""
    import torch

    from moesr_bids.segmentation.brain import find_brain

    torch.set_num_threads(threads)
    with measured() as used:
        found = find_brain(nib.load(path), given=None if given is None else _mask(given))
    return found, used.peak_memory_gb


def _mask(path: str) -> nib.Nifti1Image:
    """Read a mask, squeezed to three dimensions."""
    try:
        image, _ = open_image(Path(path))
        voxels = read_voxels(image, path)
    except ImageError as error:
        raise ImageError(f"{error}; or leave --derivatives out") from None
    return nib.squeeze_image(nib.Nifti1Image(voxels, image.affine))


class _N4BiasFieldInputSpec(MaskedInputSpec):
    metadata_file = File(exists=True, desc="merged sidecars as JSON: MagneticFieldStrength sets the knots of the field")
    sloppy = traits.Bool(False, usedefault=True, desc="few iterations, for tests")


class _N4BiasFieldOutputSpec(RecordedOutputSpec):
    out_file = File(exists=True, desc="image divided by the bias field, float32")
    bias_field = File(exists=True, desc="natural logarithm of the bias field, mean 0 in the mask, float32")


class N4BiasField(RecordedInterface):
    """Estimate the bias field inside the brain and divide by it."""

    input_spec = _N4BiasFieldInputSpec
    output_spec = _N4BiasFieldOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        import attrs

        from moesr_bids.preproc.bias import SLOPPY, correct_bias, settings_for

        strength = self._field_strength()
        settings = SLOPPY if self.inputs.sloppy else settings_for(strength)
        result = correct_bias(
            nib.load(self.inputs.in_file), nib.load(self.inputs.mask_file), settings, threads=self.inputs.omp_nthreads
        )
        for name, suffix, image in (
            ("out_file", "_n4", result.corrected),
            ("bias_field", "_logbias", result.log_field),
        ):
            path = named(self.inputs.in_file, suffix, runtime.cwd)
            image.to_filename(path)
            self._results[name] = str(path)
        return {
            "RangePercent": list(result.range_percent),
            "MagneticFieldStrength": "n/a" if strength is None else strength,
            "Settings": attrs.asdict(settings),
        }

    def _field_strength(self) -> float | None:
        """Return the field strength in tesla from the sidecar; None if it is missing or impossible."""
        if not self.inputs.metadata_file:
            return None
        value = json.loads(Path(self.inputs.metadata_file).read_text(encoding="utf-8")).get("MagneticFieldStrength")
        plausible = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 30
        return float(value) if plausible else None
