from pathlib import Path

import pytest
from report_rows import not_applicable, small_sweep, sweep_row, write_folder

from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.record import FAILED, RunRecord
from ulskip_cli.experiments.record_sections import RunIdentity
from ulskip_cli.report.columns import AXES, starred, varying
from ulskip_cli.report.rows import (
    Group,
    absent,
    done,
    find_folders,
    grouped,
    read_answers,
    read_rows,
    reasons,
    setting_keys,
    with_settings,
)


def test_folders_are_found_by_their_rows(tmp_path):
    one, two = (write_folder(tmp_path / name, small_sweep()) for name in ("one", "two"))
    assert find_folders([], tmp_path) == [one, two]
    assert find_folders([tmp_path], tmp_path) == [one, two]
    assert find_folders([two / "runs.jsonl", two], tmp_path) == [two]


def test_what_has_no_rows_is_refused_with_what_has(tmp_path):
    write_folder(tmp_path / "one", small_sweep())
    with pytest.raises(UsageError, match=rf"got 'nowhere'; known: {tmp_path / 'one'}"):
        find_folders([Path("nowhere")], tmp_path)
    with pytest.raises(UsageError, match="ulskip sweep"):
        find_folders([], tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "runs.jsonl").write_text("{broken\n")
    with pytest.raises(UsageError, match="at least one row"):
        read_rows([tmp_path / "empty"])


def test_rows_know_their_folder_and_answers_are_read_on_demand(tmp_path):
    path = write_folder(tmp_path / "one", small_sweep(), {"unified-2-1": ["a", "b"]})
    rows = read_rows([path])
    assert {row["folder"] for row in rows} == {str(path)}
    by_id = {row["id"]: row for row in rows}
    assert [one["hypothesis"] for one in read_answers(by_id["unified-2-1"])] == ["a", "b"]
    assert read_answers(by_id["full-1-1"]) == []


def test_damaged_answers_are_left_out_with_a_warning(tmp_path, capsys):
    path = write_folder(tmp_path / "one", small_sweep(), {"unified-2-1": ["a", "b"]})
    with (path / "generations" / "unified-2-1.jsonl").open("a") as stream:
        stream.write('{"hypothesis": 5}')
    row = next(row for row in read_rows([path]) if row["id"] == "unified-2-1")
    assert read_answers(row) == []
    assert "unified-2-1.jsonl" in capsys.readouterr().err


def test_lines_that_are_no_rows_are_left_out_with_a_word(tmp_path, capsys):
    write_folder(tmp_path / "x", small_sweep())
    with (tmp_path / "x" / "runs.jsonl").open("a") as stream:
        stream.write('{"id": "alone"}\nrubbish\n')
    assert len(read_rows([tmp_path / "x"])) == len(small_sweep())
    err = capsys.readouterr().err
    file, last = tmp_path / "x" / "runs.jsonl", len(small_sweep())
    assert all(f"{file}, line {last + i}: " in err for i in (1, 2))


def test_a_sweep_that_was_stopped_before_its_first_point_is_told(tmp_path):
    (tmp_path / "x" / "generations").mkdir(parents=True)
    with pytest.raises(UsageError, match=f"{tmp_path / 'x'}.*resume"):
        find_folders([tmp_path / "x"], tmp_path)


def test_only_finished_rows_are_done():
    assert done([sweep_row(), not_applicable(), not_applicable(status="failed")]) == [sweep_row()]


def test_an_empty_cell_says_why():
    assert [absent(row) for row in (sweep_row(), not_applicable(), not_applicable(status="failed"))] == ["–", "N/A", "failed"]


def test_a_reason_is_told_once_and_many_are_cut():
    rows = [not_applicable(batch=2), not_applicable(batch=8)]
    assert reasons(rows) == ["N/A (early_exit): early_exit decodes one sequence at a time"]
    many = [not_applicable(status="failed") | {"reason": f"reason {i}"} for i in range(7)]
    assert reasons(many)[-1] == "and 2 more reasons"


