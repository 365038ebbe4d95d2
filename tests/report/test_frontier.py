import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import sweep_row

from ulskip_cli.report.frontier import DRAFTING, FULL, QUANTIZED, SMALLER, frontiers

ASKED = {"baseline_engine": "torch"}


def row(name, engine, speedup, bleu, **more):
    """Return a row that is compared with the full model in torch."""
    values = {
        "id": name,
        "engine": engine,
        "baseline_id": "base",
        "config": ASKED,
        "bleu": bleu,
        "speedup": speedup,
    }
    return sweep_row(**{"strategy": "unified", "target": 2.0, **values, **more})


def every():
    return [
        sweep_row("full", id="base", engine="torch"),
        row("torch-half", "torch", 1.8, 29.0, config={}),
        row(
            "full-int4",
            "llama_cpp",
            2.5,
            29.5,
            engine_weights="q4_0",
            strategy="unified",
            target=1.0,
            kept_layers=list(range(6)),
        ),
        row("half-int4", "llama_cpp", 4.0, 27.0, engine_weights="q4_0"),
        row("half-bf16", "llama_cpp", 3.0, 26.0, engine_weights="bf16"),
        sweep_row("unified", id="elsewhere", baseline_id="full-1-1"),
    ]


def test_points_of_one_baseline_are_judged_together():
    (found,) = frontiers(every())
    points = {one.record.id: one for one in found.points}
    assert [one.record.id for one in found.points] == [
        "base",
        "torch-half",
        "full-int4",
        "half-bf16",
        "half-int4",
    ]
    kinds = {name: one.kind for name, one in points.items()}
    assert kinds == {
        "base": FULL,
        "torch-half": "skipping",
        "full-int4": QUANTIZED,
        "half-int4": "skipping and quantized",
        "half-bf16": "skipping",
    }
    assert points["base"].quality.share == 1 and (points["base"].speedup, points["base"].clock) == (
        1,
        (1, 1, 1),
    )
    assert {name: other.record.id for name, (other, _) in found.beaten.items()} == {
        "torch-half": "full-int4",
        "half-bf16": "half-int4",
    }
    assert (
        found.best(2.0) is points["full-int4"]
        and found.best(3.5) is points["half-int4"]
        and found.best(5.0) is None
    )
    assert found.best(1.25, "skipping") is points["torch-half"] and found.best(1.25, FULL) is None
    assert len(found.plot().axes) == 1


def test_dequantized_weights_are_not_quantized():
    file = {"quantization": "Q4_1 (a file), dequantized to bfloat16"}
    (found,) = frontiers(
        [
            sweep_row("full", id="base", engine="torch", **file),
            row("half", "torch", 1.8, 29.0, **file),
            row("int8", "torch", 2.0, 28.0, quantization="torchao, int8 weights"),
            row("adapter", "torch", 2.1, 28.5, correction={"name": "adapter", "path": "a"}, **file),
        ]
    )
    assert [(one.kind, one.engine) for one in found.points] == [
        (FULL, "torch"),
        ("skipping", "torch"),
        ("skipping and quantized", "torch torchao, int8 weights"),
        ("skipping with an adapter", "torch"),
    ]


def test_smaller_models_and_drafts_are_kinds_of_their_own():
    smaller = {
        "model": "s",
        "baseline_model": "m",
        "strategy": "full",
        "kept_layers": (0, 1, 2),
        "num_layers": 3,
    }
    plain = {"config": {}}
    rows = [
        sweep_row("full", id="base", engine="torch"),
        row("small", "torch", 1.7, 26.0, **plain).replace(**smaller),
        row("small-int4", "llama_cpp", 3.5, 25.0, engine_weights="q4_0").replace(**smaller),
        row("drafts", "speculative", 1.3, 30.0, draft_tokens="auto", **plain),
        row(
            "look-up",
            "speculative",
            1.2,
            30.0,
            draft_tokens="auto",
            config={"decoding": {"draft": "ngram"}},
        ),
    ]
    (found,) = frontiers(rows)
    assert {point.record.id: point.kind for point in found.points} == {
        "base": FULL,
        "small": SMALLER,
        "small-int4": SMALLER,
        "drafts": DRAFTING,
        "look-up": DRAFTING,
    }
    assert found.best(1.25).record.id == "drafts" and found.best(1.25, SMALLER).record.id == "small"
    heads = [head.text for head in found.targets("a").heads]
    assert heads == ["speedup", FULL, SMALLER, DRAFTING]
    methods = [line["method"] for line in found.table("b").lines()]
    assert methods == ["full", "n-gram drafts", "unified drafts", "s", "s"]
    labels = [text.get_text() for text in found.plot().axes[0].get_legend().get_texts()]
    assert labels == [
        "torch",
        "speculative",
        "torch, smaller model",
        "llama_cpp q4_0, smaller model",
    ]


