"""The ``moesr`` command, whose subcommands work on single files, models and cohorts.

``sr`` super-resolves an image, ``join`` makes one image from several scans of a head; ``train`` trains a model,
``segment`` labels the tissues of scans for it, ``models`` lists the models; ``rerun`` repeats an image of the BIDS App
from its sidecar, ``export`` copies outputs into a raw data set; ``check`` checks a machine; ``slurm`` and ``status``
run a cohort on a cluster.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from .. import __version__
from ..arguments import Parser
from ..console import tell
from ..errors import ImageError
from . import check, export, join, models, segment, slurm, sr, status, train

_COMPUTING = {"sr": sr, "join": join, "train": train, "segment": segment}
"""Commands that compute: modules with ``usage_problem``, ``run``, ``LEFT`` and ``WAY_OUT``."""


def build_parser() -> Parser:
    """Build the parser of ``moesr``."""
    parser = Parser(prog="moesr", description="Super-resolution of brain MRI, file by file.")
    parser.add_argument("--version", action="version", version=f"moesr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sr.add_parser(commands)
    join.add_parser(commands)
    train.add_parser(commands)
    segment.add_parser(commands)
    models.add_parser(commands)
    check.add_parser(commands)
    slurm.add_parser(commands)
    status.add_parser(commands)
    export.add_parser(commands)
    _add_rerun(commands)
    return parser


def _add_rerun(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "rerun",
        help="repeat an image of moesr-bids from its sidecar",
        description="Make a super-resolved image again from the JSON file beside it and compare the two. Exit code 0: "
        "the same to the last bit; 1: another, or it cannot be repeated.",
    )
    parser.add_argument("sidecar", type=Path, metavar="SIDECAR.json", help="sidecar of a desc-moesr image")
    parser.add_argument("--bids-dir", type=Path, metavar="DIR", help="where the input is (default: as recorded)")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="keep the new outputs there (default: drop them)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 success, 1 input that cannot be used, 2 bad usage."""
    parser = build_parser()
    options, others = parser.parse_known_args(argv)
    if options.command == "slurm":
        return slurm.main(options, others)
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if module := _COMPUTING.get(options.command):
        return _compute(module, options)
    rest: dict[str, Callable[[argparse.Namespace], int]] = {
        "models": _models,
        "check": check.run,
        "status": status.run,
        "export": export.run,
        "rerun": _rerun,
    }
    return rest[options.command](options)


def _models(options: argparse.Namespace) -> int:
    try:
        return models.run(options)
    except ValueError as error:
        tell("moesr models", str(error))
        return 1


def _rerun(options: argparse.Namespace) -> int:
    from . import rerun  # it reads images and data sets, which --help need not

    return rerun.main(options)


def _compute(module: ModuleType, options: argparse.Namespace) -> int:
    """Run a command that computes, and turn errors into a message and an exit code."""
    command = f"moesr {options.command}"
    if problem := module.usage_problem(options):
        tell(command, problem)
        return 2
    _set_threads(options)
    try:
        code: int = module.run(options)
    except ImageError as error:
        tell(command, str(error))
        return 1
    except ValueError as error:
        tell(command, str(error))
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        tell(command, f"{where}{error.strerror or error}; {module.LEFT}")
        return 1
    except MemoryError as error:
        # The engine's message already says what to do; NumPy's only names the array.
        told = str(error) if "; use " in str(error) else f"{error or 'not enough memory'}; use {module.WAY_OUT}"
        tell(command, told)
        return 1
    return code


def _set_threads(options: argparse.Namespace) -> None:
    """Set the environment variables that libraries read when they are imported."""
    # Huge pages avoid page faults of large volumes.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if options.omp_nthreads:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(options.omp_nthreads)
    if options.command == "train":
        # NumPy decomposes only small matrices: its threads would wait for each other and for PyTorch's.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"


if __name__ == "__main__":
    sys.exit(main())
