"""Ratings that people gave on the pages and saved as tables; the group level reads them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import attrs
import pandas as pd

from moesr_bids.atomic import write_text
from moesr_bids.bids.dataset import data_dictionary
from moesr_bids.reports.derivatives import ImageRecord
from moesr_bids.reports.values import NOT_AVAILABLE

COLUMNS = {
    "participant_id": "Participant",
    "session_id": "Session",
    "image": "Name of the input image without extension",
    "rating": "keep or exclude; n/a: undecided",
    "comment": "What the rater wrote",
    "settings_hash": "Digest of the settings with which the rated image was made",
    "rated": "When, in Coordinated Universal Time, ISO 8601",
}


@attrs.frozen
class Rating:
    """Rating of an image: ``keep`` or ``exclude``, a comment, the digest of its settings, and the time."""

    rating: str
    comment: str
    settings_hash: str
    rated: str


def ratings_files(out_dir: Path) -> list[Path]:
    """Return the tables of ratings in the output folder."""
    return sorted(out_dir.glob("*ratings*.tsv"))


def read_ratings(paths: Iterable[Path]) -> dict[str, Rating]:
    """Read tables of ratings; return the latest rating of each image.

    Raises
    ------
    ValueError
        If a file is no table of ratings.

    """
    found: dict[str, Rating] = {}
    for path in paths:
        try:
            table = pd.read_csv(
                path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE, encoding="utf-8-sig"
            )
        except (ValueError, pd.errors.ParserError) as error:
            raise ValueError(f"{path}: not a table of ratings ({error})") from None
        if missing := [name for name in COLUMNS if name not in table]:
            raise ValueError(f"{path}: no column {missing[0]}; save the ratings from the page again")
        for row in table.fillna(NOT_AVAILABLE).to_dict("records"):
            rating = Rating(*(row[name] for name in ("rating", "comment", "settings_hash", "rated")))
            if row["image"] not in found or found[row["image"]].rated <= rating.rated:
                found[row["image"]] = rating
    return found


def write_dictionaries(paths: Iterable[Path]) -> None:
    """Write the data dictionary beside each table."""
    for path in paths:
        write_text(path.with_suffix(".json"), data_dictionary(COLUMNS))


def with_ratings(records: Iterable[ImageRecord], ratings: dict[str, Rating]) -> tuple[list[ImageRecord], list[str]]:
    """Return the records with their ratings, and the images whose rated output was replaced since."""
    rated, stale = [], []
    for record in records:
        rating = ratings.get(record.key)
        if rating is not None and (record.moesr is None or rating.settings_hash != record.moesr.settings_hash):
            stale.append(record.key)
            rating = None
        told = {} if rating is None else {"rating": rating.rating, "comment": rating.comment}
        rated.append(attrs.evolve(record, rating={k: v for k, v in told.items() if v != NOT_AVAILABLE}))
    return rated, stale
