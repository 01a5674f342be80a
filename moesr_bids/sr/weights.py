"""Weights of learned models: a safetensors file and a JSON card of the same name beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from attrs import field, frozen

from ..atomic import temporary_beside
from ..digests import sha256

if TYPE_CHECKING:
    import torch

    from .models.mixture import MixtureNetwork
    from .models.network import ResidualNetwork

    Network: TypeAlias = ResidualNetwork | MixtureNetwork

Shape = TypeVar("Shape")

PACKAGED = Path(__file__).resolve().parents[1] / "data" / "weights"
SUFFIX = ".safetensors"
_TYPICAL_DETAIL = 0.5  # of weights that were not calibrated


@frozen(eq=False)
class Weights:
    """A trained network and its card.

    Parameters
    ----------
    path
        The safetensors file.
    sha256
        Of the file.
    card
        Facts: the data it was trained on, for how long, on which hardware, how good it is, and its calibration.
    """

    path: Path
    sha256: str
    card: Mapping[str, Any] = field(factory=dict)

    @classmethod
    def read(cls, path: Path) -> Weights:
        """Read the card of a weights file and check that the file is the one it describes.

        Raises
        ------
        ValueError
            If the file or its card is missing or damaged, or they do not belong together.
        """
        card_path = path.with_suffix(".json")
        try:
            digest = sha256(path)
            card = json.loads(card_path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(
                f"weights {path}: {error.filename} cannot be read ({error.strerror}); a model is a .safetensors file "
                "with its .json card beside it, as moesr train writes them"
            ) from None
        except ValueError as error:
            raise ValueError(f"weights {path}: the card {card_path} is not valid JSON ({error})") from None
        if not isinstance(card, dict) or card.get("sha256") != digest:
            raise ValueError(f"weights {path}: not the file that its card {card_path} describes; get both again")
        return cls(path, digest, card)

    @property
    def kind(self) -> str:
        """Kind of the network: ``student`` or ``moediff``."""
        return str(self.card.get("kind", "student"))

    @property
    def participants(self) -> set[str]:
        """Participants (``sub-...``) that these weights, or weights they come from, were trained on."""
        data = self.card.get("data", {})
        names = data.get("participants") or [*data.get("scans", ()), *data.get("label_maps", ())]
        return {str(name).split("_", 1)[0] for name in names}

    @property
    def synthesis(self) -> bool:
        """Whether the network was trained to translate one contrast into another."""
        return bool(self.card.get("synthesis", False))

    def calibration(self, contrast: str) -> dict[str, Any]:
        """Return the calibration of the predicted standard deviation.

        Parameters
        ----------
        contrast
            BIDS suffix; may be empty.

        Returns
        -------
        calibration
            ``Temperature``: factor of the standard deviation, of the contrast, else of all contrasts, else 1.
            ``Contrasts``: those whose scans the factor is from. ``Coverage``: share of voxels inside each interval,
            empty where it was not measured.
        """
        factors = self.card.get("temperature", {})
        return {
            "Temperature": self._of_contrast("temperature", contrast, 1.0),
            "Contrasts": [contrast] if contrast in factors else sorted(set(factors) - {"all"}),
            "Coverage": self.card.get("coverage", {}).get(contrast, {}),
        }

    def detail_share(self, contrast: str) -> float:
        """Return the share of the error's variance that is given to samples as detail (:mod:`.models.detail`)."""
        return self._of_contrast("detail", contrast, _TYPICAL_DETAIL)

    def _of_contrast(self, key: str, contrast: str, uncalibrated: float) -> float:
        values = self.card.get(key, {})
        return float(values.get(contrast, values.get("all", uncalibrated)))

    def shape(self, kind: Callable[..., Shape]) -> Shape:
        """Return the sizes of the network in the card, as an instance of ``kind``.

        Raises
        ------
        ValueError
            If this version does not know such a network.
        """
        try:
            return kind(**self.card["network"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"weights {self.path}: their card names a network that this version does not know ({error}); update "
                "moesr-bids, or train again"
            ) from error

    def network(self, device: torch.device) -> Network:
        """Build the network, in evaluation mode, float32.

        Raises
        ------
        ValueError
            If the weights do not fit the network that the card names.
        """
        import torch
        from safetensors.torch import load_file

        try:
            network = self._blank()
            network.load_state_dict(load_file(self.path))
        except RuntimeError as error:
            raise ValueError(f"weights {self.path}: not of the network that the card names ({error})") from error
        return network.to(device, memory_format=torch.channels_last_3d).eval().requires_grad_(False)  # type: ignore[call-overload]

    def _blank(self) -> Network:
        """Build the network without its weights."""
        if self.kind == "moediff":
            from .models.mixture import MixtureNetwork, MixtureShape

            return MixtureNetwork(self.shape(MixtureShape))
        from .models.network import NetworkShape, ResidualNetwork

        return ResidualNetwork(self.shape(NetworkShape))


def write_weights(path: Path, network: Network, card: Mapping[str, Any]) -> Weights:
    """Write weights and their card; each file appears only when it is whole.

    Weights are stored as float16, half the size of float32; the rounding is far below the noise.

    Parameters
    ----------
    path
        Safetensors file to write; the card goes beside it.
    network
        Trained network.
    card
        Facts; this function adds ``network`` and ``sha256``.
    """
    from safetensors.torch import save

    tensors = {name: _stored(value) for name, value in network.state_dict().items()}
    with temporary_beside(path) as temporary, temporary_beside(path.with_suffix(".json")) as card_file:
        content = save(tensors)
        temporary.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        facts = {**card, "network": network.shape.record(), "sha256": digest}
        card_file.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return Weights(path, digest, facts)


def _stored(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().cpu().contiguous()
    return value.half() if value.is_floating_point() else value
