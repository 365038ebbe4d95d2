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
                (args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output)
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
        cosines = [torch.cosine_similarity(a[0, t], b[0, t], dim=0) for a, b in states[i] for t in range(a.shape[1])]
        expected.append(1 - float(torch.stack(cosines).mean()))
    assert block_influence(model, texts, 2) == pytest.approx(expected, abs=2e-5)
    assert not any(layer._forward_hooks for layer in stack_of(model))
