import pytest
import tiny_configs
import torch
import transformers
from reference import NUM_LAYERS, one_stage, random_ids, reference_greedy, stack_of, with_each

from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import kv_cache, shallow_view
from ulskip_cli.inference.shallow_view import shallow_config

KEPT_SETS = [(0, 2, 5), (1, 3, 4), (3, 4, 5), (0, 1, 2), (5,)]


def decode(model, kept, ids, **options):
    view = model if len(kept) == NUM_LAYERS else shallow_view.shallow_view(model, kept)
    generator = shallow_view.two_phase(model, one_stage(view, kept), lambda cache: None)
    return generated(generator, ids, **options)


def generated(model, ids, **options):
    options |= {"max_new_tokens": 8, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, ids.shape[1] :]


def test_a_view_owns_no_parameter(model):
    own = {id(parameter) for parameter in model.parameters()}
    view = shallow_view.shallow_view(model, (1, 3, 4))
    assert {id(parameter) for parameter in view.parameters()} <= own
    assert view.config.num_hidden_layers == 3
    assert len(stack_of(view)) == 3


@pytest.mark.parametrize(("model", "kept"), with_each(KEPT_SETS, "qwen2"), indirect=["model"])
def test_skipping_equals_the_uncached_reference(model, kept):
    ids = random_ids(1, 9)
    expected = reference_greedy(model, ids, torch.ones_like(ids), kept, 8)
    assert torch.equal(decode(model, kept, ids), expected)


BEAMS = [{"num_beams": 2, "no_repeat_ngram_size": 2}, {}, {"num_beams": 3}]


@pytest.mark.parametrize(("model", "options"), with_each(BEAMS), indirect=["model"])
def test_keeping_all_equals_generate(model, options):
    ids, kept = random_ids(2, 9), tuple(range(NUM_LAYERS))
    assert torch.equal(decode(model, kept, ids, **options), generated(model, ids, **options))


def test_an_encoder_decoder_is_refused_by_name():
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 4, "num_heads": 4, "vocab_size": 50}
    config = transformers.T5Config(num_layers=3, **sizes)
    with pytest.raises(UsageError, match="T5ForConditionalGeneration"):
        shallow_view.shallow_view(transformers.T5ForConditionalGeneration(config), (0, 2))


def test_a_replaced_forward_is_refused(llama):
    llama.model.forward = llama.model.forward
    with pytest.raises(UsageError, match=r"LlamaModel.*forward"):
        shallow_view.shallow_view(llama, (0, 5))


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


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("roberta", "RobertaForCausalLM .*padding id"),
        ("recurrent_gemma", "RecurrentGemmaForCausalLM .*recurrent state"),
        ("dory", r"DoryForCausalLM .*n_recurrent_loops"),
        ("zaya", "ZayaForCausalLM .*prev_router_hidden_states"),
        ("hy_v4", "HYV4ForCausalLM .*indexer_types"),
        ("rwkv", "RwkvForCausalLM .*no cache"),
    ],
)
def test_architectures_with_dependent_layers_are_refused_with_a_reason(model_type, reason):
    with pytest.raises(UsageError, match=reason):
        shallow_view.shallow_view(tiny_configs.build(model_type), (0, 5))


def test_recurrent_layers_alone_do_not_count_positions():
    model = tiny_configs.build("bamba")
    with pytest.raises(UsageError, match=r"BambaForCausalLM.*\[0, 1\].*\[2, 5\]"):
        shallow_view.shallow_view(model, (0, 1))


def test_a_recurrent_model_reads_given_text_token_by_token():
    model = tiny_configs.build("mamba")
    ids = torch.randint(2, 100, (1, 9), generator=torch.Generator().manual_seed(0))
    cache = kv_cache.new_cache(model)
    assert kv_cache.is_all_recurrent(cache)
    with torch.no_grad():
        expected = model(ids).logits
        shallow_view.forward_with_cache(model, ids[:, :4], torch.ones(1, 4), cache)
        fork = kv_cache.fork_cache(cache, range(6))
        rest = ids[:, 4:], torch.ones(1, 9)
        got = [shallow_view.forward_with_cache(model, *rest, part) for part in (fork, cache)]
    assert torch.allclose(got[0], expected[:, 4:], atol=1e-4)
    assert torch.equal(got[0], got[1])  # a fork does not change the first cache
