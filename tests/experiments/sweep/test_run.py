import errno
import json
import os
import re

import pytest
import torch
from reference import build_model

from ulskip_cli.cli.app import invoke
from ulskip_cli.core import environment
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.torch import packed_linear
from ulskip_cli.engines.torch.packed_linear import choose_linear_backend
from ulskip_cli.experiments import runner
from ulskip_cli.strategies.cost import LatencyFit

QUICK = [
    "limit=5",
    "decoding.max_new_tokens=4",
    "speed.pairs=2",
    "speed.warmup=0",
    "speed.new_tokens=3",
    "batch_size=2",
]
TIMES = re.compile(r"seconds|per_second|other_cpus|speedup|pairs|finished_at|memory")


@pytest.fixture
def sweep(model_folder, tmp_path, capsys):
    def call(*arguments, name="x", quick=QUICK):
        base = [
            f"model.path={model_folder}",
            "model.dtype=float32",
            f"results_dir={tmp_path}",
            f"name={name}",
        ]
        code = invoke(["sweep", *base, *quick, *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def stored(folder):
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def results(folder):
    """Rows without what a clock says, each id once."""
    rows = stored(folder)
    assert len({row["id"] for row in rows}) == len(rows)
    told = {
        row["id"]: {k: v for k, v in row.items() if not TIMES.search(k) or k == "target_speedup"}
        for row in rows
    }
    for row in told.values():
        row.pop("experiment")
        row["warnings"] = [
            text for text in row["warnings"] if "speedup" not in text
        ]  # a clock decides these
        row.get("config", {}).pop("name", None)
    return told


def interrupted_after(monkeypatch, batches, error=KeyboardInterrupt):
    """Let a few batches of answers through, and then none."""
    generate, left = Decoder.generate, [batches]

    def some(self, *args, **options):
        if "on_step" in options:
            left[0] -= 1
            if left[0] < 0:
                raise error
        return generate(self, *args, **options)

    monkeypatch.setattr(Decoder, "generate", some)


def test_a_point_goes_on_after_its_last_finished_batch(sweep, tmp_path, monkeypatch):
    grid = ["ratio=2,3", "decoding=sample"]
    assert sweep(*grid, name="whole")[0] == 0
    answered = []
    generate = Decoder.generate
    monkeypatch.setattr(
        Decoder,
        "generate",
        lambda self, ids, *rest, **options: (
            ("on_step" in options and answered.extend(ids)) or generate(self, ids, *rest, **options)
        ),
    )
    for batches in (2, 2):
        with monkeypatch.context() as patch:
            interrupted_after(patch, batches)
            assert sweep(*grid)[0] == 130
    told = json.loads(sweep(*grid, "--dry-run", "--json")[1])
    assert told["counts"] == {"done": 1, "to do": 2}
    assert told["points"][1]["note"] == "1 batch finished"
    assert sweep(*grid)[0] == 0
    assert results(tmp_path / "x") == results(tmp_path / "whole")
    assert len(answered) == 3 * 5  # no prompt was answered twice
    assert not list((tmp_path / "x" / "generations").glob("*.partial.jsonl"))


def test_a_batch_that_was_halved_stays_halved_when_a_point_goes_on(
    sweep, tmp_path, monkeypatch, limit_memory
):
    limit_memory()
    assert sweep("ratio=2,3", name="whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupted_after(patch, 7)
        assert sweep("ratio=2,3")[0] == 130
    assert sweep("ratio=2,3")[0] == 0
    assert results(tmp_path / "x") == results(tmp_path / "whole")
    assert {row["evaluated_batch_size"] for row in stored(tmp_path / "x")} == {1}


def test_batches_of_another_linear_backend_are_answered_anew(sweep, tmp_path, monkeypatch):
    if choose_linear_backend(build_model("llama")).name == "torch":
        pytest.skip("no packing on this machine")
    with monkeypatch.context() as patch:
        interrupted_after(patch, 1)
        assert sweep("strategy=full")[0] == 130
    monkeypatch.setattr(packed_linear, "MEMORY_SHARE", 0)
    answered, generate = [], Decoder.generate

    def counted(self, ids, *rest, **options):
        if "on_step" in options:
            answered.extend(ids)
        return generate(self, ids, *rest, **options)

    monkeypatch.setattr(Decoder, "generate", counted)
    assert sweep("strategy=full")[0] == 0
    assert [row["linear_backend"] for row in stored(tmp_path / "x")] == ["torch"]
    assert len(answered) == 5


def test_batches_of_another_schedule_are_answered_anew(sweep, tmp_path, monkeypatch):
    grid = ["ratio=1.7", "ratio_basis=latency", "speed.new_tokens=11"]

    def machine_with(patch, seconds_per_layer):
        line = LatencyFit.of(6, {6: 1 + 6 * seconds_per_layer, 2: 1 + 2 * seconds_per_layer})
        patch.setattr(runner, "fit_step_latency", lambda *args: line)
        patch.setattr(
            runner,
            "make_pair_timer",
            lambda *args: lambda depth: (depth, [1 / line.share(depth)] * 3),
        )

    machine_with(monkeypatch, 1.0)
    assert sweep(*grid, name="whole")[0] == 0
    with monkeypatch.context() as patch:
        machine_with(patch, 9.0)
        interrupted_after(patch, 5)
        assert sweep(*grid)[0] == 130
    (unfinished,) = (tmp_path / "x" / "generations").glob("*.partial.jsonl")
    assert len(unfinished.read_text().splitlines()) > 1
    assert sweep(*grid)[0] == 0
    assert results(tmp_path / "x") == results(tmp_path / "whole")


def test_rows_with_another_number_of_threads_are_measured_anew(sweep, tmp_path, monkeypatch):
    here = environment.machine()
    for more, rows in ((0, 1), (0, 1), (1, 2), (1, 2)):
        monkeypatch.setattr(
            environment, "machine", lambda *args, n=here["threads"] + more: {**here, "threads": n}
        )
        assert sweep("strategy=full")[0] == 0
        assert len(stored(tmp_path / "x")) == rows


def test_what_does_not_apply_is_a_row_and_no_failure(sweep, tmp_path):
    code, out, _ = sweep("strategy=full,unified", "decoding=self_speculative")
    assert (code, "N/A" in out) == (0, True)
    by_status = {row["status"]: row for row in stored(tmp_path / "x")}
    assert by_status["n/a"]["strategy"] == "full"
    assert "decoding.draft_tokens" in by_status["n/a"]["reason"]
    assert "N/A" in (tmp_path / "x" / "table.md").read_text()
    assert "N/A" in (tmp_path / "x" / "table4.md").read_text()
    assert ",n/a," in (tmp_path / "x" / "table.csv").read_text()
    before = stored(tmp_path / "x")
    assert sweep("strategy=full,unified", "decoding=self_speculative")[0] == 0
    assert stored(tmp_path / "x") == before


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory at batch size 1"),
        (MemoryError(), "out of memory at batch size 1"),
        (ConnectionError("hub"), "ConnectionError: hub"),
    ],
    ids=["device", "host", "hub"],
)
def test_one_points_failure_is_a_row_and_the_next_sweep_tries_it_again(
    sweep, tmp_path, monkeypatch, error, reason
):
    generate = Decoder.generate

    def fails(self, *args, **options):
        if len(self.stages[0].kept) == 3:
            raise error
        return generate(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "generate", fails)
        code, out, err = sweep("ratio=2,3", "baseline=false")
    assert (code, "failed" in out) == (1, True)
    assert all(
        text in err.splitlines()[-1] for text in ("1 of 2 points", f"unified ratio 2: {reason}")
    )
    failed = next(row for row in stored(tmp_path / "x") if row["status"] == "failed")
    assert reason in failed["reason"]
    assert "Traceback" in (tmp_path / "x" / failed["log"]).read_text()
    assert sweep("ratio=2,3", "baseline=false")[0] == 0
    assert [row["status"] for row in stored(tmp_path / "x")] == ["failed", "done", "done"]
    assert "failed" not in (tmp_path / "x" / "table.md").read_text()


def test_a_model_out_of_reach_fails_alone(sweep, tmp_path, model_folder):
    code, _, err = sweep(f"model.path={model_folder},some/model", "strategy=full")
    assert code == 1
    assert "some/model" in err.splitlines()[-1]
    assert sorted(row["status"] for row in stored(tmp_path / "x")) == ["done", "failed"]


def test_logits_that_are_no_numbers_are_told(sweep, tmp_path, tokenizer):
    import transformers
    from reference import NEW_STYLE

    options = {
        **NEW_STYLE,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options))
    model.model.norm.weight.data.fill_(float("nan"))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "nan")
    code, _, err = sweep("ratio=2,3", f"model.path={tmp_path / 'nan'}")
    assert (code, "model.dtype" in err) == (1, True)
    assert {row["status"] for row in stored(tmp_path / "x")} == {"failed"}
    assert not list((tmp_path / "x" / "generations").glob("*.partial.jsonl"))


