import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulskip_cli.core import engines
from ulskip_cli.core.config import compose, compose_tuning
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.preflight import find_held_out
from ulskip_cli.experiments.preflight import resolve as resolve_point
from ulskip_cli.tuning.request import Candidate, divide, resolve_tuning, training_examples


def write(path, numbers):
    rows = [json.dumps({"prompt": f"p{number}", "reference": "r"}) for number in numbers]
    path.write_text("\n".join(rows))
    return path


@pytest.mark.parametrize("spacing", ["even", "reference"])
def test_a_candidate_keeps_as_many_layers_as_it_is_asked_to(spacing):
    config = compose([f"strategy.spacing={spacing}"])
    for num_layers in range(4, 41):
        for num_kept in range(2, num_layers):
            chosen = Candidate("", config).at(num_layers, num_kept)
            assert chosen.strategy.num_kept(num_layers, chosen.ratio) == num_kept


@settings(max_examples=60)
@given(
    count=st.integers(16, 200),
    repeated=st.lists(st.integers(0, 59), max_size=30),
    other=st.none() | st.lists(st.integers(300, 340), min_size=2, max_size=80),
    limit=st.none() | st.integers(1, 150),
    wanted=st.integers(4, 80),
)
def test_examples_are_divided_and_none_that_chooses_or_is_reported_is_trained_on(
    tmp_path_factory, count, repeated, other, limit, wanted
):
    folder = tmp_path_factory.mktemp("data")
    file = write(folder / "a.jsonl", [*range(count), *repeated])
    overrides = ["task=jsonl", f"task.file={file}", "task.metrics=[exact_match]"]
    overrides += [f"limit={limit or 'null'}", "calibration.examples=5"]
    if other:
        overrides.append(f"calibration.task={{file: {write(folder / 'b.jsonl', other)}}}")
    try:
        split = divide(compose(overrides), wanted)
        choice, final = (resolve_point(side).data.examples for side in (split.choice, split.final))
        assert len(choice) <= wanted and len(final) <= (limit or count + len(repeated))
        held_out = find_held_out(split.choice).examples
        shorter = split.at_the_end(split.final, 1)
        assert find_held_out(shorter).examples == find_held_out(split.final).examples
        assert resolve_point(shorter).data.examples == final[:1]
        assert find_held_out(split.final).examples == held_out
        sides = [{example.source for example in side} for side in (choice, final, held_out)]
        assert all(sides) and len(set.union(*sides)) == sum(map(len, sides))
        found = [example.source for example in training_examples(split)]
    except UsageError as error:
        words = "train", "held-out", "calibration", "repetitions"
        assert any(word in str(error) for word in words)
        return
    used = {example.source for example in (*choice, *final)}
    rest = [f"p{i}" for i in (other or [])[split.num_choice :]]
    assert found and not used & {*found}
    assert found == [name for name in rest if name not in used] if other else len(found) <= 5


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ([], "speedup=S"),
        (["speedup=2", "calibration.offset=3"], "calibration.offset=0"),
        (["speedup=2", "quality=0.9"], "either speedup=S"),
        (["quality=1.1"], "quality"),
        (["speedup=2", "strategy=unified"], "strategy"),
        (["speedup=2", "model=random"], "random weights"),
        (["speedup=2", "candidates=[ratio=2]"], "candidates"),
        (["speedup=2", "candidates=['strategy=unified prompt_layers=kept']"], "prompt_layers=kept"),
        (["speedup=2", "candidates=['strategy=skip_decode']"], "position-dependent layers"),
        (["speedup=2", "candidates=['strategy=full']"], "any number of layers"),
        (["quality=0.9", "decoding=prompt_lookup", "batch_size=1"], "drafts"),
        (["quality=0.9", "experiment=reproduce"], "one point"),
        (["speedup=2", "candidates=['strategy=early_exit']"], "early exit"),
        (["speedup=2", "correction=adapter", "correction.path=a"], "correction=none"),
    ],
)
def test_what_cannot_be_tuned_is_refused_by_key(overrides, key):
    quoted = [text.replace("[ratio=2]", "['ratio=2']") for text in overrides]
    with pytest.raises(UsageError, match=key):
        resolve_tuning(compose_tuning(quoted))


def test_candidates_have_the_correction_of_the_request_or_their_own():
    def resolved(*overrides):
        return resolve_tuning(compose_tuning(["speedup=2", *overrides]))

    labels = [candidate.config.correction.label for candidate in resolved().candidates]
    assert labels == ["full", "", "full", "full", "full"]
    two = "candidates=['strategy=one_block', 'strategy=top_skip']"
    folded = resolved("correction.kind=folded", two)
    labels = [candidate.config.correction.label for candidate in folded.candidates]
    assert labels == ["folded", "folded"]
    assert folded.candidates[0].label == "one_block + folded patch"
    assert folded.key != resolved().key == resolved("budget=5").key


ENGINES = [f"engine={name}" for name in ("llama_cpp", "llama_cpp_q8_0", "llama_cpp_q4_0")]
LOOK_UP = "decoding=prompt_lookup"


@pytest.mark.parametrize(
    ("overrides", "labels"),
    [
        (["batch_size=1"], [LOOK_UP, *ENGINES]),
        (["batch_size=8"], ENGINES),
        (["batch_size=1", "decoding=sample"], ENGINES),
        (["batch_size=1", "engine=torch"], [LOOK_UP]),
        (["batch_size=1", "engine=llama_cpp_q8_0"], [LOOK_UP]),
        (["batch_size=1", "decoding.num_beams=2"], []),
        (["batch_size=8", "engine=torch"], []),
    ],
    ids=" ".join,
)
def test_alternatives_keep_all_layers_and_what_the_request_sets(monkeypatch, overrides, labels):
    monkeypatch.setattr(engines, "find_spec", lambda name: object())
    request = resolve_tuning(compose_tuning(["speedup=2", *overrides]))
    assert [option.label for option in request.alternatives] == labels
    for option in request.alternatives:
        config, choice = option.config, request.split.choice
        assert config.strategy.keeps_all and not config.correction.label
        assert (config.task, config.limit) == (choice.task, choice.limit)
        assert config.crosses_engines is option.label.startswith("engine=")
        assert bool(config.decoding.draft_tokens) is (option.label == LOOK_UP)
    hints = [text for text in request.refused if text.startswith(LOOK_UP)]
    assert any("batch_size=1" in text for text in hints) is ("batch_size=8" in overrides)


def test_an_engine_that_is_not_installed_is_named_once(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    request = resolve_tuning(compose_tuning(["speedup=2", "batch_size=1"]))
    assert [option.label for option in request.alternatives] == [LOOK_UP]
    hints = [text for text in request.refused if "pip install" in text]
    assert [text.partition(":")[0] for text in hints] == ["engine=llama_cpp"]
