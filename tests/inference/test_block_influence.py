import pytest
import torch
from reference import stack_of

from ulskip_cli.inference.block_influence import block_influence


def test_influence_is_one_minus_the_mean_cosine_of_input_and_output(model):
    texts = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [15, 16]]
    states = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, args, kwargs, output, i=i: states.setdefault(i, []).append(
                (
                    args[0] if args else kwargs["hidden_states"],
                    output[0] if isinstance(output, tuple) else output,
                )
            ),
            with_kwargs=True,
        )
        for i, layer in enumerate(stack_of(model))
    ]
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    expected = []
    for i in range(len(states)):
        cosines = [
            torch.cosine_similarity(a[0, t], b[0, t], dim=0)
            for a, b in states[i]
            for t in range(a.shape[1])
        ]
        expected.append(1 - float(torch.stack(cosines).mean()))
    assert block_influence(model, texts, 2) == pytest.approx(expected, abs=2e-5)
    assert not any(layer._forward_hooks for layer in stack_of(model))


@pytest.mark.parametrize("unit", ["attention", "mlp"])
def test_influence_of_a_part_compares_the_states_before_and_after_it(model, unit):
    texts, states = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14]], {}

    def record(i, place):
        return lambda _, args, kwargs, output: states.setdefault((i, place), []).append(
            (
                args[0] if args else kwargs["hidden_states"],
                output[0] if isinstance(output, tuple) else output,
            )
        )

    hooks = []
    for i, layer in enumerate(stack_of(model)):
        # The norm in front of the MLP reads the states between attention and MLP.
        names = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
        between = next(getattr(layer, name) for name in names if hasattr(layer, name))
        hooks.append(layer.register_forward_hook(record(i, "layer"), with_kwargs=True))
        hooks.append(between.register_forward_hook(record(i, "between"), with_kwargs=True))
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    expected = []
    for i in range(len(stack_of(model))):
        pairs = [
            (before, between) if unit == "attention" else (between, after)
            for (before, after), (between, _) in zip(
                states[i, "layer"], states[i, "between"], strict=True
            )
        ]
        cosines = [
            torch.cosine_similarity(a[0, t], b[0, t], dim=0)
            for a, b in pairs
            for t in range(a.shape[1])
        ]
        expected.append(1 - float(torch.stack(cosines).mean()))
    assert block_influence(model, texts, 2, unit=unit) == pytest.approx(expected, abs=2e-5)
    assert not any(part._forward_hooks for part in model.modules())
