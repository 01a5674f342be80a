"""The methods text with its references, as Markdown."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path

from moesr_bids.atomic import write_text


@cache
def _bibliography() -> dict[str, dict[str, str]]:
    return tomllib.loads(files("moesr_bids").joinpath("data", "bibliography.toml").read_text(encoding="utf-8"))


def methods_markdown(description: str) -> str:
    """Turn a workflow's description with citation keys such as ``[@n4; @ants]`` into text with references.

    Raises
    ------
    KeyError
        If a key is missing from the bibliography.

    """
    bibliography = _bibliography()
    used: list[str] = []

    def short(match: re.Match[str]) -> str:
        keys = [key.strip().removeprefix("@") for key in match[1].split(";")]
        used.extend(key for key in keys if key not in used)
        return "(" + "; ".join(bibliography[key]["short"] for key in keys) + ")"

    text = re.sub(r"\[(@[^\]]+)\]", short, description)
    references = "\n".join(f"- {bibliography[key]['full']}" for key in sorted(used))
    return f"# Methods\n\n{text.strip()}\n\n# References\n\n{references}\n"


def write_citation(description: str, folder: Path) -> Path:
    """Write ``CITATION.md`` and return its path."""
    path = folder / "CITATION.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, methods_markdown(description))
    return path
