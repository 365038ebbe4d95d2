import pytest
import tiny_configs
import torch
import transformers
from reference import NUM_LAYERS, one_stage, random_ids, reference_greedy, stack_of

from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.shallow_view import shallow_config

KEPT_SETS = [(0, 2, 5), (1, 3, 4), (3, 4, 5), (0, 1, 2), (5,)]
GREEDY = {"do_sample": False, "use_cache": True, "pad_token_id": 0}


def decode(model, kept, ids, mask=None, steps=8, **options):
    view = model if len(kept) == NUM_LAYERS else shallow_view.shallow_view(model, kept)
    generator = shallow_view.two_phase(model, one_stage(view, kept))
    mask = torch.ones_like(ids) if mask is None else mask
    return generator.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=steps, **GREEDY, **options
    )[:, ids.shape[1] :]


def test_a_view_owns_no_parameter(model):
    own = {id(parameter) for parameter in model.parameters()}
    view = shallow_view.shallow_view(model, (1, 3, 4))
    assert {id(parameter) for parameter in view.parameters()} <= own
    assert view.config.num_hidden_layers == 3
    assert len(stack_of(view)) == 3


@pytest.mark.parametrize("kept", KEPT_SETS)
def test_skipping_equals_the_uncached_reference(model, kept):
    ids = random_ids(1, 9)
    assert torch.equal(
        decode(model, kept, ids), reference_greedy(model, ids, torch.ones_like(ids), kept, 8)
    )


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 2, "no_repeat_ngram_size": 2}]
)
def test_keeping_all_equals_generate(model, options):
    ids = random_ids(2, 9)
    expected = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, **GREEDY, **options
    )
    assert torch.equal(decode(model, tuple(range(NUM_LAYERS)), ids, **options), expected[:, 9:])


def test_an_encoder_decoder_is_refused_by_name():
    config = transformers.T5Config(
        num_layers=3, d_model=16, d_ff=16, d_kv=4, num_heads=4, vocab_size=50
    )
    with pytest.raises(UsageError, match="T5ForConditionalGeneration"):
        shallow_view.shallow_view(transformers.T5ForConditionalGeneration(config), (0, 2))


def test_a_replaced_forward_is_refused(llama):
    llama.model.forward = llama.model.forward
    with pytest.raises(UsageError, match=r"LlamaModel.*forward"):
        shallow_view.shallow_view(llama, (0, 5))


def test_compiled_code_stays_with_the_source(llama):
    llama._compiled_call = llama._compiled_call_impl = lambda *args, **kwargs: pytest.fail(
        "the source ran"
    )
    ids = random_ids(1, 4)
    view = shallow_view.shallow_view(llama, (0, 5))
    view(ids)
    assert "_compiled_call" not in view.__dict__


@pytest.mark.parametrize(
    ("model_type", "key"),
    [
        ("qwen2", "layer_types"),
        ("smollm3", "no_rope_layers"),
        ("jamba", "layers_block_type"),  # computed from a period
        ("bamba", "layers_block_type"),  # computed from indices
    ],
)
def test_per_layer_lists_are_reduced_to_the_kept_layers(model_type, key):
    source = tiny_configs.build_config(model_type)
    before = list(getattr(source, key))
    config = shallow_config(source, 6, (1, 2, 5))
    assert getattr(config, key) == [before[i] for i in (1, 2, 5)]
    assert len(config.layer_types) == config.num_hidden_layers == 3
    assert getattr(source, key) == before
    assert type(config).__name__ == type(source).__name__
