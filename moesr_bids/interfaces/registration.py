"""Registration within a session and to templates as Nipype interfaces (antspyx has no command lines to wrap)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
from nipype.interfaces.base import File, traits
from nipype.interfaces.base.support import Bunch

from moesr_bids.interfaces.ants import MaskedInputSpec, ThreadedInputSpec, named
from moesr_bids.interfaces.base import RecordedInterface, RecordedOutputSpec
from moesr_bids.preproc.template import EMBEDDED

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

    from moesr_bids.preproc.template import Template

# Cubic B-splines: as sharp as a windowed sinc here, in a ninth of its time.
INTERPOLATOR = "bSpline"


class _RegisterToTemplateInputSpec(MaskedInputSpec):
    template = traits.Str(EMBEDDED, usedefault=True, desc="embedded template or TemplateFlow identifier")
    initial_xfm = File(exists=True, desc="ITK affine (.mat) from the brain mask to start from")
    sloppy = traits.Bool(False, usedefault=True, desc="few iterations, for tests")


class _RegisterToTemplateOutputSpec(RecordedOutputSpec):
    out_to_template = File(exists=True, desc="ITK composite (.h5) that resamples the image onto the template")
    out_from_template = File(exists=True, desc="ITK composite (.h5) that resamples the template onto the image")
    out_warped = File(exists=True, desc="image on the template's grid, float32")
    template_file = File(exists=True, desc="the template itself")
    template_mask = File(exists=True, desc="its brain mask")


class RegisterToTemplate(RecordedInterface):
    """Register the brain to a template, affine and SyN; if the overlap is bad the step fails, and says why."""

    input_spec = _RegisterToTemplateInputSpec
    output_spec = _RegisterToTemplateOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        from moesr_bids.preproc.align import inverse, read_affine
        from moesr_bids.preproc.registration import SLOPPY, THOROUGH, register
        from moesr_bids.preproc.template import load_template
        from moesr_bids.preproc.template_mask import with_mask

        inputs, folder = self.inputs, Path(runtime.cwd)
        options = {"threads": inputs.omp_nthreads, "seed": inputs.random_seed}
        template = with_mask(load_template(inputs.template), load_template(EMBEDDED), folder, **options)
        image = nib.load(inputs.in_file)
        initial = inverse(read_affine(Path(inputs.initial_xfm))) if inputs.initial_xfm else None
        result = register(
            image,
            nib.load(inputs.mask_file),
            template,
            named(inputs.in_file, f"_to-{template.name}_xfm", runtime.cwd, ".h5"),
            named(inputs.in_file, f"_from-{template.name}_xfm", runtime.cwd, ".h5"),
            initial=initial,
            settings=SLOPPY if inputs.sloppy else THOROUGH,
            **options,
        )
        self._results.update(out_to_template=str(result.to_template), out_from_template=str(result.from_template))
        self._results.update(_shown(image, template, result.to_template, folder))
        return result.facts()


def _shown(image: Nifti1Image, template: Template, to_template: Path, folder: Path) -> dict[str, str]:
    """Write the files for the report: the image on the template's grid, the template, and its mask."""
    from moesr_bids.preproc.registration import warp_to_template
    from moesr_bids.sr.grid import Grid

    warped = folder / f"warped_{template.name}.nii.gz"
    warp_to_template(image, Grid.from_image(template.image), to_template).to_filename(warped)
    template_file = folder / f"tpl-{template.name}_T1w.nii.gz"
    template.image.to_filename(template_file)
    template_mask = folder / f"tpl-{template.name}_desc-brain_mask.nii.gz"
    assert template.mask is not None
    template.mask.to_filename(template_mask)
    return {"out_warped": str(warped), "template_file": str(template_file), "template_mask": str(template_mask)}


class _CoregisterInputSpec(MaskedInputSpec):
    initial_xfm = File(exists=True, mandatory=True, desc="ITK affine (.mat) that brings it onto the embedded template")
    reference_file = File(exists=True, mandatory=True, desc="bias-corrected reference image of the session")
    reference_mask = File(exists=True, mandatory=True, desc="its brain mask")
    reference_xfm = File(exists=True, mandatory=True, desc="ITK affine (.mat) that brings the reference onto it")
    reference_name = traits.Str("reference", usedefault=True, desc="stem of the reference, for the record")
    sloppy = traits.Bool(False, usedefault=True, desc="few iterations, for tests")


class _CoregisterOutputSpec(RecordedOutputSpec):
    out_to_reference = File(exists=True, desc="ITK composite (.h5) that resamples the image onto the reference")
    out_from_reference = File(exists=True, desc="ITK composite (.h5) that resamples the reference onto the image")
    out_warped = File(exists=True, desc="image on the reference's grid, for the report")


