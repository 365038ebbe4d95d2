import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import sweep_row

from ulskip_cli.report.frontier import (
    DRAFTING,
    FULL,
    QUANTIZED,
    SKIPPING,
    choices,
    frontiers,
    kind_of,
    name_of,
    needs_training,
    speed_of,
)

ASKED = {"baseline_engine": "torch"}
TWO_DEPTHS = {"mean_kept_layers": 2.0, "evaluated_mean_kept_layers": 4.0}


def row(name, engine, speedup, bleu, **more):
    """Return a row that is compared with the full model in torch."""
    config = ASKED | ({"engine": {"name": engine}} if engine == "llama_cpp" else {})
    values = {"id": name, "engine": engine, "baseline_id": "base", "config": config}
    values |= {"bleu": bleu, "speedup": speedup, "training": None}
    return sweep_row(**{"strategy": "unified", "target": 2.0, **values, **more})


def every():
    whole = {"strategy": "unified", "target": 1.0, "kept_layers": list(range(6))}
    return [
        sweep_row("full", id="base", engine="torch"),
        row("torch-half", "torch", 1.8, 29.0, config={}),
        row("full-int4", "llama_cpp", 2.5, 29.5, engine_weights="q4_0", **whole),
        row("half-int4", "llama_cpp", 4.0, 27.0, engine_weights="q4_0"),
        row("half-bf16", "llama_cpp", 3.0, 26.0, engine_weights="bf16"),
        sweep_row("unified", id="elsewhere", baseline_id="full-1-1"),
    ]


def test_points_of_one_baseline_are_judged_together():
    (found,) = frontiers([*every(), row("two", "torch", 9.0, 30.0, **TWO_DEPTHS)])
    points = {point.record.id: point for point in found.points}
    assert {name: kind_of(point.record) for name, point in points.items()} == {
        "base": FULL,
        "torch-half": "skipping",
        "full-int4": QUANTIZED,
        "half-bf16": "skipping",
        "half-int4": "skipping and quantized",
    }
    assert [speed_of(point) for point in found.points] == [1, 2.5, 1.8, 3, 4]  # by kind
    assert points["base"].share == 1 and points["base"].record.speedup == (1, 1, 1)
    beaten = {name: rival.record.id for name, (rival, _) in found.beaten.items()}
    assert beaten == {"torch-half": "full-int4", "half-bf16": "half-int4"}
    best = {target: found.best(target, 1, trained=False) for target in (2.0, 3.5, 5.0)}
    assert best == {2.0: points["full-int4"], 3.5: points["half-int4"], 5.0: None}
    assert found.best(1.25, 8, trained=False) is found.best(1.25, 1, trained=True) is None


def test_drafts_are_a_kind_of_their_own():
    drafts = {"config": {"decoding": {"draft_tokens": "auto"}}}
    ngram = {"config": {"decoding": {"draft_tokens": "auto", "draft": "ngram"}}}
    rows = [
        sweep_row("full", id="base", engine="torch"),
        row("half", "llama_cpp", 1.7, 26.0),
        row("drafts", "speculative", 1.3, 30.0, **drafts),
        row("look-up", "speculative", 1.2, 30.0, **ngram),
    ]
    (found,) = frontiers(rows)
    kinds = [kind_of(point.record) for point in found.points]
    assert kinds == [FULL, DRAFTING, DRAFTING, SKIPPING]
    methods = [line["method"] for line in found.table("b").frame.to_dict("records")]
    assert methods == ["full", "n-gram drafts", "unified drafts", "unified"]


def test_early_exit_is_not_exact():
    exits = {"exit_depths": {"2": 5}, "kept_layers": [0, 1, 2, 3, 4, 5], "num_layers": 6}
    early = row("exits", "early_exit", 2.0, 20.0, training="with early exit", **exits)
    assert kind_of(early) == SKIPPING and needs_training(early)


def test_drafts_at_another_batch_size_are_points_of_the_same_frontier():
    full = sweep_row("full", id="full-of-one", engine="torch", batch=4)
    drafts = {"config": {"decoding": {"draft_tokens": 2}}, "batch": 4, "baseline_id": full.id}
    (found,) = frontiers([*every(), full, row("drafts", "speculative", 1.3, 30.0, **drafts)])
    assert found.points[0].record.id == "base"
    lines = found.table("a").frame.to_dict("records")
    drawn = [(line["method"], line["batch"], line["speedup"]) for line in lines]
    assert drawn[:2] == [("full", "1", "1.00"), ("full", "4", "1.00")]
    assert drawn[-1] == ("unified drafts", "4", "1.30")
    assert found.batch_sizes == [1, 4] and "drafts" not in found.beaten
    assert found.best(1.25, 4, trained=False).record.id == "drafts"


