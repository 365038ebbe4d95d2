"""Compare a sweep that is killed and restarted at random moments with an undisturbed one.

    python benchmarks/kill_sweep.py [--kills 20] [--seed 1] [-- OVERRIDES]

Each kill comes a random moment after a random number of bytes has been written, drawn evenly from none to all.
The exit code is 1 if the rows differ in anything except measured times and memory.
"""

import argparse
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

GRID = [
    "strategy=full,unified,top_skip,bottom_skip",
    "ratio=2,3,5",
    "batch_size=1,4,8",
    "limit=24",
    "decoding.max_new_tokens=24",
    "speed.pairs=3",
    "speed.new_tokens=8",
]
MEASURED = re.compile(r"seconds|_per_second|_speedup|^pairs$|finished_at|memory|experiment|^exit_check_fraction$")


def command(results: Path, name: str, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "ulskip_cli", "sweep", f"results_dir={results}", f"name={name}", *overrides]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    file = folder / "runs.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def unmeasured(row: dict[str, Any]) -> dict[str, Any]:
    """Remove measured times and memory from a row and from its calibration."""
    kept = {
        key: unmeasured(value) if key == "calibration" and value else value
        for key, value in row.items()
        if not MEASURED.search(key) or key in ("target_speedup", "predicted_speedup")
    }
    if "config" in row:
        kept["config"] = {key: value for key, value in row["config"].items() if key not in ("name", "results_dir")}
    return kept


def differences(whole: list[dict[str, Any]], killed: list[dict[str, Any]]) -> list[str]:
    """List the differences between the rows of both sweeps, one line each."""
    lines = [f"{point} has {count} rows" for point, count in Counter(row["id"] for row in killed).items() if count > 1]
    want, got = ({row["id"]: unmeasured(row) for row in rows} for rows in (whole, killed))
    lines += [f"{point} is lost" for point in want.keys() - got.keys()]
    lines += [f"{point} is only in the killed sweep" for point in got.keys() - want.keys()]
    for point in want.keys() & got.keys():
        keys = {key for key in want[point] | got[point] if want[point].get(key) != got[point].get(key)}
        lines += [f"{point} differs in {', '.join(sorted(keys))}"] if keys else []
    return lines


def whole_sweep(results: Path, overrides: list[str]) -> tuple[float, float]:
    """Run a sweep undisturbed; returns the seconds until its first row and until its end."""
    began, first = time.monotonic(), 0.0
    with subprocess.Popen(
        command(results, "whole", overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            time.sleep(0.05)
            if not first and (results / "whole" / "runs.jsonl").exists():
                first = time.monotonic() - began
    if process.returncode:
        raise SystemExit("the undisturbed sweep failed")
    return first, time.monotonic() - began


def killed_sweep(results: Path, overrides: list[str], kills: int, first: float, seed: int) -> list[int]:
    """Kill and restart a sweep; returns the number of rows at every kill, -1 if a line was cut off."""
    chance, folder, there = random.Random(seed), results / "killed", []
    goals = sorted(chance.uniform(0, written(results / "whole")) for _ in range(kills))
    for goal in goals:
        began = time.monotonic()
        least = chance.uniform(0, first)  # so that some kills hit the start of a sweep
        with subprocess.Popen(
            command(results, "killed", overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and (written(folder) < goal or time.monotonic() - began < least):
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        there.append(len(rows_of(folder)) if whole_lines(folder) else -1)
    subprocess.run(command(results, "killed", overrides), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return there


def written(folder: Path) -> int:
    """Count the bytes of rows and answers as a measure of progress."""
    total = 0
    for file in folder.rglob("*.jsonl"):
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return total


def whole_lines(folder: Path) -> bool:
    try:
        rows_of(folder)
    except ValueError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("overrides", nargs="*", default=GRID)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results = Path(name)
        first, seconds = whole_sweep(results, args.overrides)
        whole = rows_of(results / "whole")
        own = sum(row["wall_seconds"] for row in whole)
        print(
            f"undisturbed: {len(whole)} rows in {seconds:.1f} s, the first after {first:.1f} s; "
            f"the points took {own:.1f} s, the overhead is {seconds / own - 1:.1%}"
        )
        there = killed_sweep(results, args.overrides, args.kills, first, args.seed)
        print(f"killed {len(there)} times, at these numbers of rows: {', '.join(map(str, there))}")
        found = differences(whole, rows_of(results / "killed"))
        print("\n".join(found) or f"the killed sweep has the same {len(whole)} rows")
        return bool(found)


if __name__ == "__main__":
    sys.exit(main())
