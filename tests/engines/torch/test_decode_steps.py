import pytest
import torch
from reference import NUM_LAYERS, batch, build_model, decoder_for, random_ids
from torch._dynamo.utils import counters
from transformers import BartConfig, BartForCausalLM

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import RunError
from ulskip_cli.engines.decoder import DecodeContext
from ulskip_cli.engines.torch.decode_steps import EagerSteps
from ulskip_cli.inference.teacher_forcing import encode_prompt

ENDS = [7, 20, 33, 40, 50]
COMPILED = DecodingConfig(name="g", max_new_tokens=10, compile="on")


def test_steps_write_into_the_same_buffers(llama):
    ids = random_ids(2, 5)
    with torch.no_grad():
        cache = encode_prompt(llama, ids, torch.ones_like(ids)).cache
        steps = EagerSteps(llama, cache, torch.ones_like(ids), 5)
        addresses = [layer.keys.data_ptr() for layer in cache.layers]
        for _ in range(4):
            steps(ids[:, :1])
    assert {layer.keys.shape[2] for layer in cache.layers} == {9}
    assert [layer.keys.data_ptr() for layer in cache.layers] == addresses


@pytest.fixture
def compiler():
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"no C++ compiler: {error}")


@pytest.mark.slow
def test_compiled_steps_give_the_same_tokens_and_are_made_once(model, compiler):
    context = DecodeContext(COMPILED, 0)
    decoder = decoder_for(model, "ratio=2")
    spent = []
    for length, padded, ends in ((9, True, None), (20, False, None), (9, True, ENDS)):
        model.generation_config.eos_token_id = ends
        ids = random_ids(3, length, seed=length)
        mask = torch.ones_like(ids)
        mask[1, : 3 * padded] = 0
        fast = decoder.generate(ids * mask, mask, context)
        slow = decoder.with_engine("transformers").generate(ids * mask, mask, context)
        assert fast.token_ids == slow.token_ids
        spent.append(fast.compile_seconds)
    assert spent[0] > 0
    assert spent[1:] == [0, 0]  # longer prompts fit into the same buffers


@pytest.mark.slow
# GPT-2 scales scores by the layer's index
@pytest.mark.parametrize(("name", "kinds"), [("llama", 1), ("gpt2", NUM_LAYERS)])
def test_layers_of_all_schedules_share_their_code(name, kinds, compiler, request):
    model, ids = build_model(name), random_ids(5, 9)
    context = DecodeContext(COMPILED, 0)
    graphs = []
    for ratio in (1, 2):
        before = counters["stats"]["unique_graphs"]
        decoder = decoder_for(model, f"ratio={ratio}")
        decoder.generate(ids, torch.ones_like(ids), context)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert graphs == [kinds, 0]
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    # a condition of torch.compile; code that checks it is compiled again
    torch.use_deterministic_algorithms(True)
    before = counters["stats"]["unique_graphs"]
    decoder.generate(ids, torch.ones_like(ids), context)
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
def test_code_that_gives_other_logits_is_not_used(compiler):
    torch.manual_seed(0)
    depths = {"decoder_layers": NUM_LAYERS, "encoder_layers": NUM_LAYERS}
    sizes = {"d_model": 32, "decoder_ffn_dim": 48, "decoder_attention_heads": 4, "vocab_size": 101}
    decodes = {"is_decoder": True, "is_encoder_decoder": False, "eos_token_id": None}
    config = BartConfig(init_std=0.3, **depths, **sizes, **decodes)
    decoder = decoder_for(BartForCausalLM(config).eval(), "ratio=2")
    ids = random_ids(2, 9)
    # Bart derives positions from the cache's length
    with pytest.raises(RunError, match=r"logits.*decoding\.compile=off"):
        decoder.generate(ids, torch.ones_like(ids), DecodeContext(COMPILED, 0))


@pytest.mark.slow
def test_compiled_steps_run_stages(llama, compiler):
    staged = ("ratio=2", "strategy=skip_decode", "strategy.horizon=8")
    decoder, (ids, mask) = decoder_for(llama, *staged), batch(True)
    eager, compiled = (
        decoder.generate(ids, mask, DecodeContext(COMPILED.replace(compile=how), 0))
        for how in ("off", "on")
    )
    assert compiled.compiled and compiled.token_ids == eager.token_ids
