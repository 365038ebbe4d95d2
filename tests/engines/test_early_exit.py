from collections import Counter
from dataclasses import replace

import pytest
import torch
from reference import plan_for, random_ids

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.schedule import ExitRule
from ulskip_cli.engines import early_exit
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.inference.shallow_view import shallow_view

LENGTH = 10
GREEDY = DecodingConfig(name="greedy", max_new_tokens=LENGTH)


def exiting(model, threshold, confidence="softmax_diff", **rule):
    plan = plan_for("strategy=full")
    exits = ExitRule(
        plan.num_layers, plan.num_layers, confidence, threshold, rule.pop("horizon", LENGTH), **rule
    )
    return Decoder(model, replace(plan, exits=exits))


def batch(rows=3, padded=True):
    ids = random_ids(rows, 9)
    mask = torch.ones_like(ids)
    if padded and rows > 1:
        mask[1, :4] = 0
    return ids * mask, mask


def reference(model, ids, mask, rule, length, ends=()):
    """Decode without a cache: compute all depths of the full model at every step and take the first
    confident one.

    Returns tokens [batch, length], not trimmed after EOS, and the depth of every step.
    """
    done = torch.zeros(len(ids), dtype=torch.bool)
    views_of = [shallow_view(model, range(depth)) for depth in range(1, rule.num_layers)] + [model]
    tokens, depths = [], []
    for step in range(length):
        options = (
            {}
            if model.config.model_type == "bloom"
            else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        )
        with torch.no_grad():
            logits = [
                view(ids, attention_mask=mask, use_cache=False, **options).logits[:, -1]
                for view in views_of
            ]
        depth = rule.num_layers
        if step:
            before = None
            for check in rule.checks:
                if rule.confidence == "cosine":
                    state = behind(model, ids, mask, options, check)
                    sure = (
                        None
                        if before is None
                        else early_exit.confidence_of("cosine", state, before, None)
                    )
                    before = state
                else:
                    state = logits[check - 1]
                    sure = early_exit.confidence_of(rule.confidence, state, None, state)
                if sure is not None and sure[~done].min() >= rule.threshold_at(step - 1):
                    depth = check
                    break
            depths.append(depth)
        chosen = logits[depth - 1].argmax(-1, keepdim=True)
        tokens.append(chosen)
        done |= torch.isin(chosen[:, 0], torch.tensor(list(ends), dtype=torch.long))
        if done.all():
            break
        ids, mask = torch.cat([ids, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)
    return torch.cat(tokens, 1).tolist(), depths


def behind(model, ids, mask, options, depth):
    """Return the hidden states of the last position after `depth` layers, before any norm."""
    with torch.no_grad():
        return model(
            ids, attention_mask=mask, use_cache=False, output_hidden_states=True, **options
        ).hidden_states[depth][:, -1]


def histogram(depths, rows):
    return {depth: depths.count(depth) * rows for depth in sorted(set(depths))}


@torch.no_grad()
def median_threshold(model, kind, ids, mask):
    """Return a threshold that about half of the checks reach."""
    logits = model(ids, attention_mask=mask).logits
    if kind == "cosine":
        states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return float(early_exit.confidence_of(kind, states[3], states[2], None).median())
    return float(early_exit.confidence_of(kind, logits, None, logits).median())


@pytest.mark.parametrize(
    ("kind", "rows", "rule"),
    [
        ("softmax_diff", 3, {}),
        ("softmax_max", 1, {}),
        ("softmax_diff", 1, {"every": 2, "horizon": 4}),
        ("cosine", 3, {}),
    ],
)
def test_every_step_is_that_of_the_uncached_reference(model, kind, rows, rule):
    ids, mask = batch(rows)
    decoder = exiting(model, median_threshold(model, kind, ids, mask), kind, **rule)
    output = decoder.generate(ids, mask, DecodeContext(GREEDY, 0))
    tokens, depths = reference(model, ids, mask, decoder.exits, LENGTH)
    assert (output.engine, output.token_ids) == ("early_exit", tokens)
    assert output.exits.depths == histogram(depths, rows)
    assert output.exits.check_seconds > 0


def test_finished_sequences_do_not_delay_the_others(llama):
    ids, mask = batch()
    decoder = exiting(llama, 0.1)
    free = decoder.generate(ids, mask, DecodeContext(GREEDY, 0))
    llama.generation_config.eos_token_id = [row[4] for row in free.token_ids[:2]]
    output = exiting(llama, 0.1).generate(ids, mask, DecodeContext(GREEDY, 0))
    lengths = [len(row) for row in output.token_ids]
    assert min(lengths) < max(lengths)
    tokens, depths = reference(
        llama, ids, mask, decoder.exits, LENGTH, llama.generation_config.eos_token_id
    )
    assert output.token_ids == [row[:length] for row, length in zip(tokens, lengths, strict=True)]
    counts = Counter(
        depth for step, depth in enumerate(depths, start=1) for length in lengths if step < length
    )
    assert output.exits.depths == counts
    assert len(counts) > 1
