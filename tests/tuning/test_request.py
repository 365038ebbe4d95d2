import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.preflight import find_held_out
from ulskip_cli.experiments.preflight import resolve as resolve_point
from ulskip_cli.tuning.request import divide, resolve


@settings(max_examples=30)
@given(count=st.integers(16, 200), limit=st.none() | st.integers(1, 150), wanted=st.integers(4, 80))
def test_one_file_is_divided_into_examples_that_report_choose_and_calibrate(
    tmp_path_factory, count, limit, wanted
):
    file = tmp_path_factory.mktemp("data") / "a.jsonl"
    rows = [json.dumps({"prompt": f"p{i}", "reference": "r"}) for i in range(count)]
    file.write_text("\n".join(rows))
    overrides = ["task=jsonl", f"task.file={file}", "task.metrics=[exact_match]"]
    overrides += ["strategy=search", f"limit={limit or 'null'}"]
    split = divide(compose(overrides), wanted)
    choice, final = (resolve_point(side).data.examples for side in (split.choice, split.final))
    held_out = find_held_out(split.choice).examples
    assert find_held_out(split.final).examples == held_out
    sources = [example.source for example in (*choice, *final, *held_out)]
    assert len(set(sources)) == len(sources) and all([choice, final, held_out])
    assert len(choice) <= wanted and len(final) <= (limit or count)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([], "speedup=S"),
        (["speedup=2", "quality=0.9"], "either speedup=S"),
        (["quality=1.1"], "quality"),
        (["speedup=2", "strategy=unified"], "strategy"),
        (["speedup=2", "model=random"], "random weights"),
        (["speedup=2", "candidates=[ratio=2]"], "candidates"),
        (["speedup=2", "candidates=['strategy=unified prompt_layers=kept']"], "prompt_layers=kept"),
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
