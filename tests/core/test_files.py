import subprocess
import sys

import pytest

from ulskip_cli.core.errors import StorageError
from ulskip_cli.core.files import lock, try_lock

HOLD = """
import sys, time
from pathlib import Path
from ulskip_cli.core.files import lock
with lock(Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(60)
"""


def test_a_claim_is_for_one_at_a_time(tmp_path):
    path = tmp_path / "a.lock"
    with try_lock(path) as mine:
        assert mine
        with try_lock(path) as other:
            assert not other
    with try_lock(path) as mine:
        assert mine


def test_a_process_that_is_killed_holds_nothing(tmp_path):
    path = tmp_path / "a.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with try_lock(path) as mine:
            assert not mine
        other.kill()
        other.wait()
        with lock(path):
            pass


def test_a_lock_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"), lock(tmp_path / "file" / "a.lock"):
        pass
