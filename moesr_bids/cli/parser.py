"""Command line of ``moesr-bids``: its options, and the settings that they make."""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moesr_bids import __version__
from moesr_bids.arguments import Parser, memory_gb, positive_int, with_dashes
from moesr_bids.cli.checks import check_settings, read_filters
from moesr_bids.config import (
    EMBEDDED_TEMPLATE,
    GRADUNWARP_MODES,
    JOIN_MODES,
    REPORT_FORMATS,
    SUFFIXES,
    OutputSpace,
    Settings,
)
from moesr_bids.console import tell
from moesr_bids.errors import UsageError
from moesr_bids.resources import available_cpus, available_memory_gb
from moesr_bids.sr.options import SROptions
from moesr_bids.sr.weights import SUFFIX


def _output_space(text: str) -> OutputSpace:
    try:
        return OutputSpace.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _label(prefix: str) -> Any:
    return lambda text: text.removeprefix(prefix)


def build_parser() -> Parser:
    """Return the parser of ``moesr-bids``."""
    parser = Parser(
        prog="moesr-bids",
        usage="%(prog)s bids_dir output_dir {participant,group} [options]",
        description="Super-resolve the T1w, T2w and FLAIR images of a BIDS data set and write BIDS derivatives.",
        epilog="Example: moesr-bids /data /out participant --participant-label 01 02 --nprocs 4 --mem 16G",
    )
    parser.add_argument("bids_dir", type=Path, help="folder of the BIDS data set")
    parser.add_argument("output_dir", type=Path, help="folder for the derivatives; made when missing")
    parser.add_argument(
        "analysis_level",
        choices=["participant", "group"],
        help="participant: process images; group: tables and page about all participants",
    )
    parser.add_argument("--version", action="version", version=f"moesr-bids {__version__}")
    _add_data(parser)
    _add_gradients(parser)
    _add_sr(parser)
    _add_run(parser)
    return parser


def _add_data(parser: Parser) -> None:
    """Add the options that choose images."""
    data = parser.add_argument_group("which images")
    data.add_argument(
        "--participant-label",
        nargs="+",
        default=[],
        type=_label("sub-"),
        metavar="LABEL",
        help="participants to process, with or without sub- (default: all)",
    )
    data.add_argument(
        "--session-label",
        nargs="+",
        default=[],
        type=_label("ses-"),
        metavar="LABEL",
        help="sessions to process, with or without ses- (default: all)",
    )
    data.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help='JSON of PyBIDS filters per suffix, e.g. {"T1w": {"acquisition": "mprage"}}',
    )
    data.add_argument(
        "--suffixes",
        nargs="+",
        choices=SUFFIXES,
        default=list(SUFFIXES),
        metavar="SUFFIX",
        help=f"contrasts to process: {', '.join(SUFFIXES)} (default: all three)",
    )
    data.add_argument(
        "--join",
        choices=JOIN_MODES,
        default=JOIN_MODES[0],
        help="auto: scans of one contrast in a session that differ in acq or run alone, such as stacks in several "
        "orientations and repeats, also make one joined image (rec-joined) that agrees with all of them; only: that "
        "instead of an image of each; off: no such image (default: off)",
    )
    data.add_argument("--skip-bids-validation", action="store_true", help="do not run the BIDS validator on the input")
    data.add_argument(
        "--bids-database-dir",
        type=Path,
        metavar="DIR",
        help="folder of a PyBIDS database: read if it exists, else written; runs over all participants start faster",
    )

    data.add_argument(
        "--derivatives",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="BIDS derivatives with brain masks of your own (desc-brain_mask, as fMRIPrep makes them), on the grid of "
        "an image or in its space; they replace the automatic mask",
    )


