"""``moesr models``: list the models with their figures, and check their weights."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to those of ``moesr``."""
    parser = commands.add_parser(
        "models",
        help="list the models with their figures and check their weights",
        description="List the models. For learned ones, say what they were trained on, and how much they gain over "
        "cubic-spline interpolation on scans that were not trained on (kspace2: a resolution of 2 voxels; slices4k: "
        "slices of 4 voxels along the axis k). The digest of all weights is checked.",
    )
    parser.add_argument("weights", nargs="*", type=Path, metavar="FILE", help="further weights, from moesr train")


def run(options: argparse.Namespace) -> int:
    """Print the list.

    Raises
    ------
    ValueError
        If weights are damaged or are not those that their card describes.

    """
    from ..sr.models import DEFAULT_MODEL, get_model, model_names, weights_path
    from ..sr.weights import Weights

    for name in [*model_names(), *map(str, options.weights)]:
        model, path = get_model(name), weights_path(name)
        print(f"{name}{' (default)' if name == DEFAULT_MODEL else ''}: {model.card.summary}")
        if path is not None:
            for line in _facts(Weights.read(path)):
                print(f"  {line}")
    return 0


def _trainings_before(card: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the trainings of the weights that these started from, and of their trunk, by digest."""
    found: dict[str, Mapping[str, Any]] = {}
    for origin in ("started_from", "trunk"):
        if before := card.get(origin, {}):
            if "training" in before:
                found[str(before.get("sha256"))] = before["training"]
            found |= _trainings_before(before)
    return found


def _facts(weights: Any) -> list[str]:
    from safetensors import safe_open

    card: Mapping[str, Any] = weights.card
    with safe_open(weights.path, "np") as stored:
        tensors = [stored.get_tensor(key) for key in stored.keys()]  # noqa: SIM118
        parameters = sum(tensor.size for tensor in tensors if tensor.dtype.kind == "f")
    training = card.get("training", {})
    lines = [
        f"weights {weights.sha256[:12]}, {parameters / 1e6:.2f} million parameters, "
        f"{weights.path.stat().st_size / 1e6:.1f} MB: as the card says",
        f"trained for {training.get('minutes', 'n/a')} minutes, {training.get('steps', 'n/a')} steps, on "
        f"{training.get('hardware', 'n/a')}; {len(card.get('data', {}).get('scans', []))} scans and "
        f"{len(card.get('data', {}).get('label_maps', []))} label maps",
    ]
    before = _trainings_before(card).values()
    if before:
        minutes, steps = (sum(training.get(key, 0) for training in before) for key in ("minutes", "steps"))
        lines.append(f"after {minutes:.0f} minutes, {steps} steps of the weights that it started from and is built on")
    for group, gain in card.get("validation", {}).items():
        lines.append(
            f"{', '.join(gain.get('cases', [group]))}: {gain['gain_psnr_db']:+.2f} dB PSNR over cubic "
            f"(worst scan {gain['worst_gain_psnr_db']:+.2f}), {gain['gain_ssim']:+.3f} SSIM"
        )
    contrasts = sorted(set(card.get("temperature", {})) - {"all"})
    calibrated = f"calibrated on {' and '.join(contrasts)} scans" if contrasts else "not calibrated"
    lines.append(f"uncertainty: {calibrated}")
    for contrast, coverage in card.get("coverage", {}).items():
        held = ", ".join(f"{level} % interval holds {100 * share:.0f} %" for level, share in coverage.items())
        lines.append(f"uncertainty of {contrast} scans that had no part in its calibration: {held}")
    return lines
