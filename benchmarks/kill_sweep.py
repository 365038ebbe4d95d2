"""A sweep that is killed at random moments and started again, beside one that nobody disturbs.

    python benchmarks/kill_sweep.py [--kills 20] [--seed 1] [-- OVERRIDES]

Each kill comes some random time after the moment when the first row may be there, so that they are spread over the whole.
Ends with exit code 1 where the two differ in anything but what a clock or a memory meter says.
"""

import argparse
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
MEASURED = re.compile(r"seconds|_per_second|_speedup|^pairs$|finished_at|memory|experiment")


def command(results: Path, name: str, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "ulskip_cli", "sweep", f"results_dir={results}", f"name={name}", *overrides]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    file = folder / "runs.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def unmeasured(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what a clock or a memory meter says."""
    kept = {
        key: value for key, value in row.items() if not MEASURED.search(key) or key in ("target_speedup", "predicted_speedup")
    }
    kept["config"] = {key: value for key, value in row.get("config", {}).items() if key not in ("name", "results_dir")}
    return kept


def differences(whole: list[dict[str, Any]], killed: list[dict[str, Any]]) -> list[str]:
    """A line for everything in which a disturbed sweep's rows are not an undisturbed one's."""
    lines = [f"{point} has {count} rows" for point, count in Counter(row["id"] for row in killed).items() if count > 1]
    want, got = ({row["id"]: unmeasured(row) for row in rows} for rows in (whole, killed))
    lines += [f"{point} is lost" for point in want.keys() - got.keys()]
    lines += [f"{point} is of neither" for point in got.keys() - want.keys()]
    for point in want.keys() & got.keys():
        keys = {key for key in want[point] | got[point] if want[point].get(key) != got[point].get(key)}
        lines += [f"{point} differs in {', '.join(sorted(keys))}"] if keys else []
    return lines


def whole_sweep(results: Path, overrides: list[str]) -> tuple[float, float]:
    """Run it undisturbed; seconds until its first row, and until its end."""
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


def killed_sweep(results: Path, overrides: list[str], kills: int, first: float, seconds: float, seed: int) -> list[int]:
    """Start it, kill it, start it again; the rows that were there at every kill."""
    chance, there = random.Random(seed), []
    while len(there) < kills:
        process = subprocess.Popen(
            command(results, "killed", overrides), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            _, told = process.communicate(timeout=chance.uniform(0.5, 1) * first + chance.uniform(0, 2 * seconds / (kills + 1)))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            there.append(len(rows_of(results / "killed")) if whole_lines(results / "killed") else -1)
            continue
        print(f"the sweep was done after {len(there)} kills: {told.splitlines()[-1]}")
        break
    subprocess.run(command(results, "killed", overrides), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return there


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
        own = sum(row["point_seconds"] for row in whole)
        print(
            f"undisturbed: {len(whole)} rows in {seconds:.1f} s, the first after {first:.1f} s, "
            f"{own:.1f} s of them the points' own, {seconds / own - 1:.1%} beyond"
        )
        there = killed_sweep(results, args.overrides, args.kills, first, seconds - first, args.seed)
        print(f"killed {len(there)} times, with so many rows there: {', '.join(map(str, there))}")
        found = differences(whole, rows_of(results / "killed"))
        print("\n".join(found) or f"the same {len(whole)} rows, none lost, none twice")
        return bool(found)


if __name__ == "__main__":
    sys.exit(main())
