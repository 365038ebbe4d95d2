from dataclasses import replace

import pytest
from reference import NUM_LAYERS, batch, build_model, is_near_tie, reference_greedy

from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.engines.torch.session import unsupported_reason
from ulskip_cli.strategies.plan import Stage, make_plan

LENGTH = 14
FAST = DecodingConfig(name="g", max_new_tokens=LENGTH)
DECODINGS = {
    "greedy": FAST,
    "sampled": FAST.replace(do_sample=True, temperature=0.8, top_p=0.9, top_k=50),
    "penalized": FAST.replace(repetition_penalty=1.3, no_repeat_ngram_size=2),
}
ENDS = [7, 20, 33, 40, 50, 60, 70, 80]


def decoder_for(model, *overrides):
    return Decoder(
        model, make_plan(compose(list(overrides)), ModelMetadata(NUM_LAYERS, None, None))
    )


def staged_decoder(model):
    """A decoder with four layers, three from the fourth decode step on, and two from the ninth."""
    plan = make_plan(
        compose(["strategy=custom", "strategy.layers=[0,2,3,5]"]),
        ModelMetadata(NUM_LAYERS, None, None),
    )
    return Decoder(
        model, replace(plan, stages=(*plan.stages, Stage(3, (0, 2, 5)), Stage(8, (0, 5))))
    )


def differs_by_near_tie(decoder, ids, mask, one, other):
    whole_prompt = decoder.prompt_model is decoder.model
    kept = (
        {stage.first_step: stage.kept for stage in decoder.stages}
        if whole_prompt
        else range(NUM_LAYERS)
    )
    return is_near_tie(decoder.prompt_model, ids[mask.bool()], one, other, kept)


def both(decoder, decoding, padded):
    """Generate one batch by both engines."""
    ids, mask = batch(padded)
    fast = decoder.generate(ids, mask, DecodeContext(decoding, 0, 5))
    slow = decoder.with_engine("transformers").generate(ids, mask, DecodeContext(decoding, 0, 5))
    assert (fast.engine, slow.engine) == ("torch", "transformers")
    assert (fast.prompt_kv_bytes, fast.kept_kv_bytes) == (slow.prompt_kv_bytes, slow.kept_kv_bytes)
    return ids, mask, fast.token_ids, slow.token_ids


@pytest.mark.parametrize(
    "overrides", [("strategy=full",), ("ratio=2",), ("ratio=2", "prompt_layers=kept")], ids=" ".join
)
def test_tokens_equal_those_of_transformers_generate(model, overrides):
    decoder, near_ties = decoder_for(model, *overrides), 0
    for ends in (None, ENDS):
        model.generation_config.eos_token_id = ends
        for padded in (True, False):
            ids, mask, fast, slow = both(decoder, FAST, padded)
            for i, (one, other) in enumerate(zip(fast, slow, strict=True)):
                if one != other:
                    near_ties += 1
                    assert differs_by_near_tie(decoder, ids[i], mask[i], one, other)
    assert near_ties <= 1  # of 20 sequences


def test_tokens_of_stages_equal_those_of_transformers_generate(model):
    decoder, near_ties = staged_decoder(model), 0
    for ends in (None, ENDS):
        model.generation_config.eos_token_id = ends
        for padded in (True, False):
            ids, mask, fast, slow = both(decoder, FAST, padded)
            for i, (one, other) in enumerate(zip(fast, slow, strict=True)):
                if one != other:
                    near_ties += 1
                    assert differs_by_near_tie(decoder, ids[i], mask[i], one, other)
                elif ends is None and not padded:
                    kept = {stage.first_step: stage.kept for stage in decoder.stages}
                    expected = reference_greedy(
                        model, ids[i : i + 1], mask[i : i + 1], kept, LENGTH
                    )[0].tolist()
                    assert one == expected or differs_by_near_tie(
                        decoder, ids[i], mask[i], one, expected
                    )
    assert near_ties <= 1  # of 20 sequences


@pytest.mark.parametrize("name", ["sampled", "penalized"])
def test_sampling_and_penalties_are_transformers_own(llama, name):
    decoder = decoder_for(llama, "ratio=2")
    for ends in (None, ENDS):
        llama.generation_config.eos_token_id = ends
        for padded in (True, False):
            _, _, fast, slow = both(decoder, DECODINGS[name], padded)
            assert fast == slow


def test_prompts_longer_than_the_sliding_window():
    model = build_model("mistral")
    decoder, (ids, mask) = decoder_for(model, "ratio=2"), batch(True)
    assert model.config.sliding_window < ids.shape[1]
    longer = FAST.replace(max_new_tokens=40)
    fast, slow = (
        decoder.with_engine(engine).generate(ids, mask, DecodeContext(longer, 0))
        for engine in ("torch", "transformers")
    )
    assert fast.token_ids == slow.token_ids


def test_finished_sequences_are_dropped_from_the_batch(llama):
    decoder, (ids, mask) = decoder_for(llama, "ratio=2"), batch(True)
    free = decoder.generate(ids, mask, DecodeContext(FAST, 0)).token_ids
    llama.generation_config.eos_token_id = [row[2] for row in free[:3]]
    sizes = []
    hook = decoder.view.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    rows = decoder.generate(ids, mask, DecodeContext(FAST, 0)).token_ids
    hook.remove()
    slow = decoder.with_engine("transformers").generate(ids, mask, DecodeContext(FAST, 0)).token_ids
    assert rows == slow
    assert sizes[0] == 5
    assert sizes[-1] <= 2


def test_a_forced_length_continues_past_eos(llama):
    decoder, (ids, mask) = decoder_for(llama, "ratio=2"), batch(False)
    llama.generation_config.eos_token_id = decoder.generate(
        ids, mask, DecodeContext(FAST, 0)
    ).token_ids[0][0]
    forced = decoder.generate(ids, mask, DecodeContext(FAST, 0), forced_length=6)
    slow = decoder.with_engine("transformers").generate(
        ids, mask, DecodeContext(FAST, 0), forced_length=6
    )
    assert forced.token_ids == slow.token_ids
    assert {len(row) for row in forced.token_ids} == {6}


def test_one_token_needs_no_step(llama):
    decoder, (ids, mask) = decoder_for(llama, "ratio=2"), batch(True)
    assert [
        len(row)
        for row in decoder.generate(ids, mask, DecodeContext(FAST, 0), forced_length=1).token_ids
    ] == [1] * 5


def test_unsupported_options_have_a_reason(llama):
    assert unsupported_reason(llama, FAST) is None
    assert unsupported_reason(llama, FAST.replace(num_beams=2)) == "decoding.num_beams=2"
    assert unsupported_reason(llama, FAST.replace(stop=["x"])) == "decoding.stop"
    assert "decoding.generate_kwargs (min_p)" in unsupported_reason(
        llama, FAST.replace(generate_kwargs={"min_p": 0.1})
    )
    llama.config._attn_implementation = "flex_attention"
    assert "flex_attention" in unsupported_reason(llama, FAST)
