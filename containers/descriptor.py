"""Boutiques descriptor of ``moesr-bids``, made from its parser so that both always agree.

python -m containers.descriptor > containers/boutiques.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from moesr_bids import __version__
from moesr_bids.arguments import positive_int
from moesr_bids.cli.parser import build_parser

_LEFT_OUT = ("help", "version", "verbose")
_NUMBERS = (positive_int, int)
_FOLDERS = ("bids_dir", "output_dir", "bids_database_dir", "work_dir", "export_raw")


def descriptor() -> dict[str, Any]:
    """Return the descriptor."""
    parser = build_parser()
    actions = [action for action in parser._actions if action.dest not in _LEFT_OUT]
    inputs = [_input(action) for action in actions]
    return {
        "name": "moesr-bids",
        "description": parser.description,
        "tool-version": __version__,
        "schema-version": "0.5",
        "author": "The moesr-bids developers",
        "command-line": " ".join(["moesr-bids", *(one["value-key"] for one in inputs)]),
        "container-image": {"type": "docker", "image": f"moesr-bids:{__version__}-cpu"},
        "inputs": inputs,
        "output-files": [
            {"id": "output", "name": "Derivatives", "path-template": "[OUTPUT_DIR]", "optional": False},
            {
                "id": "status",
                "name": "What became of every image",
                "path-template": "[OUTPUT_DIR]/logs/status.tsv",
                "optional": True,
            },
        ],
        "suggested-resources": {"cpu-cores": 4, "ram": 8, "walltime-estimate": 1800},
        "error-codes": [
            {"code": 1, "description": "Something failed; logs/status.tsv says what"},
            {"code": 2, "description": "The command line or the input was refused; nothing was processed"},
        ],
        "tags": {"domain": ["neuroinformatics", "mri", "bids-app"]},
    }


def _input(action: argparse.Action) -> dict[str, Any]:
    """Return the Boutiques entry of an option or a positional argument."""
    found: dict[str, Any] = {
        "id": action.dest,
        "name": action.dest.replace("_", " "),
        "description": (action.help or "").replace("%%", "%"),
        "value-key": f"[{action.dest.upper()}]",
        "optional": bool(action.option_strings),
    }
    if action.option_strings:
        found["command-line-flag"] = next(text for text in action.option_strings if text.startswith("--"))
    if action.nargs == 0:
        return found | {"type": "Flag"}
    if action.choices:
        found["value-choices"] = list(action.choices)
    if action.nargs == "+":
        found["list"] = True
    if action.type in _NUMBERS:
        return found | {"type": "Number", "integer": True}
    # Folders and files of the output need not exist, so Boutiques must not take them for files.
    path = action.type is Path and action.dest not in _FOLDERS
    return found | {"type": "File" if path or action.dest == "bids_dir" else "String"}


def text() -> str:
    """Return the descriptor as the text of its file."""
    return json.dumps(descriptor(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(text(), end="")