def test_rows_without_such_a_baseline_have_no_frontier():
    assert frontiers([sweep_row("full"), sweep_row("unified")]) == []
    assert frontiers([one for one in every() if one.id != "base"]) == []


@given(st.lists(st.tuples(st.floats(1.1, 9), st.floats(1, 40)), min_size=1, max_size=12))
def test_what_is_not_beaten_is_the_front_and_the_best_of_a_target_is_on_it(points):
    rows = [row(str(i), "torch", *one, batch=1) for i, one in enumerate(points)]
    (found,) = frontiers(
        [sweep_row("full", id="base", engine="torch"), row("x", "llama_cpp", 1.05, 20.0), *rows]
    )
    for one in found.points:
        faster_and_better = [
            other
            for other in found.points
            if other.speedup > one.speedup and other.quality.share >= one.quality.share
        ]
        assert bool(faster_and_better) is (one.record.id in found.beaten)
    best = found.best(1.5)
    if best:
        assert all(
            one.quality.share <= best.quality.share for one in found.points if one.speedup >= 1.5
        )


def test_a_verdict_names_the_best_and_the_next_of_another_kind():
    (found,) = frontiers(every())
    verdicts = {line["speedup"]: line["verdict"] for line in found.verdicts("a").lines()}
    assert list(verdicts) == ["1.25x", "1.5x", "2x", "3x", "4x"]
    assert verdicts["2x"].startswith(
        "quantized: llama_cpp q4_0 keeps 98.3% at 2.50x. Next: skipping and quantized ("
    )
    assert verdicts["2x"].endswith("90.0%. BLEU +2.5 (+1.1 to +3.9): sure.")
    assert verdicts["4x"].endswith("Nothing of another kind is as fast.")


@pytest.mark.parametrize(("bleu", "warns"), [(30.0, False), (8.0, True)])
def test_a_verdict_on_a_low_score_says_that_its_shares_say_little(bleu, warns):
    full = sweep_row("full", id="base", engine="torch", bleu=bleu)
    same = {"full": bleu, "delta": 0, "delta_low": -1, "delta_high": 1, "p_value": 1.0}
    half = row("half", "llama_cpp", 2.0, bleu, vs_baseline={"bleu": same})
    (found,) = frontiers([full, half])
    assert ("says little" in found.verdicts("a").note) is warns


def test_tables_have_a_line_for_each_point_and_each_target_in_reach():
    (found,) = frontiers(every())
    table, targets = found.table("a"), found.targets("b")
    assert len(table.cells) == 5 and len(targets.cells) == 5
    assert all(len(line) == len(table.heads) for line in table.cells)


def test_too_few_timed_pairs_beat_nothing_for_sure():
    rows = every()
    assert frontiers(rows)[0].beaten["half-bf16"][1] is False
    better = row("best", "torch", 5.0, 29.9, margin=0.001)
    assert frontiers([*rows, better])[0].beaten["half-bf16"][1]
    (found,) = frontiers([*rows, better.replace(speedup_interval_coverage=0.875)])
    other, sure = found.beaten["half-bf16"]
    assert (other.record.id, sure, other.clock[1:]) == ("best", False, (None, None))
    assert [cells[4] for cells in found.table("").cells if cells[3] == "5.00"] == ["–"]


def test_too_few_examples_beat_nothing_for_sure():
    rows = [*every(), row("best", "torch", 5.0, 29.9, margin=0.001)]
    assert frontiers(rows)[0].beaten["half-bf16"][1]
    few = [one.replace(num_examples=1) for one in rows]
    assert not any(sure for _, sure in frontiers(few)[0].beaten.values())


def test_the_same_run_in_two_folders_is_a_point_of_both():
    slower = [
        one.replace(folder="results/y", measured_speedup=one.measured_speedup / 2)
        for one in every()
    ]
    found = frontiers([*every(), *slower])
    assert [one.folder for one in found] == ["results/x", "results/y"]
    fastest = [max(one.points, key=lambda point: point.speedup) for one in found]
    assert [(one.record.id, one.speedup) for one in fastest] == [
        ("half-int4", 4.0),
        ("half-int4", 2.0),
    ]
    assert len({section.title for one in found for section in one.sections()}) == 6