def test_rows_without_such_a_baseline_have_no_frontier():
    assert frontiers([sweep_row("full"), sweep_row("unified")]) == []


@given(st.lists(st.tuples(st.floats(1.1, 9), st.floats(1, 40)), min_size=1, max_size=12))
def test_points_that_are_not_beaten_are_the_front(points):
    rows = [row(str(i), "torch", *point, batch=1) for i, point in enumerate(points)]
    full = sweep_row("full", id="base", engine="torch")
    (found,) = frontiers([full, row("x", "llama_cpp", 1.05, 20.0), *rows])
    for point in found.points:
        share = point.share
        faster = [rival for rival in found.points if speed_of(rival) > speed_of(point)]
        is_beaten = any(rival.share >= share for rival in faster)
        assert is_beaten is (point.record.id in found.beaten)


def test_what_to_use_is_exact_or_keeps_most_without_training_and_with_it():
    drafts = {"config": {"decoding": {"draft_tokens": 2}}}
    quantized_drafts = {
        "config": {"engine": {"name": "llama_cpp"}, "decoding": {"draft_tokens": 2}},
        "engine_weights": "q4_0",
    }
    adapted = {"correction": {"name": "adapter", "kind": "full"}}
    rows = [
        *every(),
        row("drafts", "speculative", 1.3, 29.0, **drafts),
        row("adapted", "torch", 1.6, 29.8, **adapted),
        row("trained", "torch", 2.4, 28.0, training="skipping"),
        row("trained-drafts", "speculative", 1.7, 29.7, training="skipping", **drafts),
        row("slower-drafts", "llama_cpp", 2.2, 29.9, **quantized_drafts),  # than q4_0 alone
    ]
    lines = choices(frontiers(rows)).frame.to_dict("records")
    assert [line["speedup"] for line in lines] == ["1.25x", "1.5x", "2x", "3x"]
    assert {(line["model"], line["batch"]) for line in lines} == {("m", "1")}
    untrained, trained = (
        [line[f"{word} training"].partition(":")[0] for line in lines]
        for word in ("without", "with")
    )
    assert untrained == [
        "torch, unified drafts 3/6",  # exact, although others keep more
        "llama_cpp q4_0",
        "llama_cpp q4_0",
        "llama_cpp q4_0, unified 3/6",
    ]
    exact = "torch, unified drafts 3/6"
    assert trained == [exact, exact, "torch, unified 3/6", "–"]
    assert lines[1]["without training"].endswith(
        ": 2.50x (2.48 to 2.52), with the prompt 2.38, keeps 98.3% (95.0% to 101.7%)"
    )


def test_drafts_with_quantized_weights_are_not_exact():
    drafts = {"config": {"engine": {"name": "llama_cpp"}, "decoding": {"draft_tokens": 2}}}
    record = row("a", "llama_cpp", 1.3, 29.0, engine_weights="q4_0", **drafts)
    assert kind_of(record) == QUANTIZED and "drafts" in name_of(record)
    assert not needs_training(record)


@pytest.mark.parametrize(("bleu", "warns"), [(30.0, False), (8.0, True)])
def test_a_low_score_says_that_its_shares_say_little(bleu, warns):
    full = sweep_row("full", id="base", engine="torch", bleu=bleu)
    same = {"full": bleu, "delta": 0, "delta_low": -1, "delta_high": 1}
    half = row("half", "llama_cpp", 2.0, bleu, vs_baseline={"bleu": same})
    (found,) = frontiers([full, half])
    assert ("says little" in choices([found]).note) is warns


def test_too_few_timed_units_or_examples_beat_nothing_for_sure():
    rows = every()
    assert frontiers(rows)[0].beaten["half-bf16"][1] is False
    better = row("best", "torch", 5.0, 29.9, margin=0.001)
    assert frontiers([*rows, better])[0].beaten["half-bf16"][1]
    (found,) = frontiers([*rows, row("best", "torch", 5.0, 29.9, margin=0.001, units=2)])
    rival, is_sure = found.beaten["half-bf16"]
    assert (rival.record.id, is_sure, rival.record.speedup.low) == ("best", False, None)
    few = [record.replace(num_examples=1) for record in [*rows, better]]
    assert not any(sure for _, sure in frontiers(few)[0].beaten.values())


def test_a_point_that_may_not_be_faster_is_best_at_no_speedup():
    unsure = row("unsure", "torch", 1.6, 30.0, margin=0.7, config={})
    (found,) = frontiers([*every(), unsure])
    assert found.best(1.5, 1, trained=False).record.id == "full-int4"
