"""Templates: the one that comes with the package's dependencies, and those of TemplateFlow by name.

The embedded template is the ICBM 2009a symmetric T1w brain packaged by nilearn (Fonov et al. 2011,
doi:10.1016/j.neuroimage.2010.07.033): brain only, without skull. Nothing here uses the network.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import attrs
import nibabel as nib
import numpy as np
from scipy import ndimage

from moesr_bids.config import EMBEDDED_TEMPLATE, OutputSpace
from moesr_bids.preproc.images import resample_isotropic
from moesr_bids.sr.grid import Grid

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

EMBEDDED = EMBEDDED_TEMPLATE


class TemplateNotFoundError(FileNotFoundError):
    """A template is not on this machine; the message names the folder that was searched and the command to fetch it."""


@attrs.frozen
class Template:
    """A reference image.

    Attributes
    ----------
    name : str
        Its TemplateFlow identifier, which is also its label in output names.
    image : Nifti1Image
        T1w, float32.
    mask : Nifti1Image or None
        Brain mask, uint8, on the grid of `image`; None if the template comes without one.
    content : {"brain", "head"}
        What the image shows: the brain alone or the whole head.

    """

    name: str
    image: Nifti1Image
    mask: Nifti1Image | None
    content: Literal["brain", "head"]


def load_template(name: str = EMBEDDED, resolution: float = 1.0) -> Template:
    """Load a template by name.

    Parameters
    ----------
    name : str
        `EMBEDDED`, or a TemplateFlow identifier that is present in the folder TEMPLATEFLOW_HOME.
    resolution : float
        Voxel size in mm, along the axes of the 1 mm template. Coarser voxels are smoothed, then subsampled; for finer
        ones the template is returned at 1 mm.

    Raises
    ------
    TemplateNotFoundError
        If the template is not on this machine.

    """
    template = _embedded() if name == EMBEDDED else _from_templateflow(name)
    if resolution <= min(template.image.header.get_zooms()[:3]) + 1e-3:
        return template
    data, affine = resample_isotropic(
        np.asarray(template.image.dataobj, dtype=np.float32), template.image.affine, resolution
    )
    mask = None
    if template.mask is not None:
        share, _ = resample_isotropic(
            np.asarray(template.mask.dataobj, dtype=np.float32), template.mask.affine, resolution
        )
        mask = nib.nifti1.Nifti1Image((share >= 0.5).astype(np.uint8), affine)
    return attrs.evolve(template, image=nib.nifti1.Nifti1Image(data, affine), mask=mask)


def template_grid(space: OutputSpace, resolution: float) -> Grid:
    """Return the grid of an output space.

    Parameters
    ----------
    space : OutputSpace
    resolution : float
        Voxel size in mm if the space names no grid of its own; the field of view is that of the template at 1 mm.

    Raises
    ------
    TemplateNotFoundError
        If the template, or its grid, is not on this machine.

    """
    if space.grid is None or (space.template == EMBEDDED and space.grid == "1"):
        grid = Grid.from_image(load_template(space.template).image)
        return grid if space.grid else grid.isotropic(resolution)
    if space.template == EMBEDDED:
        raise TemplateNotFoundError(f"Template {EMBEDDED} comes with the package at 1 mm only: use {EMBEDDED}:res-1")
    home = templateflow_home()
    path = _client_lookup(home, space.template, suffix="T1w", desc=None, resolution=int(space.grid))
    if path is None:
        raise _not_found(space.template, home, f"no T1w image of res-{space.grid}", int(space.grid))
    return Grid.from_image(nib.load(path))


@lru_cache(maxsize=1)
def _embedded() -> Template:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

        image = load_mni152_template(resolution=1)
        mask = load_mni152_brain_mask(resolution=1)
    filled = ndimage.binary_fill_holes(np.asarray(mask.dataobj) > 0)
    return Template(
        name=EMBEDDED,
        image=nib.nifti1.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine),
        mask=nib.nifti1.Nifti1Image(filled.astype(np.uint8), image.affine),
        content="brain",
    )


def templateflow_home() -> Path:
    """Return TemplateFlow's folder: the environment variable TEMPLATEFLOW_HOME, or its client's default."""
    if chosen := os.environ.get("TEMPLATEFLOW_HOME"):
        return Path(chosen).expanduser().absolute()
    try:
        home = Path.home()
    except RuntimeError:  # in a container: a user without HOME and without a name
        home = Path(tempfile.gettempdir())
    return home / ".cache" / "templateflow"


def _not_found(name: str, home: Path, why: str, resolution: int = 1) -> TemplateNotFoundError:
    command = (
        f'TEMPLATEFLOW_HOME={home} python -c "from templateflow import api; '
        f"api.get('{name}', resolution={resolution}, suffix=['T1w', 'mask'])\""
    )
    return TemplateNotFoundError(
        f"Template {name} is not in {home} ({why}). Either use {EMBEDDED}, which needs no download, "
        f"or fetch it on a machine with network: {command}"
    )


def _from_templateflow(name: str) -> Template:
    home = templateflow_home()
    if not (home / f"tpl-{name}").is_dir():
        raise _not_found(name, home, f"no folder tpl-{name}")
    path = _client_lookup(home, name, suffix="T1w", desc=None)
    if path is None:
        raise _not_found(name, home, "no T1w image at 1 mm")
    mask_path = _client_lookup(home, name, suffix="mask", desc="brain")
    image = nib.load(path)
    mask = None
    if mask_path is not None:
        mask_image = nib.load(mask_path)
        mask = nib.nifti1.Nifti1Image((np.asanyarray(mask_image.dataobj) > 0).astype(np.uint8), mask_image.affine)
    return Template(
        name=name,
        image=nib.nifti1.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine),
        mask=mask,
        content="head",
    )


def _client_lookup(home: Path, name: str, resolution: int = 1, **entities: str | None) -> Path | None:
    """Return the first file with content, or None. `ls` of the client lists files; only `get` would download.

    Raises
    ------
    TemplateNotFoundError
        If the template has several cohorts.

    """
    # Importing the client fills an empty folder, so an absent template is refused before it.
    if not (home / f"tpl-{name}").is_dir():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from templateflow.client import TemplateFlowClient

        # The client of the module keeps the folder that was set when it was imported, so this is a new one.
        client = TemplateFlowClient(root=home, autoupdate=False)
        found = client.ls(name, resolution=resolution, atlas=None, extension=".nii.gz", **entities)
    # The client creates empty files for templates that it could download.
    files = [path for path in sorted(map(Path, found)) if path.is_file() and path.stat().st_size > 0]
    if len({path.parent for path in files}) > 1:
        raise TemplateNotFoundError(
            f"Template {name} has several cohorts, and none can be chosen: use {EMBEDDED} or another without cohorts"
        )
    return files[0] if files else None
