"""Any file gives the right image or one sentence: never a traceback, never a wrong image.

Files are drawn at random: as other programs write them, with impossible headers, damaged, or with faulty voxels. Each
is read by `moesr sr`, by the header check of `moesr-bids`, and by the planning of a run.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from moesr_bids.bids.collect import RawImage
from moesr_bids.bids.plan import plan_image
from moesr_bids.bids.sessions import with_references
from moesr_bids.bids.sidecars import read_metadata
from moesr_bids.cli.moesr import main
from moesr_bids.config import Settings
from moesr_bids.errors import ImageError
from moesr_bids.preproc.header import conform
from moesr_bids.sr.engine import super_resolve
from moesr_bids.sr.options import SROptions

SHAPE = (32, 36, 28)
VOXEL_MM = (4.0, 4.0, 5.0)
AFFINE = nib.affines.from_matvec(np.diag(VOXEL_MM), [-60, -80, -70])
RESOLUTION = 3.0
TOLERANCE = 0.01  # of the brightest of the brain
OPTIONS = SROptions(resolution=RESOLUTION, model="cubic", device="cpu", threads=1)

PROFILE = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@cache
def clean() -> np.ndarray:
    """Return an ellipsoid that is symmetric in no direction, with noise in the air."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = x**2 + y**2 + z**2 < 0.7
    brain = 200 + 60 * np.sin(3 * x + 2 * y) + 50 * z
    return np.hypot(np.where(inside, brain, 0) + rng.normal(0, 2, SHAPE), rng.normal(0, 2, SHAPE)).astype(np.float32)


@cache
def expected() -> nib.Nifti1Image:
    """Return what becomes of the clean image."""
    return super_resolve(nib.Nifti1Image(clean(), AFFINE), OPTIONS).image


class Scan:
    """A file, what was drawn for it, and where in the world (mm) its planted fault reaches.

    Not of attrs: hypothesis would print the content.
    """

    def __init__(
        self, name: str, content: bytes, drawn: dict[str, Any], *, fault_mm: Any = None, reach_mm: float = 0.0
    ) -> None:
        self.name, self.content, self.drawn = name, content, drawn
        self.fault_mm, self.reach_mm = fault_mm, reach_mm

    def __repr__(self) -> str:
        return f"Scan({self.name}: {self.drawn})"


def as_file(
    data: np.ndarray,
    affine: np.ndarray,
    *,
    kind: type[nib.Nifti1Image] = nib.Nifti1Image,
    dtype: str = "<f4",
    slope: float | None = None,
    inter: float = 0.0,
    forms: tuple[int, int] = (1, 1),
    extension: bytes = b"",
    fields: dict[str, Any] | None = None,
) -> bytes:
    """Return the bytes of a file whose header says what it is told to, be it possible or not."""
    header = kind.header_class(endianness=dtype[0] if dtype[0] in "<>" else "<")
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(data.shape)
    header.set_xyzt_units("mm")
    for form, code in zip((header.set_qform, header.set_sform), forms, strict=True):
        form(affine, code or 1)
    header["qform_code"], header["sform_code"] = forms
    if not forms[1]:
        header["srow_x"] = header["srow_y"] = header["srow_z"] = 0
    if slope is not None:
        header["scl_slope"], header["scl_inter"] = slope, inter
        data = np.rint((data - inter) / slope)
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset + len(extension)
    for name, value in (fields or {}).items():
        place, _, number = name.partition("__")
        if number:
            header[place][int(number)] = value
        else:
            header[place] = value
    flag = bytes([1 if extension else 0, 0, 0, 0])
    return header.binaryblock + flag + extension + data.astype(dtype).tobytes(order="F")


@contextmanager
def on_disk(scan: Scan) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        anat = Path(folder) / "bids" / "sub-01" / "anat"
        anat.mkdir(parents=True)
        path = anat / scan.name
        path.write_bytes(scan.content)
        yield path


def is_right(found: nib.Nifti1Image, scan: Scan) -> bool:
    """Whether an output is that of the clean image wherever no fault was planted, in world space."""
    there, here = nib.as_closest_canonical(expected()), nib.as_closest_canonical(found)
    if here.shape != there.shape or not np.allclose(here.affine, there.affine, atol=0.02):
        return False
    wanted = np.asarray(there.dataobj)
    apart = np.abs(np.asarray(here.dataobj) - wanted)
    if scan.fault_mm is not None:
        points = np.moveaxis(np.indices(wanted.shape), 0, -1) @ there.affine[:3, :3].T + there.affine[:3, 3]
        apart[np.linalg.norm(points - scan.fault_mm, axis=-1) < scan.reach_mm] = 0
    return bool((apart <= TOLERANCE * wanted.max()).all())  # false for NaN


