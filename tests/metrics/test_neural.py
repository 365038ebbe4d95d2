import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import transformers

from ulskip_cli import metrics
from ulskip_cli.errors import RunError, UsageError
from ulskip_cli.metrics.neural import BertScore, Comet
from ulskip_cli.metrics.scores import Answers, Scoring

ANSWERS = Answers(["the cat", "a dog"], ["the cat", "the mat"], ["die Katze", "die Matte"], ["the cat", "the mat"])


@pytest.mark.parametrize(("name", "package"), [("comet", "unbabel-comet"), ("bertscore", "bert-score")])
def test_a_missing_package_is_named_before_anything_runs(name, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match=rf"metric {name} needs {package}.*pip install 'ulskip\[{name}\]'"):
        metrics.made(Scoring((name,)))


def test_comet_reads_source_hypothesis_and_reference(monkeypatch, tmp_path):
    seen = []

    class Model:
        def predict(self, data, **options):
            seen.append(data)
            return SimpleNamespace(scores=[0.5 if one["mt"] == one["ref"] else 0.1 for one in data])

    module = ModuleType("comet")
    module.download_model, module.load_from_checkpoint = str, lambda path: Model()
    module.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "comet", module)
    scores = Comet("some/model").score(ANSWERS)
    assert scores.values["comet"] == pytest.approx(30)
    assert scores.against_full["comet"]["delta"] == pytest.approx(-20)
    assert seen[0][1] == {"src": "die Matte", "mt": "a dog", "ref": "the mat"}


def test_a_model_that_cannot_be_had_is_one_line(monkeypatch):
    def fail(name):
        raise OSError("no route to host")

    module = ModuleType("comet")
    module.download_model, module.load_from_checkpoint = fail, None
    module.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "comet", module)
    with pytest.raises(RunError, match=r"cannot load its model some/model \(no route to host\).*task\.comet_model"):
        Comet("some/model").score(ANSWERS)


def test_bertscore_with_a_model_folder(tmp_path, monkeypatch):
    pytest.importorskip("bert_score", reason="the extra bertscore is not installed")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "a", "dog", "mat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    shape = {"vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(**shape, intermediate_size=32)).save_pretrained(tmp_path)
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=64).save_pretrained(tmp_path)
    scores = BertScore(str(tmp_path), "en").score(ANSWERS)
    assert 0 < scores.values["bertscore"] < 100
    assert BertScore(str(tmp_path), "en").score(Answers(["the cat"], ["the cat"], [""])).values["bertscore"] == pytest.approx(
        100
    )
    assert scores.against_full["bertscore"]["full"] == pytest.approx(100, abs=1e-3)
