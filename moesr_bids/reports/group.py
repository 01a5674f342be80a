"""Cohort tables and page, from the files of an output folder: ``group_<suffix>.tsv``, ``.json``, ``group.html``."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pandas as pd

from moesr_bids.atomic import write_text
from moesr_bids.reports.columns import COLUMNS, OUTLIER_RULE, Column, data_dictionary, metrics_of
from moesr_bids.reports.derivatives import ImageRecord, find_images
from moesr_bids.reports.fragments import state_words
from moesr_bids.reports.plots import LEAST_IMAGES, Metric, distributions, outliers
from moesr_bids.reports.ratings import ratings_files, read_ratings, with_ratings, write_dictionaries
from moesr_bids.reports.templates import render
from moesr_bids.reports.values import NOT_AVAILABLE, number, stated
from moesr_bids.reports.verdict import reasons, verdict


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else stated(value)
    return " ".join(text.split()) or NOT_AVAILABLE


def _table(records: Sequence[ImageRecord]) -> str:
    table = pd.DataFrame({column.name: [_cell(column.value(record)) for record in records] for column in COLUMNS})
    return table.to_csv(sep="\t", index=False, lineterminator="\n", quoting=csv.QUOTE_NONE)


def _row(out_dir: Path, record: ImageRecord, columns: Sequence[Column]) -> dict[str, Any]:
    report = f"{record.participant}.html"
    values = [column.value(record) for column in columns]
    return {
        "link": f"{report}#image-{record.key}" if (out_dir / report).exists() else None,
        "state": record.state,
        "record": record,
        "settings": record.moesr and record.moesr.settings_hash,
        "cells": [number(value, 4) if isinstance(value, float) else _cell(value) for value in values],
    }


def _page(
    out_dir: Path,
    records: Sequence[ImageRecord],
    metrics: Sequence[Metric],
    tables: Sequence[str],
    stale_ratings: Sequence[str],
) -> str:
    columns = [column for column in COLUMNS if column.heading]
    incomplete = [record for record in records if not record.complete and record.state != "apart"]
    verdicts = {record.key: verdict(record) for record in records}
    rows = [_row(out_dir, record, columns) for record in records]
    links = [row["link"] for row in rows]
    plots = distributions(records, metrics, [record.outlier_in for record in records], links)
    return render(
        "group.html.j2",
        columns=columns,
        rows=rows,
        plots=plots,
        least_images=LEAST_IMAGES,
        outlier_rule=OUTLIER_RULE,
        incomplete=[
            {"key": record.key, "words": state_words(record), "link": _row(out_dir, record, ())["link"]}
            for record in incomplete
        ],
        to_look_at=[
            {"key": record.key, "words": "; ".join(reasons(record)), "link": _row(out_dir, record, ())["link"]}
            for record in records
            if verdicts[record.key] == "look"
        ],
        counts={word: list(verdicts.values()).count(word) for word in ("ok", "look", "failed", "unfinished", "apart")},
        participants=len({record.participant for record in records}),
        tables=tables,
        stale_ratings=stale_ratings,
    )


def build_group(out_dir: Path) -> tuple[Path, ...]:
    """Write the cohort tables and the cohort page of an output folder.

    Parameters
    ----------
    out_dir : pathlib.Path
        Output folder of the app; only sidecars, ``logs/status`` and saved ratings (``*ratings*.tsv``) are read.

    Returns
    -------
    tuple of pathlib.Path
        ``group_<suffix>.tsv`` and ``.json`` per suffix, then ``group.html``. If the folder holds neither a sidecar of
        a main output nor a status file, nothing is written, and the tuple is empty.

    Raises
    ------
    ValueError
        If a table of ratings cannot be read.

    """
    out_dir = Path(out_dir).absolute()
    records = find_images(out_dir)
    if not records:
        return ()
    saved = ratings_files(out_dir)
    records, stale_ratings = with_ratings(records, read_ratings(saved))
    # Outputs of an earlier run do not count for an image that failed since.
    records = [record if record.complete else attrs.evolve(record, moesr=None, rating={}) for record in records]
    write_dictionaries(saved)
    metrics = metrics_of(records)
    outlying = outliers(records, metrics)
    records = [attrs.evolve(record, outlier_in=tuple(names)) for record, names in zip(records, outlying, strict=True)]
    written: list[Path] = []
    for suffix in sorted({record.suffix for record in records if record.suffix}):
        table, dictionary = out_dir / f"group_{suffix}.tsv", out_dir / f"group_{suffix}.json"
        write_text(table, _table([record for record in records if record.suffix == suffix]))
        write_text(dictionary, json.dumps(data_dictionary(), indent=2) + "\n")
        written += [table, dictionary]
    page = out_dir / "group.html"
    tables = [path.name for path in written if path.suffix == ".tsv"]
    write_text(page, _page(out_dir, records, metrics, tables, stale_ratings))
    return (*written, page)
