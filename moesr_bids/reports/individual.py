"""Report of one participant, ``sub-X.html``: nireports assembles it from files of the output folder."""

from __future__ import annotations

import base64
import mimetypes
import re
from html import unescape
from pathlib import Path
from typing import Any

import attrs
from nireports.assembler.report import Report, SubReport

from moesr_bids.atomic import temporary_beside, write_text
from moesr_bids.bids.names import figure_name
from moesr_bids.reports.derivatives import ImageRecord, find_images
from moesr_bids.reports.fragments import errors_html, methods_html, summary_html, times_html, warnings_of
from moesr_bids.reports.numbers import numbers_html
from moesr_bids.reports.templates import render, template_dir
from moesr_bids.reports.values import NOT_AVAILABLE, duration, number, triple
from moesr_bids.reports.verdict import reasons, verdict

_PICTURE = re.compile(r'src="\./([^"]+)"')
# nireports puts a link to its file under each picture; a page that is moved has no such files.
_FIGURE_LINK = re.compile(r"<small>Get figure file:.*?</small>", re.DOTALL)


@attrs.frozen
class Fragment:
    """Part of the page that is no figure file, with the attributes of a nireports reportlet."""

    name: str
    components: list[tuple[str, str | None]]
    title: str | None = None
    subtitle: str | None = None
    description: str | None = None


@attrs.frozen
class ImageBlock:
    """Part of the page about one image.

    Attributes
    ----------
    name : str
        Anchor.
    title : str
        Entities of the image, as HTML.
    verdict : str
        See `moesr_bids.reports.verdict.verdict`.
    shown, folded : list
        Reportlets that are visible at once, and those that a reader unfolds.

    """

    name: str
    title: str
    verdict: str
    shown: list[Any]
    folded: list[Any]


# Visible reportlets in their order. For an image that failed, the summary of what happened comes first.
_SHOWN = ("slider", "summary", "scans", "zooms")
_SHOWN_OF_FAILED = ("summary", "slider", "zooms")
_KEY = re.compile(r'data-image="([^"]+)"')
_DESC = re.compile(r"(?:^|_)desc-([a-z]+)")


def _image_blocks(reportlets: list[Any], records: list[ImageRecord]) -> list[ImageBlock]:
    """Group the reportlets that nireports found into a block per image."""
    groups: list[list[Any]] = []
    for reportlet in reportlets:
        if reportlet.title:  # only the first of an image has one
            groups.append([])
        groups[-1].append(reportlet)
    by_key = {record.key: record for record in records}
    blocks = []
    for group in groups:
        by_desc = {found[1]: reportlet for reportlet in group if (found := _DESC.search(reportlet.name))}
        key = _KEY.search(by_desc["summary"].components[0][0])
        if key is None or key[1] not in by_key:
            continue  # figures of an image that the folder no longer has
        record = by_key[key[1]]
        order = _SHOWN if record.complete else _SHOWN_OF_FAILED
        title = group[0].title.removeprefix("Reports for: ").removesuffix(".").replace("suffix ", "")
        shown = [by_desc[desc] for desc in order if desc in by_desc]
        folded = [reportlet for desc, reportlet in by_desc.items() if desc not in order]
        blocks.append(ImageBlock(f"image-{record.key}", title, verdict(record), shown, folded))
    return blocks


def _write_fragments(figures: Path, records: list[ImageRecord]) -> None:
    """Write the fragments with recorded facts, from the sidecars."""
    figures.mkdir(parents=True, exist_ok=True)
    for record in records:
        write_text(figures / figure_name(record.key, "summary", ".html"), summary_html(record))
        for name, fragment in (("numbers", numbers_html), ("times", times_html)):
            path = figures / figure_name(record.key, name, ".html")
            if record.moesr:
                write_text(path, fragment(record.moesr))
            else:
                path.unlink(missing_ok=True)


