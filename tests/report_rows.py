"""Small records and folders of results with answers, for the tests of reports."""

import json
import re
from collections import defaultdict

from ulskip_cli.experiments.record import read
from ulskip_cli.experiments.results import ResultsFolder

CODE = {"ulskip": "0", "git_commit": "abc", "git_dirty": False}
MACHINE = {"threads": 2, "processor": "CPU", "instruction_set": "AVX2"}
ENVIRONMENT = {**CODE, **MACHINE, "packages": {"torch": "2", "transformers": "5"}}
COMMON = {"dtype": "float32", "device": "cpu", "environment": ENVIRONMENT, "warnings": []}
# The keys of values that depend on time, on the name of the folder or on the number of threads.
TIMES = re.compile(
    r"seconds|per_second|other_cpus|measured_speedup|end_to_end_speedup|speedup_interval|pairs"
    r"|finished_at|memory|^experiment$|^environment$"
)
KEPT = {1.0: [0, 1, 2, 3, 4, 5], 2.0: [0, 2, 5], 3.0: [0, 5]}
FULL_BLEU = 30.0


def made(row, config):
    """Read a row with a configuration; values that are None are left out."""
    folder = row.pop("folder", "results/x")
    given = {key: value for key, value in row.items() if value is not None}
    return read(json.dumps({**given, "config": config})).replace(folder=folder)


def configured(record, **changes):
    """Return a record with values added to its configuration, e.g. `model={"name": "n"}`."""
    config = record.config.non_defaults()
    for key, value in changes.items():
        section = config.get(key)
        config[key] = {**section, **value} if isinstance(section, dict) else value
    return read(json.dumps({**record.to_row(), "config": config})).replace(folder=record.folder)


def sections(model, strategy, engine, target, batch):
    """Return the configuration of a row."""
    names = {"strategy": strategy, "correction": "none", "engine": engine, "decoding": "greedy"}
    return {
        "model": {"name": model, "source": "bundled", "path": model},
        **{group: {"name": name} for group, name in names.items()},
        "ratio": target,
        "batch_size": batch,
    }


def compared(full, score, margin):
    """Return the comparison of a score with that of the full model; `margin` is that of the
    interval, to each side.
    """
    delta = score - full
    ends = {"delta_low": delta - margin, "delta_high": delta + margin}
    return {"full": full, "delta": delta, **ends}


def timed_pairs(full, strategy, **values):
    """Return pairs by the seconds of both sides, each a unit with the same other values."""
    counts = {key: [value] * len(full) for key, value in values.items()}
    sides = {"full": full, "strategy": strategy}
    pairs = {side: {"decode_seconds": seconds, **counts} for side, seconds in sides.items()}
    return pairs | {"units": [{"pairs": 1}] * len(full)}


def sweep_row(
    strategy="unified",
    target=2.0,
    batch=1,
    bleu=28.0,
    speedup=None,
    margin=0.02,
    config=None,
    units=7,
    **more,
):
    """Make a finished record; `margin` is half the width of the intervals, in hundreds of BLEU for
    quality, `config` has further values of the configuration, and `units` timed pairs are a unit
    each.
    """
    full = strategy == "full"
    target = 1.0 if full else target
    bleu, speedup = (FULL_BLEU, 1.0) if full else (bleu, speedup or 0.9 * target)
    row = {
        **COMMON,
        "id": f"{strategy}-{target:g}-{batch}",
        "baseline_id": None if full else f"full-1-{batch}",
        "dataset": "sample",
        "num_layers": 6,
        "kept_layers": KEPT[target],
        "layer_ratio": 6 / len(KEPT[target]),
        "predicted_speedup": 0.85 * target if target > 1 else 1.0,
        "measured_speedup": speedup,
        "measured_speedup_low": speedup - margin,
        "measured_speedup_high": speedup + margin,
        "pairs": timed_pairs([0.62] * units, [0.62 / speedup] * units, decoded_tokens=31 * batch),
        "time_per_output_token_seconds": 0.02 / speedup,
        "timed_batch_size": batch,
        "end_to_end_speedup": 0.95 * speedup,
        "decode_tokens_per_second": 50.0 * speedup,
        "total_tokens_per_second": 100.0 * batch * speedup,
        "bleu": bleu,
        "chrf": 50.0,
        "vs_baseline": {} if full else {"bleu": compared(FULL_BLEU, bleu or 0, 50 * margin)},
        "decode_loss": 2.0,
        "prompt_kv_bytes": 100,
        "kept_kv_bytes": 50,
        "num_examples": 20,
        "training": "with skipping",
        "finished_at": "2026-01-01T00:00:00+00:00",
    }
    chosen = {**sections("m", strategy, "auto", target, batch), "task": {"name": "wmt"}}
    return made({**row, **more}, {**chosen, **(config or {})})


