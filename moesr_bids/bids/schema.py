"""Typed JSON records: attrs classes that cattrs reads and writes, with keys in the style of BIDS sidecars.

A class declares a fact once, as an attribute; `json_key` gives its key in the file. Every value is checked on reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NewType, TypeVar, get_args, get_origin

import attrs
from cattrs import BaseValidationError, Converter, transform_error
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override
from cattrs.v import format_exception

SCHEMA_VERSION = 2
"""Version of the ``Moesr`` object and of ``logs/status``; it grows when a key changes its name or its meaning."""

InnerPath = NewType("InnerPath", str)
"""Path below a folder, with forward slashes, neither absolute nor with ``..``; see `inside`."""

T = TypeVar("T")
_WORDS = {name.lower(): name for name in ("PSF", "SHA256", "ML", "MM", "GB", "FWHM")}  # the others are capitalised


class RecordError(ValueError):
    """A record is missing, damaged or of another version; its image counts as not done."""


def json_key(name: str) -> str:
    """Return the JSON key of an attribute.

    Examples
    --------
    >>> json_key("input_sha256"), json_key("volume_ml"), json_key("lambda_"), json_key("fraction_beyond3")
    ('InputSHA256', 'VolumeML', 'Lambda', 'FractionBeyond3')

    """
    return "".join(_WORDS.get(word, word.capitalize()) for word in name.split("_") if word)


def inner_path(text: Any, kind: Any = InnerPath) -> InnerPath:
    """Check a path in a record, and return it.

    Raises
    ------
    ValueError
        If it is no text, is absolute, or leaves its folder by ``..``.

    """
    del kind
    if not isinstance(text, str) or not text or "\\" in text or "\0" in text:
        raise ValueError(f"{text!r} is no path below a folder")
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{text!r} leaves its folder")
    return InnerPath(text)


def inside(folder: Path, path: str) -> Path:
    """Return the file in ``folder`` that a record names.

    Raises
    ------
    RecordError
        If the path leaves the folder, by itself or through a link.

    """
    try:
        file = folder / inner_path(path)
    except ValueError as error:
        raise RecordError(f"{folder}: a record names a file outside: {error}") from None
    # The file itself may be a link to its content, as data managers make them; its folder may not.
    if not file.parent.resolve().is_relative_to(folder.resolve()):
        raise RecordError(f"{folder}: a record names {path}, which a link leads out of the folder")
    return file


def _plain(*kinds: type) -> Callable[[Any, Any], Any]:
    def structure(value: Any, kind: Any) -> Any:
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError(f"{value!r} is no {kind.__name__}")
        return kind(value)

    return structure


def _sequence(converter: Converter) -> Callable[[Any, Any], Any]:
    def structure(value: Any, kind: Any) -> tuple[Any, ...]:
        items = get_args(kind)
        if not isinstance(value, list | tuple):
            raise TypeError(f"{value!r} is no list")
        if items[-1] is ...:
            items = items[:1] * len(value)
        if len(items) != len(value):
            raise ValueError(f"{value!r} has not {len(items)} items")
        return tuple(converter.structure(one, item) for one, item in zip(value, items, strict=True))

    return structure


def _make_converter(*, strict: bool, key: Callable[[str], str]) -> Converter:
    converter = Converter(detailed_validation=True)
    converter.register_structure_hook(str, _plain(str))
    converter.register_structure_hook(int, _plain(int))
    converter.register_structure_hook(float, _plain(int, float))
    converter.register_structure_hook(bool, _plain(bool))
    converter.register_structure_hook(InnerPath, inner_path)
    converter.register_structure_hook_func(lambda kind: get_origin(kind) is tuple, _sequence(converter))

    def names(cls: type) -> dict[str, Any]:
        attrs.resolve_types(cls)
        # Facts that are None are left out when a record is written.
        return {
            field.name: override(rename=key(field.name), omit_if_default=strict and field.default is None)
            for field in attrs.fields(cls)
        }

    converter.register_structure_hook_factory(
        attrs.has,
        lambda cls: make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=strict, **names(cls)),
    )
    converter.register_unstructure_hook_factory(
        attrs.has,
        lambda cls: make_dict_unstructure_fn(cls, converter, **names(cls)),
    )
    return converter


# Unknown keys are refused when a record is made, and ignored when one is read.
_MAKING = _make_converter(strict=True, key=json_key)
_READING = _make_converter(strict=False, key=json_key)
PLAIN = _make_converter(strict=False, key=str)
"""Converter for classes whose keys are the names of their attributes."""


def make(cls: type[T], facts: Any) -> T:
    """Make a record from facts of this run.

    Raises
    ------
    RecordError
        If a fact is missing, of the wrong type, or has no attribute in `cls`.

    """
    return _structured(_MAKING, cls, facts, cls.__name__)


def structured(cls: type[T], content: Any, where: str, converter: Converter = _READING) -> T:
    """Make a record from the content of a file.

    Parameters
    ----------
    cls : type
        Class of the record.
    content : Any
        JSON object.
    where : str
        File name for the message.
    converter : cattrs.Converter
        Decides the style of the keys; by default that of `json_key`.

    Raises
    ------
    RecordError
        If it is damaged.

    """
    return _structured(converter, cls, content, where)


def _structured(converter: Converter, cls: type[T], content: Any, where: str) -> T:
    if not isinstance(content, dict):
        raise RecordError(f"{where}: the record is no JSON object")
    try:
        return converter.structure(content, cls)
    except BaseValidationError as error:
        raise RecordError(
            f"{where}: the record is damaged ({'; '.join(transform_error(error, format_exception=_words)[:3])})"
        ) from None
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise RecordError(f"{where}: the record is damaged ({error})") from None


def _words(error: BaseException, kind: type | None) -> str:
    """Say what is wrong with a value, by the error's own words where it has any."""
    own = isinstance(error, TypeError | ValueError) and not isinstance(error, ForbiddenExtraKeysError)
    return str(error) if own else format_exception(error, kind)


def unstructured(record: Any) -> dict[str, Any]:
    """Return the JSON object of a record; facts that are None are left out."""
    content: dict[str, Any] = _MAKING.unstructure(record)
    return content


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    RecordError
        If the file does not exist, cannot be read, or holds no JSON object.

    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} could not be read ({error})") from None
    if not isinstance(content, dict):
        raise RecordError(f"{path} does not hold a JSON object")
    return content
