import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import (
    bench_row,
    compared,
    not_applicable,
    small_sweep,
    sweep_row,
    two_depths,
    write_folder,
)

from ulskip_cli.experiments.statistics import (
    FAILS,
    HOLDS,
    SAME,
    TIE,
    difference,
    from_records,
    primary,
    sentence,
    shares,
    speed_ratio,
    verdict,
)
from ulskip_cli.report.rows import read_records

GOOD = [f"sentence number {i} is here" for i in range(20)]
BAD = [f"nothing of the {i} kind whatever" for i in range(20)]


def stored(path, rows, **answers):
    named = {name.replace("_2", "-2-"): texts for name, texts in answers.items()}
    return {record.id: record for record in read_records([write_folder(path, rows, named)])}


def test_stored_answers_are_compared_by_a_paired_bootstrap(tmp_path):
    records = stored(tmp_path, small_sweep(), unified_21=GOOD, unified_28=GOOD, top_skip_21=BAD)
    good, bad, again = (records[key] for key in ("unified-2-1", "top_skip-2-1", "unified-2-8"))
    better = difference(good, bad, "bleu")
    assert verdict(better) == HOLDS and better.low > 50
    assert verdict(difference(bad, good, "bleu")) == FAILS
    same = difference(good, again, "bleu")
    assert same == SAME and verdict(same) == TIE


def test_without_answers_the_intervals_of_the_records_are_taken_together():
    new, old = sweep_row(bleu=27.5), sweep_row(bleu=5.0)
    value, low, high = difference(new, old, "bleu")
    assert (value, high - low) == (22.5, pytest.approx(2 * 2**0.5))
    other_full = {**sweep_row().vs_baseline["bleu"].model_dump(), "full": 40.0}
    unknown = from_records(new, sweep_row(vs_baseline={"bleu": other_full}), "bleu")
    assert (unknown.low, verdict(unknown)) == (None, TIE)
    losses = [sweep_row(decode_loss=loss) for loss in (1.5, 2.0)]
    assert from_records(*losses, "decode_loss").value == 0.5


@pytest.mark.parametrize("count", [1, 9])
def test_too_few_examples_give_no_interval(tmp_path, count):
    few = [record.replace(num_examples=count) for record in small_sweep()]
    records = stored(tmp_path, few, unified_21=GOOD[:count], top_skip_21=BAD[:count])
    for name in ("top_skip-2-1", "top_skip-3-1", "full-1-1"):  # with answers, and without
        unknown = difference(records["unified-2-1"], records[name], "bleu")
        assert (unknown.low, verdict(unknown)) == (None, TIE)


def test_only_shared_examples_are_compared_where_the_data_differ(tmp_path):
    texts = {"long": GOOD, "short": BAD[:12], "few": GOOD[:5]}
    long, short, few = (
        stored(tmp_path / name, small_sweep(), unified_21=answers)["unified-2-1"]
        for name, answers in texts.items()
    )
    assert verdict(difference(long, short, "bleu")) == HOLDS
    assert difference(long, few, "bleu") == from_records(long, few, "bleu")


def test_speedups_are_compared_as_ratios():
    ratio = speed_ratio(sweep_row(speedup=2.0), sweep_row(speedup=1.0))
    assert ratio.value == 2.0 and 1.9 < ratio.low < 2.0 < ratio.high < 2.1
    assert verdict(ratio, 1.0) == HOLDS
    assert speed_ratio(sweep_row(measured_speedup=None), sweep_row()) is None
    assert speed_ratio(sweep_row(units=2), sweep_row()).low is None


@given(st.floats(1, 40), st.floats(1, 40), st.floats(0.001, 0.2))
def test_a_difference_is_symmetric_and_a_point_ties_with_itself(bleu, other, margin):
    first, second = sweep_row(bleu=bleu, margin=margin), sweep_row(bleu=other, margin=margin)
    value, low, high = from_records(first, second, "bleu")
    assert from_records(second, first, "bleu") == pytest.approx((-value, -high, -low))
    assert verdict(from_records(first, first, "bleu")) == TIE


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({}, "bleu"),
        ({"bleu": None}, "chrf"),
        ({"bleu": None, "chrf": None, "decode_loss": None}, None),
        ({"bleu": None, "chrf": None, "rouge1": 9.0, "rougeL": 10.0}, "rougeL"),
    ],
)
def test_the_first_metric_of_the_task_decides(scores, expected):
    assert primary([sweep_row(**scores)]) == expected


@pytest.mark.parametrize(
    ("bleu", "passes", "verdict"),
    [(29.0, True, HOLDS), (27.1, True, TIE), (26.9, False, TIE), (20.0, False, FAILS)],
)
def test_a_point_passes_at_the_share_of_the_gate_and_surely_where_its_interval_does(
    bleu, passes, verdict
):
    record = sweep_row(bleu=bleu)
    (share,) = shares([record])
    assert (share.passes, share.verdict) == (passes, verdict)


