"""Interrupt sweep, bench, train, export and tune at random moments, and compare what they write in
the end with an undisturbed run.

    python benchmarks/soak.py [--count 10] [--seed 1]

Each of SIGKILL, SIGTERM and SIGINT comes COUNT times, spread over the commands. A command that was
interrupted runs again in the same folder, and is interrupted again, until it ends. The exit code is
1 if a row, a weight, an exported file or an exit code differs, or if a temporary file is left.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# A signal that comes when the command has ended and Python exits ends the process itself, as -15;
# shells show 143 then too.
CODES = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2)}
QUICK = [
    "limit=6",
    "max_new_tokens=8",
    "speed.seconds=0",
    "speed.new_tokens=4",
]
GRID = ["model=tiny", "strategy=full,unified,top_skip", "ratio=2,3", "batch_size=1,4", *QUICK]
TRAINING = [
    "limit=24",
    "train.batch_size=2",
    "train.max_length=48",
    "train.max_steps=8",
    "train.save_every=2",
    "train.ratios=1.5",
]
EXPORT = ["ratio=2", "prompt_layers=kept", "--check"]
TUNING = ["model=tiny", "quality=0.8", "choice_examples=8", "calibration.examples=8", *QUICK]
TUNING += ["engine=torch", "finalists=1"]
TUNING += ["candidates=['strategy=unified','strategy=unified correction=patch']"]
BENCH = ["model=tiny", "engine=torch,llama_cpp", "ratio=2,3", "batch_size=1", *QUICK[2:]]
COMMANDS = ("sweep", "bench", "train", "export", "tune")
# Keys of a row whose values differ between two runs.
MEASURED = re.compile(
    r"seconds|_per_second|_speedup|^pairs$|finished_at|memory|experiment|^exit_check_fraction$|^other_cpus$|^warnings$|learning_curve|^resumed$"
)


@dataclass(frozen=True)
class Place:
    """One of COMMANDS, and the folder of a small model, which `train` needs."""

    command: str
    model: Path

    def line(self, folder: Path) -> list[str]:
        """Return the command line that writes into a folder."""
        given = {
            "sweep": [f"results_dir={folder}", "name=x", *GRID],
            "bench": [f"results_dir={folder}", "name=x", *BENCH],
            "tune": [f"results_dir={folder}", "name=x", *TUNING],
            "train": [f"model.path={self.model}", f"output={folder / 'x'}", *TRAINING],
            "export": ["model=tiny", "--to", str(folder / "x"), *EXPORT],
        }
        return [sys.executable, "-m", "ulskip_cli", self.command, *given[self.command]]


def run(line: Sequence[str]) -> float:
    """Run a command undisturbed, and return its seconds."""
    began = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(line)} ended with exit code {done.returncode}: {done.stderr[-500:]}"
        )
    return time.monotonic() - began


def interrupt(line: Sequence[str], number: signal.Signals, delay: float) -> tuple[int, str]:
    """Start a command, send a signal after `delay` seconds, and return its exit code and its last
    line of error. It may have ended before the signal.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=errors) as process,
    ):
        # While the interpreter starts, no program can handle a signal.
        while number != signal.SIGKILL and process.poll() is None and not handles(process.pid):
            time.sleep(0.01)
        end = time.monotonic() + delay
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(number)
        code = process.wait()
        errors.seek(0)
        return code, (errors.read().splitlines() or [""])[-1]


