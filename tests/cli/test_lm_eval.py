import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")

from ulskip_cli.cli import lm_eval as command_module

BAD = [
    (["model=tiny"], "--tasks"),
    (["ratoi=2", "--tasks", "x"], "ratio"),
    (["model=tiny", "ratio=9", "--tasks", "x"], "6"),
    (["model=tiny", "limit=3", "--tasks", "x"], "--limit"),
    (["model=tiny", "--tasks", "x", "--limit", "few"], "--limit"),
    (["model=tiny", "--tasks", "x", "--limit", "0"], "--limit"),
    (["model=tiny", "--tasks", "x", "--num_fewshot", "-1"], "--num_fewshot"),
    (["model=tiny", "--tasks", "x", "--batch_size", "many"], "many"),
    (["model=tiny", "--tasks", "x", "--seed", "1,2"], "--seed"),
    (["model=tiny", "--tasks", "x", "--gen_kwargs", "temperature"], "temperature"),
    (["model=tiny", "--tasks", "x", "--samples", "{0}"], "--samples"),
    (["model=tiny", "--tasks", "x", "--cache_requests", "maybe"], "maybe"),
    (["model=tiny", "--tasks", "x", "--include_path", "nowhere"], "nowhere"),
    (["model=tiny", "--tasks", "x", "--ratio", "2"], "ratio="),
]


@pytest.mark.parametrize(("arguments", "named"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(ulskip, arguments, named):
    code, _, err = ulskip("lm-eval", *arguments)
    assert (code, len(err.splitlines())) == (2, 1)
    assert named in err


def test_a_missing_harness_is_named_with_what_brings_it(ulskip, monkeypatch):
    monkeypatch.setattr(command_module, "find_spec", lambda name: None)
    code, _, err = ulskip("lm-eval", "model=tiny", "--tasks", "x")
    assert (code, "ulskip[lm-eval]" in err) == (2, True)


@pytest.mark.parametrize("arguments", [["--help"], ["model=tiny", "--tasks", "x", "--seed", "one"]])
def test_help_and_bad_options_import_no_torch(arguments):
    call = f"invoke({['lm-eval', *arguments]!r})"
    code = f"import sys; from ulskip_cli.cli.app import invoke; {call}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 0
    assert "--num_fewshot" in done.stdout or "--seed" in done.stderr
