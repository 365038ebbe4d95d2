import json
import time
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import NUM_LAYERS, build_model, decoder_for, plan_for, reference_logits
from torch.nn.functional import cross_entropy

from ulskip_cli.core.answer import Answer
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.base import BatchOutput, DraftStats, ExitStats
from ulskip_cli.engines.sampling import InvalidLogitsError
from ulskip_cli.engines.scoring import ForcedTexts
from ulskip_cli.experiments import evaluate
from ulskip_cli.experiments.paired_timing import (
    Pair,
    random_prompts,
    task_prompts,
    time_pairs,
    timed_request,
)
from ulskip_cli.inference.batching import BatchSize


@pytest.fixture
def evaluated(tmp_path):
    """Return a function that generates answers and scores them."""

    def call(decoder, workload, config, baseline=None, progress=None):
        checkpoints = evaluate.BatchCheckpoints(tmp_path / "a.partial.jsonl", {}, time.monotonic())
        shown = progress or ProgressCallback()
        answers = evaluate.generate_answers(decoder, workload, config, shown, checkpoints)
        checkpoints.remove()
        return answers, evaluate.score_answers(answers, workload, baseline, ProgressCallback())

    return call


def test_answers_come_back_in_the_tasks_order(point, evaluated):
    decoder, workload, config = point("batch_size=2")
    answers, quality = evaluated(decoder, workload, config)
    rows = answers.generations
    assert [row["id"] for row in rows] == [example.id for example in workload.examples]
    assert quality.degenerate["hit_limit"] == sum("hit_limit" in row["flags"] for row in rows)
    generated = sum(output.generated_tokens for output in answers.outputs)
    assert generated == sum(len(row["token_ids"]) for row in rows)
    assert quality.bleu is not None and quality.chrf is not None
    assert (quality.num_truncated_sources, quality.evaluated_batch_size) == (0, 2)


def test_a_batch_that_does_not_fit_is_halved_and_its_size_recorded(point, limit_memory, evaluated):
    decoder, workload, config = point()
    asked, _ = evaluated(decoder, workload, config)
    limit_memory()
    halved, quality = evaluated(decoder, workload, config)
    assert halved.generations == asked.generations
    request = timed_request(
        evaluate.answer_request(config, workload, decoder.views.model), 3, decoder.views
    )

    def make_pair(batch_size):
        return Pair(decoder, decoder, task_prompts(workload, 3, batch_size), request)

    speed = config.speed.replace(seconds=0.0)
    timing = time_pairs(make_pair, config.batch_size, speed, "", ProgressCallback()).timing()
    assert quality.evaluated_batch_size == timing.timed_batch_size == 1