def _add_gradients(parser: Parser) -> None:
    """Add the options of the correction of gradient nonlinearity."""
    gradients = parser.add_argument_group("gradient nonlinearity")
    gradients.add_argument(
        "--gradient-coefficients",
        type=Path,
        metavar="PATH",
        help="Siemens .grad file or ITK displacement field (.nii.gz) of the scanner, or a folder of them, each named "
        "after the StationName or ManufacturersModelName in the sidecars (default: no correction)",
    )
    gradients.add_argument(
        "--gradunwarp",
        choices=GRADUNWARP_MODES,
        default=GRADUNWARP_MODES[0],
        help="auto corrects what the scanner did not, by the sidecar, and nothing if that does not say; force corrects "
        "every image, off none (default: auto)",
    )
    gradients.add_argument(
        "--gradunwarp-nojac", action="store_true", help="do not multiply by the Jacobian; intensities stay as they are"
    )


def _add_sr(parser: Parser) -> None:
    """Add the options of super-resolution and registration."""
    sr = parser.add_argument_group("super-resolution")
    SROptions.add_arguments(sr, of_app=True)
    sr.add_argument(
        "--output-spaces",
        nargs="+",
        type=_output_space,
        default=[OutputSpace(EMBEDDED_TEMPLATE)],
        metavar="TEMPLATE[:res-N]",
        help="templates to register to, by TemplateFlow name (default: "
        f"{EMBEDDED_TEMPLATE}, which comes with the package). The image in their space has voxels of --resolution, or "
        "with :res-N the template's own grid of that index",
    )
    sr.add_argument("--sloppy", action="store_true", help="fast but rough bias field and registration, for tests only")


def _add_run(parser: Parser) -> None:
    """Add the options of resources and execution."""
    run = parser.add_argument_group("resources and execution")
    run.add_argument(
        "--nprocs",
        "--nthreads",
        "--n-cpus",
        dest="nprocs",
        type=positive_int,
        metavar="N",
        help="CPUs of the whole run (default: all that this process may use)",
    )
    run.add_argument(
        "--omp-nthreads",
        type=positive_int,
        metavar="N",
        help="CPU threads of one step (default: as --nprocs, at most 8)",
    )
    run.add_argument(
        "--mem",
        "--mem-mb",
        dest="mem_gb",
        type=memory_gb,
        metavar="SIZE",
        help="memory that running steps may use together, e.g. 8G (units K, M, G, T; a bare number means megabytes; "
        "default: 90%% of what is free)",
    )
    run.add_argument(
        "-w", "--work-dir", type=Path, metavar="DIR", help="folder for intermediate files (default: ./work)"
    )
    run.add_argument("--clean-workdir", action="store_true", help="delete the intermediate files after success")
    run.add_argument(
        "--dry-run", action="store_true", help="print what would be done with grid sizes, memory and time, and stop"
    )
    run.add_argument(
        "--report-format",
        choices=REPORT_FORMATS,
        default=REPORT_FORMATS[0],
        help="folder: sub-X.html shows the pictures in sub-X/figures; single: it holds them and can be mailed "
        "(default: folder)",
    )
    run.add_argument(
        "--export-raw",
        type=Path,
        metavar="DIR",
        help="copy the super-resolved images into a raw data set there (rec-moesr), for FreeSurfer, FastSurfer, "
        "SynthSeg and others; for a run that is complete nothing else is done",
    )
    run.add_argument("--reports-only", action="store_true", help="only write the reports again, from existing outputs")
    run.add_argument("--boilerplate-only", action="store_true", help="only write the methods text (logs/CITATION.md)")
    run.add_argument("--stop-on-first-crash", action="store_true", help="stop all work when one step fails")
    run.add_argument(
        "--config-file",
        type=Path,
        metavar="FILE",
        help="TOML file with options by name, such as a run writes to logs/; the command line takes precedence",
    )
    run.add_argument("--write-graph", action="store_true", help="write the workflow graph to logs/graph.dot")
    run.add_argument(
        "--use-plugin",
        type=Path,
        metavar="FILE",
        help="YAML with a Nipype plugin and its plugin_args instead of MultiProc",
    )
    run.add_argument("-v", "--verbose", action="count", default=0, help="print more; -vv for debugging")