def bench_row(target=2.0, batch=1, engine="torch", rate=100, config=None, **more):
    """Make a record of a benchmark in which the full model decoded `rate` tokens a second."""
    kept = list(range(round(12 / target)))
    own = round(0.95 * target * rate)
    in_full = (config or {}).get("baseline_engine", engine)
    sides = {
        side: {"decode_seconds": [1.0] * 7, "decoded_tokens": [tokens] * 7, "engine": name}
        for side, tokens, name in (("full", rate, in_full), ("strategy", own, engine))
    }
    row = {
        **COMMON,
        "id": f"{target} {batch} {engine}",
        "command": "bench",
        "engine": engine,
        "training": "x",
        "num_examples": 0,
        "throughput_from": "timed pairs",
        "num_layers": 12,
        "kept_layers": kept,
        "layer_ratio": 12 / len(kept),
        "predicted_speedup": 0.9 * target,
        "measured_speedup": 0.95 * target,
        "measured_speedup_low": 0.94 * target,
        "measured_speedup_high": 0.96 * target,
        "end_to_end_speedup": 0.8 * target,
        "pairs": {**sides, "units": [{"pairs": 1, "bytes_per_second": 1e10}] * 7},
        "time_per_output_token_seconds": batch / own,
        "step_bytes": round(1e10 / 4 / (own / batch)),
    }
    chosen = sections("tiny", "unified", engine, target, batch)
    return made({**row, **more}, {**chosen, **(config or {})})


def small_sweep(batches=(1, 8), **scores):
    """Make records of full and two strategies; `scores` sets BLEU, e.g. `unified_2=30.0`."""
    bleu = {"unified_2": 29.0, "unified_3": 27.5, "top_skip_2": 20.0, "top_skip_3": 5.0, **scores}
    rows = [sweep_row("full", batch=batch) for batch in batches]
    for name, score in bleu.items():
        strategy, _, target = name.rpartition("_")
        rows += [sweep_row(strategy, float(target), batch, score) for batch in batches]
    return rows


def two_depths(**more):
    """Make a record that was timed with a mean of four layers, and whose answers ran 5.4."""
    stages = {"kept_layers": KEPT[1.0], "later_stages": [{"first_step": 3, "kept_layers": [0, 5]}]}
    depths = {"mean_kept_layers": 4.0, "evaluated_mean_kept_layers": 5.4}
    return sweep_row("skip_decode", **{**stages, **depths, "bleu": 30.0, **more})


def not_applicable(strategy="early_exit", target=2.0, batch=8, status="n/a"):
    """Make the record of a point that failed or does not apply."""
    known = sweep_row(strategy, target, batch)
    kept = {key: getattr(known, key) for key in ("id", "dataset", "folder")}
    reason = f"{strategy} decodes one sequence at a time"
    return made({**kept, "status": status, "reason": reason}, known.config.non_defaults())


def write_rows(path, rows):
    """Write rows as they are stored into a folder, and return it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_folder(path, records, answers=None):
    """Write a folder of results; `answers` maps row ids to the hypotheses of the examples."""
    write_rows(path, [record.to_row() for record in records])
    for point, texts in (answers or {}).items():
        stored = [
            {"id": str(i), "source": f"Satz {i}", "reference": f"sentence number {i} is here"}
            | {"hypothesis": text, "flags": []}
            for i, text in enumerate(texts)
        ]
        ResultsFolder(path).save_generations(point, stored)
    return path


def stored_rows(folder):
    """Read the rows of a folder as they are stored."""
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text("utf-8").splitlines()]


def timeless_rows(folder):
    """Read the rows by id, each there once, without what depends on time."""
    rows = stored_rows(folder)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        row["config"].pop("name", None)
        row["warnings"] = [text for text in row["warnings"] if "speed" not in text]
    return {
        row["id"]: {key: value for key, value in row.items() if not TIMES.search(key)}
        for row in rows
    }


def run_rows(config, session=None):
    """Run a point and its baseline, unless they have rows; return the rows, in which the value of
    a missing key is None.
    """
    from ulskip_cli.experiments.ledger import Ledger, make_jobs
    from ulskip_cli.experiments.sweep import run_jobs

    ledger = Ledger(make_jobs([config]))
    run_jobs(ledger, models=session, raises=True)
    records = ledger.outcome().records.values()
    return [defaultdict(lambda: None, record.to_row()) for record in records]
