"""A brain mask for templates that come without one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs
import nibabel as nib
import numpy as np

from moesr_bids.preproc.align import Pair, quiet, write_affine
from moesr_bids.preproc.images import resample_isotropic, to_ants, use_threads
from moesr_bids.preproc.registration import WORKING_MM
from moesr_bids.preproc.template import Template


def with_mask(template: Template, embedded: Template, folder: Path, *, threads: int = 1, seed: int = 1) -> Template:
    """Return a template with a brain mask; if it has none, with that of the embedded template, registered to it.

    Both are in MNI space or close to it, so an affine registration from their own positions is enough.

    Parameters
    ----------
    template, embedded : Template
        The second one has a mask.
    folder : Path
        For temporary files.
    threads, seed : int
        As for `register`.

    Raises
    ------
    ValueError
        If the embedded template has no mask.
    AlignmentError
        If the registration fails.

    """
    import ants

    if template.mask is not None:
        return template
    if embedded.mask is None:
        raise ValueError(f"template {embedded.name} has no mask")
    use_threads(threads)
    fixed, fixed_affine = resample_isotropic(
        np.asarray(embedded.image.dataobj, dtype=np.float32), embedded.image.affine, WORKING_MM
    )
    share, _ = resample_isotropic(np.asarray(embedded.mask.dataobj, dtype=np.float32), embedded.mask.affine, WORKING_MM)
    moving, moving_affine = resample_isotropic(
        np.asarray(template.image.dataobj, dtype=np.float32), template.image.affine, WORKING_MM
    )
    with tempfile.TemporaryDirectory(prefix="template_", dir=folder) as name:
        pair = Pair(
            fixed=to_ants(fixed, fixed_affine),
            moving=to_ants(moving / moving.max(), moving_affine),
            # Compared in the brain alone: around it the embedded template is empty, and the other is not.
            mask=to_ants(share >= 0.5, fixed_affine),
            folder=Path(name),
            seed=seed,
        )
        start = write_affine(np.eye(4), Path(name) / "start.mat")
        found = pair.affine("mask_", start, [(40, 3, 1), (20, 2, 0)], sampling=0.25)
        with quiet():
            carried = ants.apply_transforms(
                to_ants(np.asarray(template.image.dataobj), template.image.affine),
                to_ants(np.asarray(embedded.mask.dataobj), embedded.mask.affine),
                [str(found)],
                whichtoinvert=[True],
            ).numpy()
    mask = nib.nifti1.Nifti1Image((carried >= 0.5).astype(np.uint8), template.image.affine)
    return attrs.evolve(template, mask=mask)
