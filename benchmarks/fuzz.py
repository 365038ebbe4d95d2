"""Run random command lines, and commands on damaged rows and files, and report every case that ends
otherwise than it should.

    python benchmarks/fuzz.py [--lines 2000] [--inputs 500] [--seed 1] [--write FILE]

A case may end with exit code 0, 1 or 2, within 30 seconds, with one line of error at most, without
a traceback and without an exception that the command did not foresee. With code 2 it leaves no file
behind, and no temporary file ever. The exit code is 1 if a case differs.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import resource
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

# of the processor; of the clock four times as many, because other processes may compute too
SECONDS = 30.0
# Lines that may come before an error: a warning, the begin of a phase.
ALLOWED = re.compile(r"warning: |.*\(\d+\)$")
MEMORY = 12 * 2**30  # bytes of data of the process that runs the cases
MODEL = ["export", "model=tiny", "ratio=4", "prompt_layers=kept", "--no-check"]


@dataclass(frozen=True)
class Ending:
    """The end of a case. Without an exit code, `err` has the traceback, or the reason why the
    process ended or was ended.
    """

    code: int | None
    out: str
    err: str
    new: tuple[str, ...] = ()  # paths that were not there before


def problems(ending: Ending) -> Iterator[str]:
    """List everything in which an ending differs from what it should be."""
    lines = [line for line in ending.err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ulskip: ")]
    if ending.code is None:
        yield "an exception left the command" if "Traceback" in ending.err else ending.err
    elif ending.code not in (0, 1, 2):
        yield f"exit code {ending.code}"
    if "Traceback (most recent call last)" in ending.out + ending.err and ending.code is not None:
        yield "a traceback"
    if "ULSKIP_DEBUG" in ending.err:
        yield "an unforeseen exception"
    if ending.code in (1, 2) and len(errors) != 1:
        yield f"{len(errors)} error lines"
    others = [line for line in lines if line not in errors and not ALLOWED.match(line)]
    if ending.code == 2 and others:  # a refused command line says nothing but its error
        yield f"{len(others)} lines beside the error"
    if ending.code == 2 and ending.new:
        yield f"left behind: {', '.join(ending.new[:3])}"
    unfinished = (".tmp", ".partial", ".ulskip-part")
    temporary = [path for path in ending.new if any(part in path for part in unfinished)]
    if temporary:
        yield f"temporary files: {', '.join(temporary[:3])}"


class Runner:
    """Runs cases in a process of its own, which is replaced when a case hangs or kills it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def run(self, case: Any) -> Ending:
        """Run one case, a `Case` of fuzz_cases.py; a case that hangs, or ends its process, has no
        exit code.
        """
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self.folder), daemon=True)
            self._process.start()
            theirs.close()
            assert self._connection.recv() == "ready"
        assert self._connection is not None
        try:
            process, began = psutil.Process(self._process.pid), time.monotonic()
            before = sum(process.cpu_times()[:2])  # user and system
            self._connection.send(case)
            while (
                sum(process.cpu_times()[:2]) - before <= SECONDS
                and time.monotonic() - began <= 4 * SECONDS
            ):
                if self._connection.poll(min(1.0, SECONDS)):
                    ending: Ending = self._connection.recv()
                    return ending
            reason = f"no end within {SECONDS:g} s"
        except (EOFError, OSError, psutil.Error):
            reason = "the process died"
        self.close()
        return Ending(None, "", reason)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(connection: Connection, folder: Path) -> None:
    """Run the cases that come through the connection, and send back their endings; the target of
    the process of a `Runner`.
    """
    os.environ.update(
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="1",
        ULSKIP_KERNEL="off",
        HOME=str(folder / "home"),
        COLUMNS="200",
    )
    os.environ.pop("ULSKIP_DEBUG", None)  # unforeseen exceptions are then one line, not a traceback
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from ulskip_cli.cli.app import invoke

    connection.send("ready")
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        connection.send(run_in(folder, case, invoke))