def _overview(participant: str, records: list[ImageRecord]) -> str:
    lines = [
        {
            "key": record.key,
            "link": f"#image-{record.key}" if record.suffix else "#Errors",
            "state": record.state,
            "verdict": verdict(record),
            "reasons": reasons(record),
            "zooms": " → ".join(map(triple, (record.moesr.input_zooms, record.moesr.output_zooms)))
            if record.moesr
            else NOT_AVAILABLE,
            "residual": number(record.moesr and record.moesr.data_consistency.model.residual_std, 3),
            "warnings": len(warnings_of(record)),
            "time": duration(record.seconds),
        }
        for record in records
    ]
    versions = {record.moesr.version for record in records if record.moesr}
    return render(
        "overview.html.j2",
        participant=participant,
        lines=lines,
        complete=sum(record.complete for record in records),
        rateable=any(record.moesr for record in records),
        version=", ".join(sorted(versions)),
    )


def _doubtful_masks(figures: Path, records: list[ImageRecord]) -> list[SubReport]:
    """Return a section with the outlines of brain masks that are in doubt; an empty list if none are."""
    doubtful = []
    for record in records:
        doubts = record.moesr.brain_mask.doubts if record.moesr else ()
        picture = figures / figure_name(record.key, "brainmask", ".png")
        if doubts and picture.is_file():
            doubtful.append(
                {"key": record.key, "doubts": doubts, "picture": f"{figures.parent.name}/figures/{picture.name}"}
            )
    if not doubtful:
        return []
    html = render("doubts.html.j2", images=doubtful)
    return [SubReport("Brain in doubt", reportlets=[Fragment("doubts-text", [(html, None)])])]


def embed_figures(html: str, folder: Path) -> str:
    """Return a page with its pictures inside it, so that it can be moved or mailed alone.

    Parameters
    ----------
    html : str
        Page that nireports wrote.
    folder : pathlib.Path
        Folder of the page.

    """

    def embedded(match: re.Match[str]) -> str:
        path = folder / unescape(match[1])
        kind = mimetypes.guess_type(path.name)[0]
        return f'src="data:{kind};base64,{base64.b64encode(path.read_bytes()).decode("ascii")}"'

    return _PICTURE.sub(embedded, _FIGURE_LINK.sub("", html))


def build_participant_report(out_dir: Path, participant: str, *, single_file: bool = False) -> Path:
    """Write the report of a participant, whether the images are finished or not.

    It is made from the sidecars of the main outputs, ``logs/status``, ``logs/sub-X`` (``crash-*.txt``,
    ``CITATION.md``) and ``sub-X/figures``. Summary, numbers and times in that folder are written again from the
    sidecars.

    Parameters
    ----------
    out_dir : pathlib.Path
        Output folder of the app.
    participant : str
        Participant label, with or without ``sub-``.
    single_file : bool
        Put the pictures into the page.

    Returns
    -------
    pathlib.Path
        ``<out_dir>/sub-X.html``. It appears only when whole.

    """
    out_dir = Path(out_dir).absolute()
    participant = f"sub-{participant.removeprefix('sub-')}"
    records = find_images(out_dir, participant)
    figures = out_dir / participant / "figures"
    _write_fragments(figures, [record for record in records if record.suffix])
    target = out_dir / f"{participant}.html"
    with temporary_beside(target) as temporary:
        report = Report(
            out_dir,
            None,
            bootstrap_file=template_dir() / "individual.yml",
            out_filename=str(temporary),
            reportlets_dir=figures,
            metadata={
                "participant": participant,
                # a quote inside a quoted YAML text is doubled
                "template_path": str(template_dir() / "individual.html.j2").replace("'", "''"),
            },
        )
        report.header = [_overview(participant, records)]
        methods = SubReport(
            "Methods", reportlets=[Fragment("methods-text", [(methods_html(out_dir, participant), None)])]
        )
        errors_text = errors_html(out_dir, participant, records)
        errors = SubReport("Errors", reportlets=[Fragment("errors-text", [(errors_text, None)])])
        # Failures come first on the page.
        failed = not records or not all(record.complete or record.state == "apart" for record in records)
        for section in report.sections:
            section.reportlets = _image_blocks(section.reportlets, records)
        sections = [*_doubtful_masks(figures, records), *report.sections, methods]
        report.sections = [errors, *sections] if failed else [*sections, errors]
        report.generate_report()
        if single_file:
            temporary.write_text(embed_figures(temporary.read_text(encoding="utf-8"), out_dir), encoding="utf-8")
    return target
