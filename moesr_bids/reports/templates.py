"""Templates of the reports: their folder, and how they are filled."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2


def template_dir() -> Path:
    """Return the folder of the report templates and of the report specification."""
    return Path(str(files("moesr_bids").joinpath("data", "reports")))


def render(template: str, **values: Any) -> str:
    """Fill a template of the package.

    Parameters
    ----------
    template : str
        File name in the package's ``data/reports``.
    **values
        Values of the names in the template. Text is escaped; a missing name is an error.

    Returns
    -------
    str
        HTML in plain ASCII (other characters as numeric references), so that it can be read in any encoding.

    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_dir()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(**values)
    return html.encode("ascii", "xmlcharrefreplace").decode("ascii")
