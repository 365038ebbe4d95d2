"""Small records as a sweep stores them, and folders of results with answers, for the tests of
reports.
"""

import json

from ulskip_cli.experiments.record import read

ENVIRONMENT = {
    "ulskip": "0",
    "git_commit": "abc",
    "git_dirty": False,
    "packages": {"torch": "2", "transformers": "5"},
    "accelerator": None,
    "processor": "CPU",
    "threads": 2,
    "instruction_set": "AVX2",
}
KEPT = {1.0: [0, 1, 2, 3, 4, 5], 2.0: [0, 2, 5], 3.0: [0, 5]}
FULL_BLEU = 30.0


def made(row):
    """Read a row; values that are None are left out."""
    folder = row.pop("folder", "results/x")
    return read(
        json.dumps({key: value for key, value in row.items() if value is not None})
    ).replace(folder=folder)


def sweep_row(
    strategy="unified", target=2.0, batch=1, bleu=28.0, speedup=None, margin=0.02, **more
):
    """Make a finished record; `margin` is half the width of the intervals, in hundreds of BLEU for
    quality.
    """
    full = strategy == "full"
    target = 1.0 if full else target
    bleu, speedup = (FULL_BLEU, 1.0) if full else (bleu, speedup or 0.9 * target)
    delta = (bleu or 0) - FULL_BLEU
    compared = {
        "full": FULL_BLEU,
        "delta": delta,
        "delta_low": delta - 100 * margin / 2,
        "delta_high": delta + 100 * margin / 2,
        "p_value": 0.01,
    }
    seconds = {"full": 0.62, "strategy": 0.62 / speedup}  # of 31 steps
    row = {
        "status": "done",
        "id": f"{strategy}-{target:g}-{batch}",
        "baseline_id": None if full else f"full-1-{batch}",
        "experiment": "x",
        "model": "m",
        "task": "wmt",
        "dataset": "sample",
        "pair": "de-en",
        "decoding": "greedy",
        "strategy": strategy,
        "strategy_options": {},
        "batch_size": batch,
        "prompt_layers": "all",
        "ratio_basis": "layers",
        "num_layers": 6,
        "kept_layers": KEPT[target],
        "target_speedup": target,
        "layer_ratio": 6 / len(KEPT[target]),
        "predicted_speedup": 0.85 * target if target > 1 else 1.0,
        "measured_speedup": speedup,
        "measured_speedup_low": speedup - margin,
        "measured_speedup_high": speedup + margin,
        "speedup_interval_coverage": 0.984375,
        "pairs": {side: {"decode_seconds": [spent] * 7} for side, spent in seconds.items()},
        "time_per_output_token_seconds": seconds["strategy"] / 31,
        "timed_batch_size": batch,
        "end_to_end_speedup": 0.95 * speedup,
        "bleu": bleu,
        "chrf": 50.0,
        "vs_baseline": {} if full else {"bleu": compared},
        "decode_loss": 2.0,
        "total_tokens_per_second": 100.0 * batch * speedup,
        "decode_tokens_per_second": 50.0 * speedup,
        "prompt_kv_bytes": 100,
        "kept_kv_bytes": 50,
        "num_examples": 20,
        "dtype": "float32",
        "device": "cpu",
        "seed": 1,
        "training": "with skipping",
        "environment": ENVIRONMENT,
        "finished_at": "2026-01-01T00:00:00+00:00",
        "warnings": [],
        "folder": "results/x",
        "config": {"strategy": {"name": strategy}, "ratio": target},
    }
    return made({**row, **more})


def small_sweep(batches=(1, 8), **scores):
    """Make records of full and of two strategies at two targets; `scores` sets BLEU by strategy and
    target: unified_2=30.0.
    """
    bleu = {"unified_2": 29.0, "unified_3": 27.5, "top_skip_2": 20.0, "top_skip_3": 5.0, **scores}
    rows = [sweep_row("full", batch=batch) for batch in batches]
    for name, score in bleu.items():
        strategy, _, target = name.rpartition("_")
        rows += [sweep_row(strategy, float(target), batch, score) for batch in batches]
    return rows


def not_applicable(strategy="early_exit", target=2.0, batch=8, status="n/a"):
    """Make the record of a point that failed or does not apply."""
    keys = (
        "model",
        "task",
        "dataset",
        "pair",
        "decoding",
        "experiment",
        "seed",
        "batch_size",
        "target_speedup",
        "folder",
    )
    known = sweep_row(target=target, batch=batch)
    told = {
        "status": status,
        "reason": f"{strategy} decodes one sequence at a time",
        "strategy": strategy,
    }
    point = {key: known.value(key) for key in keys}
    return made(
        {
            **point,
            "id": f"{strategy}-{target:g}-{batch}",
            "config": {**known.config, "strategy": {"name": strategy}},
            **told,
        }
    )


def write_folder(path, rows, answers=None):
    """Write a folder of results; `answers` maps row ids to lists of hypotheses, one for each
    example.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "runs.jsonl").write_text(
        "".join(json.dumps(row.to_row()) + "\n" for row in rows), "utf-8"
    )
    for point, texts in (answers or {}).items():
        (path / "generations").mkdir(exist_ok=True)
        lines = [
            {
                "id": str(i),
                "source": f"Satz {i}",
                "reference": f"sentence number {i} is here",
                "hypothesis": text,
                "flags": [],
            }
            for i, text in enumerate(texts)
        ]
        file = path / "generations" / f"{point}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path
