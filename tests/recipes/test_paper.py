import subprocess
import sys
from pathlib import Path

import pytest
import torch
from report_rows import stored_rows
from transformers import BloomConfig, BloomForCausalLM

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.long
def test_a_small_bloom_goes_through_every_step(tokenizer, tmp_path):
    torch.manual_seed(0)
    ends = {"eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
    shape = {"vocab_size": len(tokenizer), "hidden_size": 16, "n_layer": 6, "n_head": 2}
    config = BloomConfig(**shape, **ends)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    for language, text in (("de", "ein Haus\nzwei Hunde\n"), ("en", "a house\ntwo dogs\n")):
        (tmp_path / f"train.{language}").write_text(text)
    files = ["--train-source", tmp_path / "train.de", "--train-reference", tmp_path / "train.en"]
    quick = ["task.dataset=sample", "limit=2", "max_new_tokens=3"]
    quick += ["speed.seconds=0", "speed.new_tokens=3"]
    folders = ["--model", tmp_path / "bloom", "--work", tmp_path / "work"]
    command = [sys.executable, ROOT / "recipes/paper/reproduce.py", *files, *folders]
    more = ["--ratios", "2", "--train", "train.precision=float32"]
    more += ["--run", *quick, f"results_dir={tmp_path / 'results'}"]
    done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = stored_rows(tmp_path / "results" / "paper")
    trained = [row for row in rows if row["model"].endswith("2x") and row["strategy"] == "unified"]
    assert {row["batch_size"] for row in trained} == {1, 2, 8}
    assert all(row["trained_for_these_layers"] and row["decoding"] == "beam" for row in trained)
    assert "| 2x | unified | 3/6 |" in (tmp_path / "results" / "paper" / "table4.md").read_text()
