"""The process sends signals to itself at a chosen moment, so that no test depends on times."""

import signal
import subprocess
import sys

import pytest

SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
IN_COMMAND = """
from ulskip_cli.core import config

def compose(*args):
    # Python ends itself by SIGINT after a KeyboardInterrupt in exec.
    exec("os.kill(os.getpid(), signal.{})")
    raise AssertionError

config.compose = compose
"""
SWALLOWING = """
from ulskip_cli.MODULE import FUNCTION as real
import ulskip_cli.MODULE as module

def swallowing(*args):
    try:
        os.kill(os.getpid(), signal.{})
    except BaseException:
        pass
    return real(*args)

module.FUNCTION = swallowing
"""
SWALLOWED = SWALLOWING.replace("MODULE", "core.config").replace("FUNCTION", "compose")
AT_IMPORT_IN_A_CLASS = """
class Sender:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.{0})

def in_class_body(*args):
    type("Made", (), {{"sender": Sender()}})

class Finder:
    def find_spec(self, name, *rest):
        if name == "typer":
            in_class_body()

sys.meta_path.insert(0, Finder())
"""
MOMENTS = [IN_COMMAND, SWALLOWED, AT_IMPORT_IN_A_CLASS]


def heed_all():
    """Undo what a shell does to the processes that it starts in the background."""
    for name in SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def ran(moment, name, arguments=("plan", "model=random"), before=heed_all):
    head = "import os, signal, sys\nfrom ulskip_cli.__main__ import main\n"
    command = [sys.executable, "-c", f"{head}{moment.format(name)}\nmain()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=before)


@pytest.mark.parametrize(
    ("moment", "name"),
    [*((moment, "SIGTERM") for moment in MOMENTS), (IN_COMMAND, "SIGINT"), (IN_COMMAND, "SIGHUP")],
    ids=range(5),
)
def test_a_signal_ends_the_command_with_one_line_and_its_exit_code(moment, name):
    ended = ran(moment, name)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (SIGNALS[name], 1), ended.stderr
    assert ended.stderr.startswith("ulskip: interrupted")


def test_a_signal_that_nohup_ignores_stays_ignored():
    ended = ran(SWALLOWED, "SIGHUP", before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_sweep_ends_although_a_library_swallows_the_signal_while_it_loads(overrides, tmp_path):
    moment = SWALLOWING.replace("MODULE", "experiments.runner").replace("FUNCTION", "load")
    ended = ran(moment, "SIGTERM", ["sweep", "ratio=2,3", *overrides])
    assert (ended.returncode, ended.stderr.splitlines()[-1][:19]) == (143, "ulskip: interrupted")
    assert not (tmp_path / "default" / "runs.jsonl").exists()
