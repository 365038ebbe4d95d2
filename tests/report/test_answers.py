import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_rows import small_sweep, write_folder

from ulskip_cli.report import answers
from ulskip_cli.report.rows import grouped, read_records


def collected(tmp_path, stored, most=200, rows=None):
    found = read_records([write_folder(tmp_path / "x", rows or small_sweep(), stored)])
    return answers.collect(grouped(found), found, most)


def test_texts_are_kept_once_and_named_by_position(tmp_path):
    found = collected(tmp_path, {"unified-2-1": ["a", "b"], "unified-3-1": ["a", "a"]})
    (only,) = found.sets
    assert [[found.texts[i] for i in run["outputs"]] for run in only["runs"]] == [
        ["a", "b"],
        ["a", "a"],
    ]
    assert [run["label"] for run in only["runs"]] == ["unified 2x", "unified 3x"]
    assert len(set(found.texts)) == len(found.texts)
    assert found.texts[only["examples"][1]["source"]] == "Satz 1"
    assert "2 examples, answers of 2 points" in found.note


def test_the_note_says_what_is_left_out(tmp_path):
    found = collected(tmp_path, {"unified-2-1": ["a"] * 9}, most=4)
    assert "4 of 9 examples" in found.note
    assert collected(tmp_path / "none", {}).sets == []
    assert collected(tmp_path / "zero", {"unified-2-1": ["a"]}, most=0).sets == []


def test_at_most_so_many_points_the_smallest_batches_first(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "MAX_RUNS", 2)
    rows = small_sweep()
    found = collected(tmp_path, {row.id: ["a"] for row in rows}, rows=rows)
    assert {rows[run["row"]].batch_size for run in found.sets[0]["runs"]} == {1}
    assert "answers of 2 of 10 points" in found.note


@pytest.mark.parametrize(
    ("strategy", "others"), [("unified", []), ("custom", ["top_skip 2x", "top_skip 3x"])]
)
def test_full_and_unified_at_every_target_are_picked_at_first_or_all_if_none_is_unified(
    tmp_path, strategy, others
):
    rows = [
        row.replace(strategy=row.strategy.replace("unified", strategy)) for row in small_sweep()
    ]
    (only,) = collected(tmp_path, {row.id: ["a"] for row in rows}, rows=rows).sets
    labels = [only["runs"][i]["label"] for i in only["picked"]]
    assert len(only["runs"]) == 10
    assert sorted(labels) == sorted(
        f"{name} · batch 1" for name in ("full", f"{strategy} 2x", f"{strategy} 3x", *others)
    )


def test_runs_of_other_examples_are_left_out(tmp_path):
    assert (
        len(collected(tmp_path, {"unified-2-1": ["a", "b"], "unified-3-1": ["a"]}).sets[0]["runs"])
        == 1
    )


def test_answers_are_compared_with_the_reference_and_with_full(tmp_path):
    found = collected(
        tmp_path, {"full-1-1": ["one full answer"], "unified-2-1": ["one other answer"]}
    )
    (only,) = found.sets
    full, own = (run["outputs"][0] for run in sorted(only["runs"], key=lambda run: run["label"]))
    reference = only["examples"][0]["reference"]
    assert set(found.changes) == {f"{reference},{full}", f"{reference},{own}", f"{full},{own}"}
    assert found.changes[f"{full},{own}"] == [67, 3, 6, 7, 6, 0, 0]


texts = st.text(st.sampled_from("ab, \n\u00e9\u4e2d\U0001f600"), max_size=25)


@pytest.mark.parametrize("most", [0, answers.MAX_STEPS])
@given(texts, texts)
def test_the_lengths_of_a_comparison_make_up_both_texts(most, base, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "MAX_STEPS", most)
        percent, *lengths = answers.compare_texts(base, text)
    assert 0 <= percent <= 100
    assert sum(lengths[0::3]) + sum(lengths[1::3]) == len(base)
    assert sum(lengths[0::3]) + sum(lengths[2::3]) == len(text)
    i = j = 0
    for equal, missing, added in zip(lengths[0::3], lengths[1::3], lengths[2::3], strict=True):
        assert base[i : i + equal].split() == text[j : j + equal].split()
        i, j = i + equal + missing, j + equal + added


def test_long_repetitions_are_compared_at_their_start_and_end():
    base, text = "x " + "a " * 5000 + "y", "x " + "a b " * 5000 + "y"
    share, *lengths = answers.compare_texts(base, text)
    assert share == 0 and lengths == [3, len(base) - 4, len(text) - 4, 1, 0, 0]