def _config_arguments(path: Path, parser: Parser) -> list[str]:
    """Turn a TOML file of options into command-line arguments, so that both are checked the same way."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"configuration file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"configuration file {path} is not valid TOML: {error}") from None
    known = {string for action in parser._actions for string in action.option_strings}
    arguments: list[str] = []
    for key, value in table.items():
        option = with_dashes(f"--{key}")
        if option not in known or option == "--config-file":
            raise UsageError(f"configuration file {path}: {key} is no option; see moesr-bids --help")
        if option == "--verbose":
            arguments += [option] * (value if isinstance(value, int) else 1)
        elif value is True:
            arguments.append(option)
        elif value is not False:
            arguments += [option, *map(str, value if isinstance(value, list) else [value])]
    return arguments


def parse_settings(argv: Sequence[str]) -> Settings:
    """Parse and check the command line.

    Parameters
    ----------
    argv : sequence of str
        Arguments without the program name.

    Returns
    -------
    Settings
        Checked settings with absolute paths.

    Raises
    ------
    SystemExit
        With code 2 and one sentence if the command line cannot be carried out.

    """
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        if args.config_file:
            # Positional arguments first: options that take several values would take them too.
            positional = [str(args.bids_dir), str(args.output_dir), args.analysis_level]
            from_file = parser.parse_args([*positional, *_config_arguments(args.config_file, parser)])
            if args.verbose:
                from_file.verbose = 0
            # Values already in the namespace act as defaults, so the command line takes precedence.
            args = parser.parse_args(argv, namespace=from_file)
        settings = _settings(args)
        check_settings(settings)
    except UsageError as error:
        tell(parser.prog, f"error: {error}")
        parser.exit(2)
    return settings


def _settings(args: argparse.Namespace) -> Settings:
    nprocs = args.nprocs or available_cpus()
    work_dir = args.work_dir or Path("work")
    return Settings(
        bids_dir=_absolute(args.bids_dir),
        output_dir=_absolute(args.output_dir),
        analysis_level=args.analysis_level,
        work_dir=_absolute(work_dir),
        participant_label=tuple(dict.fromkeys(args.participant_label)),
        session_label=tuple(dict.fromkeys(args.session_label)),
        bids_filters=read_filters(args.bids_filter_file),
        bids_filter_file=args.bids_filter_file and _absolute(args.bids_filter_file),
        bids_database_dir=args.bids_database_dir and _absolute(args.bids_database_dir),
        skip_bids_validation=args.skip_bids_validation,
        suffixes=tuple(dict.fromkeys(args.suffixes)),
        sr=SROptions.from_args(
            args, of_app=True, model=str(_absolute(Path(args.model))) if args.model.endswith(SUFFIX) else args.model
        ),
        output_spaces=tuple(dict.fromkeys(args.output_spaces)),
        nprocs=nprocs,
        omp_nthreads=min(args.omp_nthreads or min(nprocs, 8), nprocs),
        mem_gb=args.mem_gb or 0.9 * available_memory_gb(),
        sloppy=args.sloppy,
        derivatives=tuple(dict.fromkeys(map(_absolute, args.derivatives))),
        gradient_coefficients=args.gradient_coefficients and _absolute(args.gradient_coefficients),
        join=args.join,
        gradunwarp=args.gradunwarp,
        gradunwarp_nojac=args.gradunwarp_nojac,
        export_raw=args.export_raw and _absolute(args.export_raw),
        clean_workdir=args.clean_workdir,
        report_format=args.report_format,
        dry_run=args.dry_run,
        reports_only=args.reports_only,
        boilerplate_only=args.boilerplate_only,
        stop_on_first_crash=args.stop_on_first_crash,
        write_graph=args.write_graph,
        use_plugin=args.use_plugin and _absolute(args.use_plugin),
        verbose=args.verbose,
    )


def _absolute(path: Path) -> Path:
    # Not resolve(): the user's own path, symbolic links and all, should stand in logs and sidecars.
    return Path(os.path.abspath(path))  # noqa: PTH100
