"""What the structures of the brain are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .structures import STRUCTURES

# Share of white matter, grey matter and CSF: typical of adults, for structures that mix them.
_MADE_OF = {
    "csf": (0.0, 0.0, 1.0),
    "brainstem": (0.8, 0.2, 0.0),
    "midline ventricles": (0.0, 0.0, 1.0),
    "lateral ventricle": (0.0, 0.0, 1.0),
    "cortex": (0.0, 1.0, 0.0),
    "white matter": (1.0, 0.0, 0.0),
    "deep grey matter": (0.25, 0.75, 0.0),
    "cerebellum": (0.3, 0.7, 0.0),
}
MIXTURE = np.array([_MADE_OF.get(s.tissue, (0.0, 0.0, 0.0)) for s in STRUCTURES], dtype=np.float32)
"""Shares of white matter, grey matter and CSF of each class, (classes, 3)."""


def tissue_shares(shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the shares of white matter, grey matter and CSF, (i, j, k, 3), of those of the classes, first axis."""
    return np.einsum("cijk,ct->ijkt", shares, MIXTURE)