def test_full_models_in_other_formats_are_compared_with_the_baseline_which_keeps_all():
    baseline = sweep_row("full")
    compared = sweep_row(bleu=20.0).vs_baseline
    other = baseline.replace(id="int4", bleu=20.0, engine_weights="int4", vs_baseline=compared)
    assert [share.share for share in shares([baseline, other])] == [1.0, pytest.approx(2 / 3)]


def test_a_row_without_a_comparison_has_no_share():
    assert shares([sweep_row(vs_baseline={}), not_applicable()]) == []


def test_the_same_answers_reach_every_gate_up_to_1():
    record = sweep_row(bleu=30.0, margin=0.0)
    assert [share.verdict for share in shares([record], 1.0)] == [HOLDS]


@pytest.mark.parametrize(
    ("metric", "score", "full", "most"), [("bleu", 42.0, 30.0, 100 / 30), ("bleu", 3.0, 0.2, 500)]
)
def test_no_share_exceeds_what_the_metric_can_be(metric, score, full, most):
    scores = {"bleu": None, "chrf": None, metric: score}
    record = sweep_row(**scores, vs_baseline={metric: compared(full, score, 1e3)})
    low, share, high = sorted(shares([record])[0].interval)
    assert 0 <= low <= share <= high <= most and share == record.quality_share.value


ROUGE = {"bleu": None, "chrf": None, "rouge1": 30.0, "rouge2": 9.0, "rougeL": 22.9}
WORSE = {"rouge1": compared(33.0, 30.0, 2.9), "rouge2": compared(12.0, 9.0, 1.0)}
WORSE["rougeL"] = compared(26.4, 22.9, 3.6)
NO_SCORE = {"bleu": None, "chrf": None, "decode_loss": None, "vs_baseline": {}}
AGREED = {"agreement": 0.942, "agreement_low": 0.931, "agreement_high": 0.953}
UNTIMED = dict.fromkeys(("pairs", "measured_speedup", "end_to_end_speedup"))
ENGINES = {"baseline_engine": "torch", "engine": {"name": "llama_cpp"}}
LLAMA = sweep_row("full", engine="llama_cpp", engine_weights="q8_0", config=ENGINES)
DRAFTING = {"name": "self_speculative", "draft_tokens": 2}


@pytest.mark.parametrize(
    ("record", "part"),
    [
        (
            sweep_row(bleu=26.3, **AGREED),
            "unified keeps 3 of 6 layers: decodes 1.80x as fast; BLEU 26.3 is 88% (84% to 91%) of"
            " the full model's, significantly worse; agrees with 94.2% of the full model's tokens.",
        ),
        (LLAMA, "m in llama_cpp q8_0 runs all 6 layers: no measurable gain in speed (1.00x); BLEU"),
        (
            bench_row(engine="llama_cpp", config=ENGINES),
            "unified keeps 6 of 12 layers in llama_cpp: decodes 1.90x as fast as the full model in"
            " torch.",
        ),
        (two_depths(), "skip_decode ran 4.0 layers when it was timed: decodes 1.80x as fast."),
        (two_depths(), "fast. Its answers ran 5.4 of 6 layers: BLEU 30.0, like the full model's."),
        (not_applicable(), "early_exit has no result: early_exit decodes one sequence at a time."),
        (sweep_row(**UNTIMED), "unified keeps 3 of 6 layers: BLEU 28.0 is 93% (90% to 97%) of the"),
        (sweep_row(speedup=1.08, margin=0.3), ": no measurable gain in speed (1.08x);"),
        (sweep_row(speedup=0.8), ": decodes 0.80x as fast, slower than the full model;"),
        (sweep_row(units=2), ": 1.80x is not certain, because too few units were timed;"),
        (
            sweep_row(end_to_end_speedup_low=0.9, end_to_end_speedup_high=1.9),
            "as fast, no measurable gain including the prompt;",
        ),
        (
            sweep_row(config={"decoding": DRAFTING}),
            "unified with 4-bit drafts keeps 3 of 6 layers: decodes 1.80x as fast",
        ),
        (sweep_row(num_examples=4), "is 93% of the full model's, too few examples for a test."),
        (
            sweep_row(**ROUGE, vs_baseline=WORSE),
            "full model's, but significantly worse ROUGE-1 and ROUGE-2.",
        ),
        (sweep_row(bleu=34.0), "significantly better."),
        (sweep_row(bleu=29.5), "of the full model's, no significant difference."),
        (sweep_row(bleu=29.5, margin=0.1), "full model's, too few examples to tell a difference."),
        (
            sweep_row(**AGREED, copied_share=0.65, new_agreement=0.9),
            "agrees with 90.0% of the full model's tokens that do not copy the prompt.",
        ),
        (sweep_row(**AGREED, copied_share=0.1, new_agreement=0.9), "94.2% of the full model's"),
        (
            sweep_row(**NO_SCORE, **AGREED),
            "agrees with 94.2% (93.1% to 95.3%) of the full model's tokens (no references).",
        ),
    ],
)
def test_a_sentence_says_what_a_number_means(record, part):
    assert part in sentence(record)
