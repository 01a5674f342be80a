"""The structures of the brain that the segmentation tells apart; without any heavy import."""

from __future__ import annotations

from attrs import frozen

LEFT, RIGHT, MIDLINE = "left", "right", ""


@frozen
class Structure:
    """A class of the segmentation.

    Attributes
    ----------
    index : int
        Channel of the network and value in the label image.
    name : str
        Name in tables.
    side : str
        ``left``, ``right``, or empty for the midline and structures without sides.
    tissue : str
        Name without the side.

    """

    index: int
    name: str
    side: str
    tissue: str


_TISSUES: tuple[tuple[str, bool], ...] = (
    ("background", False),
    ("extracerebral", False),
    ("csf", False),
    ("brainstem", False),
    ("midline ventricles", False),
    ("lateral ventricle", True),
    ("cortex", True),
    ("white matter", True),
    ("deep grey matter", True),
    ("cerebellum", True),
)


def _structures() -> tuple[Structure, ...]:
    found: list[Structure] = []
    for tissue, sided in _TISSUES:
        for side in (LEFT, RIGHT) if sided else (MIDLINE,):
            found.append(Structure(len(found), f"{side} {tissue}".strip(), side, tissue))
    return tuple(found)


STRUCTURES = _structures()
BACKGROUND, EXTRACEREBRAL, CSF = 0, 1, 2
BRAIN = tuple(structure.index for structure in STRUCTURES if structure.index > EXTRACEREBRAL)
INDEX = {structure.name: structure.index for structure in STRUCTURES}
MIRRORED = tuple(INDEX[f"{RIGHT if s.side == LEFT else LEFT} {s.tissue}"] if s.side else s.index for s in STRUCTURES)
"""Index of the same structure on the other side, by index."""
