import pytest
from reference import NUM_LAYERS

from ulskip_cli.config import compose, instantiate
from ulskip_cli.evaluation import evaluate, prompt_batches, throughput
from ulskip_cli.generation.decode import BatchOutput, Decoder
from ulskip_cli.models.facts import ModelFacts
from ulskip_cli.plan import make_plan
from ulskip_cli.progress import Silent


def test_both_conventions_of_tokens_per_second():
    outputs = [
        BatchOutput([[1, 2, 3], [4]], [False, False], 10, 0.5, 1.0, 2.0, 0, 0),
        BatchOutput([[5, 6]], [False], 6, 0.5, 1.0, 1.0, 0, 0),
    ]
    told = throughput(outputs, "evaluation")
    assert told["decode_tokens_per_second"] == pytest.approx((2 + 0 + 1) / 3)
    assert told["total_tokens_per_second"] == pytest.approx((16 + 6) / 5)


def test_answers_come_back_in_the_tasks_order(llama, tokenizer):
    llama.resize_token_embeddings(len(tokenizer))
    config = compose(["decoding.max_new_tokens=5", "batch_size=2"])
    task = instantiate(config.task, "task")
    examples = task.examples()[:5]
    decoder = Decoder(llama, make_plan(config, ModelFacts(NUM_LAYERS, None, None)))
    evaluation = evaluate(decoder, tokenizer, task, examples, config, None, Silent())
    assert [row["id"] for row in evaluation.generations] == [example.id for example in examples]
    assert evaluation.row["degenerate"]["hit_limit"] == sum("hit_limit" in row["flags"] for row in evaluation.generations)
    assert evaluation.row["generated_tokens"] == sum(len(row["token_ids"]) for row in evaluation.generations)


def test_timed_batches_are_full_even_with_few_examples(tokenizer):
    task = instantiate(compose([]).task, "task")
    batches = prompt_batches(tokenizer, task, task.examples()[:3], batch_size=4, count=2)
    assert [ids.shape[0] for ids, _ in batches] == [4, 4]
