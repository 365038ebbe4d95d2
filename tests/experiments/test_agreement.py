import pytest
import torch
from reference import NUM_LAYERS, build_model, decoder_for, plan_for, reference_logits

from ulskip_cli.engines.scoring import EncodedPrompts
from ulskip_cli.experiments.evaluate import measure_agreement
from ulskip_cli.inference.batching import BatchSize

PROMPTS, ANSWERS = [[5, 6, 7], [8, 9, 10, 11, 12]], [[13, 14, 15, 16], [17, 18]]


def agreement(model, view, answers=ANSWERS):
    full = decoder_for(model, "strategy=full")
    prompts = EncodedPrompts(PROMPTS, 0)
    return measure_agreement(full, view, prompts, answers, BatchSize(2), lambda done: None)


@pytest.mark.parametrize("name", ["llama", "bloom", "qwen2", "gpt2"])
@pytest.mark.parametrize("prompt", ["all", "kept"])
def test_it_is_that_of_uncached_logits(name, prompt):
    model = build_model(name)
    view = decoder_for(model, "ratio=2", f"prompt_layers={prompt}")
    kept = plan_for("ratio=2").kept_layers
    same, divergence, count = 0, 0.0, 0
    for prompt_ids, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids = torch.tensor([prompt_ids + answer])
        mask, start = torch.ones_like(ids), 0 if prompt == "kept" else len(prompt_ids)
        full, own = (
            reference_logits(model, ids, mask, at, layers)[0, len(prompt_ids) - 1 : -1]
            for at, layers in ((len(prompt_ids), tuple(range(NUM_LAYERS))), (start, kept))
        )
        same += int((full.argmax(-1) == own.argmax(-1)).sum())
        p, q = full.softmax(-1), own.softmax(-1)
        divergence += float((p * (p / q).log()).sum())
        count += len(answer)
    measured = agreement(model, view)
    assert measured["agreement"] == pytest.approx(same / count)
    assert measured["kl_divergence"] == pytest.approx(divergence / count, rel=1e-3)
    for key in ("agreement", "kl_divergence"):
        assert measured[f"{key}_low"] <= measured[key] <= measured[f"{key}_high"]


def test_empty_answers_do_not_count(llama):
    view = decoder_for(llama, "ratio=2")
    assert agreement(llama, view, [ANSWERS[0], []])
    assert agreement(llama, view, [[], []]) == {}
