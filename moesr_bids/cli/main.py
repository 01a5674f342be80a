"""The BIDS App command ``moesr-bids``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moesr_bids.config import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``moesr-bids`` and return its exit code: 0 success, 1 something failed, 2 bad usage, 130 interrupted."""
    from moesr_bids.cli.parser import parse_settings

    settings = parse_settings(sys.argv[1:] if argv is None else argv)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(settings.verbose, 2)]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    # Compute nodes have no network: neither Nipype nor TemplateFlow may look for one at import.
    os.environ.setdefault("NO_ET", "1")
    os.environ.setdefault("NIPYPE_NO_ET", "1")
    os.environ.setdefault("TEMPLATEFLOW_AUTOUPDATE", "off")
    from moesr_bids.console import tell
    from moesr_bids.errors import UsageError
    from moesr_bids.run.ending import ended_with_its_children

    try:
        with ended_with_its_children():
            return _run(settings)
    except KeyboardInterrupt:
        tell("moesr-bids", "interrupted; the same command goes on from here")
        return 128 + signal.SIGINT
    except UsageError as error:
        tell("moesr-bids", f"error: {error}")
        return 2
    except OSError as error:
        # Most often a full or read-only disk: the message names the file, a traceback would hide it.
        tell("moesr-bids", f"error: {error}")
        return 1


def _run(settings: Settings) -> int:
    if settings.analysis_level == "group":
        from moesr_bids.cli.group import run_group

        return run_group(settings)
    from moesr_bids.run.participants import run_participants

    return run_participants(settings)


if __name__ == "__main__":
    sys.exit(main())
