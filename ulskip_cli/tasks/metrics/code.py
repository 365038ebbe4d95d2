"""pass@1, the percentage of answers whose code passes the tests of its example (Chen et al. 2021).
Each program runs in a Python process of its own with limits of time, memory and files, in an empty
folder, without the environment's variables, and on Linux without a network where permitted. The
limits stop accidents and are no security boundary: a program can read and delete what its user can.
"""

import contextlib
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ulskip_cli.core.environment import cpus
from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.metrics import ScoredTexts, SegmentMetric

CPU_SECONDS = 5
SECONDS = 15  # the CPU may be busy
MEMORY_BYTES = 2**30
FILE_BYTES = 2**20
PASSED = 42  # exit status of a program that ran to its end; exit() in an answer gives another
_LIMITED = f"""
import ctypes, os, resource, sys
if sys.platform == "linux":
    ctypes.CDLL(None).unshare(0x50000000)  # CLONE_NEWUSER | CLONE_NEWNET; has no effect if refused
for name, limit in dict(CPU={CPU_SECONDS}, AS={MEMORY_BYTES}, FSIZE={FILE_BYTES}, NPROC=0).items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
with open("answer.py", encoding="utf-8") as file:
    program = compile(file.read(), "answer.py", "exec")
exec(program, {{}})
os._exit({PASSED})
"""
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_FUNCTION = re.compile(r"^def (\w+)", re.MULTILINE)


class PassAt1(SegmentMetric):
    """Percentage of answers whose code passes its tests, with one answer for each example."""

    signature = (
        f"Python {platform.python_version()}, one answer for each example, limits {CPU_SECONDS} s,"
        f" {MEMORY_BYTES // 2**20} MiB"
    )

    def check(self, references: Sequence[str] = ()) -> None:
        """Raise UsageError if running code is not allowed, or not possible with limits."""
        if not self.scoring.allow_code:
            raise UsageError(
                "metric pass_at_1 runs code that a model wrote, with limits but no security"
                " boundary; allow it with task=humaneval task.allow_code=true (ulskip score:"
                " --allow-code)"
            )
        if not passes("pass"):
            raise UsageError(
                "metric pass_at_1 cannot limit the time and memory of programs on this system; run"
                " it on Linux"
            )

    def segments(self, texts: Sequence[str], answers: ScoredTexts) -> Mapping[str, np.ndarray]:
        """Return 100 for each answer that passes its tests, otherwise 0."""
        if not answers.tests or not all(answers.tests):
            raise UsageError(
                "metric pass_at_1 requires a program under the key test of every answer, got none;"
                " use answers of task=humaneval"
            )
        programs = map(program, answers.sources, texts, answers.tests)
        with ThreadPoolExecutor(len(cpus())) as pool:
            return {self.name: 100.0 * np.array(list(pool.map(passes, programs)))}


def program(source: str, answer: str, test: str) -> str:
    """Return the program that tests an answer. The answer continues the function at the end of
    `source`, or defines it anew; a body may lack the indentation of all lines or of the first. Its
    `__main__` block does not run, but that of the test does.

    >>> print(program("def one():", "return 1", "assert one() == 1"))
    def one():
        return 1
    __name__ = "__main__"
    assert one() == 1
    """
    source, functions = source.rstrip(), _FUNCTION.findall(source)
    if not functions or functions[-1] in _FUNCTION.findall(answer):  # defined anew
        before = source[: source.rfind("def ")] if functions else source
        # The first form is valid if the function in the source has a docstring as its body. It
        # comes first, because the second would cut at a `def ` inside that docstring.
        forms = [f"{source}\n{answer}", f"{before}\n{answer}"]
    else:
        body = answer if answer[:1].isspace() else textwrap.indent(answer, "    ")
        # In the second form, only the first line lacked its indentation.
        forms = [f"{source}\n{body}", f"{source}\n    {answer.lstrip()}"]
    code = next(filter(_is_valid, forms), forms[0])
    return f'{code}\n__name__ = "__main__"\n{test}'


def _is_valid(code: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(code, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def passes(code: str) -> bool:
    """Run a program within the limits; return True if it ends without an error."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        (Path(folder) / "answer.py").write_text(code, "utf-8", "replace")
        process = subprocess.Popen(
            [sys.executable, "-s", "-c", _LIMITED],
            cwd=folder,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(SECONDS) == PASSED
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # also processes that the program started
            process.wait()
