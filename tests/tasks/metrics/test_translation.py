import importlib.util
import json
import subprocess
import sys

import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.task import Scoring
from ulskip_cli.tasks.metrics import METRICS, ScoredTexts

REFERENCES = [
    f"the {animal} sleeps in the {place} today"
    for animal in ("cat", "dog", "cow")
    for place in ("house", "barn", "car")
]
GOOD = [text.replace("today", "now") for text in REFERENCES]
BAD = [text.replace("sleeps in", "of of") for text in GOOD]
CHINESE = ["今天天气很好。", "我们去公园吧!", "猫在房子里睡觉。", "他昨天买了3本书。"]
CHINESE_TRUE = ["今天天气真好。", "我们一起去公园吧!", "猫在屋里睡觉。", "他昨天买了三本书。"]


@pytest.mark.parametrize(
    ("language", "texts", "metrics"),
    [("en", (GOOD, REFERENCES), ["bleu", "chrf"]), ("zh", (CHINESE, CHINESE_TRUE), ["bleu"])],
)
def test_scores_equal_sacrebleus_own_command(tmp_path, language, texts, metrics):
    files = tmp_path / "hyp", tmp_path / "ref"
    for file, lines in zip(files, texts, strict=True):
        file.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "sacrebleu", files[1], "-i", files[0], "-w", "6"]
    command += ["-l", f"de-{language}", "-m", *metrics]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    found = found if isinstance(found, list) else [found]
    for expected, name in zip(found, metrics, strict=True):
        metric = METRICS[name].make(Scoring((name,), language))
        scores = metric.score(ScoredTexts(*texts, texts[1]))
        assert scores.values == {name: pytest.approx(expected["score"], abs=1e-5)}
        assert scores.signatures == {name: expected["signature"]}
        assert scores.against_full == {}


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_language_whose_tokenizer_is_missing_says_what_to_install(language):
    if importlib.util.find_spec({"ja": "MeCab", "ko": "mecab_ko"}[language]):
        pytest.skip("its tokenizer is installed")
    with pytest.raises(UsageError, match=r"pip install 'ulskip\[asian\]'"):
        METRICS["bleu"].make(Scoring(("bleu",), language)).check()


def against_good(name, hypotheses):
    metric = METRICS[name].make(Scoring((name,), "en"))
    return metric.score(ScoredTexts(hypotheses, REFERENCES, REFERENCES, GOOD)).against_full[name]


def test_a_worse_system_is_significantly_worse():
    compared = against_good("bleu", BAD)
    slack = 1e-4  # sacrebleu resamples in float32
    assert compared["delta_low"] - slack <= compared["delta"] <= compared["delta_high"] + slack < 0


def test_a_system_does_not_differ_from_itself():
    compared = against_good("chrf", GOOD)
    assert (compared["delta"], compared["delta_low"], compared["delta_high"]) == (0, 0, 0)
