from itertools import pairwise

import pytest
import torch
from reference import NUM_LAYERS, layer_states, unchanged

from ulskip_cli.inference.layerwise import block_influence

TEXTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [15, 16]]


def test_influence_is_one_minus_the_mean_cosine_of_the_states_before_and_behind(model):
    texts = [layer_states(model, torch.tensor([text])) for text in TEXTS]
    states = [torch.cat([text[i] for text in texts], 1) for i in range(NUM_LAYERS + 1)]
    expected = [
        1 - float(torch.cosine_similarity(before, behind, dim=-1).mean())
        for before, behind in pairwise(states)
    ]
    with unchanged(model):
        assert block_influence(model, TEXTS, 2) == pytest.approx(expected, abs=2e-5)
