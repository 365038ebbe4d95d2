import pytest
import torch
from reference import (
    ARCHITECTURES,
    NUM_LAYERS,
    build_model,
    one_stage,
    random_ids,
    response_logits,
    stack_of,
    unchanged,
)

from ulskip_cli.core.correction import PATCHES
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import padded
from ulskip_cli.inference.patch_fit import DEFAULT_RIDGE, PatchFitter
from ulskip_cli.tasks.encoding import EncodedExample

KEPT = (0, 2, 4)  # gaps in front of 2 and 4 and behind the last layer
FULL = PATCHES["full"]
# gemma2 and mixtral change the output of the last linear
FOLDABLE = ["bloom", "gpt2", "llama", "mistral", "qwen2", "smollm3"]


def examples(count=24, seed=0):
    """Prompts and responses of several lengths."""
    found = []
    for i in range(count):
        ids = random_ids(1, 5 + i % 3 + 9 + i % 4, seed=seed + i)[0].tolist()
        found.append(EncodedExample(ids[: 5 + i % 3], ids[5 + i % 3 :]))
    return found


def last_states(model, view, kept, pairs):
    """Return the last states [positions, hidden_size] of the responses behind their first token."""
    prompt, prompt_mask = padded([one.prompt_ids for one in pairs], 0, left=True)
    response, mask = padded([one.response_ids for one in pairs], 0, left=False)
    states = []

    def keep(module, args, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    hook = stack_of(view)[-1].register_forward_hook(keep)
    with torch.no_grad():
        response_logits(model, one_stage(view, kept), prompt, prompt_mask, response, mask)
    hook.remove()
    return states[-1][mask[:, 1:].bool()]


def state_error(model, adapter, pairs, kept):
    """Return the squared difference between the last states of a view and those of the model."""
    view = adapter.view(model, kept) if adapter else shallow_view.shallow_view(model, kept)
    full = last_states(model, model, range(NUM_LAYERS), pairs)
    return float((full - last_states(model, view, kept, pairs)).pow(2).sum())


def fitted(model, pairs, kept=KEPT, kind="full"):
    return PatchFitter(model, pairs, 0).fit([kept], PATCHES[kind], DEFAULT_RIDGE)


@pytest.mark.parametrize(
    ("kind", "name", "kept"),
    [
        *(("full", name, KEPT) for name in sorted(ARCHITECTURES)),
        *((kind, "llama", KEPT) for kind in PATCHES if kind not in ("full", "folded")),
        *(("folded", name, KEPT) for name in FOLDABLE),
        *(("full", "llama", kept) for kept in ((1, 2, 4), (3,), (4, 5))),
    ],
)
def test_a_patch_brings_the_states_closer_to_the_full_models(kind, name, kept):
    model, pairs = build_model(name), examples(12)
    adapter = fitted(model, pairs, kept, kind)
    is_folded = PATCHES[kind].is_folded
    assert all(tensor.startswith("fold.") == is_folded for tensor in adapter.tensors())
    share = 0.9 if kind in ("full", "folded") else 1  # other kinds may have few parameters
    assert state_error(model, adapter, pairs, kept) < share * state_error(model, None, pairs, kept)


def linear_llama():
    """A Llama whose skipped layers add a linear map, which patches can replace, and that map."""
    model = build_model("llama")
    matrix = 0.2 * torch.randn(32, 32, generator=torch.Generator().manual_seed(1))

    class Linear(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.self_attn = layer.self_attn
            self.attention_type = getattr(layer, "attention_type", None)

        def forward(self, hidden_states, **options):
            self.self_attn(hidden_states, **options)  # fills the cache
            return hidden_states + hidden_states @ matrix + 0.5

    layers = stack_of(model)
    for i in (1, 3):
        layers[i] = Linear(layers[i])
    return model, matrix


def test_a_skipped_linear_map_is_recovered():
    model, matrix = linear_llama()
    kept, pairs = (0, 2, 4, 5), examples(60)
    adapter = PatchFitter(model, pairs, 0).fit([kept], FULL, 1e-12)
    for layer in (2, 4):
        parts = adapter.patches[kept][layer].parts
        torch.testing.assert_close(parts["weight"].float().T, matrix, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            parts["bias"].float(), torch.full((32,), 0.5), rtol=1e-3, atol=1e-3
        )
    new = examples(5, seed=500)[0]
    prompt, response = torch.tensor([new.prompt_ids]), torch.tensor([new.response_ids])
    stages = one_stage(model, range(NUM_LAYERS)), one_stage(adapter.view(model, kept), kept)
    with torch.no_grad():
        texts = prompt, torch.ones_like(prompt), response
        expected, got = (response_logits(model, views, *texts) for views in stages)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


def test_a_fit_depends_on_neither_batches_nor_order_nor_padding(llama):
    pairs = examples()
    expected = fitted(llama, pairs).tensors()
    for batch_size, order in ((1, pairs), (7, pairs[::-1])):
        fitter = PatchFitter(llama, order, 0, batch_size=batch_size)
        got = fitter.fit([KEPT], FULL, DEFAULT_RIDGE).tensors()
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_a_folded_patch_requires_the_first_layer(llama):
    with pytest.raises(UsageError, match=r"correction\.kind"):
        fitted(llama, examples(), (1, 4), "folded")


def test_with_prompt_layers_kept_patches_are_fitted_on_the_prompt_too(llama):
    pairs = examples()
    fitter = PatchFitter(llama, pairs, 0, prompt_layers="kept")
    expected = sum(len(pair.prompt_ids) + len(pair.response_ids) - 1 for pair in pairs)
    assert fitter.num_positions == expected
    adapter = fitter.fit([KEPT], FULL, 1e-6)
    ids = torch.tensor([pairs[0].prompt_ids])
    with torch.no_grad():
        full = llama(ids).logits
        views = adapter.view(llama, KEPT), shallow_view.shallow_view(llama, KEPT)
        errors = [(view(ids).logits - full).pow(2).mean() for view in views]
    assert errors[0] < errors[1]


def test_positions_are_those_of_decode_steps(llama):
    # the prompt predicts a response of one token
    pairs = [*examples(), EncodedExample([5, 6], [7])]
    expected = sum(len(pair.response_ids) - 1 for pair in pairs)
    assert PatchFitter(llama, pairs, 0).num_positions == expected
    with pytest.raises(UsageError):
        PatchFitter(llama, [EncodedExample([5, 6], [7])], 0)


def test_a_fit_leaves_the_model_bit_identical(model):
    with unchanged(model):
        fitted(model, examples(6))
