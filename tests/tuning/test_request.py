import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.preflight import find_held_out
from ulskip_cli.experiments.preflight import resolve as resolve_point
from ulskip_cli.tuning.request import divide, resolve


def texts(examples):
    return [one.source for one in examples]


def parts(split):
    """Return the examples that choose, that are reported, and that calibrate either side."""
    sides = [split.choice, split.final]
    evaluated = [texts(resolve_point(side).examples) for side in sides]
    return *evaluated, *(texts(find_held_out(side).examples) for side in sides)


def write(path, count, name="p"):
    path.write_text(
        "".join(json.dumps({"prompt": f"{name}{i}", "reference": "r"}) + "\n" for i in range(count))
    )
    return f"task.file={path}"


@settings(max_examples=30)
@given(count=st.integers(16, 200), limit=st.none() | st.integers(1, 150), wanted=st.integers(4, 80))
def test_one_file_is_divided_into_examples_that_report_choose_and_calibrate(
    tmp_path_factory, count, limit, wanted
):
    file = write(tmp_path_factory.mktemp("data") / "a.jsonl", count)
    overrides = ["task=jsonl", file, "task.metrics=[exact_match]", "strategy=search"]
    overrides.append(f"limit={limit or 'null'}")
    choice, final, *calibrations = parts(divide(compose(overrides), wanted))
    assert calibrations[0] == calibrations[1]
    every = [*choice, *final, *calibrations[0]]
    assert len(set(every)) == len(every) and all([choice, final, calibrations[0]])
    assert len(choice) <= wanted and len(final) <= (limit or count)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([], "speedup=S"),
        (["speedup=2", "quality=0.9"], "either speedup=S"),
        (["speedup=1"], "speedup"),
        (["quality=1.1"], "quality"),
        (["speedup=2", "strategy=unified"], "strategy"),
        (["speedup=2", "ratio=2"], "ratio"),
        (["speedup=2", "model=random"], "random weights"),
        (["speedup=2", "candidates=[ratio=2]"], "candidates"),
        (["speedup=2", "candidates=['strategy=unified prompt_layers=kept']"], "prompt_layers=kept"),
        (["speedup=2", "candidates=['strategy=unified strategy.unit=mlp']"], "strategy.unit=mlp"),
        (["speedup=2", "correction=adapter", "correction.path=a"], "correction=none"),
    ],
)
def test_what_cannot_be_tuned_is_refused_by_key(overrides, key):
    quoted = [text.replace("[ratio=2]", "['ratio=2']") for text in overrides]
    with pytest.raises(UsageError, match=key):
        resolve(quoted)


def test_candidates_have_the_correction_of_the_request_or_their_own():
    labels = [candidate.config.correction.label for candidate in resolve(["speedup=2"]).candidates]
    assert labels == ["", "full", "full", "full", "full"]
    two = "candidates=['strategy=one_block', 'strategy=full']"
    folded = resolve(["speedup=2", "correction.kind=folded", two])
    labels = [candidate.config.correction.label for candidate in folded.candidates]
    assert labels == ["folded", "folded"]
    assert folded.candidates[0].label == "one_block + folded patch"
    assert folded.key != resolve(["speedup=2"]).key == resolve(["speedup=2", "budget=5"]).key
