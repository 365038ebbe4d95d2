import pytest
import torch
from reference import NUM_LAYERS, build_model, reference_logits

from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.scoring import ReferenceLoss
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.strategies.plan import make_plan
from ulskip_cli.tasks.encoding import EncodedExample


def test_padding_does_not_exceed_the_position_table():
    model = build_model("gpt2")
    assert model.config.n_positions == 128
    long, short = EncodedExample([5] * 120, [6] * 8), EncodedExample([7] * 20, [8] * 60)
    decoder = Decoder(model, make_plan(compose(["ratio=2"]), ModelMetadata(NUM_LAYERS, None, None)))
    alone = [ReferenceLoss([one], BatchSize(1), 0).of(decoder) for one in (long, short)]
    expected = (8 * alone[0] + 60 * alone[1]) / 68
    assert ReferenceLoss([long, short], BatchSize(2), 0).of(decoder) == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_loss_is_the_mean_over_all_reference_tokens(llama, tokenizer, batch_size):
    texts = [("the cat", " der Hund"), ("a b c d", " im"), ("mat", " Haus im Haus")]
    llama.resize_token_embeddings(len(tokenizer))
    examples = [EncodedExample(*(tokenizer(text)["input_ids"] for text in pair)) for pair in texts]
    plan = make_plan(compose(["ratio=2"]), ModelMetadata(NUM_LAYERS, None, None))
    total, count = 0.0, 0
    for one in examples:
        ids, start = torch.tensor([one.prompt_ids + one.response_ids]), len(one.prompt_ids)
        logits = reference_logits(llama, ids, torch.ones_like(ids), start, plan.kept_layers)[
            0, start - 1 : -1
        ]
        total += torch.nn.functional.cross_entropy(
            logits, torch.tensor(one.response_ids), reduction="sum"
        ).item()
        count += len(one.response_ids)
    loss = ReferenceLoss(examples, BatchSize(batch_size), 0).of(Decoder(llama, plan))
    assert loss == pytest.approx(total / count, rel=1e-5)