class Coregister(RecordedInterface):
    """Align an image rigidly to the reference image of its session; if that is impossible the step says why."""

    input_spec = _CoregisterInputSpec
    output_spec = _CoregisterOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        from moesr_bids.preproc.align import inverse, read_affine
        from moesr_bids.preproc.coregistration import coregister
        from moesr_bids.preproc.registration import SLOPPY, THOROUGH, warp_to_template
        from moesr_bids.sr.grid import Grid

        inputs, folder = self.inputs, Path(runtime.cwd)
        image, reference = nib.load(inputs.in_file), nib.load(inputs.reference_file)
        # Both transforms map points of the template: the way is from the reference to it, and on to the image.
        own, others = read_affine(Path(inputs.initial_xfm)), read_affine(Path(inputs.reference_xfm))
        result = coregister(
            image,
            nib.load(inputs.mask_file),
            reference,
            nib.load(inputs.reference_mask),
            folder / "to_reference.h5",
            folder / "from_reference.h5",
            initial=own @ inverse(others),
            threads=inputs.omp_nthreads,
            seed=inputs.random_seed,
            settings=SLOPPY if inputs.sloppy else THOROUGH,
        )
        warped = folder / "warped.nii.gz"
        warp_to_template(image, Grid.from_image(reference), result.to_reference).to_filename(warped)
        self._results.update(
            out_to_reference=str(result.to_reference),
            out_from_reference=str(result.from_reference),
            out_warped=str(warped),
        )
        return {"Reference": inputs.reference_name, **result.facts()}


class _JoinTransformsInputSpec(MaskedInputSpec):
    template = traits.Str(EMBEDDED, usedefault=True, desc="embedded template or TemplateFlow identifier")
    to_reference = File(exists=True, mandatory=True, desc="output of Coregister")
    from_reference = File(exists=True, mandatory=True, desc="output of Coregister")
    reference_to_template = File(exists=True, mandatory=True, desc="output of RegisterToTemplate for the reference")
    reference_from_template = File(exists=True, mandatory=True, desc="output of RegisterToTemplate for the reference")


class JoinTransforms(RecordedInterface):
    """Join the transform to the reference with those of the reference to a template; fails if the result is bad."""

    input_spec = _JoinTransformsInputSpec
    output_spec = _RegisterToTemplateOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        from moesr_bids.preproc.align import join_composites
        from moesr_bids.preproc.registration import judge_registration
        from moesr_bids.preproc.template import load_template
        from moesr_bids.preproc.template_mask import with_mask

        inputs, folder = self.inputs, Path(runtime.cwd)
        options = {"threads": inputs.omp_nthreads}
        template = with_mask(load_template(inputs.template), load_template(EMBEDDED), folder, **options)
        # A point of the template goes to the reference first, then to the image; back in the opposite order.
        to_template = join_composites(
            [Path(inputs.reference_to_template), Path(inputs.to_reference)],
            named(inputs.in_file, f"_to-{template.name}_xfm", runtime.cwd, ".h5"),
        )
        from_template = join_composites(
            [Path(inputs.from_reference), Path(inputs.reference_from_template)],
            named(inputs.in_file, f"_from-{template.name}_xfm", runtime.cwd, ".h5"),
        )
        image = nib.load(inputs.in_file)
        dice, mutual_information = judge_registration(
            image, nib.load(inputs.mask_file), template, to_template, **options
        )
        self._results.update(out_to_template=str(to_template), out_from_template=str(from_template))
        self._results.update(_shown(image, template, to_template, folder))
        return {
            "Template": template.name,
            "Transform": "rigid to the reference image of the session, then its affine and SyN",
            "Dice": round(dice, 3),
            "MutualInformation": round(mutual_information, 3),
        }


class _WarpToSpaceInputSpec(ThreadedInputSpec):
    in_file = File(exists=True, mandatory=True, desc="super-resolved image")
    to_template = File(exists=True, mandatory=True, desc="ITK composite (.h5) of the image to the template")
    space = traits.Str(mandatory=True, desc="TEMPLATE or TEMPLATE:res-N")
    resolution = traits.Float(mandatory=True, desc="voxel size in mm where the space names no grid")


class _WarpToSpaceOutputSpec(RecordedOutputSpec):
    out_file = File(exists=True, desc="image in the template's space, float32")


class WarpToSpace(RecordedInterface):
    """Bring the super-resolved image into an output space, in one interpolation."""

    input_spec = _WarpToSpaceInputSpec
    output_spec = _WarpToSpaceOutputSpec

    def _run_recorded(self, runtime: Bunch) -> dict[str, Any]:
        from moesr_bids.config import OutputSpace
        from moesr_bids.preproc.images import use_threads
        from moesr_bids.preproc.registration import warp_to_template
        from moesr_bids.preproc.template import template_grid

        use_threads(self.inputs.omp_nthreads)
        space = OutputSpace.parse(self.inputs.space)
        grid = template_grid(space, self.inputs.resolution)
        path = Path(runtime.cwd) / "warped.nii"
        transform = Path(self.inputs.to_template)
        warped = warp_to_template(nib.load(self.inputs.in_file), grid, transform, INTERPOLATOR)
        warped.header.set_xyzt_units("mm")
        code = "mni" if space.template.startswith("MNI") else "template"
        warped.set_sform(grid.affine, code)
        warped.set_qform(grid.affine, code)
        warped.to_filename(path)
        self._results["out_file"] = str(path)
        return {}
