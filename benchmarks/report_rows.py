"""Measure the time of `ulskip report` over many rows, which are a folder's rows repeated with other
models, seeds and ids.

python benchmarks/report_rows.py [--rows 10000] [--results results/reproduce]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ulskip_cli.core.files import read_jsonl

SEEDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--results", type=Path, default=Path("results/reproduce"))
    args = parser.parse_args()
    known = [row for row in read_jsonl(args.results / "runs.jsonl") if row["status"] == "done"]
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "runs.jsonl").open("w", encoding="utf-8") as file:
            for number in range(args.rows):
                copy, row = number // len(known), known[number % len(known)]
                model, seed = f"{row['model']}-{copy // SEEDS}", 1 + copy % SEEDS
                ids = {
                    key: f"{int(row[key], 16) + copy:012x}"
                    for key in ("id", "baseline_id")
                    if row.get(key)
                }
                named = {**row["config"]["model"], "name": model}
                config = {**row["config"], "model": named, "seed": seed}
                file.write(json.dumps({**row, **ids, "config": config}) + "\n")
        for options in ([], ["--no-plots"], ["--html"]):
            began = time.perf_counter()
            command = [sys.executable, "-m", "ulskip_cli", "report", folder, *options]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            print(
                f"ulskip report {' '.join(options)} over {args.rows} rows:"
                f" {time.perf_counter() - began:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
