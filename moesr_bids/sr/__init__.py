"""Super-resolution engine: acquisition operator, reconstruction models, projection onto the data, metrics.

Everything here works on NIfTI images and arrays alone: neither Nipype nor BIDS is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Result, super_resolve
    from .options import SROptions

__all__ = ["Result", "SROptions", "super_resolve"]
_MODULES = {"Result": "engine", "SROptions": "options", "super_resolve": "engine"}


def __getattr__(name: str) -> Any:
    # On first use: PyTorch takes seconds to import, and --help shall not.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
