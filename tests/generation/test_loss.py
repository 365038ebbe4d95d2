import pytest
import torch
from reference import NUM_LAYERS, reference_logits

from ulskip_cli.config import compose
from ulskip_cli.generation.decode import Decoder
from ulskip_cli.generation.encoding import encode_pairs
from ulskip_cli.generation.loss import decode_loss
from ulskip_cli.models.facts import ModelFacts
from ulskip_cli.plan import make_plan


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_loss_is_the_mean_over_all_reference_tokens(llama, tokenizer, batch_size):
    llama.resize_token_embeddings(len(tokenizer))
    texts = [("the cat", " der Hund"), ("a b c d", " im"), ("mat", " Haus im Haus")]
    plan = make_plan(compose(["ratio=2"]), ModelFacts(NUM_LAYERS, None, None))
    total, count = 0.0, 0
    for text in texts:
        pair = encode_pairs(tokenizer, [text])
        ids = torch.cat([pair.prompt_ids, pair.response_ids], 1)
        start = pair.prompt_ids.shape[1]
        logits = reference_logits(llama, ids, torch.ones_like(ids), start, plan.kept_layers)[0, start - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, pair.response_ids[0], reduction="sum").item()
        count += pair.response_ids.shape[1]
    assert decode_loss(Decoder(llama, plan), tokenizer, texts, batch_size) == pytest.approx(total / count, rel=1e-5)