def handles(pid: int) -> bool:
    """Return True if the program handles signals already. Python itself handles SIGINT from the
    start, so SIGTERM decides.
    """
    status = Path(f"/proc/{pid}/status")
    if not status.exists():  # the process has ended, or the system is not Linux
        return True
    # SigCgt is the mask of handled signals, in hexadecimal.
    caught = next(
        (line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt")),
        "0",
    )
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def soak(
    place: Place, folder: Path, signals: Sequence[signal.Signals], chance: random.Random
) -> Iterator[str]:
    """Yield the differences of a command that is interrupted by each signal in turn. A round runs
    it in one folder until it ends, and compares this folder with the undisturbed one.

    All runs write into a folder of one name, which rows and files may contain.
    """
    # A shell lets its background jobs, and so ours, ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    undisturbed, interrupted = folder / "whole", folder / "run"
    seconds = run(place.line(interrupted))
    interrupted.rename(undisturbed)
    print(f"{place.command}: {seconds:.1f} s undisturbed", flush=True)
    codes: Counter[str] = Counter()
    rounds, left = 0, list(signals)
    while left:
        ended = False
        rounds += 1
        while left and not ended:
            code, error = interrupt(place.line(interrupted), left[0], chance.uniform(0, seconds))
            ended = code == 0
            if ended:
                # the first run can be much slower than the later ones, and every signal must come
                # in time
                seconds *= 0.8
            else:
                codes[left[0].name] += 1
                if code not in CODES[left.pop(0)]:
                    yield f"{place.command}: exit code {code} ({error})"
        if not ended:
            run(place.line(interrupted))
        yield from (
            f"{place.command}, round {rounds}: {text}"
            for text in differences(place.command, undisturbed, interrupted)
        )
        shutil.rmtree(interrupted)
    print(f"{place.command}: interrupted by {dict(codes)} in {rounds} rounds", flush=True)


def differences(command: str, whole: Path, own: Path) -> list[str]:
    """List the differences between what two runs of a command wrote: `whole` is the folder of the
    undisturbed one, `own` that of the other.
    """
    want, got = files_of(whole), files_of(own)
    rows: list[list[dict[str, Any]]] = []  # of both runs
    if command in ("sweep", "bench", "tune"):
        rows = [rows_of(whole / "x"), rows_of(own / "x")]
    if command == "tune":  # the best point, which runs last, depends on the clock
        last = {row["id"] for side in rows for row in side if row["dataset"] == "sample"}
        rows = [[row for row in side if row["id"] not in last] for side in rows]
        want, got = ({file for file in side if file.stem not in last} for side in (want, got))
    lines = [f"{name} is missing" for name in sorted(want - got)] + [
        f"{name} is left over" for name in sorted(got - want)
    ]
    lines += row_differences(*rows) if rows else []
    for name in sorted(want & got):  # other files, such as tables, have measured values
        if (
            name.suffix in (".safetensors", ".model")
            or name.parent.name == "generations"
            or command == "export"
        ):
            lines += [] if digest(whole / name) == digest(own / name) else [f"{name} differs"]
    if command == "train":
        wanted, record = (
            unmeasured(json.loads((folder / "x" / "training.json").read_text("utf-8")))
            for folder in (whole, own)
        )
        lines += [
            f"training.json differs in {key}"
            for key in sorted({*wanted, *record})
            if wanted.get(key) != record.get(key)
        ]
    return lines


def files_of(folder: Path) -> set[Path]:
    """Return the files that a run wrote, relative to its folder, without locks and logs."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path for path in found if not {".locks", "logs"} & set(path.parts)}


def digest(file: Path) -> str:
    """Return a hash of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a results folder."""
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text("utf-8").splitlines()]


def unmeasured(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without what two runs measure differently, such as times and memory, also in its
    calibration and its patches.
    """
    kept = {
        key: unmeasured(value) if key in ("calibration", "correction") and value else value
        for key, value in row.items()
        if not MEASURED.search(key) or key in ("target_speedup", "predicted_speedup")
    }
    if "environment" in row:  # a commit during the soak changes no result
        kept["environment"] = {
            key: value for key, value in row["environment"].items() if not key.startswith("git_")
        }
    return kept


def row_differences(whole: list[dict[str, Any]], own: list[dict[str, Any]]) -> list[str]:
    """List the differences between the rows of two sweeps, one line each."""
    lines = [
        f"{point} has {count} rows"
        for point, count in Counter(row["id"] for row in own).items()
        if count > 1
    ]
    want, got = ({row["id"]: unmeasured(row) for row in rows} for rows in (whole, own))
    lines += [f"{point} is lost" for point in want.keys() - got.keys()]
    lines += [f"{point} is only in the interrupted sweep" for point in got.keys() - want.keys()]
    for point in want.keys() & got.keys():
        keys = {
            key for key in want[point] | got[point] if want[point].get(key) != got[point].get(key)
        }
        lines += [f"{point} differs in {', '.join(sorted(keys))}"] if keys else []
    return lines


def spread(
    count: int, commands: Sequence[str], chance: random.Random
) -> dict[str, list[signal.Signals]]:
    """Spread `count` of each signal over the commands, in random order."""
    by_command: dict[str, list[signal.Signals]] = {command: [] for command in commands}
    numbers = [number for number in SIGNALS for _ in range(count)]
    for index, number in enumerate(numbers):
        by_command[commands[index % len(commands)]].append(number)
    for signals in by_command.values():
        chance.shuffle(signals)
    return by_command


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10, help="number of each signal")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commands", nargs="*", default=COMMANDS, choices=COMMANDS)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chance, found = random.Random(args.seed), []
    with tempfile.TemporaryDirectory(prefix="ulskip-soak-") as name:
        folder = Path(name)
        made = [
            "export",
            "model=tiny",
            "ratio=4",
            "prompt_layers=kept",
            "--no-check",
            "--to",
            str(folder / "model"),
        ]
        run([sys.executable, "-m", "ulskip_cli", *made])
        for command, signals in spread(args.count, args.commands, chance).items():
            for text in soak(Place(command, folder / "model"), folder / command, signals, chance):
                print(text, flush=True)
                found.append(text)
    print(
        f"{args.count} of each signal with seed {args.seed}:"
        f" {f'{len(found)} differences' if found else 'no difference'}"
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
