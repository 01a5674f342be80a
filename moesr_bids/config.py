"""The settings of one run: immutable, passed by argument, saved beside the outputs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from moesr_bids import __version__
from moesr_bids.sr.options import CONTRASTS, SROptions

SUFFIXES = CONTRASTS
GRADUNWARP_MODES = ("auto", "force", "off")
JOIN_MODES = ("off", "auto", "only")
REPORT_FORMATS = ("folder", "single")
GRADIENT_EXTENSIONS = (".grad", ".nii", ".nii.gz")
EMBEDDED_TEMPLATE = "MNI152NLin2009aSym"

_SPACE = re.compile(r"([0-9A-Za-z+]+)(?::res-0*([1-9][0-9]*))?")

# Settings that change voxels or sidecars of an output, beside options of super-resolution.
_OUTPUT_SETTINGS = ("output_spaces", "gradunwarp_nojac", "sloppy")


@attrs.frozen
class OutputSpace:
    """A template, and the grid of the super-resolved image in its space.

    Attributes
    ----------
    template : str
        TemplateFlow identifier.
    grid : str or None
        TemplateFlow's ``res`` index, without leading zeros; None for voxels of the run's resolution.

    """

    template: str
    grid: str | None = None

    @classmethod
    def parse(cls, text: str) -> OutputSpace:
        """Read ``TEMPLATE`` or ``TEMPLATE:res-N``.

        Raises
        ------
        ValueError
            If `text` is neither.

        """
        match = _SPACE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no output space; write TEMPLATE or TEMPLATE:res-N")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return self.template if self.grid is None else f"{self.template}:res-{self.grid}"


@attrs.frozen(kw_only=True)
class Settings:
    """Settings of one run; attributes that are not listed are the options of the same name.

    Attributes
    ----------
    bids_dir, output_dir, work_dir : pathlib.Path
        Absolute paths.
    analysis_level : str
        ``participant`` or ``group``.
    participant_label, session_label : tuple of str
        Labels without ``sub-`` and ``ses-``; empty means all.
    bids_filters : Mapping
        PyBIDS entity filters by suffix, or ``anat`` for all.
    suffixes : tuple of str
        Contrasts to process.
    sr : SROptions
        Options of super-resolution.
    output_spaces : tuple of OutputSpace
        Templates that images are registered to, and the grids there.
    nprocs, omp_nthreads : int
        CPUs of the whole run, and threads of one step.
    mem_gb : float
        Memory in GiB that running steps may claim together.
    sloppy : bool
        Make brain mask, bias field and registration fast but rough, for tests.
    report_format : str
        ``folder``: pages refer to ``sub-X/figures``; ``single``: they hold their pictures.
    derivatives : tuple of pathlib.Path
        Roots of BIDS derivatives with brain masks that the user gives.
    gradient_coefficients : pathlib.Path, optional
        File of gradient coefficients or displacement field, or a folder of them named after scanners.
    gradunwarp : str
        ``auto``, ``force`` or ``off``.
    join : str
        ``auto``: scans of one contrast and session make a joined image beside those of each; ``only``: instead of
        those; ``off``.
    gradunwarp_nojac : bool
        Leave the intensities as they are when gradient nonlinearity is corrected.
    export_raw : pathlib.Path, optional
        Folder for a raw data set of the super-resolved images.

    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str
    work_dir: Path
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filters: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    bids_filter_file: Path | None = None
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    suffixes: tuple[str, ...] = SUFFIXES
    sr: SROptions = attrs.field(factory=SROptions)
    output_spaces: tuple[OutputSpace, ...] = (OutputSpace(EMBEDDED_TEMPLATE),)
    nprocs: int = 1
    omp_nthreads: int = 1
    mem_gb: float = 8.0
    sloppy: bool = False
    derivatives: tuple[Path, ...] = ()
    gradient_coefficients: Path | None = None
    join: str = JOIN_MODES[0]
    gradunwarp: str = "auto"
    gradunwarp_nojac: bool = False
    report_format: str = "folder"
    export_raw: Path | None = None
    clean_workdir: bool = False
    dry_run: bool = False
    reports_only: bool = False
    boilerplate_only: bool = False
    stop_on_first_crash: bool = False
    write_graph: bool = False
    use_plugin: Path | None = None
    verbose: int = 0

    @property
    def resolution_label(self) -> str:
        """BIDS ``res-`` label of the target grid, e.g. ``0p7mm``."""
        return f"{self.sr.resolution:g}mm".replace(".", "p")

    @property
    def templates(self) -> tuple[str, ...]:
        """Templates of the output spaces, each once."""
        return tuple(dict.fromkeys(space.template for space in self.output_spaces))

    def recorded(self) -> dict[str, Any]:
        """Return the settings for the sidecar, by option name: all that decide the voxels of an output."""
        names = (*_OUTPUT_SETTINGS, "gradunwarp", "gradient_coefficients", "omp_nthreads")
        values = {name.replace("_", "-"): getattr(self, name) for name in names}
        values |= self.sr.by_flag(deciding=True)
        values["output-spaces"] = [str(space) for space in self.output_spaces]
        if self.gradient_coefficients is not None:
            values["gradient-coefficients"] = str(self.gradient_coefficients)
        values["derivatives"] = [str(path) for path in self.derivatives]
        return values

    @classmethod
    def from_recorded(cls, record: Mapping[str, Any], **others: Any) -> Settings:
        """Rebuild settings from a sidecar; pass the rest as keywords.

        Parameters
        ----------
        record : Mapping
            Settings that `recorded` returned.
        **others : Any
            Attributes of this class, and ``device`` (required), the device of super-resolution.

        Raises
        ------
        ValueError
            If a name is no setting, or the output spaces cannot be read.

        """
        values = {name.replace("-", "_"): value for name, value in record.items()}
        sr = SROptions.from_args(values, of_app=True, device=others.pop("device"))
        values = {name: value for name, value in values.items() if name.replace("_", "-") not in sr.by_flag()}
        known = {field.name for field in attrs.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{unknown[0]} is no setting of this version")
        spaces = tuple(OutputSpace.parse(str(text)) for text in values.pop("output_spaces", ()))
        coefficients = values.pop("gradient_coefficients", None)
        derivatives = tuple(map(Path, values.pop("derivatives", ())))
        return cls(
            **{
                **values,
                **({"output_spaces": spaces} if spaces else {}),
                "derivatives": derivatives,
                "gradient_coefficients": Path(coefficients) if coefficients else None,
                "sr": sr,
                **others,
            }
        )

    def output_hash(self, extra: Mapping[str, Any]) -> str:
        """Return a digest of everything that decides an output: settings, package version and `extra` (the input).

        Parameters
        ----------
        extra : Mapping
            JSON-serialisable facts about the input image.

        Returns
        -------
        str
            Sixteen hexadecimal digits.

        """
        facts = {name: getattr(self, name) for name in _OUTPUT_SETTINGS} | self.sr.by_flag(deciding=True)
        text = json.dumps({**facts, **extra, "version": __version__}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        """Return the settings as TOML with option names as keys, in the form that ``--config-file`` reads."""
        import tomli_w

        table: dict[str, Any] = {}
        for name, value in {**attrs.asdict(self, recurse=False), **self.sr.by_flag()}.items():
            if name in {"bids_dir", "output_dir", "analysis_level", "bids_filters", "sr"} or value in (None, False, ()):
                continue
            option = {"mem_gb": "mem"}.get(name, name).replace("_", "-")
            if name == "mem_gb":
                value = f"{value:g}G"
            elif isinstance(value, tuple):
                value = [str(item) for item in value]
            elif isinstance(value, Path):
                value = str(value)
            table[option] = value
        return tomli_w.dumps(table)