def test_a_full_disk_ends_the_sweep_in_one_line_and_nothing_is_lost(sweep, tmp_path, monkeypatch):
    write, room = os.write, [6]

    def little_room(descriptor, data):
        room[0] -= 1
        if room[0] < 0:
            write(descriptor, data[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr("ulskip_cli.core.files.os.write", little_room)
        code, out, err = sweep("ratio=2,3")
    last = err.splitlines()[-1]
    assert (code, out) == (1, "")
    assert str(tmp_path / "x") in last and "No space left on device" in last
    code, _, err = sweep("ratio=2,3")
    assert (code, "runs.broken.jsonl" in err) == (0, False)
    sweep("ratio=2,3", name="whole")
    assert results(tmp_path / "x") == results(tmp_path / "whole")


def test_a_broken_line_is_told_once_and_kept(sweep, tmp_path):
    assert sweep("ratio=2,3")[0] == 0
    runs = tmp_path / "x" / "runs.jsonl"
    lines = runs.read_text().splitlines(keepends=True)
    runs.write_text("".join(lines[:1]) + "\x00rubbish\n" + lines[1] + lines[2][:-30])
    code, _, err = sweep("ratio=2,3")
    assert (code, err.count("2 unreadable lines")) == (0, 1)
    assert "runs.broken.jsonl" in err and "2 rows" in err
    assert len((tmp_path / "x" / "runs.broken.jsonl").read_text().splitlines()) == 2
    assert len(results(tmp_path / "x")) == 3
    assert "runs.broken.jsonl" not in sweep("ratio=2,3")[2]


def test_fail_fast_and_force(sweep, tmp_path, monkeypatch):
    from ulskip_cli.experiments import runner

    real = runner.run_point

    def fails(point, *rest):
        if point.config.ratio == 2:
            raise ValueError("on purpose")
        return real(point, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_point", fails)
        assert sweep("ratio=2,3", "baseline=false", "--fail-fast")[0] == 1
    assert [row["status"] for row in stored(tmp_path / "x")] == ["failed"]
    assert sweep("ratio=2,3", "baseline=false")[0] == 0
    assert len(stored(tmp_path / "x")) == 3
    assert sweep("ratio=2,3", "baseline=false", "--force")[0] == 0
    assert len(stored(tmp_path / "x")) == 5


def test_a_dry_run_lists_states_and_reasons(sweep):
    code, out, _ = sweep("ratio=2,3", "--dry-run")
    assert (code, "3 points: 3 to do" in out) == (0, True)
    assert sweep("ratio=2,2.5")[0] == 0
    code, out, _ = sweep("ratio=2,3,99", "--dry-run")
    assert "4 points: 2 done, 1 to do, 1 n/a" in out
    assert "out of reach" in out
