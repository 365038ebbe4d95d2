import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import NUM_LAYERS, build_model, one_stage, random_ids, stack_of
from torch.nn import functional

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import padded
from ulskip_cli.inference.decoder import DecodeContext, Decoder
from ulskip_cli.inference.patch_fit import PatchFitter, PatchOptions, RidgeRegression
from ulskip_cli.inference.teacher_forcing import response_logits
from ulskip_cli.strategies.plan import Plan
from ulskip_cli.tasks.encoding import EncodedExample

KEPT = (0, 2, 4)  # gaps in front of 2 and 4 and behind the last layer
FOLDABLE = ["bloom", "gpt2", "llama", "mistral", "qwen2", "smollm3"]  # gemma2 and mixtral change the output of the last linear
seeds = st.integers(0, 10_000)


def drawn(seed, count=40, inputs=5, outputs=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    d = torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    return x, d + x[:, :1] + 3, torch.rand(count, generator=generator, dtype=torch.float64) + 0.1


def solved(x, d, weights=None, parts=1, **options):
    """Solve a regression whose positions arrive in several parts."""
    sums = RidgeRegression.empty(x.shape[1], d.shape[1])
    for at in torch.arange(len(x)).chunk(parts):
        sums.add(x[at], d[at], None if weights is None else weights[at])
    return sums.solve(PatchOptions(**{"kind": "full", "ridge": 1e-14, **options}))


def least_squares(x, d, weights=None, bias=True):
    """Solve by an independent routine; return the matrix [inputs, outputs] and the bias."""
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1) if bias else x
    scale = torch.ones(len(x), 1, dtype=x.dtype) if weights is None else weights.sqrt()[:, None]
    found = torch.linalg.lstsq(design * scale, d * scale).solution
    return (found[:-1], found[-1]) if bias else (found, None)


@given(seeds, st.integers(1, 7))
def test_without_a_ridge_it_is_least_squares(seed, parts):
    x, d, _ = drawn(seed)
    matrix, bias = least_squares(x, d)
    got = solved(x, d, parts=parts)
    torch.testing.assert_close((got["weight"], got["bias"]), (matrix, bias), rtol=1e-6, atol=1e-8)


@given(seeds)
def test_without_centering_there_is_no_bias(seed):
    x, d, _ = drawn(seed)
    got = solved(x, d, centered=False)
    assert got.keys() == {"weight"}
    torch.testing.assert_close(got["weight"], least_squares(x, d, bias=False)[0], rtol=1e-6, atol=1e-8)


@given(seeds)
def test_weights_act_as_in_weighted_least_squares(seed):
    x, d, weights = drawn(seed)
    matrix, bias = least_squares(x, d, weights)
    got = solved(x, d, weights, parts=3)
    torch.testing.assert_close((got["weight"], got["bias"]), (matrix, bias), rtol=1e-6, atol=1e-8)
    twice, ones = solved(torch.cat([x, x[:9]]), torch.cat([d, d[:9]])), torch.ones(len(x), dtype=x.dtype)
    ones[:9] = 2
    torch.testing.assert_close(solved(x, d, ones), twice, rtol=1e-6, atol=1e-8)


