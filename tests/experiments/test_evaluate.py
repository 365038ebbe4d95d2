import json

import torch

from ulskip_cli.core.progress import NullProgress
from ulskip_cli.experiments.evaluate import adjustments, evaluate
from ulskip_cli.experiments.speed import measure_speed
from ulskip_cli.inference.decoder import Decoder


def test_answers_come_back_in_the_tasks_order(point):
    decoder, work, config = point("batch_size=2")
    evaluation = evaluate(decoder, work, config, None, NullProgress())
    assert [row["id"] for row in evaluation.generations] == [example.id for example in work.examples]
    assert evaluation.row["degenerate"]["hit_limit"] == sum("hit_limit" in row["flags"] for row in evaluation.generations)
    assert evaluation.row["generated_tokens"] == sum(len(row["token_ids"]) for row in evaluation.generations)
    assert {"bleu", "chrf"} <= evaluation.row.keys()
    assert (evaluation.row["sources_cut"], evaluation.row["evaluated_batch_size"]) == (0, 2)


def test_a_batch_that_does_not_fit_is_halved_and_the_row_says_so(point, monkeypatch):
    decoder, work, config = point()
    asked = evaluate(decoder, work, config, None, NullProgress())
    generate = Decoder.generate

    def small_memory(self, input_ids, *args, **options):
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, input_ids, *args, **options)

    monkeypatch.setattr(Decoder, "generate", small_memory)
    halved = evaluate(decoder, work, config, None, NullProgress())
    assert [row["token_ids"] for row in halved.generations] == [row["token_ids"] for row in asked.generations]
    assert halved.row["evaluated_batch_size"] == 1
    speed = measure_speed(decoder, decoder, work, config, NullProgress())
    assert speed["timed_batch_size"] == 1
    row = {"batch_size": 4, "strategy": "unified", "num_examples": 5, **halved.row, **speed}
    assert adjustments(row) == [
        "unified: batches of 4 did not fit into memory; evaluated in batches of 1",
        "unified: batches of 4 did not fit into memory; timed in batches of 1",
    ]


def test_sources_that_are_cut_are_counted(point, tmp_path):
    lines = [json.dumps({"article": "the cat sat on the mat " * n, "highlights": "cats"}) for n in (1, 40, 50)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    decoder, work, config = point("task=cnn_dm", f"task.file={tmp_path}/a.jsonl", "speed.new_tokens=6", context=128)
    assert [one.truncated for one in work.encoded] == [False, True, True]
    assert max(map(len, work.prompts)) <= 128 - 5
    assert work.context == 128  # the timed pairs read the end of what is longer
    row = {"batch_size": 4, "strategy": "x", "num_examples": 3, **evaluate(decoder, work, config, None, NullProgress()).row}
    assert adjustments(row) == ["2 of 3 sources lost their end to fit into the model's context"]


def test_a_stop_string_ends_text_and_hypothesis(point):
    decoder, work, config = point()
    free = evaluate(decoder, work, config, None, NullProgress()).generations
    letter = free[0]["output"].strip()[-1]
    decoder, work, config = point(f"decoding.stop=['{letter}']")
    stopped = evaluate(decoder, work, config, None, NullProgress()).generations
    assert all(letter not in row["output"] for row in stopped)
    assert free[0]["output"].startswith(stopped[0]["output"])
    assert "hit_limit" not in stopped[0]["flags"]


def test_a_mean_depth_that_misses_is_told_with_what_may_be_why():
    row = {"strategy": "early_exit", "batch_size": 4, "num_examples": 9, "ratio_basis": "layers", "target_kept_layers": 4}
    exits = {"exit_depths": {"5": 1}}
    assert adjustments({**row, **exits, "evaluated_mean_kept_layers": 4.1}) == []
    (line,) = adjustments({**row, **exits, "evaluated_mean_kept_layers": 5.0})
    assert line == "early_exit: 5.00 layers ran on average, 4 were aimed at"
    (line,) = adjustments({**row, **exits, "evaluated_mean_kept_layers": 5.0, "calibration": {"examples": 3}})
    assert line.endswith("; its 3 held-out examples fill no batch of 4, raise calibration.examples")
    (line,) = adjustments({**row, "strategy": "skip_decode", "evaluated_mean_kept_layers": 3.5})
    assert line.startswith("skip_decode: 3.50 layers ran on average, 4 were aimed at, since its answers are of other lengths")
    assert adjustments({**row, "ratio_basis": "latency", "evaluated_mean_kept_layers": 3.5}) == []
