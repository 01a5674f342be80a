"""The segmentation on heads that the network was not trained on.

    python -m benchmarks.segmentation --data BIDS_DIR --labels DIR [--tables real drawn robust]

Three tables of Dice coefficients:

- ``real``: T1w scans with an aparc+aseg map, beside tissue classes from intensities, and errors of volumes;
- ``drawn``: 1 mm images drawn from label maps, and slices of 4, 5 and 6 mm of them along each axis, whole heads and
  stripped, each of a contrast of its own;
- ``robust``: the real scans turned, cut in half, noisy and shaded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from attrs import evolve, frozen
from numpy.typing import NDArray
from scipy import ndimage

from moesr_bids.errors import ImageError
from moesr_bids.preproc.bias import correct_bias
from moesr_bids.preproc.images import image_data, voxel_ml
from moesr_bids.preproc.tissues import TISSUES, tissue_labels, tissue_probabilities
from moesr_bids.segmentation.brain import Brain, dice, find_brain
from moesr_bids.segmentation.inference import label
from moesr_bids.segmentation.labels import from_freesurfer, volumes_ml
from moesr_bids.segmentation.structures import BRAIN, STRUCTURES
from moesr_bids.segmentation.weights import packaged_segmenter
from moesr_bids.training.head_images import RandomImage
from moesr_bids.training.heads import load_head_map
from moesr_bids.training.segmenter import STILL

TABLES = ("real", "drawn", "robust")
PEOPLE = ("bert", "seeg")
MAPS = ("synthseg05", "synthseg10", "synthseg15", "synthseg20")
_NAMES = tuple(dict.fromkeys(s.tissue for s in STRUCTURES if s.index in BRAIN))
_SHOWN = ("cortex", "white matter", "lateral ventricle", "deep grey matter", "cerebellum", "brainstem")
_PLAIN = RandomImage(
    lesions=0.0, cavity=0.0, bare=0.0, defaced=0.0, air=0.0, cut=0.0, shading=0.2, natural=1.0, texture=(0.03, 0.05)
)
_NOISE = 0.03
_SLICES_MM = (4, 5, 6)


@frozen(eq=False)
class Case:
    """An image, and the classes in its voxels."""

    name: str
    image: nib.Nifti1Image
    classes: NDArray[np.uint8]


def real_case(data: Path, labels: Path, who: str) -> Case:
    """Read the T1w of a person and its aparc+aseg map, axes to the right, the front and upwards."""
    scan = nib.as_closest_canonical(nib.load(next((data / f"sub-{who}/anat").glob("*_T1w.nii.gz"))))
    drawn = nib.as_closest_canonical(nib.load(next((labels / f"aparcaseg/sub-{who}/anat").glob("*_dseg.nii.gz"))))
    classes = from_freesurfer(np.asanyarray(drawn.dataobj), drawn.header.get_zooms()[:3])
    return Case(who, nib.Nifti1Image(image_data(scan), scan.affine), classes)


def drawn_case(labels: Path, who: str, *, stripped: bool, number: int) -> Case:
    """Draw a 1 mm image of a label map in a cube of 192 mm."""
    head_map = load_head_map(next((labels / "wholehead").rglob(f"sub-{who}_*_dseg.nii.gz")))
    rng, generator = np.random.default_rng(number), torch.Generator().manual_seed(number)
    head = STILL.draw(head_map, 96, 2.0, rng, torch.device("cpu"))
    image, classes = evolve(_PLAIN, bare=float(stripped)).paint(head, 1.0, rng, generator, real=0.0)
    noise = torch.randn((2, *image.shape), generator=generator) * _NOISE * float(image.quantile(0.99))
    noisy = torch.hypot(image + noise[0], noise[1]) if not stripped else image + noise[0] * (image > 0)
    return Case(
        f"{who} {'stripped' if stripped else 'head'}", nib.Nifti1Image(noisy.numpy(), np.eye(4)), classes.numpy()
    )


def slices(case: Case, axis: int, thickness: int) -> Case:
    """Average the voxels of a 1 mm image along an axis; the class of a slice is that of most of its voxels."""
    data, classes = np.asarray(case.image.dataobj), case.classes
    count = data.shape[axis] // thickness
    shape = list(data.shape)
    shape[axis : axis + 1] = [count, thickness]
    keep = [slice(None)] * 3
    keep[axis] = slice(0, count * thickness)
    thick = data[tuple(keep)].reshape(shape).mean(axis=axis + 1)
    hits = [(classes[tuple(keep)].reshape(shape) == s.index).sum(axis=axis + 1, dtype=np.uint8) for s in STRUCTURES]
    affine = case.image.affine @ np.diag([thickness if a == axis else 1.0 for a in range(3)] + [1.0])
    affine[:3, 3] += case.image.affine[:3, axis] * (thickness - 1) / 2
    most = np.argmax(np.stack(hits), axis=0).astype(np.uint8)
    return Case(f"{case.name}, {thickness} mm {'ijk'[axis]}", nib.Nifti1Image(thick.astype(np.float32), affine), most)


def spoilt(case: Case) -> Iterator[Case]:
    """Yield an image turned, cut in half, noisy and shaded."""
    data, affine = np.asarray(case.image.dataobj), case.image.affine
    for axes, name in (((1, 2), "nod"), ((0, 2), "tilt"), ((0, 1), "turn")):
        for angle in (20, 45):
            turned = ndimage.rotate(data, angle, axes, order=1)
            classes = ndimage.rotate(case.classes, angle, axes, order=0)
            yield Case(f"{case.name}, {name} {angle} degrees", nib.Nifti1Image(turned, affine), classes)
    brain = np.argwhere(np.isin(case.classes, BRAIN)).mean(axis=0).astype(int)
    for axis, name in enumerate(("left", "back", "lower")):
        keep = tuple(slice(0, brain[a]) if a == axis else slice(None) for a in range(3))
        yield Case(f"{case.name}, {name} half", nib.Nifti1Image(data[keep], affine), case.classes[keep])
    rng, top = np.random.default_rng(0), float(np.percentile(data[data > 0], 99))
    noise = rng.normal(0, 0.1 * top, (2, *data.shape))
    noisy = np.hypot(data + noise[0], noise[1]).astype(np.float32)
    yield Case(f"{case.name}, 10 % noise", nib.Nifti1Image(noisy, affine), case.classes)
    for axis in range(3):
        ramp = np.linspace(0.5, 1.5, data.shape[axis], dtype=np.float32)
        shape = [-1 if a == axis else 1 for a in range(3)]
        shaded = nib.Nifti1Image(data * ramp.reshape(shape), affine)
        yield Case(f"{case.name}, 50 % shading {'ijk'[axis]}", shaded, case.classes)


def scores(labels: NDArray[np.integer], classes: NDArray[np.uint8]) -> dict[str, float]:
    """Return the Dice coefficient of the brain and of each tissue, the mean of both sides."""
    found = {"brain": dice(labels > 0, np.isin(classes, BRAIN))}
    for tissue in _NAMES:
        own = [s.index for s in STRUCTURES if s.tissue == tissue]
        found[tissue] = float(np.mean([dice(labels == index, classes == index) for index in own]))
    return found


def row(case: Case) -> tuple[str, Brain | None, NDArray[np.uint8]]:
    """Return a line on an image, its brain, and its structures."""
    start = time.perf_counter()
    try:
        brain = find_brain(case.image)
    except ImageError as error:
        return f"{case.name:32} {error}", None, case.classes
    seconds = time.perf_counter() - start
    corrected = correct_bias(case.image, brain.mask, threads=2).corrected
    labels = label(corrected, packaged_segmenter()[0], np.asarray(brain.mask.dataobj) > 0)
    found = scores(labels, case.classes)
    values = " ".join(f"{found[name]:9.3f}" for name in ("brain", *_SHOWN))
    told = " LOOK" if brain.doubts else ""
    line = f"{case.name:32} {values} {brain.certainty:9.3f} {brain.misfit_mm:6.1f} {seconds:5.1f}{told}"
    return line, brain, labels


def header() -> str:
    """Return the names of the columns."""
    return (
        f"{'':32} " + " ".join(f"{name[:9]:>9}" for name in ("brain", *_SHOWN, "certain")) + f" {'misfit':>6} {'s':>5}"
    )


def _sides_as_one(labels: NDArray[np.integer], tissues: Sequence[str]) -> NDArray[np.bool_]:
    return np.isin(labels, [s.index for s in STRUCTURES if s.tissue in tissues])


def compared(case: Case, brain: Brain, labels: NDArray[np.uint8]) -> Iterator[str]:
    """Yield lines on three tissues of the cerebrum, and on volumes."""
    corrected = correct_bias(case.image, brain.mask, threads=2).corrected
    mask = np.asarray(brain.mask.dataobj) > 0
    data = np.asarray(corrected.dataobj)
    classes = tissue_labels(tissue_probabilities(data, case.image.affine, mask, brain.tissues), mask)
    # Cerebellum and brain stem mix tissues.
    cerebrum = ~_sides_as_one(case.classes, ("cerebellum", "brainstem", "background", "extracerebral"))
    of_tissue = {
        "wm": ("white matter",),
        "gm": ("cortex", "deep grey matter"),
        "csf": ("csf", "lateral ventricle", "midline ventricles"),
    }
    for name, parts in (("structures", labels), ("three tissues", classes)):
        dices = []
        for number, tissue in enumerate(TISSUES, 1):
            own = _sides_as_one(parts, of_tissue[tissue]) if name == "structures" else parts == number
            truth = _sides_as_one(case.classes, of_tissue[tissue])
            dices.append(f"{tissue} {dice(own & cerebrum, truth & cerebrum):.3f}")
        yield f"  cerebrum, {name}: {', '.join(dices)}"
    of_voxel = voxel_ml(case.image.affine)
    truth_ml, own_ml = volumes_ml(case.classes, of_voxel), volumes_ml(labels, of_voxel)
    errors = (f"{name} {100 * (own_ml[name] / truth - 1):+.1f} %" for name, truth in truth_ml.items() if truth > 1)
    yield f"  volumes: {', '.join(errors)}"


def drawn_cases(labels: Path) -> Iterator[Case]:
    """Yield drawn images and slices of them."""
    for number, who in enumerate(MAPS):
        for stripped in (False, True):
            case = drawn_case(labels, who, stripped=stripped, number=10 * number + stripped)
            yield case
            for axis, thickness in enumerate(np.roll(_SLICES_MM, number)):
                yield slices(case, axis, int(thickness))


def main(argv: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segmentation", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="BIDS_DIR", help="scans")
    parser.add_argument("--labels", type=Path, required=True, metavar="DIR", help="label maps")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="(default: all)")
    parser.add_argument("--omp-nthreads", type=int, default=2, metavar="N", help="threads (default: 2)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.omp_nthreads)
    print(header())
    if "real" in options.tables:
        for who in PEOPLE:
            case = real_case(options.data, options.labels, who)
            line, brain, labels = row(case)
            print(line, flush=True)
            for more in compared(case, brain, labels) if brain else ():
                print(more, flush=True)
    if "drawn" in options.tables:
        for case in drawn_cases(options.labels):
            print(row(case)[0], flush=True)
    if "robust" in options.tables:
        for who in PEOPLE:
            for case in spoilt(real_case(options.data, options.labels, who)):
                print(row(case)[0], flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
