from report_rows import not_applicable, small_sweep, sweep_row

from ulskip_cli.report.groups import grouped


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


def test_options_are_named_where_a_strategy_has_several_sets():
    rows = [sweep_row(strategy_options={"spacing": "even"}), sweep_row(strategy_options={"spacing": "reference"})]
    assert [grouped(rows)[0].approach(row) for row in rows] == ["unified even", "unified reference"]
    assert grouped(rows[:1])[0].approach(rows[0]) == "unified"
