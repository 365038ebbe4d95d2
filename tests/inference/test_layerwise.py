from collections import defaultdict

import pytest
import torch
from reference import NUM_LAYERS, stack_of, unchanged

from ulskip_cli.inference.layerwise import block_influence

TEXTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [15, 16]]


def recorded_states(model):
    """Return the states [1, positions, hidden_size] before and behind each layer."""
    before, behind, hooks = defaultdict(list), defaultdict(list), []

    def record(i):
        def keep(_, args, kwargs, output):
            before[i].append(args[0] if args else kwargs["hidden_states"])
            behind[i].append(output[0] if isinstance(output, tuple) else output)

        return keep

    for i, layer in enumerate(stack_of(model)):
        hooks.append(layer.register_forward_hook(record(i), with_kwargs=True))
    with torch.no_grad():
        for text in TEXTS:
            model(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return [(torch.cat(before[i], 1), torch.cat(behind[i], 1)) for i in range(NUM_LAYERS)]


def test_influence_is_one_minus_the_mean_cosine_of_the_states_before_and_behind(model):
    expected = [
        1 - float(torch.cosine_similarity(before, behind, dim=-1).mean())
        for before, behind in recorded_states(model)
    ]
    with unchanged(model):
        assert block_influence(model, TEXTS, 2) == pytest.approx(expected, abs=2e-5)
