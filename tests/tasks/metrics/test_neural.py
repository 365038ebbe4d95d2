import importlib.util
import stat
import sys

import pytest
import torch
import transformers

from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.metrics.neural import BertScore, Comet
from ulskip_cli.tasks.metrics.scores import Answers, Scoring

ANSWERS = Answers(
    ["the\ncat", "a dog"],
    ["the cat", "the mat"],
    ["die Katze", "die Matte"],
    ["the cat", "the mat"],
)
STAND_IN = """
import json, sys
arguments = sys.argv[1:]
def after(flag): return arguments[arguments.index(flag) + 1]
if after("--model") == "some/missing": sys.exit("no route to host")
read = lambda name: open(name).read().splitlines()
sources, references = read(after("-s")), read(after("-r"))
first = arguments.index("-t") + 1
systems = arguments[first:arguments.index("--quiet")]
scores = {name: [{"src": s, "mt": t, "ref": r, "COMET": 0.5 if t == r else 0.1}
          for s, t, r in zip(sources, read(name), references, strict=True)] for name in systems}
json.dump(scores, open(after("--to_json"), "w"))
"""


@pytest.fixture
def comet_command(tmp_path, monkeypatch):
    """A command that takes comet-score's arguments and writes what it writes."""
    command = tmp_path / "comet-score"
    command.write_text(f"#!{sys.executable}\n{STAND_IN}")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_a_missing_package_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"bertscore.*pip install 'ulskip\[bertscore\]'"):
        metrics.make_metrics(Scoring(("bertscore",)))
    with pytest.raises(UsageError, match=r"comet-score.*pipx install unbabel-comet"):
        metrics.make_metrics(Scoring(("comet",)))


def test_comet_reads_source_hypothesis_and_reference(comet_command):
    comet = Comet("comet", Scoring(("comet",), comet_model="some/model"))
    scores = comet.score(ANSWERS)
    assert scores.values["comet"] == pytest.approx(30)
    assert scores.against_full["comet"]["delta"] == pytest.approx(-20)
    assert scores.signatures == {"comet": "COMET some/model"}
    alone = Answers(ANSWERS.hypotheses, ANSWERS.references, ANSWERS.sources)
    assert comet.score(alone).against_full == {}


def test_a_model_that_cannot_be_loaded_is_named_with_the_reason(comet_command):
    with pytest.raises(RunError, match=r"some/missing.*no route to host.*task\.comet_model"):
        Comet("comet", Scoring(("comet",), comet_model="some/missing")).score(ANSWERS)


def test_bertscore_with_a_model_folder(tmp_path, monkeypatch):
    pytest.importorskip("bert_score", reason="the extra bertscore is not installed")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "a", "dog", "mat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    sizes = {"vocab_size": len(words), "hidden_size": 32, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)
    transformers.BertModel(config).save_pretrained(tmp_path)
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))  # of unlimited length
    tokenizer.save_pretrained(tmp_path)
    metric = BertScore("bertscore", Scoring(("bertscore",), bertscore_model=str(tmp_path)))
    scores = metric.score(ANSWERS)
    assert 0 < scores.values["bertscore"] < 100
    same = metric.score(Answers(["the cat"], ["the cat"], [""]))
    assert same.values["bertscore"] == pytest.approx(100)
    assert scores.against_full["bertscore"]["full"] == pytest.approx(100, abs=1e-3)
