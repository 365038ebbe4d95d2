"""Export of a schedule without weights, as a JSON file or a mergekit recipe. Imports no torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

import yaml

from ulskip_cli.core.model_metadata import find_config
from ulskip_cli.export.request import ResolvedExport
from ulskip_cli.strategies.custom import ScheduleFile, ScheduleStage

SCHEDULE = "schedule.json"


def schedule_file(point: ResolvedExport) -> ScheduleFile:
    """Return the plan as a schedule file, which `strategy.file` reads."""
    plan = point.plan
    return ScheduleFile(
        num_layers=plan.num_layers,
        kept_layers=plan.kept_layers,
        later_stages=tuple(ScheduleStage(**asdict(stage)) for stage in plan.later_stages),
        strategy=plan.strategy,
        strategy_options=point.config.strategy.options(),
        target_ratio=plan.target_speedup,
        ratio_basis=point.config.ratio_basis,
        prompt_layers="all" if plan.prompt_layers == "all" else "kept",
        model=point.model_name,
        made_by=point.made_by,
        unit=plan.unit,
    )


def mergekit_recipe(point: ResolvedExport) -> str:
    """Return the plan as a mergekit recipe in YAML: a passthrough merge of slices with exclusive
    ends.
    """
    plan, model = point.plan, point.config.model
    path = model.path if model.source == "hf" else str(find_config(model).parent)
    slices = [
        {"sources": [{"model": path, "layer_range": list(ends)}]}
        for ends in layer_ranges(plan.kept_layers)
    ]
    dtype = point.dtype
    if dtype is None:
        source = json.loads(find_config(model).read_text("utf-8"))
        dtype = str(source.get("dtype") or source.get("torch_dtype") or "float32")
    recipe = {"slices": slices, "merge_method": "passthrough", "dtype": dtype}
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return (
        f"# {point.made_by}\n# {plan.strategy}: {plan.num_kept} of {plan.num_layers} layers\n{text}"
    )


def layer_ranges(kept: Sequence[int]) -> list[tuple[int, int]]:
    """Group adjacent layers into half-open ranges.

    >>> layer_ranges((0, 1, 4, 6, 7))
    [(0, 2), (4, 5), (6, 8)]
    """
    gaps = [(a + 1, b) for a, b in pairwise(kept) if b != a + 1]
    starts, ends = [kept[0], *(b for _, b in gaps)], [*(a for a, _ in gaps), kept[-1] + 1]
    return list(zip(starts, ends, strict=True))