def test_rows_that_differ_in_strategy_target_and_batch_alone_are_one_group():
    rows = small_sweep()
    (group,) = grouped(rows)
    assert group.label == "m · wmt · de-en · greedy"
    assert group.rows == rows
    assert group.batches == [1, 8]


def test_settings_that_vary_make_groups_and_are_named():
    groups = grouped([sweep_row(), sweep_row(seed=2), sweep_row(seed=2, batch=8)])
    assert [group.label for group in groups] == ["m · wmt · de-en · greedy · seed 1", "m · wmt · de-en · greedy · seed 2"]
    assert [len(group.rows) for group in groups] == [1, 2]


def test_a_row_that_does_not_know_a_setting_joins_the_first_that_agrees():
    older = {key: value for key, value in sweep_row("top_skip").items() if key != "prompt_layers"}
    groups = grouped([older, sweep_row(), sweep_row(prompt_layers="kept"), not_applicable()])
    assert [[row["strategy"] for row in group.rows] for group in groups] == [["top_skip", "unified", "early_exit"], ["unified"]]


def test_engines_and_formats_of_weights_are_settings_but_not_the_engines_of_methods():
    engines = [{"engine": "torch", "engine_weights": None}, {"engine": "transformers", "engine_weights": None}]
    engines += [{"engine": "llama_cpp", "engine_weights": weights} for weights in ("q8_0", "q4_0")]
    exits = sweep_row("early_exit", engine="early_exit", engine_weights=None)
    groups = grouped([*(sweep_row(**one) for one in engines), exits, sweep_row("top_skip")])
    assert [[row["strategy"] for row in group.rows] for group in groups] == [
        ["unified", "early_exit", "top_skip"],
        *[["unified"]] * 3,
    ]
    assert [group.label.partition("greedy")[2] for group in groups[1:3]] == [
        " · engine transformers",
        " · engine llama_cpp · engine weights q8_0",
    ]


def test_offset_and_the_engine_of_the_baseline_are_settings():
    rows = [configured(id=str(i), config={"task": {}}) for i in range(4)]
    for row, own in zip(rows, ({}, {"offset": 100}, {"offset": 0}, {"baseline_engine": "transformers"}), strict=True):
        row["config"] |= own
    baseline = sweep_row("full", config={"baseline_engine": None})
    labels = {group.label: len(group.rows) for group in grouped(with_settings([*rows, baseline]))}
    shared = "m · wmt · de-en · greedy"
    assert labels == {
        f"{shared} · offset 0": 3,
        f"{shared} · offset 100": 1,
        f"{shared} · baseline engine transformers · offset 0": 1,
    }


def test_options_are_named_where_a_strategy_has_several_sets():
    rows = [sweep_row(strategy_options={"spacing": "even"}), sweep_row(strategy_options={"spacing": "reference"})]
    assert [grouped(rows)[0].approach(row) for row in rows] == ["unified even", "unified reference"]
    assert grouped(rows[:1])[0].approach(rows[0]) == "unified"


def configured(strategy="unified", **more):
    made = sweep_row(strategy)
    for part, values in more.pop("config", {}).items():
        made = {**made, "config": {**made["config"], part: {**made["config"].get(part, {}), **values}}}
    return {**made, **more}


def test_what_configurations_differ_in_becomes_a_key():
    short, long = (configured(config={"decoding": {"name": "greedy", "max_new_tokens": n}}) for n in (4, 24))
    told = with_settings([short, long, short])
    assert [one["decoding.max_new_tokens"] for one in told] == [4, 24, 4]
    assert setting_keys(told) == ["decoding.max_new_tokens"]
    assert with_settings([short, short]) == [short, short]


def test_paths_and_what_rows_say_themselves_are_no_settings():
    one, other = (configured(config={"task": {"name": "wmt", "file": file}}) for file in ("a", "b"))
    assert setting_keys(with_settings([one, other])) == []


