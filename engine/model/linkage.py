"""The universal linkage model, which reads relations in place of embeddings and so fits any space.

It has two networks of `engine.model.network`: one for level 0, and one for the levels above it, which also
reads the evidence between supernodes. One file holds the weights of both; its card is next to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from engine.errors import InputError
from engine.model import files
from engine.model.evidence_features import EDGE_EVIDENCE, NODE_EVIDENCE
from engine.model.features import HALFWAY, edge_feature_names, node_feature_names
from engine.model.network import Linkage, Universal, UniversalConfig
from engine.model.ranges import Ranges
from engine.types import Epoch

import safetensors  # isort: skip
import safetensors.torch  # isort: skip
import torch  # isort: skip
from torch import Tensor  # isort: skip

PRETRAINED = Path(__file__).parent / "pretrained" / "universal.safetensors"
UPPER = "upper."  # before the names of the upper network's tensors


@dataclass(frozen=True, slots=True)
class Card:
    """Hyperparameters and defaults, stored next to the weights. `about`: training sets, scores, seed ..."""

    k: int = 10
    hidden: int = 48  # width of the level-0 network
    upper_hidden: int = 48  # width of the upper network
    tau: float = 0.6
    base_tau: float | None = None  # level 0's; None: tau
    max_levels: int = 2
    mean: float = 0.1  # random-pair similarity assumed for collections too small to measure
    deviation: float = 0.1
    about: dict[str, Any] = field(default_factory=dict)


class LinkageModel:
    """Both networks with their card. `k`, `tau`, `base_tau` and `max_levels` are the card's.

    `default_epoch` is the calibration of collections too small to be measured. `sha256` is a digest of the
    weights and everything else that the output depends on.
    """

    dim: int | None = None  # of its input: any

    def __init__(self, base: Linkage, upper: Linkage, card: Card) -> None:
        self.base, self.upper, self.card = base, upper, card
        self.k, self.tau, self.base_tau, self.max_levels = card.k, card.tau, card.base_tau, card.max_levels
        self.default_epoch = Epoch(card.mean, card.deviation, 0)
        self.sha256 = _digest(self._bytes(), card)

    def _bytes(self) -> bytes:
        return safetensors.torch.save(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights and ranges by name."""
        upper = {UPPER + name: value for name, value in self.upper.tensors().items()}
        return self.base.tensors() | upper

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], card: Card) -> LinkageModel:
        """Return the model that `tensors` was called on. Raises KeyError, RuntimeError for other tensors."""
        own = {name: value for name, value in tensors.items() if not name.startswith(UPPER)}
        above = {name.removeprefix(UPPER): tensors[name] for name in tensors.keys() - own.keys()}
        base = Linkage.of(own, UniversalConfig(card.k, card.hidden))
        return cls(base, Linkage.of(above, _upper(card)) if above else upper_of(base), card)

    def with_card(self, card: Card) -> LinkageModel:
        """Return the same weights with another card."""
        return LinkageModel(self.base, self.upper, card)

    def save(self, path: Path) -> None:
        """Write the weights to `path` (.safetensors) and the card next to it (.json)."""
        files.write(path, asdict(self.card) | {"sha256": self.sha256}, self._bytes())

    @classmethod
    def load(cls, path: Path = PRETRAINED) -> LinkageModel:
        """Read what `save` wrote; the weights that ship with Shoal by default.

        Raises InputError where the files are missing, broken, or not of one model.
        """
        return cls.parse(path, *files.read(path))

    @classmethod
    def parse(cls, path: Path, facts: Mapping[str, Any], weights: bytes) -> LinkageModel:
        """Return the model of a card and its weights, which were read from `path`. Raises InputError."""
        if "variant" in facts:
            raise files.foreign(path, "it is a lander; a universal model is wanted here")
        told = {name: value for name, value in facts.items() if name != "sha256"}
        files.require_known(path, told, [entry.name for entry in fields(Card)])
        try:
            card, tensors = Card(**told), safetensors.torch.load(weights)
            _require_features(path, tensors, card)
            model = cls.of(tensors, card)
        except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise files.foreign(path, error) from error
        values = [*model.base.net.state_dict().values(), *model.upper.net.state_dict().values()]
        if not all(torch.isfinite(value).all() for value in values):
            raise InputError(f"{path} has weights that are not finite: train it again")
        if _digest(weights, card) != facts.get("sha256"):
            raise InputError(f"{path} and its .json are not of one model: their SHA-256 differ")
        return model


def _require_features(path: Path, tensors: Mapping[str, Tensor], card: Card) -> None:
    """Raise InputError where the networks read other node features than this release computes."""
    for prefix, is_base in (("", True), (UPPER, False)):
        for layer, what, names in (
            ("node_ends", "a node", node_feature_names(card.k, is_base)),
            ("head_edge", "an edge", edge_feature_names(is_base)),
        ):
            weight = tensors.get(f"{prefix}{layer}.weight")
            if weight is not None and weight.shape[-1] != len(names):
                raise InputError(
                    f"{path} is of another release of Shoal, or its card was changed: its network reads "
                    f"{weight.shape[-1]} features of {what}, this release computes {len(names)} with "
                    f"k = {card.k}; train it again"
                )


def _upper(card: Card) -> UniversalConfig:
    return UniversalConfig(card.k, card.upper_hidden, is_base=False)


def _digest(weights: bytes, card: Card) -> str:
    facts = f"{card.k} {card.hidden} {card.mean!r} {card.deviation!r}".encode()
    if card.base_tau is not None:
        facts += f" {card.base_tau!r}".encode()
    return hashlib.sha256(weights + facts).hexdigest()


def upper_of(base: Linkage) -> Linkage:
    """Return an upper network that computes what `base` does, of the features that both read."""
    weights = dict(base.net.state_dict())
    nodes, edges = len(base.nodes.low), len(base.edges.low) - len(HALFWAY)  # that both networks read
    for name, shared, added in (
        ("node_ends", nodes, len(NODE_EVIDENCE)),
        ("message_edge", edges, len(EDGE_EVIDENCE)),
        ("head_edge", edges, len(EDGE_EVIDENCE)),
    ):
        weight = weights[f"{name}.weight"][:, :shared]
        weights[f"{name}.weight"] = torch.cat([weight, weight.new_zeros((len(weight), added))], dim=1)
    net = Universal(replace(base.net.config, is_base=False))
    net.load_state_dict(weights)
    own = base.nodes.beside(Ranges.none(len(NODE_EVIDENCE)))
    return Linkage(net, own, base.edges.first(edges).beside(Ranges.none(len(EDGE_EVIDENCE))))