def test_truncated_sources_are_counted(point, tmp_path, evaluated):
    rows = [{"article": "the cat sat on the mat " * n, "highlights": "cats"} for n in (1, 40, 50)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    news = ["task=cnn_dm", f"task.file={tmp_path}/a.jsonl"]
    decoder, workload, config = point(*news, "speed.new_tokens=6", context=128)
    assert [one.truncated for one in workload.encoded] == [False, True, True]
    assert max(map(len, workload.prompts)) <= 128 - 5
    assert workload.max_positions == 128  # timed pairs read the end of longer prompts
    _, quality = evaluated(decoder, workload, config)
    assert quality.num_truncated_sources == 2


def test_a_stop_string_ends_text_and_hypothesis(point, evaluated):
    free = evaluated(*point())[0].generations
    letter = free[0]["output"].strip()[-1]
    stopped = evaluated(*point(f"decoding.stop=['{letter}']"))[0].generations
    assert all(letter not in one["output"] for one in stopped)
    assert free[0]["output"].startswith(stopped[0]["output"])
    assert "hit_limit" not in stopped[0]["flags"]


def test_stored_answers_of_other_examples_are_refused(point, evaluated):
    with pytest.raises(RunError, match=r"5 .*2; .*name="):
        evaluated(*point(), baseline=["a", "b"])


def test_logits_that_are_not_finite_are_refused(point):
    decoder, workload, _ = point()
    decoder.views.model.model.norm.weight.data.fill_(float("nan"))
    references = [example.response_ids for example in workload.encoded]
    texts = ForcedTexts(workload.prompts, references, BatchSize(2), workload.pad_token_id)
    with pytest.raises(InvalidLogitsError, match="nan"):
        evaluate.measure_by_teacher_forcing(texts, decoder, decoder, "unified", ProgressCallback())


def test_progress_tells_the_tokens_per_second(point, evaluated):
    progress = Mock()
    evaluated(*point("batch_size=3"), progress=progress)
    notes = [call.args for call in progress.phase.return_value.call_args_list]
    during = [note for done, note in notes if note.endswith(" tok/s")]
    assert len(during) > 2 and all(" tokens, " in note for note in during)
    assert notes[-1] == (5, during[-1])


TEXTS, ANSWERS = [[5, 6, 7], [8, 9, 10, 11, 12]], [[13, 14, 15, 16], [17, 18]]


def agreement(model, view, answers=ANSWERS, prompts=TEXTS):
    full = decoder_for(model, "strategy=full")
    texts = ForcedTexts(prompts, answers, BatchSize(2), 0, answers)
    return evaluate.measure_by_teacher_forcing(texts, view, full, "unified", ProgressCallback())


@pytest.mark.parametrize("name", ["llama", "bloom", "qwen2", "gpt2"])
@pytest.mark.parametrize("prompt", ["all", "kept"])
def test_it_is_that_of_uncached_logits(name, prompt):
    model = build_model(name)
    view = decoder_for(model, "ratio=2", f"prompt_layers={prompt}")
    kept = plan_for("ratio=2").kept_layers
    same, divergence, loss, count = 0, 0.0, 0.0, 0
    for prompt_ids, answer in zip(TEXTS, ANSWERS, strict=True):
        ids = torch.tensor([prompt_ids + answer])
        mask, start = torch.ones_like(ids), 0 if prompt == "kept" else len(prompt_ids)
        full, own = (
            reference_logits(model, ids, mask, at, layers)[0, len(prompt_ids) - 1 : -1]
            for at, layers in ((len(prompt_ids), tuple(range(NUM_LAYERS))), (start, kept))
        )
        same += int((full.argmax(-1) == own.argmax(-1)).sum())
        p, q = full.softmax(-1), own.softmax(-1)
        divergence += float((p * (p / q).log()).sum())
        loss += float(cross_entropy(own, torch.tensor(answer), reduction="sum"))
        count += len(answer)
    measured = agreement(model, view)
    assert measured["decode_loss"] == pytest.approx(loss / count, rel=1e-4)
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
    assert evaluate.is_copy(prompt, answer).tolist() == copies


ORIGIN = {"code": "a", "threads": 2}
ORDER = [2, 0, 1, 3]
FIRST = BatchOutput([[1, 2], [3]], [False, False], 9, 0.1, 0.2, 0.3, 10, 5)
SECOND = BatchOutput(
    *([[4]], [True], 9, 0.1, 0.2, 0.3, 10, 5),
    drafts=DraftStats(1, 2, 3, 4),
    exits=ExitStats({3: 2}, 0.5),
)


def resumed(path, order=ORDER, **origin):
    """The batches of a run that begins now, after an earlier attempt."""
    batches = evaluate.BatchCheckpoints(path, ORIGIN | origin, time.monotonic())
    batches.resume(order)
    return batches


def finished(path, order=ORDER, **origin):
    return resumed(path, order, **origin).finished


@pytest.fixture
def path(tmp_path):
    partial = resumed(tmp_path / "a.partial.jsonl")
    assert partial.finished == []
    partial.add([2, 0], FIRST, 2, 100)
    partial.add([1], SECOND, 1, 200)
    return tmp_path / "a.partial.jsonl"


def test_finished_batches_are_read_back_but_for_one_that_was_cut_off(path):
    stored = [(batch.output, batch.batch_size, batch.peak_memory_bytes) for batch in finished(path)]
    assert stored == [(FIRST, 2, 100), (SECOND, 1, 200)]
    path.write_bytes(path.read_bytes()[:-20])
    again = resumed(path)
    assert [batch.positions for batch in again.finished] == [[2, 0]]
    again.add([1, 3], FIRST, 2, 300)
    assert [batch.positions for batch in finished(path)] == [[2, 0], [1, 3]]


def test_batches_of_another_machine_order_or_shape_are_dropped(path):
    assert len(finished(path, [2, 0, 3, 1])) == 1
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1].replace("token_ids", "tokens")]) + "\n")
    assert len(finished(path)) == 1
    assert finished(path, threads=1) == []


def test_seconds_of_all_attempts_add_up_until_the_run_is_done(path):
    path.write_text(path.read_text().replace('"elapsed_seconds":', '"elapsed_seconds":10'))
    again = resumed(path)
    assert again.elapsed_seconds >= 100
    again.remove()
    assert not path.exists() and finished(path) == []


def test_timed_prompts_leave_room_for_what_is_generated(point):
    _, work, _ = point()
    longest = max(len(prompt) for prompt in work.prompts)
    short = replace(work, max_positions=longest)
    batches = task_prompts(short, 10, batch_size=5)
    assert {batch.input_ids.shape for batch in batches} == {(5, longest - 10)}
    room = longest - 10
    assert batches[0].input_ids[0, -len(work.prompts[0]) :].tolist() == work.prompts[0][-room:]


def test_without_a_task_the_prompts_are_random_and_seeded():
    one, again = (
        [batch.input_ids for batch in random_prompts(100, 7, batch_size=3, seed=1)]
        for _ in range(2)
    )
    assert {ids.shape for ids in one} == {(3, 7)}
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert (one[0] != one[1]).any()


blocks = st.lists(st.integers(0, 9), min_size=1, max_size=8)


@given(st.lists(st.integers(0, 9), max_size=20), blocks)
def test_any_block_four_times_is_a_loop(prefix, block):
    assert evaluate.ends_in_loop([*prefix, *block * 4])


@given(st.lists(st.integers(), unique=True, max_size=40))
def test_distinct_tokens_are_no_loop(tokens):
    assert not evaluate.ends_in_loop(tokens)


def test_flags():
    answers = Answer("  ", [1], False), Answer("x x x x", [7] * 4, True)
    assert list(map(evaluate.degenerate_flags, answers)) == [["empty"], ["loop", "hit_limit"]]
    assert evaluate.degenerate_flags(Answer("fine", [1, 2, 3], False)) == []


def test_length_ratio_counts_words():
    assert evaluate.length_ratio(["a b", ""], ["a b c", "d"]) == 0.5
