import pytest
import torch
from reference import stack_of

from ulskip_cli.inference.block_influence import block_influence

TEXTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [15, 16]]


def recorded_states(model):
    """Return the states (before a layer, between its attention and its MLP, behind it) of each
    layer, of each text.
    """
    states = {}

    def record(i, place):
        def keep(_, args, kwargs, output):
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            states.setdefault((i, place), []).append((before, after))

        return keep

    hooks = []
    for i, layer in enumerate(stack_of(model)):
        # The norm in front of the MLP reads the states between attention and MLP.
        names = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
        norm = next(getattr(layer, name) for name in names if hasattr(layer, name))
        hooks.append(layer.register_forward_hook(record(i, "layer"), with_kwargs=True))
        hooks.append(norm.register_forward_hook(record(i, "norm"), with_kwargs=True))
    with torch.no_grad():
        for text in TEXTS:
            model(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return [
        [
            (before, between, after)
            for (before, after), (between, _) in zip(
                states[i, "layer"], states[i, "norm"], strict=True
            )
        ]
        for i in range(len(stack_of(model)))
    ]


@pytest.mark.parametrize(
    ("unit", "ends"), [("layer", (0, 2)), ("attention", (0, 1)), ("mlp", (1, 2))]
)
def test_influence_is_one_minus_the_mean_cosine_of_the_states_before_and_behind(model, unit, ends):
    expected = []
    for texts in recorded_states(model):
        cosines = [
            torch.cosine_similarity(states[ends[0]], states[ends[1]], dim=-1)[0] for states in texts
        ]
        expected.append(1 - float(torch.cat(cosines).mean()))
    assert block_influence(model, TEXTS, 2, unit=unit) == pytest.approx(expected, abs=2e-5)
    assert not any(part._forward_hooks for part in model.modules())
