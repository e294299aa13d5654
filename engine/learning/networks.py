"""Image encoders as torch modules: a small convolutional network and a small vision transformer."""

from __future__ import annotations

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

KINDS = ("convolutional", "transformer")


class Convolutional(nn.Module):
    """Four convolutions, three of them of stride two, and a linear layer. (b, 1, s, s) -> (b, dim)."""

    def __init__(self, size: int, dim: int, width: int = 16) -> None:
        super().__init__()
        wide = 2 * width
        self.features = nn.Sequential(
            _convolution(1, width, 2), _convolution(width, wide, 2), _convolution(wide, wide, 1),
            _convolution(wide, 2 * wide, 2),
        )  # fmt: skip
        side = -(-size // 8)
        self.out = _last(2 * wide * side * side, dim)

    def forward(self, pictures: Tensor) -> Tensor:
        out: Tensor = self.out(self.features(pictures).flatten(1))
        return out


class Transformer(nn.Module):
    """A small vision transformer (arXiv 2010.11929), its patches embedded by two convolutions (2106.14881).

    One token for every four by four pixels, learned positions, `depth` layers with the norm first; a linear
    layer over all tokens. Pictures (b, 1, s, s) -> (b, dim).
    """

    def __init__(self, size: int, dim: int, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        side = -(-size // 4)
        self.patches = nn.Sequential(_convolution(1, width // 2, 2), _convolution(width // 2, width, 2))
        self.places = nn.Parameter(0.02 * torch.randn(1, side * side, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.out = _last(side * side * width, dim)

    def forward(self, pictures: Tensor) -> Tensor:
        tokens = self.patches(pictures).flatten(2).transpose(1, 2)  # (b, patches, width)
        tokens = self.layers(tokens + self.places)
        out: Tensor = self.out(self.norm(tokens).flatten(1))
        return out


def make_encoder(kind: str, size: int, dim: int) -> nn.Module:
    """Return an untrained encoder of pictures (b, 1, size, size)."""
    return Transformer(size, dim) if kind == "transformer" else Convolutional(size, dim)


def _convolution(inward: int, outward: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inward, outward, 3, stride, 1, bias=False), nn.BatchNorm2d(outward), nn.ReLU()
    )


def _last(inward: int, dim: int) -> nn.Sequential:
    """Return a linear layer with batch normalisation; without it all embeddings may keep one direction."""
    return nn.Sequential(nn.Linear(inward, dim, bias=False), nn.BatchNorm1d(dim, affine=False))
