"""Rows as `ulskip bench` stores them, for the tests of benchmark reports."""

from report_rows import made

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


def bench_row(target=2.0, batch=1, engine="torch", compiled=False, **more):
    kept, share = list(range(round(12 / target))), 0.25 * target
    speeds = {"decode_tokens_per_second": 100.0 * target, "total_tokens_per_second": 150.0 * target}
    full = {
        "decode_tokens_per_second": 100.0,
        "total_tokens_per_second": 150.0,
        "bandwidth_share": 0.2,
    }
    full["engine"] = engine
    row = {
        "id": f"{target} {batch} {engine} {compiled}",
        "experiment": "bench",
        "model": "tiny",
        "dtype": "float32",
        "task": None,
        "pair": None,
        "dataset": None,
        "decoding": "greedy",
        "strategy": "unified",
        "batch_size": batch,
        "strategy_options": {"spacing": "even"},
        "prompt_layers": "all",
        "draft_tokens": 0,
        "timed_prompt_tokens": 64,
        "timed_new_tokens": 32,
        "engine": engine,
        "compiled": compiled,
        "num_layers": 12,
        "kept_layers": kept,
        "layer_ratio": 12 / len(kept),
        "target_speedup": target,
        "predicted_speedup": 0.9 * target,
        "measured_speedup": 0.95 * target,
        "measured_speedup_low": 0.94 * target,
        "measured_speedup_high": 0.96 * target,
        "end_to_end_speedup": 0.8 * target,
        "bandwidth_share": share,
        **speeds,
        "full": full,
        "device": "cpu",
        "machine_limits": {"bytes_per_second": 1e10},
        "environment": ENVIRONMENT,
        "training": "x",
        "num_examples": 0,
        "warnings": [],
    }
    return made({**row, **more})
