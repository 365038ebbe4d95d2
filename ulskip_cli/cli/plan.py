"""`ulskip plan`: the layers that would be kept, drawn and listed, without loading weights."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import groupby

from ulskip_cli.cli.options import ConfigDir, Json, Overrides
from ulskip_cli.core import config
from ulskip_cli.strategies.exit_rule import ExitRule
from ulskip_cli.strategies.memory import Footprint, MemoryPlan
from ulskip_cli.strategies.plan import Plan

KEPT, SKIPPED = "█", "·"
UNKNOWN = "unknown until the model's files are here"


def plan(overrides: Overrides = None, config_dir: ConfigDir = None, as_json: Json = False) -> None:
    """Show which layers would be kept and what that promises, without loading any weights."""
    from ulskip_cli.core.model_metadata import read_metadata
    from ulskip_cli.strategies.plan import make_plan

    chosen = config.compose(overrides or [], config_dir)
    planned = make_plan(chosen, read_metadata(chosen.model))
    if as_json:
        print(json.dumps(asdict(planned)))
        return
    print("\n".join(plan_lines(planned, chosen.model.name)))


def plan_lines(plan: Plan, model: str) -> list[str]:
    """Draw and list the kept layers, and state what they promise."""
    speedup, kv, kept_kv = plan.predicted_speedup, plan.kv_bytes_per_token, plan.kept_kv_bytes_per_token
    if plan.prompt_layers == "kept":
        cache = UNKNOWN if kept_kv is None else f"{kept_kv:,}"
    else:
        cache = UNKNOWN if kv is None else f"{kv:,} in all layers, {kept_kv:,} kept after the prompt"
    facts = {
        "target_speedup": "–" if plan.target_speedup is None else f"{plan.target_speedup:g}x",
        "layer_ratio": f"{plan.layer_ratio:.2f}x",
        "predicted_speedup": UNKNOWN if speedup is None else f"{speedup:.2f}x in decode, by bytes read",
        "KV bytes per token": cache,
        "the prompt runs": "every layer" if plan.prompt_layers == "all" else "the kept layers only",
    }
    if plan.memory is not None:
        facts |= _memory_facts(plan.memory, plan.strategy)
    width = max(map(len, facts))
    return [
        *(_exits(plan.exits, f"{model}, {plan.strategy}") if plan.exits else _kept(plan, model)),
        "",
        *(f"  {key:<{width}}  {value}" for key, value in facts.items()),
        *(f"  warning: {warning}" for warning in plan.warnings),
    ]


def _kept(plan: Plan, model: str) -> list[str]:
    return [
        f"{model}, {plan.strategy}: {len(plan.kept_layers)} of {plan.num_layers} layers in each decode step",
        "",
        f"  {strip(plan.num_layers, plan.kept_layers)}   {KEPT} kept  {SKIPPED} skipped",
        f"  {ruler(plan.num_layers)}",
        f"  kept: {ranges(plan.kept_layers)}",
    ]


def _exits(rule: ExitRule, what: str) -> list[str]:
    known = rule.threshold is not None
    threshold = f"{rule.threshold:g}, a tenth less after {rule.horizon} tokens" if known else "to be calibrated"
    return [
        f"{what}: {rule.target_depth} of {rule.num_layers} layers in a decode step on average, as many as each token needs",
        "",
        f"  checked: behind {ranges(rule.checks)} layers",
        f"  output heads in a step of {rule.target_depth} layers: {rule.heads(rule.target_depth)}",
        f"  leaves at: {rule.confidence} >= threshold, {threshold}",
    ]


def _memory_facts(memory: MemoryPlan, strategy: str) -> dict[str, str]:
    def beside(show: Callable[[Footprint], str]) -> str:
        own = show(memory.strategy)
        return own if strategy == "full" else f"{own}; full {show(memory.full)}"

    in_flight = beside(lambda side: f"{side.max_in_flight:,}")
    return {
        "weights": f"{memory.weight_bytes / 2**30:,.2f} GiB of {memory.budget_bytes / 2**30:,.2f} GiB",
        "tokens of a sequence": f"{memory.prompt_tokens} of the prompt, {memory.new_tokens} new",
        "peak of a sequence": beside(lambda side: f"{side.sequence_bytes / 2**20:,.1f} MiB"),
        "once it decodes": beside(lambda side: f"{side.decoding_bytes / 2**20:,.1f} MiB"),
        "largest batch": beside(lambda side: f"{side.max_batch:,}"),
        "most in flight": f"{in_flight} (prompts encoded one by one)",
    }


def strip(num_layers: int, kept: Sequence[int]) -> str:
    """Draw kept layers as blocks and skipped ones as dots, the first layer on the left.

    >>> strip(8, (0, 2, 5, 7))
    '█·█··█·█'
    """
    return "".join(KEPT if i in kept else SKIPPED for i in range(num_layers))


def ruler(num_layers: int, every: int = 5) -> str:
    """Return the layer numbers that stand under a strip.

    >>> ruler(12)
    '0    5    10'
    """
    return "".join(str(i).ljust(every) for i in range(0, num_layers, every)).rstrip()


def ranges(layers: Sequence[int]) -> str:
    """List layers as ranges.

    >>> ranges((0, 1, 2, 5, 7, 8))
    '0-2, 5, 7, 8'
    """
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
