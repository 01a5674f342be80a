"""The plan of an image: everything known before it is processed, made once from files and settings.

Dry run, workflow, resume, ``moesr rerun`` and ``moesr slurm`` read the plan instead of headers and settings.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.cost import Cost
from moesr_bids.bids.derivatives import DERIVATIVES, Output, is_first_t1w, outputs_of
from moesr_bids.bids.gradients import GradientPlan, is_coefficients, plan_gradunwarp
from moesr_bids.bids.masks import MaskPlan, plan_mask
from moesr_bids.bids.names import file_name
from moesr_bids.config import Settings
from moesr_bids.nifti import open_image
from moesr_bids.sr.grid import Grid
from moesr_bids.sr.models import get_model
from moesr_bids.sr.psf import PSF

if TYPE_CHECKING:
    from moesr_bids.sr.models.base import ModelCard

# Placeholder when the header cannot be read: the header check will fail and say why.
_UNKNOWN_GRID = Grid((256, 256, 256), np.eye(4))
# More target voxels along an axis come only from a header with impossible voxel sizes.
_MOST_TARGET_VOXELS = 2000


@attrs.frozen(kw_only=True)
class ScanPlan:
    """A scan, and how it will be corrected.

    Attributes
    ----------
    image : RawImage
        File and metadata.
    gradients : GradientPlan
        Decision on gradient nonlinearity.
    mask : MaskPlan
        Brain mask that the user gives, if any.

    """

    image: RawImage
    gradients: GradientPlan
    mask: MaskPlan = attrs.field(factory=MaskPlan)

    @classmethod
    def of(cls, image: RawImage, settings: Settings) -> ScanPlan:
        """Make the plan of a scan."""
        gradients = plan_gradunwarp(image, settings)
        return cls(image=image, gradients=gradients, mask=plan_mask(image, settings, unwarped=gradients.corrects))

    @cached_property
    def grid(self) -> Grid | None:
        """Grid of the file; None if the header cannot be read."""
        try:
            header, _ = open_image(self.image.path)
            return Grid(header.shape[:3], header.affine)
        except Exception:  # Whatever is wrong, the header check reports it with its reason.
            return None

    @cached_property
    def profile(self) -> PSF | None:
        """Point-spread function from voxel size and metadata; zero-filling is found later, from the spectrum."""
        return None if self.grid is None else PSF.from_acquisition(self.grid.zooms, self.image.metadata)

    @cached_property
    def field_points(self) -> int:
        """Lattice points of the displacement field for gradient nonlinearity; 0 without such a file."""
        file = self.gradients.file
        if file is None or is_coefficients(file):
            return 0
        try:
            return math.prod(open_image(file)[0].shape[:3])
        except Exception:  # Whatever is wrong, the step that reads it reports it.
            return 0


@attrs.frozen(kw_only=True)
class ImagePlan:
    """Everything known of an image before it is processed.

    Attributes
    ----------
    settings : Settings
        Settings of the run.
    image : RawImage
        What it is named after: the scan, or the image that is joined from several (`moesr_bids.bids.joining`).
    scans : tuple of ScanPlan
        Scans that the image is made from; the first says how it lies.
    reference : ScanPlan or None
        Image of the session that it is aligned to.
    instead_of : ScanPlan or None
        A better reference that could not be used.

    """

    settings: Settings
    image: RawImage
    scans: tuple[ScanPlan, ...]
    reference: ScanPlan | None = None
    instead_of: ScanPlan | None = None

    @property
    def joined(self) -> bool:
        """Whether it is made of several scans, which are prepared and super-resolved by workflows of their own."""
        return bool(self.image.scans)

    @property
    def gradients(self) -> GradientPlan:
        """Decision on gradient nonlinearity."""
        return self.scans[0].gradients

    @property
    def mask(self) -> MaskPlan:
        """Brain mask that the user gives, if any."""
        return self.scans[0].mask

    @property
    def card(self) -> ModelCard:
        """Card of the model."""
        return _card(self.settings.sr.model)

    @cached_property
    def _grids(self) -> tuple[Grid, Grid] | None:
        grid = self.scans[0].grid
        if grid is None:
            return None
        try:
            target = grid.isotropic(self.settings.sr.resolution)
        except Exception:  # As above.
            return None
        return (grid, target) if max(target.shape) <= _MOST_TARGET_VOXELS else None

    @property
    def readable(self) -> bool:
        """Whether the header can be read and is possible; if not, the grids are placeholders."""
        return self._grids is not None

    @property
    def grid(self) -> Grid:
        """Grid of the scan."""
        return self._grids[0] if self._grids else _UNKNOWN_GRID

    @property
    def target(self) -> Grid:
        """Grid of the output."""
        return self._grids[1] if self._grids else _UNKNOWN_GRID.isotropic(self.settings.sr.resolution)

    @cached_property
    def cost(self) -> Cost:
        """Estimated memory and time."""
        return self.cost_of(self.settings.sr.model)

    def cost_of(self, model: str) -> Cost:
        """Return the estimated memory and time with another model."""
        from moesr_bids.sr.cost import estimate_cost  # PyTorch takes seconds to import

        settings = self.settings
        # The memory of a cluster's nodes is not known here.
        limit = math.inf if settings.use_plugin else settings.mem_gb
        grid, target = self.grid, self.target
        memory_gb, seconds = estimate_cost(
            grid.shape, target.shape, model, settings.omp_nthreads, settings.sr.sampling, limit
        )
        if self.joined:
            from moesr_bids.sr.joint.cost import estimate_cost as estimate_join_cost

            memory_gb, seconds = estimate_join_cost(target.shape, len(self.scans), settings.omp_nthreads)
        cost = Cost(
            input=grid,
            target=target,
            field_points=sum(scan.field_points for scan in self.scans),
            sr_memory_gb=memory_gb,
            sr_seconds=seconds,
            runs={
                "gradunwarp": int(self.gradients.corrects),
                "coregister": int(self.reference is not None),
                "register": len(settings.templates) if self.reference is None else 0,
                "warp": len(settings.output_spaces),
            },
            threads=settings.omp_nthreads,
        )
        return cost.without_preparation() if self.joined else cost

    def costs_of_scans(self, model: str | None = None) -> dict[str, Cost]:
        """Estimated costs of the scans of an image that is joined from them alone, by the names of their workflows.

        Their images are not made, so each cost is that of the preparation and of super-resolution. Scans that are
        images of the run as well have their own plans.
        """
        if not self.joined or self.settings.join != "only":
            return {}
        found = {}
        for scan in self.scans:
            alone = attrs.evolve(self, image=scan.image, scans=(scan,))
            cost = alone.cost_of(model or self.settings.sr.model)
            found[scan.image.workflow_name] = cost.of_preparation()
        return found

    def seconds_of(self, model: str) -> float:
        """Estimated time with a model, in seconds, with what its scans take that are no images of the run."""
        return self.cost_of(model).seconds + sum(cost.seconds for cost in self.costs_of_scans(model).values())

    @property
    def seconds(self) -> float:
        """The same with the model of the settings."""
        return self.seconds_of(self.settings.sr.model)

    @property
    def memory_gb(self) -> float:
        """Estimated memory of the largest step in GiB, those of such scans included."""
        return max(cost.memory_gb for cost in (self.cost, *self.costs_of_scans().values()))

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """Derivatives of the image, the main output first."""
        conditions = {
            "uncertainty": self.card.uncertainty,
            "experts": bool(self.card.experts) and not self.joined,
            "unwarped": self.gradients.corrects and not self.joined,
            "aligned": self.reference is not None,
            "first": is_first_t1w(self.image),
            "joined": self.joined,
            "alone": not self.joined,
        }
        return outputs_of(self.image, self.settings, conditions)

    @property
    def main(self) -> Output:
        """The super-resolved image; its sidecar is written last, so it proves that all other outputs are whole."""
        return self.outputs[0]

    def outputs_of_other_resolutions(self) -> list[Path]:
        """Return the sidecars of main outputs of this image in the output folder that have other voxel sizes."""
        wanted = self.settings.output_dir / self.main.sidecar_path
        entities = {**self.image.entities, **DERIVATIVES[0].entities, "res": "*"}
        pattern = file_name(entities, self.image.suffix, ".json")
        return [path for path in sorted(wanted.parent.glob(pattern)) if path != wanted]

    def figure_path(self, desc: str, extension: str) -> str:
        """Return the path of a figure below the output folder."""
        name = file_name({**self.image.entities, "desc": desc}, self.image.suffix, extension)
        return f"sub-{self.image.participant}/figures/{name}"


@lru_cache(maxsize=8)
def _card(model: str) -> ModelCard:
    return get_model(model).card


def plan_image(image: RawImage, settings: Settings) -> ImagePlan:
    """Make the plan of an image, with the reference that it was given.

    Parameters
    ----------
    image : RawImage
        Image that can be processed, as `moesr_bids.bids.sessions.with_references` returns it.
    settings : Settings
        Settings of the run.

    """

    def scan(of: RawImage | None) -> ScanPlan | None:
        return None if of is None else ScanPlan.of(of, settings)

    return ImagePlan(
        settings=settings,
        image=image,
        scans=tuple(ScanPlan.of(file, settings) for file in image.files),
        reference=scan(image.reference),
        instead_of=scan(image.instead_of),
    )
