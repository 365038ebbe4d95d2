from dataclasses import replace

import pytest
import tiny_configs
import torch
import transformers
from reference import (
    NEAR_TIE,
    NEW_STYLE,
    NUM_LAYERS,
    OLD_STYLE,
    batch,
    plan_for,
    random_ids,
    stack_of,
    without_parts,
)

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.core.schedule import Stage
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.inference import half_layers, shallow_view

UNITS = ["attention", "mlp"]
KEPT = (1, 3, 4)
GREEDY = DecodingConfig(name="greedy", max_new_tokens=10)
# parallel parts, norms shared by both parts, linear layers without a module of their own, norms of
# the output
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
OTHERS = {
    "phi": ("Phi", NEW_STYLE),
    "gpt_neox": ("GPTNeoX", NEW_STYLE),
    "falcon": ("Falcon", NEW_STYLE | {"new_decoder_architecture": False, "parallel_attn": True}),
    "olmo2": ("Olmo2", NEW_STYLE),
    "granite": ("Granite", {**NEW_STYLE, "residual_multiplier": 0.7}),
    "gpt_oss": ("GptOss", NEW_STYLE | EXPERTS | {"head_dim": 8, "sliding_window": 4}),
}


def build(family, options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def expected_tokens(model, ids, mask, kept, unit, **options):
    """Generate without a cache: after the prompt, hooks zero the parts that are skipped."""
    settings = {"do_sample": False, "use_cache": False, "pad_token_id": 0, **options}
    settings |= {"max_new_tokens": GREEDY.max_new_tokens}
    with without_parts(model, ids.shape[1], kept, unit):
        whole = model.generate(input_ids=ids, attention_mask=mask, **settings)
    return whole[:, ids.shape[1] :].tolist()


def assert_same(model, ids, mask, kept, unit, tokens, expected):
    """Tokens may differ only where the best two logits of the reference are nearly equal."""
    for i, (one, other) in enumerate(zip(tokens, expected, strict=True)):
        if one != other:
            at = next(
                at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]
            )
            prompt = ids[i][mask[i].bool()]
            whole = torch.cat([prompt, torch.tensor(one[:at], dtype=torch.long)])[None]
            with torch.no_grad(), without_parts(model, len(prompt), kept, unit):
                best = model(whole, use_cache=False).logits[0, -1].topk(2).values
            assert float(best[0] - best[1]) < NEAR_TIE


def assert_decodes_as_without_cache(model, unit):
    ids, mask = batch(False)
    response = random_ids(5, 7, seed=3)
    prompt_len, whole = ids.shape[1], torch.cat([ids, response], 1)
    with torch.no_grad():
        cache = shallow_view.new_cache(model)
        shallow_view.forward_with_cache(model, ids, mask, cache)
        shallow_view.prune_cache(cache, KEPT if unit == "attention" else range(NUM_LAYERS))
        view = half_layers.half_view(model, KEPT, unit)
        steps = [
            shallow_view.forward_with_cache(
                view, response[:, i : i + 1], torch.ones_like(whole)[:, : prompt_len + i + 1], cache
            )
            for i in range(response.shape[1])
        ]
        with without_parts(model, prompt_len, KEPT, unit):
            expected = model(whole, use_cache=False).logits[:, prompt_len:]
    assert torch.allclose(torch.cat(steps, 1), expected, atol=2e-4)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_equal_the_uncached_reference(name, unit):
    assert_decodes_as_without_cache(build(*OTHERS[name]), unit)


@pytest.mark.parametrize("unit", UNITS)
def test_stages_drop_parts_and_keep_what_they_read(model, unit):
    kept = {0: (0, 2, 3, 5), 3: (0, 2, 5), 6: (0, 5)}
    plan = plan_for("strategy=custom", "strategy.layers=[0,2,3,5]", f"strategy.unit={unit}")
    decoder = Decoder(
        model, replace(plan, stages=(*plan.stages, Stage(3, kept[3]), Stage(6, kept[6])))
    )
    ids, mask = batch(True)
    expected = expected_tokens(model, ids, mask, kept, unit)
    for engine in ("torch", "transformers"):
        tokens = decoder.with_engine(engine).generate(ids, mask, DecodeContext(GREEDY, 0)).token_ids
        assert_same(model, ids, mask, kept, unit, tokens, expected)


def test_a_view_shares_all_weights_and_leaves_the_model_alone(model):
    ids = random_ids(2, 9)
    before, own = model(ids).logits, {id(parameter) for parameter in model.parameters()}
    for unit in UNITS:
        view = half_layers.half_view(model, KEPT, unit)
        assert {id(parameter) for parameter in view.parameters()} < own
        assert len(stack_of(view)) == NUM_LAYERS
    assert torch.equal(model(ids).logits, before)
    assert not any(part._forward_hooks for part in model.modules())


REFUSED = {
    "a norm after the sum": (
        "OPT",
        {**NEW_STYLE, "do_layer_norm_before": False, "word_embed_proj_dim": 32, "ffn_dim": 32},
    ),
    "a norm on the stream": (
        "Bloom",
        {**OLD_STYLE, "hidden_size": 32, "apply_residual_connection_post_layernorm": True},
    ),
    "a norm after the sum of both": ("BertGeneration", {**NEW_STYLE, "is_decoder": True}),
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_does_more_than_add_its_parts_is_refused(name, unit):
    family, options = REFUSED[name]
    torch.manual_seed(0)
    head = f"{family}Decoder" if family == "BertGeneration" else f"{family}ForCausalLM"
    model = getattr(transformers, head)(getattr(transformers, f"{family}Config")(**options)).eval()
    with pytest.raises(NotApplicable, match=rf"strategy\.unit={unit} is not supported with {head}"):
        half_layers.half_view(model, (0, 2, 5), unit)
    with pytest.raises(NotApplicable, match="recurrent state"):
        half_layers.half_view(tiny_configs.build("bamba"), (0, 2, 5), unit)


@pytest.mark.parametrize("unit", UNITS)
def test_a_bias_behind_the_dropped_part_is_refused(unit):
    """A norm of the output with a bias adds the bias even if the part gives zeros."""
    model = build("Olmo2", NEW_STYLE)
    norm = "post_attention_layernorm" if unit == "attention" else "post_feedforward_layernorm"
    layer = stack_of(model)[2]
    setattr(layer, norm, torch.nn.LayerNorm(32))
    half_layers.half_view(model, KEPT, unit)
    torch.nn.init.ones_(getattr(layer, norm).bias)
    with pytest.raises(NotApplicable, match="Olmo2DecoderLayer"):
        half_layers.half_view(model, KEPT, unit)
