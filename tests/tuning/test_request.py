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
    overrides = [
        "task=jsonl",
        file,
        "task.metrics=[exact_match]",
        "strategy=search",
        f"limit={limit or 'null'}",
    ]
    choice, final, *calibrations = parts(divide(compose(overrides), wanted))
    assert calibrations[0] == calibrations[1]
    every = [*choice, *final, *calibrations[0]]
    assert len(set(every)) == len(every) and all([choice, final, calibrations[0]])
    assert len(choice) <= wanted and len(final) <= (limit or count)


@pytest.mark.parametrize("task", ["wmt", "cnn_dm"])
def test_bundled_samples_choose_and_calibrate_on_their_held_out_part(task):
    config = compose(
        [f"task={task}", "model=tiny", "strategy=search", "limit=20", "calibration.examples=8"]
    )
    choice, final, *calibrations = parts(divide(config, 10))
    assert calibrations[0] == calibrations[1] and len(final) == min(20, len(final)) and choice
    assert not set(choice) & set(final) and not set(calibrations[0]) & {*choice, *final}


def test_other_data_may_be_named_but_must_differ_from_what_is_reported(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", 30, name) for name in "ab"]
    other = f"calibration.task={{file: {files[1].removeprefix('task.file=')}}}"
    base = [
        "task=jsonl",
        files[0],
        "task.metrics=[exact_match]",
        "strategy=search",
        "limit=20",
        "calibration.examples=5",
    ]
    choice, final, *calibrations = parts(divide(compose([*base, other]), 10))
    assert choice == [f"b{i}" for i in range(10)] and final == [f"a{i}" for i in range(20)]
    assert calibrations == [[f"b{i}" for i in range(10, 15)]] * 2
    with pytest.raises(UsageError, match=r"calibration\.task.* 20 "):
        divide(
            compose([*base, f"calibration.task={{file: {files[0].removeprefix('task.file=')}}}"]),
            10,
        )


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([], "speedup=S"),
        (["speedup=2", "quality=0.9"], "both: 2 and 0.9"),
        (["speedup=1"], "speedup"),
        (["quality=1.1"], "quality"),
        (["speedup=2", "strategy=unified"], "strategy"),
        (["speedup=2", "ratio=2"], "ratio"),
        (["speedup=2", "model=random"], "random weights"),
        (["speedup=2", "candidates=[ratio=2]"], "candidates"),
        (["speedup=2", "candidates=[]"], "candidates"),
        (["speedup=2", "candidates=['strategy=unified prompt_layers=kept']"], "prompt_layers=kept"),
        (["speedup=2", "candidates=['strategy=unifid']"], "unified"),
        (["speedup=2", "candidates=['strategy=unified strategy.unit=mlp']"], "strategy.unit=mlp"),
        (["speedup=2", "choice_examples=2"], "choice_examples"),
        (["speedup=2", "correction=adapter", "correction.path=a"], "correction=none"),
    ],
)
def test_what_cannot_be_tuned_is_refused_by_key(overrides, key):
    quoted = [text.replace("[ratio=2]", "['ratio=2']") for text in overrides]
    with pytest.raises(UsageError, match=key):
        resolve(quoted)


def test_too_few_examples_are_refused(tmp_path):
    with pytest.raises(UsageError, match="16 examples, got 15"):
        resolve(
            [
                "speedup=2",
                "task=jsonl",
                write(tmp_path / "a.jsonl", 15),
                "task.metrics=[exact_match]",
            ]
        )


def test_candidates_have_the_correction_of_the_request_or_their_own():
    labels = [candidate.config.correction.label for candidate in resolve(["speedup=2"]).candidates]
    assert labels == ["", "full", "full", "full", "full"]
    folded = resolve(
        [
            "speedup=2",
            "correction.kind=folded",
            "candidates=['strategy=one_block', 'strategy=full']",
        ]
    )
    assert [candidate.config.correction.label for candidate in folded.candidates] == [
        "folded",
        "folded",
    ]
    assert folded.candidates[0].label == "one_block + folded patch"
    assert folded.key != resolve(["speedup=2"]).key == resolve(["speedup=2", "budget=5"]).key


def test_engines_of_other_libraries_get_folded_patches():
    pytest.importorskip("openvino")
    labels = [
        candidate.config.correction.label
        for candidate in resolve(["speedup=2", "engine=openvino"]).candidates
    ]
    assert labels == ["", "folded", "folded", "folded", "folded"]


def test_options_of_patches_leave_out_candidates_without_patches():
    candidates = "candidates=['strategy=unified correction=none','strategy=unified']"
    request = resolve(["speedup=2", "correction.kind=low_rank", candidates])
    assert [candidate.config.correction.label for candidate in request.candidates] == [
        "",
        "low_rank 32",
    ]