def read_by_moesr_sr(path: Path, scan: Scan) -> str:
    """Return the sentence that `moesr sr` has, or nothing where it writes the right image."""
    out, told = path.parent / "out.nii.gz", io.StringIO()
    command = ["sr", str(path), str(out), "--resolution", str(RESOLUTION), "--model", "cubic", "--device", "cpu"]
    with redirect_stderr(told):
        code = main([*command, "--omp-nthreads", "1"])
    if code == 0:
        assert is_right(nib.load(out), scan), "a wrong image with exit code 0"
        return ""
    assert code == 1
    assert not out.exists()
    sentence = told.getvalue().strip().splitlines()[-1]
    assert sentence.startswith(f"moesr sr: {path}: "), told.getvalue()
    return sentence


def read_by_moesr_bids(path: Path, scan: Scan) -> str:
    """Return the sentence of the header check, or nothing where it hands on the right image."""
    root = path.parents[2]
    image = RawImage(path=path, root=root)
    places = {"bids_dir": root, "output_dir": root / "out", "work_dir": root / "work"}
    chosen = Settings(**places, analysis_level="participant", sr=OPTIONS)
    assert plan_image(with_references([image])[0], chosen).cost.sr_memory_gb > 0
    try:
        conformed = conform(path)
    except ImageError as refusal:
        assert str(refusal).startswith(f"{path}: ")
        assert "\n" not in str(refusal)
        return str(refusal)
    assert is_right(super_resolve(conformed.image, OPTIONS).image, scan), "a wrong image goes on"
    return ""


def outcomes(scan: Scan) -> tuple[str, str]:
    """Return the sentences of both commands, empty where the image is right."""
    with on_disk(scan) as path:
        return read_by_moesr_sr(path, scan), read_by_moesr_bids(path, scan)


@st.composite
def as_others_write(draw: st.DrawFn) -> Scan:
    """Draw a good file: orientation, byte order, type, scale, forms, extension, compression."""
    order = draw(st.permutations(range(3)))
    flips = draw(st.tuples(*[st.sampled_from([1, -1])] * 3))
    orientation = np.array(list(zip(order, flips, strict=True)))
    dtype = draw(st.sampled_from(["<f4", ">f4", "<f8", ">f8", "<i2", ">i2", "<u2", "<i4", ">i4"]))
    drawn: dict[str, Any] = {
        "kind": draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image])),
        "dtype": dtype,
        "forms": draw(st.sampled_from([(1, 1), (0, 1), (1, 0), (4, 2), (0, 4), (3, 0)])),
        "fields": draw(
            st.sampled_from([{}, {"descrip": b"x" * 79}, {"toffset": 5.0}, {"bitpix": 0}, {"cal_max": np.nan}])
        ),
    }
    if dtype[1] in "iu":
        drawn["slope"] = draw(st.floats(0.01, 0.5))
        drawn["inter"] = draw(st.sampled_from([0.0, -3.0, 7.0])) if dtype[1] == "i" else 0.0
    if dtype[0] == "<":
        drawn["extension"] = draw(st.sampled_from([b"", b"\x20\0\0\0\6\0\0\0" + b"comment " * 3]))
    affine = AFFINE @ inv_ornt_aff(orientation, SHAPE)
    content = as_file(apply_orientation(clean(), orientation), affine, **drawn) + bytes(draw(st.integers(0, 64)))
    zipped = draw(st.booleans())
    drawn |= {"orientation": orientation.tolist()}
    return Scan("sub-01_T1w.nii" + ".gz" * zipped, gzip.compress(content, 1) if zipped else content, drawn)


@settings(max_examples=120, **PROFILE)
@given(as_others_write())
def test_what_others_write_is_read_right(scan: Scan) -> None:
    assert outcomes(scan) == ("", "")


NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 5, 7, 8, 99, 255, 256, 1002, 1005, 32767, -32768])
IMPOSSIBLE = st.sampled_from([0.0, -4.0, np.nan, np.inf, -np.inf])
# Fields whose value cannot make a possible image that is another one. A finite position, or a possible voxel size, can.
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "sizeof_hdr": NUMBERS,
    "intent_code": NUMBERS,
    "bitpix": NUMBERS,
    "slice_start": NUMBERS,
    "slice_end": NUMBERS,
    "dim_info": st.integers(0, 255),
    "slice_code": st.integers(0, 255),
    "xyzt_units": st.integers(0, 255),
    "qform_code": NUMBERS,
    "sform_code": NUMBERS,
    "intent_p1": st.floats(width=32),
    "slice_duration": st.floats(width=32),
    "toffset": st.floats(width=32),
    "cal_max": st.floats(width=32),
    "cal_min": st.floats(width=32),
    "descrip": st.binary(max_size=80),
    "aux_file": st.binary(max_size=24),
    "intent_name": st.binary(max_size=16),
    "magic": st.sampled_from([b"ni1", b"n+1", b"n+2", b"", b"ni2", b"XXXX"]),
    "vox_offset": st.sampled_from([0, 1, 348, 351, 352.25, 400, 1e6, 1e30, -352, np.nan, np.inf, -np.inf]),
    "scl_slope": st.sampled_from([0.0, np.nan, np.inf, -np.inf]),
    "scl_inter": st.sampled_from([0.0, np.nan, np.inf, -np.inf]),
    "dim__0": NUMBERS,
    **{f"dim__{n}": st.integers(-2, 60).filter(lambda n: n not in SHAPE) for n in (1, 2, 3)},
    **{f"dim__{n}": st.integers(-3, 5) for n in (4, 5, 6, 7)},
    **{f"pixdim__{n}": IMPOSSIBLE for n in (1, 2, 3)},
    **{f"pixdim__{n}": st.floats(width=32) for n in (4, 5, 6, 7)},
    **{f"srow_{row}__{n}": st.sampled_from([np.nan, np.inf]) for row in "xyz" for n in range(4)},
    "quatern_b": st.sampled_from([np.nan, np.inf, 2.0, -9.0]),
    "qoffset_x": st.sampled_from([np.nan, np.inf]),
    "datatype": st.sampled_from([0, 1, 2, 4, 32, 64, 128, 255, 256, 512, 1024, 1280, 1536, 1792, 2048, 2304, 7, -1]),
}


@st.composite
def impossible_header(draw: st.DrawFn) -> Scan:
    """Draw a header with one to three fields of any value that cannot mean another image."""
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=3, unique=True))
    fields = {name: draw(FIELDS[name]) for name in names}
    forms = draw(st.sampled_from([(1, 1), (0, 1), (1, 0)]))
    codes = (fields.get("qform_code", forms[0]), fields.get("sform_code", forms[1]))
    assume(any(1 <= code <= 5 for code in codes))  # or the position is unknown, which is told
    with np.errstate(all="ignore"):
        content = as_file(clean(), AFFINE, forms=forms, fields=fields)
    return Scan("sub-01_T1w.nii.gz", gzip.compress(content, 1), {"forms": forms, **fields})


@settings(max_examples=260, **PROFILE)
@given(impossible_header())
def test_an_impossible_header_gives_the_right_image_or_one_sentence(scan: Scan) -> None:
    outcomes(scan)


@st.composite
def damaged_file(draw: st.DrawFn) -> Scan:
    """Draw a file that was cut, changed or mistaken on its way."""
    content = as_file(clean(), AFFINE, dtype="<i2", slope=0.1)
    zipped = draw(st.booleans())
    stored = gzip.compress(content, 1) if zipped else content
    kind = draw(st.sampled_from(["cut", "lengthened", "changed", "text", "pointer", "misnamed", "twice"]))
    place = draw(st.integers(0, len(stored) - 1))
    if kind == "cut":
        stored = stored[:place]
    elif kind == "lengthened":
        stored += draw(st.sampled_from([bytes(40), b"junk" * 9, content[:4000], bytes(100_000)]))
    elif kind == "changed":
        # Without a checksum a changed voxel is no more than a voxel.
        zipped, stored = True, gzip.compress(content, 1)
        place = draw(st.integers(10, len(stored) - 1))
        stored = stored[:place] + bytes([stored[place] ^ draw(st.integers(1, 255))]) + stored[place + 1 :]
    elif kind == "text":
        stored = draw(st.binary(max_size=2000))
    elif kind == "pointer":
        stored = draw(st.sampled_from([b"/annex/objects/X", b"version https://git-lfs.github.com/spec/v1\nx"]))
    elif kind == "misnamed":
        zipped = not zipped
    elif kind == "twice":
        stored = stored + stored
    return Scan("sub-01_T1w.nii" + ".gz" * zipped, stored, {"kind": kind, "place": place})