@given(seeds, st.floats(0.01, 10))
def test_the_ridge_is_relative_to_the_mean_variance_of_the_inputs(seed, ridge):
    x, d, _ = drawn(seed)
    centered, target = x - x.mean(0), d - d.mean(0)
    penalty = ridge * centered.pow(2).sum() / x.shape[1]
    extra = torch.cat([centered, penalty.sqrt() * torch.eye(x.shape[1], dtype=x.dtype)])
    expected = torch.linalg.lstsq(extra, torch.cat([target, torch.zeros(x.shape[1], d.shape[1], dtype=x.dtype)])).solution
    got = solved(x, d, ridge=ridge)
    torch.testing.assert_close(got["weight"], expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(x.mean(0) @ got["weight"] + got["bias"], d.mean(0))  # the residuals have a mean of 0
    scaled = solved(100 * x, d, ridge=ridge)
    torch.testing.assert_close(100 * scaled["weight"], got["weight"], rtol=1e-6, atol=1e-8)


@given(seeds)
def test_a_bias_alone_is_the_mean(seed):
    x, d, weights = drawn(seed)
    torch.testing.assert_close(solved(x, d, kind="bias"), {"bias": d.mean(0)})
    torch.testing.assert_close(solved(x, d, weights, kind="bias"), {"bias": (weights[:, None] * d).sum(0) / weights.sum()})


@given(seeds)
def test_low_rank_equals_full_at_full_rank(seed):
    x, d, weights = drawn(seed)
    full, low = (solved(x, d, weights, kind=kind, rank=4) for kind in ("full", "low_rank"))
    torch.testing.assert_close(low["down"] @ low["up"], full["weight"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(low["bias"], full["bias"], rtol=1e-6, atol=1e-8)


@given(seeds, st.integers(1, 3))
def test_low_rank_has_the_smallest_error_of_its_rank(seed, rank):
    x, d, _ = drawn(seed)
    low = solved(x, d, kind="low_rank", rank=rank)
    assert low["down"].shape == (5, rank) and low["up"].shape == (rank, 4)
    fitted = (x - x.mean(0)) @ solved(x, d)["weight"]
    error = (fitted - (x - x.mean(0)) @ low["down"] @ low["up"]).pow(2).sum()
    torch.testing.assert_close(error, torch.linalg.svdvals(fitted)[rank:].pow(2).sum())  # Eckart-Young


@pytest.mark.parametrize("kind", ["bias", "low_rank", "full"])
def test_a_single_position_gives_finite_patches(kind):
    x, d, _ = drawn(0, count=1)
    got = solved(x, d, kind=kind, rank=2, ridge=0.1)
    assert all(torch.isfinite(part).all() for part in got.values())
    matrix = got.get("weight", got["down"] @ got["up"] if "down" in got else torch.zeros(5, 4, dtype=x.dtype))
    torch.testing.assert_close(x @ matrix + got["bias"], d)


def examples(count=24, seed=0):
    """Prompts and responses of several lengths."""
    found = []
    for i in range(count):
        ids = random_ids(1, 5 + i % 3 + 9 + i % 4, seed=seed + i)[0].tolist()
        found.append(EncodedExample(ids[: 5 + i % 3], ids[5 + i % 3 :]))
    return found


def forced(model, adapter, pairs, kept):
    """Return the loss [positions] of the responses behind their first token, and the last states [positions, hidden_size]."""
    view = model if len(kept) == NUM_LAYERS else shallow_view.shallow_view(model, kept)
    view = view if adapter is None else adapter.view(model, kept)
    prompt, prompt_mask = padded([one.prompt_ids for one in pairs], 0, left=True)
    response, mask = padded([one.response_ids for one in pairs], 0, left=False)
    states = []
    hook = stack_of(view)[-1].register_forward_hook(
        lambda module, args, output: states.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        logits = response_logits(model, one_stage(view, kept), prompt, prompt_mask, response, mask)
    hook.remove()
    chosen = mask[:, 1:].bool()
    losses = functional.cross_entropy(logits[:, 1:][chosen], response[:, 1:][chosen], reduction="none")
    return losses, states[-1][chosen]


def decode_loss(model, adapter, pairs, kept=KEPT):
    """Return the mean loss of the responses behind their first token."""
    return float(forced(model, adapter, pairs, kept)[0].mean())


def state_error(model, adapter, pairs, kept=KEPT):
    """Return the squared difference between the last states of a view and those of the model."""
    full, shallow = forced(model, None, pairs, tuple(range(NUM_LAYERS)))[1], forced(model, adapter, pairs, kept)[1]
    return float((full - shallow).pow(2).sum())


def own_answers(model, pairs):
    """Replace the responses by the model's own, which the full model predicts well."""
    decoder = Decoder(model, Plan.from_layers(NUM_LAYERS, range(NUM_LAYERS)))
    ids, mask = padded([one.prompt_ids for one in pairs], 0, left=True)
    answers = decoder.generate(ids, mask, DecodeContext(DecodingConfig(name="g", max_new_tokens=10), 0)).token_ids
    return [EncodedExample(one.prompt_ids, answer) for one, answer in zip(pairs, answers, strict=True)]


@pytest.mark.parametrize("kind", ["bias", "low_rank", "full"])
def test_a_patch_brings_the_states_closer_to_the_full_models(model, kind):
    pairs = examples(12)
    adapter = PatchFitter(model, pairs, 0).fit(KEPT, PatchOptions(kind, rank=8))
    assert state_error(model, adapter, pairs) < (1 if kind == "bias" else 0.9) * state_error(model, None, pairs)


@pytest.mark.parametrize("name", FOLDABLE)
def test_a_folded_patch_brings_the_states_closer_too(name):
    model, pairs = build_model(name), examples(12)
    adapter = PatchFitter(model, pairs, 0).fit(KEPT, PatchOptions("folded"))
    assert all(tensor.startswith("fold.") for tensor in adapter.tensors)
    assert state_error(model, adapter, pairs) < 0.9 * state_error(model, None, pairs)


def test_a_patch_with_more_freedom_has_a_smaller_error(llama):
    pairs = examples()
    fitter = PatchFitter(llama, pairs, 0)
    kinds = (PatchOptions("bias"), PatchOptions("low_rank", rank=4), PatchOptions("low_rank", rank=16), PatchOptions("full"))
    errors = [state_error(llama, None, pairs, (0, 1, 2, 3)), *(
        state_error(llama, fitter.fit((0, 1, 2, 3), options), pairs, (0, 1, 2, 3)) for options in kinds
    )]  # fmt: skip
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", ["bias", "low_rank", "full", "folded"])
def test_a_patch_lowers_the_decode_loss_of_its_own_examples(llama, kind):
    pairs = own_answers(llama, examples())
    adapter = PatchFitter(llama, pairs, 0).fit(KEPT, PatchOptions(kind, rank=8))
    assert decode_loss(llama, adapter, pairs) < decode_loss(llama, None, pairs)


def linear_llama():
    """A Llama whose skipped layers add a linear map of their input, and that map; a patch can replace them exactly."""
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
    adapter = PatchFitter(model, pairs, 0).fit(kept, PatchOptions("full", ridge=1e-12))
    for layer in (2, 4):
        torch.testing.assert_close(adapter.tensors[f"patch.0.{layer}.linear.weight"].T, matrix, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            adapter.tensors[f"patch.0.{layer}.linear.bias"], torch.full((32,), 0.5), rtol=1e-3, atol=1e-3
        )
    new = examples(5, seed=500)
    every = tuple(range(NUM_LAYERS))
    prompt, response = torch.tensor([new[0].prompt_ids]), torch.tensor([new[0].response_ids])
    with torch.no_grad():
        expected = response_logits(model, one_stage(model, every), prompt, torch.ones_like(prompt), response)
        got = response_logits(model, one_stage(adapter.view(model, kept), kept), prompt, torch.ones_like(prompt), response)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)
    joint = PatchFitter(model, pairs, 0).fit(kept, PatchOptions("full", ridge=1e-12, sequential=False))
    torch.testing.assert_close(dict(joint.tensors), dict(adapter.tensors), rtol=1e-2, atol=1e-2)


def test_a_fit_depends_on_neither_batches_nor_order_nor_padding(llama):
    pairs = examples()
    options = PatchOptions("full")
    expected = PatchFitter(llama, pairs, 0).fit(KEPT, options).tensors
    for batch_size, order in ((1, pairs), (7, pairs[::-1])):
        got = PatchFitter(llama, order, 0, batch_size=batch_size).fit(KEPT, options).tensors
        torch.testing.assert_close(dict(got), dict(expected), rtol=1e-3, atol=1e-4)


def test_a_fitter_fits_several_kinds_and_layers_in_any_order(llama):
    fitter = PatchFitter(llama, examples(), 0)
    first = fitter.fit(KEPT, PatchOptions("full"))
    other = fitter.fit((0, 5), PatchOptions("full", weighting="norm"))
    assert other.kept_sets == ((0, 5),) and first.kept_sets == (KEPT,)
    again = fitter.fit(KEPT, PatchOptions("full"))
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())


@pytest.mark.parametrize("kept", [(1, 2, 4), (3,), (4, 5)], ids=str)
@pytest.mark.parametrize("sequential", [True, False])
def test_the_first_layer_may_be_skipped(llama, kept, sequential):
    pairs = own_answers(llama, examples())
    adapter = PatchFitter(llama, pairs, 0).fit(kept, PatchOptions("full", sequential=sequential))
    assert decode_loss(llama, adapter, pairs, kept) < decode_loss(llama, None, pairs, kept)


def test_a_folded_patch_requires_the_first_layer(llama):
    with pytest.raises(UsageError, match=r"strategy\.patch"):
        PatchFitter(llama, examples(), 0).fit((1, 4), PatchOptions("folded"))


def test_with_prompt_layers_kept_patches_are_fitted_on_the_prompt_too(llama):
    pairs = examples()
    fitter = PatchFitter(llama, pairs, 0, prompt_layers="kept")
    assert fitter.num_positions == sum(len(one.prompt_ids) + len(one.response_ids) - 1 for one in pairs)
    adapter = fitter.fit(KEPT, PatchOptions("full", ridge=1e-6))
    ids = torch.tensor([pairs[0].prompt_ids])
    with torch.no_grad():
        full = llama(ids).logits
        views = adapter.view(llama, KEPT), shallow_view.shallow_view(llama, KEPT)
        errors = [(view(ids).logits - full).pow(2).mean() for view in views]
    assert errors[0] < errors[1]


def test_positions_are_those_of_decode_steps(llama):
    pairs = [*examples(), EncodedExample([5, 6], [7])]  # the prompt predicts a response of one token
    assert PatchFitter(llama, pairs, 0).num_positions == sum(len(one.response_ids) - 1 for one in pairs)
    with pytest.raises(UsageError):
        PatchFitter(llama, [EncodedExample([5, 6], [7])], 0)


def test_a_fit_leaves_the_model_bit_identical(model):
    ids = random_ids(2, 6)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        logits = model(ids).logits
    PatchFitter(model, examples(6), 0).fit(KEPT, PatchOptions("full"))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)
