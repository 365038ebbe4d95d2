import importlib.util
import json
import subprocess
import sys

import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.metrics import METRICS
from ulskip_cli.tasks.metrics.scores import Answers, Scoring

REFERENCES = [
    f"the {animal} sleeps in the {place} today"
    for animal in ("cat", "dog", "cow")
    for place in ("house", "barn", "car")
]
GOOD = [text.replace("today", "now") for text in REFERENCES]
BAD = [text.replace("sleeps in", "of of") for text in GOOD]


ENGLISH = Scoring(("bleu",), "en")
CHINESE = ["今天天气很好。", "我们去公园吧!", "猫在房子里睡觉。", "他昨天买了3本书。"] * 3
CHINESE_TRUE = ["今天天气真好。", "我们一起去公园吧!", "猫在屋里睡觉。", "他昨天买了三本书。"] * 3


def answers(hypotheses, full=None, references=REFERENCES):
    return Answers(hypotheses, references, references, full)


def by_command(tmp_path, hypotheses, references, *options):
    (tmp_path / "ref").write_text("\n".join(references) + "\n")
    (tmp_path / "hyp").write_text("\n".join(hypotheses) + "\n")
    command = [sys.executable, "-m", "sacrebleu", str(tmp_path / "ref")]
    command += ["-i", str(tmp_path / "hyp"), "-w", "6", *options]
    scored = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return scored if isinstance(scored, list) else [scored]


def test_scores_equal_sacrebleus_own_command(tmp_path):
    expected = by_command(tmp_path, GOOD, REFERENCES, "-m", "bleu", "chrf", "ter")
    for one, metric in zip(expected, ("bleu", "chrf", "ter"), strict=True):
        scores = METRICS[metric].make(ENGLISH).score(answers(GOOD))
        (name,) = scores.values
        assert scores.values[name] == pytest.approx(one["score"], abs=1e-5)
        assert scores.signatures[name] == one["signature"]
        assert scores.against_full == {}


def test_chinese_is_split_by_sacrebleus_chinese_tokenizer(tmp_path):
    (expected,) = by_command(tmp_path, CHINESE, CHINESE_TRUE, "-l", "en-zh", "-m", "bleu")
    metric = METRICS["bleu"].make(Scoring(("bleu",), "zh"))
    scores = metric.score(answers(CHINESE, references=CHINESE_TRUE))
    assert "tok:zh" in expected["signature"]
    assert scores.signatures["bleu"] == expected["signature"]
    assert scores.values["bleu"] == pytest.approx(expected["score"], abs=1e-5)


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_language_whose_tokenizer_is_missing_says_what_to_install(language):
    if importlib.util.find_spec({"ja": "MeCab", "ko": "mecab_ko"}[language]):
        pytest.skip("its tokenizer is installed")
    with pytest.raises(UsageError, match=rf'pip install "sacrebleu\[{language}\]"'):
        METRICS["bleu"].make(Scoring(("bleu",), language)).check()


def test_a_worse_system_is_significantly_worse():
    compared = METRICS["bleu"].make(ENGLISH).score(answers(BAD, GOOD)).against_full["bleu"]
    slack = 1e-4  # sacrebleu resamples in float32
    assert compared["delta_low"] - slack <= compared["delta"] <= compared["delta_high"] + slack < 0
    assert compared["p_value"] < 0.05


def test_a_system_does_not_differ_from_itself():
    compared = METRICS["chrf"].make(ENGLISH).score(answers(GOOD, GOOD)).against_full["chrf"]
    assert (compared["delta"], compared["delta_low"], compared["delta_high"]) == (0, 0, 0)
    assert compared["p_value"] > 0.05
