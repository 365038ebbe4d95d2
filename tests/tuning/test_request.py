import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import folders as folders

from ulskip_cli.core import engines
from ulskip_cli.core.config import compose, compose_tuning
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import even
from ulskip_cli.experiments.point import evaluated_examples, find_held_out
from ulskip_cli.tuning import Tuning, at, divide


def resolved(*overrides):
    return Tuning.of(compose_tuning(list(overrides)))


def write(path, numbers):
    rows = [json.dumps({"prompt": f"p{number}", "reference": "r"}) for number in numbers]
    path.write_text("\n".join(rows))
    return path


@pytest.mark.parametrize("spacing", ["even", "reference"])
def test_a_candidate_keeps_as_many_layers_as_it_is_asked_to(spacing):
    config = compose([f"strategy.spacing={spacing}"])
    for num_layers in range(4, 41):
        for num_kept in range(2, num_layers):
            chosen = at(config, num_layers, num_kept)
            assert chosen.strategy.num_kept(num_layers, chosen.ratio) == num_kept


@settings(max_examples=60)
@given(
    count=st.integers(16, 200),
    repeated=st.lists(st.integers(0, 59), max_size=30),
    other=st.none() | st.lists(st.integers(300, 340), min_size=2, max_size=80),
    limit=st.none() | st.integers(1, 150),
    wanted=st.integers(4, 80),
)
def test_no_example_chooses_calibrates_and_is_reported(
    tmp_path_factory, count, repeated, other, limit, wanted
):
    folder = tmp_path_factory.mktemp("data")
    file = write(folder / "a.jsonl", [*range(count), *repeated])
    overrides = ["speedup=2", "task=jsonl", f"task.file={file}", "task.metrics=[exact_match]"]
    overrides += [f"limit={limit or 'null'}", "calibration.examples=5", f"choice_examples={wanted}"]
    if other:
        overrides.append(f"calibration.task={{file: {write(folder / 'b.jsonl', other)}}}")
    try:
        choice, final = divide(compose_tuning(overrides))
    except UsageError as error:
        assert any(word in str(error) for word in ("more data", "occur once"))
        return
    choosing, reported = evaluated_examples(choice), evaluated_examples(final)
    assert 4 <= len(choosing) <= wanted and len(reported) <= (limit or count + len(repeated))
    held_out = find_held_out(choice, choosing).examples
    sides = [{example.source for example in side} for side in (choosing, reported, held_out)]
    assert all(sides) and len(set.union(*sides)) == sum(map(len, sides))


def test_a_speedup_that_no_number_of_layers_is_predicted_to_reach_is_refused():
    with pytest.raises(UsageError, match=r"predicted .*3\.\d+ times as fast; use speedup <= 3\."):
        resolved("speedup=4")
    assert [resolved(f"speedup={wanted}").first_count for wanted in (1.05, 1.3, 3.0)] == [11, 8, 3]
    assert resolved("quality=0.9").first_count == 9


@pytest.mark.usefixtures("installed")
def test_patches_are_folded_for_engines_without_others():
    for engine, kind in (("engine=auto", "full"), ("engine=llama_cpp", "folded")):
        labels = [point.correction.label for point in resolved("speedup=2", engine).candidates]
        assert labels == [kind, kind, "", kind]


def test_a_trained_adapter_is_a_candidate_with_its_own_layers(folders):
    both = f"candidates=['strategy=unified','correction.path={folders['adapter']}']"
    request = resolved("speedup=2", "engine=torch", both)
    (unified,), (trained,) = request.candidates, request.others
    assert (unified.strategy.name, trained.strategy.layers) == ("unified", even(12, 6))
    assert trained.correction.path == (str(folders["adapter"]),)


ENGINES = ["llama_cpp q8_0", "llama_cpp q4_0"]
DRAFTS = ["prompt_lookup", "self_speculative"]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["batch_size=1"], [*ENGINES, *DRAFTS]),
        (["batch_size=8"], ENGINES),
        (["batch_size=1", "engine=torch"], DRAFTS),
        (["batch_size=1", "engine=llama_cpp_q8_0"], DRAFTS[:1]),
        (["batch_size=1", "decoding.num_beams=2"], []),
        (["batch_size=8", "engine=torch"], []),
    ],
    ids=" ".join,
)
def test_what_is_tried_with_all_layers_keeps_what_the_request_sets(installed, overrides, names):
    request = resolved("speedup=2", *overrides)
    found = []
    for point in request.others:
        assert point.strategy.keeps_all and not point.correction.label
        assert (point.task, point.limit) == (request.validation.task, request.validation.limit)
        drafts = point.decoding.draft_tokens
        engine = f"{point.engine.name} {point.engine.weights}"
        found.append(point.decoding.name if drafts else engine)
        assert point.crosses_engines is not bool(drafts)
    assert found == names


def test_an_engine_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    request = resolved("speedup=2", "batch_size=1")
    assert [point.decoding.name for point in request.others] == DRAFTS
    names = [f"engine=llama_cpp_{weights}:" for weights in ("q8_0", "q4_0")]
    for text, name in zip(request.left_out, names, strict=True):
        assert text.startswith(name) and "pip install" in text


def test_the_outlook_says_what_is_tried_and_how_long_it_takes():
    few = ["limit=20", "choice_examples=16", "engine=torch", "batch_size=1", "speed.seconds=30"]
    text = resolved("speedup=1.5", *few).outlook()
    for part in ("4 candidates at 7 of 12 layers", "best 2", "2 other ways", "16 ex", "20 others"):
        assert part in text
    minutes = int(text.rpartition("about ")[2].split()[0])
    assert 2 <= minutes <= 5  # at least the seconds of five timed points
    longer = resolved("quality=0.9", *few).outlook()
    assert int(longer.rpartition("about ")[2].split()[0]) > minutes
