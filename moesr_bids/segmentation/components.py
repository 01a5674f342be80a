"""Connected parts of masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest part of a mask whose voxels are connected by faces."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    found: NDArray[np.bool_] = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return found
