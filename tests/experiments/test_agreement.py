import pytest
import torch
from reference import NUM_LAYERS, build_model, decoder_for, plan_for, reference_logits

from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.scoring import ForcedTexts
from ulskip_cli.experiments.evaluate import is_copy, measure_by_teacher_forcing
from ulskip_cli.inference.batching import BatchSize

PROMPTS, ANSWERS = [[5, 6, 7], [8, 9, 10, 11, 12]], [[13, 14, 15, 16], [17, 18]]


def agreement(model, view, answers=ANSWERS, prompts=PROMPTS):
    full = decoder_for(model, "strategy=full")
    texts = ForcedTexts(prompts, [], BatchSize(2), 0, answers)
    return measure_by_teacher_forcing(texts, view, full, "unified", ProgressCallback())


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


def test_tokens_that_copy_the_prompt_count_apart(llama):
    view, copying = decoder_for(llama, "ratio=2"), [[5, 6, 7, 8], [5, 6, 7, 13]]
    values = agreement(llama, view, copying, [[5, 6, 7, 8, 9], [10, 5, 6, 7]])
    assert values["copied_share"] == 3 / 8
    same = values["agreement"] * 8 - values["new_agreement"] * 5
    assert same == pytest.approx(round(same)) and 0 <= same <= 3


@pytest.mark.parametrize(
    ("prompt", "answer", "copies"),
    [
        ([7], [7, 7], [False, False]),
        ([1, 2, 3, 1, 2], [3, 4], [True, False]),  # continues the end of the prompt
        ([1, 2, 3, 4], [1, 2, 3, 4, 1], [False, False, True, True, False]),
    ],
)
def test_a_token_copies_with_the_two_before_it(prompt, answer, copies):
    assert is_copy(prompt, answer).tolist() == copies