@settings(max_examples=120, **PROFILE)
@given(damaged_file())
def test_a_damaged_file_gives_the_right_image_or_one_sentence(scan: Scan) -> None:
    outcomes(scan)


FAULTS = (np.nan, np.inf, -np.inf, 0, -300, 3000, 32767, -32768, 5e5, -5e5, 1e12, 1e30, -1e30, 3e38)


@st.composite
def faulty_voxels(draw: st.DrawFn) -> Scan:
    """Draw voxels of other values in one place of the image."""
    data = clean().copy()
    centre = np.array([draw(st.integers(0, n - 1)) for n in SHAPE])
    half = np.array([draw(st.integers(0, 2)) for _ in SHAPE])
    box = tuple(slice(max(0, c - h), c + h + 1) for c, h in zip(centre, half, strict=True))
    data[box] = value = draw(st.sampled_from(FAULTS))
    content = as_file(data, AFFINE)
    return Scan(
        "sub-01_T1w.nii.gz",
        gzip.compress(content, 1),
        {"value": value, "centre": centre.tolist(), "half": half.tolist()},
        fault_mm=nib.affines.apply_affine(AFFINE, centre),
        reach_mm=8 * max(VOXEL_MM),
    )


@settings(max_examples=100, **PROFILE)
@given(faulty_voxels())
def test_faulty_voxels_give_the_right_image_elsewhere_or_one_sentence(scan: Scan) -> None:
    outcomes(scan)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    st.floats(),
    st.sampled_from(["", "3T", "2D", "3D", "k", "ORIGINAL\\PRIMARY\\ND", "DIS2D", "HFS", "n/a"]),
    st.lists(st.one_of(st.floats(-1, 1), st.sampled_from(["DIS2D", "ND", "x", None])), max_size=6),
    st.dictionaries(st.sampled_from("ab"), st.integers(), max_size=1),
)
KEYS = (
    *("SliceThickness", "SpacingBetweenSlices", "MRAcquisitionType", "MagneticFieldStrength", "ImageType"),
    *("NonlinearGradientCorrection", "SliceEncodingDirection", "ImageOrientationPatientDICOM", "PatientPosition"),
    *("StationName", "Manufacturer", "ManufacturersModelName"),
)


@settings(max_examples=120, **PROFILE)
@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING))
def test_any_metadata_can_be_planned_and_gives_the_image(metadata: dict[str, Any]) -> None:
    """A plan that fails would end the run of all images."""
    scan = Scan("sub-01_T1w.nii", as_file(clean(), AFFINE), metadata)
    with on_disk(scan) as path:
        root = path.parents[2]
        path.with_name("sub-01_T1w.json").write_text(json.dumps(metadata))
        told, warnings = read_metadata(path, root)
        assert warnings == ()
        image = RawImage(path=path, root=root, metadata=told)
        coefficients = root.parent / "scanner.grad"
        coefficients.touch()
        places = {"bids_dir": root, "output_dir": root.parent / "out", "work_dir": root.parent / "work"}
        chosen = Settings(**places, analysis_level="participant", sr=OPTIONS, gradient_coefficients=coefficients)
        plan = plan_image(with_references([image])[0], chosen)
        assert plan.cost.sr_memory_gb > 0
        assert plan.gradients.action in {"none", "full", "through-plane"}
        assert len(plan.outputs) > 5
    assert is_right(super_resolve(nib.Nifti1Image(clean(), AFFINE), OPTIONS, metadata=told).image, scan)


def test_the_table_of_the_documentation_names_tests_that_are_there() -> None:
    here = Path(__file__).parent
    named = re.findall(
        r"(test_\w+\.py)::(test_\w+)", (here.parent / "docs" / "bad_inputs.md").read_text(encoding="utf-8")
    )
    assert len(named) > 40
    missing = [test for file, test in named if f"def {test}(" not in (here / file).read_text(encoding="utf-8")]
    assert missing == []
