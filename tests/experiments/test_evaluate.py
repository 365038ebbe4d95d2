import json
import time

import pytest

from ulskip_cli.core.errors import RunError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.sampling import InvalidLogitsError
from ulskip_cli.engines.scoring import ForcedTexts
from ulskip_cli.experiments.evaluate import (
    BatchCheckpoints,
    generate_answers,
    measure_by_teacher_forcing,
    score_answers,
)
from ulskip_cli.experiments.paired_timing import time_pairs
from ulskip_cli.inference.batching import BatchSize


@pytest.fixture
def generated(tmp_path):
    """Return a function that generates answers."""

    def call(decoder, workload, config, progress=None):
        checkpoints = BatchCheckpoints(tmp_path / "a.partial.jsonl", {}, time.monotonic())
        shown = progress or ProgressCallback()
        answers = generate_answers(decoder, workload, config, shown, checkpoints)
        checkpoints.remove()
        return answers

    return call


@pytest.fixture
def evaluated(generated):
    """Return a function that generates answers and scores them."""

    def call(decoder, workload, config, baseline=None):
        answers = generated(decoder, workload, config)
        return answers, score_answers(answers, workload, baseline, ProgressCallback())

    return call


def test_answers_come_back_in_the_tasks_order(point, evaluated):
    decoder, workload, config = point("batch_size=2")
    answers, quality = evaluated(decoder, workload, config)
    assert [one["id"] for one in answers.generations] == [
        example.id for example in workload.examples
    ]
    assert quality.degenerate["hit_limit"] == sum(
        "hit_limit" in one["flags"] for one in answers.generations
    )
    generated = sum(output.generated_tokens for output in answers.outputs)
    assert generated == sum(len(one["token_ids"]) for one in answers.generations)
    assert quality.bleu is not None and quality.chrf is not None
    assert (quality.num_truncated_sources, quality.evaluated_batch_size) == (0, 2)


def test_a_batch_that_does_not_fit_is_halved_and_its_size_recorded(point, limit_memory, evaluated):
    decoder, workload, config = point()
    asked, _ = evaluated(decoder, workload, config)
    limit_memory()
    halved, quality = evaluated(decoder, workload, config)
    assert halved.generations == asked.generations
    quick = config.replace(speed=config.speed.replace(seconds=0.0))
    timed = time_pairs(decoder, decoder, workload, quick, ProgressCallback())
    timing = timed.timing()
    assert quality.evaluated_batch_size == timing.timed_batch_size == 1


def test_truncated_sources_are_counted(point, tmp_path, evaluated):
    lines = [
        json.dumps({"article": "the cat sat on the mat " * n, "highlights": "cats"})
        for n in (1, 40, 50)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    decoder, workload, config = point(
        "task=cnn_dm", f"task.file={tmp_path}/a.jsonl", "speed.new_tokens=6", context=128
    )
    assert [one.truncated for one in workload.encoded] == [False, True, True]
    assert max(map(len, workload.prompts)) <= 128 - 5
    assert workload.max_positions == 128  # timed pairs read the end of longer prompts
    _, quality = evaluated(decoder, workload, config)
    assert quality.num_truncated_sources == 2


def test_a_stop_string_ends_text_and_hypothesis(point, generated):
    free = generated(*point()).generations
    letter = free[0]["output"].strip()[-1]
    stopped = generated(*point(f"decoding.stop=['{letter}']")).generations
    assert all(letter not in one["output"] for one in stopped)
    assert free[0]["output"].startswith(stopped[0]["output"])
    assert "hit_limit" not in stopped[0]["flags"]


def test_stored_answers_of_other_examples_are_refused(point, evaluated):
    with pytest.raises(RunError, match=r"5 .*2; .*name="):
        evaluated(*point(), baseline=["a", "b"])


def test_logits_that_are_not_finite_are_refused(point):
    decoder, workload, _ = point()
    decoder.model.model.norm.weight.data.fill_(float("nan"))
    references = [example.response_ids for example in workload.encoded]
    texts = ForcedTexts(workload.prompts, references, BatchSize(2), workload.pad_token_id)
    with pytest.raises(InvalidLogitsError, match="nan"):
        measure_by_teacher_forcing(texts, decoder, decoder, "unified", ProgressCallback())


def test_progress_bounds_the_time_that_is_left(point, generated):
    notes = []

    class Notes(ProgressCallback):
        def phase(self, label, total=0):
            return lambda done, note="": notes.append((done, note))

    decoder, workload, config = point("batch_size=3")
    generated(decoder, workload, config, Notes())
    during = [note for done, note in notes if note.endswith(" left")]
    assert len(during) > 2 and all("tok/s, at most 0:" in note for note in during)
    assert notes[-1] == (5, during[-1]) and during[-1].endswith("at most 0:00:00 left")
