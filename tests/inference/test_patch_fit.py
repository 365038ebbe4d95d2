import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    ARCHITECTURES,
    NUM_LAYERS,
    build_model,
    one_stage,
    random_ids,
    response_logits,
    stack_of,
)

from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import padded
from ulskip_cli.inference.patch_fit import DEFAULT_RIDGE, PatchFitter, solve_ridge
from ulskip_cli.tasks.encoding import EncodedExample

KEPT = (0, 2, 4)  # gaps in front of 2 and 4 and behind the last layer
# gemma2 and mixtral change the output of the last linear
FOLDABLE = ["bloom", "gpt2", "llama", "mistral", "qwen2", "smollm3"]


def examples(count=24, seed=0):
    """Prompts and responses of several lengths."""
    found = []
    for i in range(count):
        ids = random_ids(1, 5 + i % 3 + 9 + i % 4, seed=seed + i)[0].tolist()
        found.append(EncodedExample(ids[: 5 + i % 3], ids[5 + i % 3 :]))
    return found


def last_states(model, adapter, pairs, kept):
    """Return the last states [positions, hidden_size] of the responses behind their first token."""
    view = model if len(kept) == NUM_LAYERS else shallow_view.shallow_view(model, kept)
    view = view if adapter is None else adapter.view(model, kept)
    prompt, prompt_mask = padded([one.prompt_ids for one in pairs], 0, left=True)
    response, mask = padded([one.response_ids for one in pairs], 0, left=False)
    states = []
    hook = stack_of(view)[-1].register_forward_hook(
        lambda module, args, output: states.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    with torch.no_grad():
        response_logits(model, one_stage(view, kept), prompt, prompt_mask, response, mask)
    hook.remove()
    return states[-1][mask[:, 1:].bool()]


def state_error(model, adapter, pairs, kept=KEPT):
    """Return the squared difference between the last states of a view and those of the model."""
    full = last_states(model, None, pairs, tuple(range(NUM_LAYERS)))
    return float((full - last_states(model, adapter, pairs, kept)).pow(2).sum())


def fitted(model, pairs, kept=KEPT, kind="full"):
    return PatchFitter(model, pairs, 0).fit([kept], kind, DEFAULT_RIDGE)


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("full", name) for name in sorted(ARCHITECTURES)), *(("folded", name) for name in FOLDABLE)],
)
def test_a_patch_brings_the_states_closer_to_the_full_models(kind, name):
    model, pairs = build_model(name), examples(12)
    adapter = fitted(model, pairs, kind=kind)
    assert all(tensor.startswith("fold.") == (kind == "folded") for tensor in adapter.tensors)
    assert state_error(model, adapter, pairs) < 0.9 * state_error(model, None, pairs)


def linear_llama():
    """A Llama whose skipped layers add a linear map of their input, and that map; a patch can
    replace them exactly.
    """
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


PARTS = ("weight", "bias")


def test_a_skipped_linear_map_is_recovered():
    model, matrix = linear_llama()
    kept, pairs = (0, 2, 4, 5), examples(60)
    adapter = PatchFitter(model, pairs, 0).fit([kept], "full", 1e-12)
    for layer in (2, 4):
        weight, bias = (adapter.tensors[f"patch.0.{layer}.linear.{part}"] for part in PARTS)
        torch.testing.assert_close(weight.T, matrix, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(bias, torch.full((32,), 0.5), rtol=1e-3, atol=1e-3)
    new = examples(5, seed=500)[0]
    prompt, response = torch.tensor([new.prompt_ids]), torch.tensor([new.response_ids])
    stages = one_stage(model, range(NUM_LAYERS)), one_stage(adapter.view(model, kept), kept)
    with torch.no_grad():
        texts = prompt, torch.ones_like(prompt), response
        expected, got = (response_logits(model, views, *texts) for views in stages)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


def test_a_fit_depends_on_neither_batches_nor_order_nor_padding(llama):
    pairs = examples()
    expected = fitted(llama, pairs).tensors
    for batch_size, order in ((1, pairs), (7, pairs[::-1])):
        got = (
            PatchFitter(llama, order, 0, batch_size=batch_size)
            .fit([KEPT], "full", DEFAULT_RIDGE)
            .tensors
        )
        torch.testing.assert_close(dict(got), dict(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kept", [(1, 2, 4), (3,), (4, 5)], ids=str)
def test_the_first_layer_may_be_skipped(llama, kept):
    pairs = examples(12)
    adapter = fitted(llama, pairs, kept)
    assert state_error(llama, adapter, pairs, kept) < state_error(llama, None, pairs, kept)


def test_a_folded_patch_requires_the_first_layer(llama):
    with pytest.raises(UsageError, match=r"correction\.kind"):
        fitted(llama, examples(), (1, 4), "folded")


def test_with_prompt_layers_kept_patches_are_fitted_on_the_prompt_too(llama):
    pairs = examples()
    fitter = PatchFitter(llama, pairs, 0, prompt_layers="kept")
    assert fitter.num_positions == sum(
        len(one.prompt_ids) + len(one.response_ids) - 1 for one in pairs
    )
    adapter = fitter.fit([KEPT], "full", 1e-6)
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
    ids = random_ids(2, 6)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        logits = model(ids).logits
    fitted(model, examples(6))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)


seeds = st.integers(0, 10_000)


def drawn(seed, count=40, inputs=5, outputs=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    d = torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    return x, d + x[:, :1] + 3


def solved(x, d, parts=1, has_bias=True, ridge=1e-14):
    """Solve a regression whose positions arrive in several parts."""
    return solve_ridge(zip(x.chunk(parts), d.chunk(parts), strict=True), ridge, has_bias)


@given(seeds, st.integers(1, 7), st.booleans())
def test_without_a_ridge_it_is_least_squares(seed, parts, has_bias):
    x, d = drawn(seed)
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1) if has_bias else x
    expected = torch.linalg.lstsq(design, d).solution
    got = solved(x, d, parts, has_bias)
    torch.testing.assert_close(got.pop("weight"), expected[:5], rtol=1e-6, atol=1e-8)
    assert got.keys() == ({"bias"} if has_bias else set())
    for bias in got.values():
        torch.testing.assert_close(bias, expected[5], rtol=1e-6, atol=1e-8)


@given(seeds, st.floats(0.01, 10))
def test_the_ridge_is_relative_to_the_mean_variance_of_the_inputs(seed, ridge):
    x, d = drawn(seed)
    centered, target = x - x.mean(0), d - d.mean(0)
    penalty = ridge * centered.pow(2).sum() / x.shape[1]
    eye, zeros = torch.eye(x.shape[1], dtype=x.dtype), torch.zeros(x.shape[1], d.shape[1])
    extra = torch.cat([centered, penalty.sqrt() * eye]), torch.cat([target, zeros.to(x.dtype)])
    got = solved(x, d, ridge=ridge)
    expected = torch.linalg.lstsq(*extra).solution
    torch.testing.assert_close(got["weight"], expected, rtol=1e-6, atol=1e-8)
    # the residuals have a mean of 0
    torch.testing.assert_close(x.mean(0) @ got["weight"] + got["bias"], d.mean(0))


def test_a_single_position_gives_finite_patches():
    x, d = drawn(0, count=1)
    got = solved(x, d, ridge=0.1)
    assert all(torch.isfinite(part).all() for part in got.values())
    torch.testing.assert_close(x @ got["weight"] + got["bias"], d)