def test_another_choice_in_a_group_is_no_difference_in_its_keys():
    one = configured(config={"decoding": {"name": "greedy", "max_new_tokens": 4}})
    other = configured(config={"decoding": {"name": "beam", "max_new_tokens": 24}})
    assert setting_keys(with_settings([one, other])) == []


def test_calibration_concerns_those_that_were_calibrated():
    few, many = (configured(calibration={"id": "c"}, config={"calibration": {"examples": n}}) for n in (8, 64))
    told = with_settings([few, many, configured("full", config={"calibration": {"examples": 8}})])
    assert [one.get("calibration.examples") for one in told] == [8, 64, None]


def test_a_failed_row_with_empty_settings_joins_the_group_of_its_sweep():
    identity = RunIdentity(
        "x", model="m", task="wmt", pair="de-en", strategy="unified", decoding="greedy", batch_size=1, seed=1
    )
    failed = {**RunRecord(identity, FAILED, reason="out of memory").to_row(), "folder": "results/x"}
    assert failed.get("chat") is None
    rows = [row | {"chat": False, "draft_tokens": 0} for row in small_sweep()]
    (group,) = grouped([*rows, failed])
    assert group.rows[-1] is failed
    assert not {"chat", "draft_tokens", "dataset"} & set(varying([*rows, failed], AXES))


def test_a_row_without_its_number_of_examples_keeps_its_stars():
    assert starred(sweep_row(num_examples=None), "bleu")
    assert not starred(sweep_row(num_examples=9), "bleu")


def patched(kind, rank=None, **more):
    return {**sweep_row(), "correction": kind, "patch": {"id": "x", "kind": kind, "rank": rank}, **more}


def adapted(*folders, target=2.0):
    config = {"correction": {"name": "adapter", "path": list(folders)}}
    return {**sweep_row(target=target), "skip_adapter": {"path": folders[0], "kind": "full"}, "config": config}


def test_patches_and_adapters_are_points_of_their_own():
    rows = [sweep_row("full"), sweep_row(), patched("full"), patched("low_rank", 8), patched("low_rank", 16), adapted("a/one")]
    (group,) = grouped(with_settings(rows))
    names = ["full patch", "low_rank 16 patch", "low_rank 8 patch", "adapter"]
    found = {approach for target, approach in group.points() if target == 2.0}
    assert found == {"unified", *(f"unified + {name}" for name in names)}
    failed = not_applicable("unified") | {"correction": "folded"}
    assert Group("", [failed]).approach(failed) == "unified + folded patch"
    failed["correction"] = "adapter"
    assert Group("", [failed]).approach(failed) == "unified + adapter"


def test_units_are_points_of_their_own():
    rows = [sweep_row("full"), *(sweep_row(strategy_options=own) for own in ({}, {"unit": "attention"}, {"unit": "mlp"}))]
    (group,) = grouped(with_settings(rows))
    assert {approach for target, approach in group.points() if target == 2.0} == {"unified", "unified attention", "unified mlp"}


def test_two_adapters_of_a_point_are_named():
    one_each = Group("", [adapted("a/two", "a/three"), adapted("a/three", target=3.0)])
    assert {approach for _, approach in one_each.points()} == {"unified + adapter"}
    (group,) = grouped(with_settings([sweep_row(), adapted("a/one"), adapted("b/other")]))
    assert {approach for _, approach in group.points()} == {"unified", "unified + adapter one", "unified + adapter other"}


def test_patches_of_different_calibrations_are_in_different_groups():
    config = {"config": {"model": {"name": "hf"}, "calibration": {"responses": "own"}}}
    other = {"config": {"model": {"name": "hf"}, "calibration": {"responses": "both"}}}
    groups = grouped(with_settings([patched("full", **config), patched("full", **other)]))
    assert [group.label.rpartition(" · ")[2] for group in groups] == ["responses own", "responses both"]
