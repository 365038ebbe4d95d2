from collections import defaultdict

import pytest
import torch
from reference import NUM_LAYERS, stack_of, unchanged

from ulskip_cli.inference.block_influence import block_influence

TEXTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [15, 16]]


def recorded_states(model):
    """Return the states [1, positions, hidden_size] by layer and place: before it, between its
    attention and its MLP, and behind it.
    """
    states, hooks = defaultdict(list), []

    def record(*key):
        def keep(_, args, kwargs, output=None):
            state = args[0] if args else kwargs["hidden_states"]
            state = state if output is None else output
            states[key].append(state[0] if isinstance(state, tuple) else state)

        return keep

    for i, layer in enumerate(stack_of(model)):
        # The norm in front of the MLP reads the states between attention and MLP.
        names = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
        norm = next(getattr(layer, name) for name in names if hasattr(layer, name))
        for place, module in enumerate((layer, norm)):
            hooks.append(module.register_forward_pre_hook(record(i, place), with_kwargs=True))
        hooks.append(layer.register_forward_hook(record(i, 2), with_kwargs=True))
    with torch.no_grad():
        for text in TEXTS:
            model(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return {key: torch.cat(found, 1) for key, found in states.items()}


@pytest.mark.parametrize(
    ("unit", "ends"), [("layer", (0, 2)), ("attention", (0, 1)), ("mlp", (1, 2))]
)
def test_influence_is_one_minus_the_mean_cosine_of_the_states_before_and_behind(model, unit, ends):
    states = recorded_states(model)
    expected = [
        1 - float(torch.cosine_similarity(*(states[i, end] for end in ends), dim=-1).mean())
        for i in range(NUM_LAYERS)
    ]
    with unchanged(model):
        assert block_influence(model, TEXTS, 2, unit=unit) == pytest.approx(expected, abs=2e-5)
