"""A tuning of the bundled model with few examples, tokens and timed pairs."""

import json

import pytest

from ulskip_cli.tuning.search import Tuning

FEW = ["task=wmt", "limit=8", "choice_examples=8", "calibration.examples=8", "batch_size=8"]
FEW += ["speed.seconds=0", "speed.new_tokens=4"]
FEW += ["decoding.max_new_tokens=6", "adapter=never"]
FEW += ["candidates=['strategy=unified correction=none','strategy=unified']"]


@pytest.fixture
def tune(ulskip, tmp_path, monkeypatch):
    """Return a function that tunes the bundled model in an empty folder; the times of its layers
    are given.
    """
    monkeypatch.chdir(tmp_path)
    speedups = {str(count): 12 / count for count in range(2, 12)}
    monkeypatch.setattr(Tuning, "speedups", lambda self: speedups)

    def call(*more):
        engine = [] if any(text.startswith("engine=") for text in more) else ["engine=torch"]
        code, out, err = ulskip("tune", *FEW, *engine, *more, "--json")
        return code, json.loads(out.splitlines()[-1]) if code == 0 else None, err

    return call


@pytest.fixture
def rows_of(tmp_path):
    """Return a function that reads the stored rows of the tuning."""
    return lambda: [
        json.loads(line) for line in (tmp_path / "results/tune/runs.jsonl").read_text().splitlines()
    ]
