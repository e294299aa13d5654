"""The terms in the upper network's logits: by the sizes of two supernodes, and by whether they touch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.model.features import edge_feature_names, node_feature_names
from engine.model.linkage import LinkageModel
from engine.training.terms import ADDED, Terms, with_terms

TERMS = Terms(slope=0.3, offset=0.2, most=16, isotropy=(0.1, 0.4), apart=3.0)


@pytest.mark.parametrize(("isotropy", "off"), [(0.6, 0.0), (0.25, np.log(16) / 2), (-0.1, np.log(16))])
def test_logits_differ_by_the_terms(isotropy: float, off: float) -> None:
    """`off`: what the logarithm is less by, where pairs are spread as those of random directions are."""
    model = LinkageModel.load()
    nodes, degree = 60, 5
    rng = np.random.default_rng(0)
    names = node_feature_names(model.k, False)
    sizes = rng.choice([1, 2, 5, 16, 17, 90], nodes)
    x = rng.normal(size=(nodes, len(names)))
    x[:, names.index("size")], x[:, names.index("isotropy")] = np.log(sizes), isotropy
    e = rng.normal(size=(nodes * degree, len(edge_feature_names(False))))
    joined = rng.integers(0, 2, nodes * degree)
    e[:, edge_feature_names(False).index("joined")] = joined
    tails = rng.integers(0, nodes, nodes * degree)
    logits = []
    for upper in (model.upper, with_terms(model, TERMS).upper):
        inputs = upper.nodes.apply(x.astype(np.float32)), upper.edges.apply(e.astype(np.float32))
        degrees = torch.full((nodes,), degree)
        with torch.no_grad():
            logits.append(upper.net(*map(torch.from_numpy, inputs), degrees, torch.from_numpy(tails)).numpy())
    smaller = np.minimum(np.repeat(sizes, degree), sizes[tails])
    wanted = 0.3 * np.maximum(np.log(np.minimum(smaller, 16)) - off, 0.0) - 0.2 - 3.0 * (1 - joined)
    assert np.allclose(logits[1] - logits[0], wanted, atol=1e-4)


def test_the_rest_of_a_model_stays() -> None:
    model = LinkageModel.load()
    wider = with_terms(model, TERMS)
    assert wider.card.upper_hidden == model.card.upper_hidden + ADDED
    again = LinkageModel.of(wider.tensors(), wider.card)
    assert again.sha256 == wider.sha256 != model.sha256
    for name, value in model.base.tensors().items():
        assert torch.equal(wider.base.tensors()[name], value)
