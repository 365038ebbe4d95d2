from collections import Counter
from dataclasses import replace

import pytest
import torch
from reference import NUM_LAYERS, batch, generate, plan_for, reference_logits, with_each

from ulskip_cli.core.schedule import ExitRule
from ulskip_cli.engines.base import Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.sampling import confidence_of

LENGTH = 10


def exiting(model, threshold, horizon=LENGTH, **options):
    rule = ExitRule(NUM_LAYERS, NUM_LAYERS, threshold, horizon, **options)
    return Decoder(Views.of(model, replace(plan_for("strategy=full"), exits=rule)))


def reference_exits(model, ids, mask, rule, ends=()):
    """Decode without a cache: compute all depths of the full model at every step and take the first
    confident one.

    Returns tokens [batch, LENGTH], not trimmed after EOS, and the depth of every decode step.
    """
    done = torch.zeros(len(ids), dtype=torch.bool)
    tokens, depths = [], []
    for step in range(LENGTH):
        logits = [
            reference_logits(model, ids, mask, 0, range(depth))[:, -1]
            for depth in range(1, NUM_LAYERS + 1)
        ]
        depth = NUM_LAYERS
        for check in rule.checks if step else ():
            if confidence_of(logits[check - 1])[~done].min() >= rule.threshold_at(step - 1):
                depth = check
                break
        depths.append(depth)
        chosen = logits[depth - 1].argmax(-1, keepdim=True)
        tokens.append(chosen)
        done |= torch.isin(chosen[:, 0], torch.tensor(list(ends), dtype=torch.long))
        if done.all():
            break
        ids, mask = torch.cat([ids, chosen], 1), torch.cat([mask, torch.ones_like(chosen)], 1)
    return torch.cat(tokens, 1).tolist(), depths[1:]


@torch.no_grad()
def median_threshold(model, ids, mask):
    """Return a threshold that about half of the checks reach."""
    return float(confidence_of(model(ids, attention_mask=mask).logits).median())


RULES = [(3, {}), (1, {}), (1, {"every": 2, "horizon": 4})]


@pytest.mark.parametrize(("model", "options"), with_each(RULES), indirect=["model"])
def test_every_step_is_that_of_the_uncached_reference(model, options):
    rows, rule = options
    ids, mask = (one[:rows] for one in batch(True))
    decoder = exiting(model, median_threshold(model, ids, mask), **rule)
    output = generate(decoder, ids, mask, LENGTH)
    tokens, depths = reference_exits(model, ids, mask, decoder.views.exits)
    assert (output.engine, output.token_ids) == ("torch", tokens)
    assert output.exits.depths == Counter(depths * rows)
    assert output.exits.check_seconds > 0


def test_finished_sequences_do_not_delay_the_others(llama):
    ids, mask = (one[:3] for one in batch(True))
    decoder = exiting(llama, 0.1)
    free = generate(decoder, ids, mask, LENGTH)
    ends = [row[4] for row in free.token_ids[:2]]
    llama.generation_config.eos_token_id = ends
    output = generate(decoder, ids, mask, LENGTH)
    lengths = [len(row) for row in output.token_ids]
    assert min(lengths) < max(lengths)
    tokens, depths = reference_exits(llama, ids, mask, decoder.views.exits, ends)
    assert output.token_ids == [row[:length] for row, length in zip(tokens, lengths, strict=True)]
    counts = Counter(depth for length in lengths for depth in depths[: length - 1])
    assert output.exits.depths == counts
    assert len(counts) > 1
