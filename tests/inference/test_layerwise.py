import pytest
import torch
from reference import NUM_LAYERS, layer_states, unchanged

from ulskip_cli.inference.layerwise import state_similarity

TEXTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [15, 16]]


def test_similarity_is_the_mean_cosine_of_the_states_at_two_depths(model):
    texts = [layer_states(model, torch.tensor([text])) for text in TEXTS]
    states = [torch.cat([text[i] for text in texts], 1) for i in range(NUM_LAYERS + 1)]
    expected = [
        [float(torch.cosine_similarity(first, second, dim=-1).mean()) for first in states]
        for second in states
    ]
    with unchanged(model):
        found = state_similarity(model, TEXTS, 2)
    assert all(
        row == pytest.approx(wanted, abs=2e-5) for row, wanted in zip(found, expected, strict=True)
    )
