"""Schedules that can leave ulskip, as a JSON file or as a merge recipe. Imports no torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise

import yaml

from ulskip_cli import __version__
from ulskip_cli.config import instantiate
from ulskip_cli.errors import UsageError
from ulskip_cli.models.facts import describe, find_config
from ulskip_cli.plan import Plan, make_plan
from ulskip_cli.schedule_file import ScheduleFile
from ulskip_cli.schema import Config
from ulskip_cli.strategies import Calibrated

FILE = "schedule.json"


def plan_of(config: Config) -> Plan:
    """The plan of a configuration, if integers decide it.

    Raises:
        UsageError: it is out of reach, or a run would have to find it first.
    """
    name = config.strategy["name"]
    if config.ratio_basis == "latency":
        raise UsageError(
            "ratio_basis=latency is decided by a run's clock; export the kept_layers of its row with strategy=custom "
            "strategy.layers=[...], or take ratio_basis=cost"
        )
    plan = make_plan(config, describe(config.model))
    if plan.exits:
        raise UsageError(
            f"strategy={name} decides at every token which layers run, which no export can say; export strategy=full, or "
            "strategy=top_skip for one depth"
        )
    strategy = instantiate(config.strategy, "strategy")
    if isinstance(strategy, Calibrated) and not strategy.is_calibrated:
        raise UsageError(
            f"strategy={name} is decided by a run, on held-out examples; export the kept_layers of its row with "
            "strategy=custom strategy.layers=[...], or give calibration.options of its row"
        )
    return plan


def one_stage(plan: Plan) -> Plan:
    """The plan itself, if the same layers run at every step.

    Raises:
        UsageError: their number changes while a sequence is decoded.
    """
    if plan.later_stages:
        raise UsageError(
            f"strategy={plan.strategy} runs fewer layers at later steps, which no single checkpoint says; "
            "--format schedule writes it, and strategy=custom exports the layers of one stage"
        )
    return plan


def schedule_of(config: Config, plan: Plan, overrides: Sequence[str]) -> ScheduleFile:
    """The plan as a file that `strategy.file=` reads."""
    return ScheduleFile(
        num_layers=plan.num_layers,
        kept_layers=plan.kept_layers,
        later_stages=tuple(asdict(stage) for stage in plan.later_stages),
        strategy=plan.strategy,
        strategy_options=plan.options,
        target_ratio=plan.target_speedup,
        ratio_basis=config.ratio_basis,
        prompt_layers=plan.prompt_layers,
        model=model_name(config),
        made_by=made_by(overrides),
    )


def mergekit(config: Config, plan: Plan, overrides: Sequence[str]) -> str:
    """The plan as mergekit's passthrough merge of slices; a slice's end is exclusive."""
    model = config.model.path if config.model.source == "hf" else str(find_config(config.model).parent)
    slices = [{"sources": [{"model": model, "layer_range": [a, b]}]} for a, b in runs(plan.kept_layers)]
    recipe = {"slices": slices, "merge_method": "passthrough", "dtype": _dtype(config)}
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return f"# {made_by(overrides)}\n# {plan.strategy}: {plan.num_kept} of {plan.num_layers} layers\n{text}"


def runs(kept: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring layers as half-open ranges.

    >>> runs((0, 1, 4, 6, 7))
    [(0, 2), (4, 5), (6, 8)]
    """
    starts = [kept[0], *(b for a, b in pairwise(kept) if b != a + 1)]
    ends = [*(a + 1 for a, b in pairwise(kept) if b != a + 1), kept[-1] + 1]
    return list(zip(starts, ends, strict=True))


def _dtype(config: Config) -> str:
    """What the weights are computed in; float32 where nothing says."""
    if config.model.dtype != "auto":
        return config.model.dtype
    said = json.loads(find_config(config.model).read_text("utf-8"))
    return str(said.get("dtype") or said.get("torch_dtype") or "float32")


def model_name(config: Config) -> str:
    """Hub id or folder; the name of what comes with ulskip."""
    return config.model.path if config.model.source in ("hf", "random") else config.model.name


def made_by(overrides: Sequence[str]) -> str:
    """The command."""
    return " ".join([f"ulskip {__version__}:", "ulskip export", *overrides])
