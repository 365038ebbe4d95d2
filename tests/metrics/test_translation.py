import json
import subprocess
import sys

import pytest

from ulskip_cli.metrics import translation

REFERENCES = [
    f"the {animal} sleeps in the {place} today" for animal in ("cat", "dog", "cow") for place in ("house", "barn", "car")
]
GOOD = [text.replace("today", "now") for text in REFERENCES]
BAD = [text.replace("sleeps in", "of of") for text in GOOD]


def test_scores_equal_sacrebleus_own_command(tmp_path):
    (tmp_path / "ref").write_text("\n".join(REFERENCES) + "\n")
    (tmp_path / "hyp").write_text("\n".join(GOOD) + "\n")
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        str(tmp_path / "ref"),
        "-i",
        str(tmp_path / "hyp"),
        "-m",
        "bleu",
        "chrf",
        "-w",
        "6",
    ]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    scores = translation.score(GOOD, REFERENCES, None, "en")
    assert scores.values["bleu"] == pytest.approx(told[0]["score"], abs=1e-5)
    assert scores.values["chrf"] == pytest.approx(told[1]["score"], abs=1e-5)
    assert scores.signatures["bleu"] == told[0]["signature"]
    assert scores.against_full == {}


def test_a_worse_system_is_significantly_worse():
    compared = translation.score(BAD, REFERENCES, GOOD, "en").against_full["bleu"]
    slack = 1e-4  # sacrebleu resamples in float32
    assert compared["delta_low"] - slack <= compared["delta"] <= compared["delta_high"] + slack < 0
    assert compared["p_value"] < 0.05


def test_a_system_does_not_differ_from_itself():
    compared = translation.score(GOOD, REFERENCES, GOOD, "en").against_full["chrf"]
    assert (compared["delta"], compared["delta_low"], compared["delta_high"]) == (0, 0, 0)
    assert compared["p_value"] > 0.05
