from itertools import starmap

import pytest
import tiny_configs
import torch
import transformers
from reference import (
    ARCHITECTURES,
    NEW_STYLE,
    NUM_LAYERS,
    OLD_STYLE,
    batch,
    build_model,
    count_near_ties,
    reference_greedy,
    stack_of,
    unchanged,
)

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.core.schedule import Stage
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.inference import half_layers
from ulskip_cli.strategies.plan import Plan

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
    head = "Decoder" if family == "BertGeneration" else "ForCausalLM"
    return getattr(transformers, f"{family}{head}")(config).eval()


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", [*ARCHITECTURES, *OTHERS])
def test_stages_drop_parts_and_keep_what_they_read(name, unit):
    model = build(*OTHERS[name]) if name in OTHERS else build_model(name)
    kept = {0: (1, 3, 4, 5), 3: (1, 3, 4), 6: (1, 4)}
    plan = Plan("custom", NUM_LAYERS, tuple(starmap(Stage, kept.items())), unit=unit)
    decoder, (ids, mask) = Decoder(model, plan), batch(True)
    expected = reference_greedy(model, ids, mask, kept, 10, unit=unit).tolist()
    for engine in ("torch", "transformers"):
        output = decoder.with_engine(engine).generate(ids, mask, DecodeContext(GREEDY, 0))
        texts = ids, mask, output.token_ids, expected
        assert count_near_ties(model, *texts, kept, unit=unit) <= 1


def test_a_view_shares_all_weights_and_leaves_the_model_alone(model):
    own = {id(parameter) for parameter in model.parameters()}
    with unchanged(model):
        for unit in UNITS:
            view = half_layers.half_view(model, KEPT, unit)
            assert {id(parameter) for parameter in view.parameters()} < own
            assert len(stack_of(view)) == NUM_LAYERS


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
    model = build(*REFUSED[name])
    named = f"unit={unit} is not supported with {type(model).__name__}"
    with pytest.raises(NotApplicable, match=named):
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
