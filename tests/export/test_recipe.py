import shlex
from itertools import pairwise

import yaml
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.export.recipe import layer_ranges, mergekit_recipe, schedule_file
from ulskip_cli.export.request import ExportRequest, resolve


@given(st.sets(st.integers(0, 40), min_size=1))
def test_runs_cover_the_kept_layers(kept):
    found = layer_ranges(sorted(kept))
    assert [i for begin, end in found for i in range(begin, end)] == sorted(kept)
    assert all(end < begin for (_, end), (begin, _) in pairwise(found))


def resolved(to, form, *overrides):
    return resolve(overrides, None, ExportRequest(to, form))


def test_a_merge_recipe_names_slices(tmp_path):
    point = resolved(tmp_path, "mergekit", "strategy=custom", "strategy.layers=[0,1,5,11]")
    recipe = yaml.safe_load(mergekit_recipe(point))
    assert [one["sources"][0]["layer_range"] for one in recipe["slices"]] == [
        [0, 2],
        [5, 6],
        [11, 12],
    ]
    assert (recipe["merge_method"], recipe["dtype"]) == ("passthrough", "float32")


def test_a_schedule_file_contains_strategy_and_command(tmp_path):
    made = schedule_file(resolved(tmp_path, "schedule", "ratio=3"))
    assert (made.kept_layers, made.num_layers, made.target_ratio) == ((0, 4, 7, 11), 12, 3.0)
    assert (made.strategy, made.strategy_options, made.model) == ("unified", {}, "tiny")
    assert made.made_by.endswith("ulskip export ratio=3")
    assert schedule_file(resolved(tmp_path, "schedule", "name='a;b'")).made_by.endswith(
        shlex.quote("name='a;b'")
    )


def test_a_schedule_file_contains_the_unit(tmp_path):
    made = schedule_file(resolved(tmp_path, "schedule", "strategy.unit=attention"))
    assert (made.unit, made.strategy_options["unit"]) == ("attention", "attention")


def test_stages_are_a_schedule(tmp_path):
    made = schedule_file(
        resolved(tmp_path, "schedule", "strategy=skip_decode", "strategy.horizon=8")
    )
    assert made.later_stages
    assert made.strategy_options["horizon"] == 8
