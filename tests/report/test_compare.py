from report_rows import not_applicable, small_sweep, sweep_row

from ulskip_cli.report import compare, tables
from ulskip_cli.report.difference import Scorer


def test_points_are_matched_by_what_they_are():
    old = [row | {"id": f"old {row['id']}"} for row in small_sweep()]
    new = [*small_sweep(unified_2=25.0), sweep_row("custom"), not_applicable()]
    found = compare.compare(new, old[:-1], Scorer())
    assert len(found.pairs) == len(old) - 1
    assert (found.only_old, found.only_new) == (0, 2)
    pair = next(pair for pair in found.as_dicts() if pair["new_id"] == "unified-2-1")
    assert (pair["old_bleu"], pair["quality"]["value"], pair["speedup_ratio"]["value"]) == (29.0, -4.0, 1.0)


def test_what_the_sides_have_nothing_of_in_common_is_what_is_compared():
    other = [row | {"model": "n", "seed": 2} for row in small_sweep()]
    found = compare.compare(other, small_sweep(), Scorer())
    assert found.differs == ["model", "seed"]
    assert len(found.pairs) == len(other)
    assert "model, seed" in compare.comparison_section("Against x", found).note


def test_engines_are_told_apart_and_rows_of_earlier_versions_match_every_engine():
    torch, transformers = ([row | {"engine": name} for row in small_sweep()] for name in ("torch", "transformers"))
    found = compare.compare(transformers, torch, Scorer())
    assert (len(found.pairs), found.differs) == (len(torch), ["engine"])
    found = compare.compare([*transformers, *torch], torch, Scorer())
    assert (len(found.pairs), found.only_new) == (len(torch), len(transformers))
    assert len(compare.compare(torch, small_sweep(), Scorer()).pairs) == len(torch)


def test_a_point_with_a_skip_adapter_is_another_than_the_point_without():
    adapted = [
        sweep_row(id=name, skip_adapter={"path": f"a/{name}", "kind": "full"}, config={"correction": {"path": [f"a/{name}"]}})
        for name in ("one", "two")
    ]
    found = compare.compare([*small_sweep(), *adapted], [*small_sweep(), adapted[1]], Scorer())
    assert {pair["new_id"]: pair["old_id"] for pair in found.pairs} == {
        row["id"]: row["id"] for row in [*small_sweep(), adapted[1]]
    }
    assert found.only_new == 1
    assert "| unified + adapter two | 2 | 1 |" in tables.markdown(compare.comparison_section("Against x", found))
    assert compare.compare(adapted[:1], adapted[1:], Scorer()).differs == ["adapter"]


def test_a_star_stands_where_the_interval_leaves_out_no_difference():
    found = compare.compare(small_sweep(unified_2=25.0), small_sweep(), Scorer())
    text = tables.markdown(compare.comparison_section("Against x", found))
    assert "| unified | 2 | 1 | 29.00 | 25.00 | -4.00* |" in text
    assert "| unified | 3 | 1 | 27.50 | 27.50 | +0.00 |" in text
    assert "| tok/s over old |" in text


def test_rows_of_speed_alone_are_compared_too():
    bare = {"bleu": None, "chrf": None, "decode_loss": None}
    found = compare.compare([sweep_row(**bare)], [sweep_row(**bare)], Scorer())
    assert found.pairs[0]["quality"] is None
    assert "BLEU" not in tables.markdown(compare.comparison_section("Against x", found))
