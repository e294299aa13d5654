"""`lander` for training, in DGL; `engine.model.lander` has the formulas and runs the same weights.

Parameters have the names of the authors' code with one convolution, so either's weights load.
"""

from __future__ import annotations

import dgl
import dgl.ops
import torch
from torch import Tensor, nn

from engine.model.lander import LanderCard, LanderModel
from engine.model.lander_kernels import LEAK


class MeanAffinity(nn.Module):
    """U x_i + V sum_j a_ij x_j + b."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(2 * features, hidden)

    def forward(self, graph: dgl.DGLGraph, x: Tensor, affinity: Tensor) -> Tensor:
        own, other = self.mlp.weight.chunk(2, dim=1)
        near: Tensor = dgl.ops.u_mul_e_sum(graph, x @ other.t(), affinity[:, None])
        return x @ own.t() + near + self.mlp.bias


class Attention(nn.Module):
    """sum_j c_ij W x_j + b of each head, (n, heads, hidden)."""

    def __init__(self, features: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, heads * hidden, bias=False)
        self.attn_l = nn.Parameter(torch.empty(1, heads, hidden))
        self.attn_r = nn.Parameter(torch.empty(1, heads, hidden))
        self.bias = nn.Parameter(torch.zeros(heads * hidden))
        for weight in (self.fc.weight, self.attn_l, self.attn_r):
            nn.init.xavier_normal_(weight, gain=2**0.5)

    def forward(self, graph: dgl.DGLGraph, x: Tensor, affinity: Tensor) -> Tensor:
        z = self.fc(x).unflatten(1, self.attn_l.shape[1:])  # (n, heads, hidden)
        left, right = ((z * weight).sum(dim=-1, keepdim=True) for weight in (self.attn_l, self.attn_r))
        score = nn.functional.leaky_relu(dgl.ops.u_add_v(graph, left, right), LEAK)
        out: Tensor = dgl.ops.u_mul_e_sum(graph, z, dgl.ops.edge_softmax(graph, score))
        return out + self.bias.view(self.attn_l.shape[1:])


class Convolution(nn.Module):
    """One convolution of a card's variant, with its nonlinearity: (n, hidden)."""

    def __init__(self, card: LanderCard) -> None:
        super().__init__()
        self.gcn_layer: MeanAffinity | Attention
        if card.variant == "mean":
            self.gcn_layer = MeanAffinity(card.features, card.hidden)
        else:
            self.gcn_layer = Attention(card.features, card.hidden, card.heads)
            self.bias = nn.Parameter(torch.zeros(card.heads, card.hidden))

    def forward(self, graph: dgl.DGLGraph, x: Tensor, affinity: Tensor) -> Tensor:
        out = self.gcn_layer(graph, x, affinity)
        if isinstance(self.gcn_layer, Attention):
            out = (out + self.bias).mean(dim=1)
        return torch.relu(out)


class Lander(nn.Module):
    """The network. Edges of its graphs lead from a neighbour to the node in whose list it is."""

    def __init__(self, card: LanderCard, dropout: float = 0.0) -> None:
        super().__init__()
        self.card, half = card, card.half
        self.conv = nn.ModuleList([Convolution(card)])
        self.src_mlp = nn.Linear(card.hidden, half)
        self.dst_mlp = nn.Linear(card.hidden, half)
        first = nn.PReLU(half, init=-0.5)  # both signs of a difference tell of a distance
        self.classifier_conn = nn.Sequential(first, nn.Linear(half, half), nn.PReLU(half), nn.Linear(half, 2))
        self.drop = nn.Dropout(dropout)
        with torch.no_grad():  # begins with differences of the two ends, which any space has a use for
            self.dst_mlp.weight.copy_(-self.src_mlp.weight)

    def forward(self, graph: dgl.DGLGraph, x: Tensor, affinity: Tensor) -> Tensor:
        """Return the logits (e,) of all edges: x (n, features), affinity (e,) as in `engine.model.lander`."""
        h = self.drop(self.conv[0](graph, self.drop(x), affinity))
        q = dgl.ops.u_add_v(graph, self.src_mlp(h), self.dst_mlp(h))
        z = self.classifier_conn(q)
        logits: Tensor = z[:, 1] - z[:, 0]
        return logits

    def model(self) -> LanderModel:
        """Return the weights as the engine runs them."""
        return LanderModel({name: value.clone() for name, value in self.state_dict().items()}, self.card)