def run_in(folder: Path, case: Any, invoke: Callable[[Sequence[str]], int]) -> Ending:
    """Run a case in an empty folder with its files, in this process by `invoke`, with standard
    output and error in files.
    """
    # New files beside `here`, which a case may write by `..`, count too.
    place = Path(tempfile.mkdtemp(dir=folder)) / "here"
    place.mkdir()
    if case.model:  # hard links; `unlink` below keeps the change out of `base`
        shutil.copytree(folder / "base", place / "model", copy_function=os.link)
    for name, data in case.files.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_bytes(data)
    start = Path.cwd()
    streams = [(place.parent / name).open("w+b") for name in ("out", "err")]
    saved_descriptors = [os.dup(1), os.dup(2)]
    before = _paths(place.parent)
    code: int | None = None
    os.chdir(place)
    for descriptor, stream in enumerate(streams, 1):
        os.dup2(stream.fileno(), descriptor)
    try:
        code = invoke(list(case.arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, saved in enumerate(saved_descriptors, 1):
            os.dup2(saved, descriptor)
            os.close(saved)
        os.chdir(start)
    texts = []
    for stream in streams:
        stream.seek(0)
        texts.append(stream.read().decode(errors="replace"))
        stream.close()
    new = tuple(sorted(str(path) for path in _paths(place.parent) - before))
    shutil.rmtree(place.parent, ignore_errors=True)
    return Ending(code, texts[0], texts[1], new)


def _paths(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@contextlib.contextmanager
def running() -> Iterator[Runner]:
    """Yield a runner in a temporary folder with an empty home; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="ulskip-fuzz-") as name:
        folder = Path(name)
        (folder / "home").mkdir()
        made = Runner(folder)
        try:
            yield made
        finally:
            made.close()


def prepare(runner: Runner) -> Path:
    """Write the small model that cases damage, and return its folder."""
    from fuzz_cases import Case

    model = runner.folder / "base"
    ending = runner.run(Case((*MODEL, "--to", str(model))))
    if ending.code != 0:
        raise SystemExit(f"cannot make the model: {ending.err}")
    return model


def draw(strategy: Any, count: int, seed: int) -> list[Any]:
    """Return at most `count` cases that a hypothesis strategy generates; hypothesis has no function
    for that, so a test that only collects them runs.
    """
    import hypothesis

    cases: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(case: Any) -> None:
        cases.append(case)

    collect()
    return cases[:count]


def report(case: Any, ending: Ending, problems_found: Sequence[str]) -> str:
    """Return a case with its problems as one line of JSON, shortened."""
    damaged = {  # a case with several files has damaged none
        name: data[:4000].decode(errors="backslashreplace")
        for name, data in case.files.items()
        if len(case.files) == 1
    }
    values = {
        "problems": problems_found,
        "code": ending.code,
        "arguments": case.arguments,
        "error": ending.err[-3000:],
        "files": damaged,
    }
    return json.dumps(values)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=2000, help="number of command lines")
    parser.add_argument(
        "--inputs", type=int, default=500, help="number of damaged rows, folders and files"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--write",
        type=Path,
        default=Path("build/fuzz.jsonl"),
        help="file for the cases that differ",
    )
    args = parser.parse_args()
    from fuzz_cases import lines
    from fuzz_inputs import damaged_inputs

    codes: Counter[object] = Counter()
    kinds: Counter[str] = Counter()
    args.write.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with running() as runner, args.write.open("w", encoding="utf-8") as written:
        cases = draw(lines(), args.lines, args.seed) if args.lines else []
        if args.inputs:
            cases += draw(damaged_inputs(prepare(runner)), args.inputs, args.seed)
        for number, case in enumerate(cases, start=1):
            if number % 100 == 0:
                print(
                    f"{number} of {len(cases)} cases, {time.monotonic() - began:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            ending = runner.run(case)
            codes[ending.code] += 1
            found = list(problems(ending))
            if found:
                kinds.update(text.split(":")[0] for text in found)
                shown = f"{'; '.join(found)}: ulskip {shlex.join(case.arguments)}"[:400]
                print(shown.encode(errors="replace").decode(), flush=True)  # no lone surrogates
                written.write(report(case, ending, found) + "\n")
                written.flush()
    print(
        f"{len(cases)} cases in {time.monotonic() - began:.0f} s; exit codes {dict(codes)};"
        f" problems: {dict(kinds) or 'none'}"
    )
    return bool(kinds)


if __name__ == "__main__":
    sys.exit(main())
