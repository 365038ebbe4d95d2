"""`ulskip plan`: which layers would be kept, drawn and listed, without loading weights."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from ulskip_cli.cli.options import ConfigDir, Json, Overrides
from ulskip_cli.core import config
from ulskip_cli.strategies.exit_rule import ExitRule
from ulskip_cli.strategies.memory import MemoryPlan
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
    for line in plan_lines(planned, chosen.model.name):
        print(line)


def plan_lines(plan: Plan, model: str) -> list[str]:
    """The kept layers drawn and listed, and what they promise."""
    target = "–" if plan.target_speedup is None else f"{plan.target_speedup:g}x"
    prompt = "every layer" if plan.prompt_layers == "all" else "the kept layers only"
    facts = {
        "target_speedup": target,
        "layer_ratio": f"{plan.layer_ratio:.2f}x",
        "predicted_speedup": UNKNOWN
        if plan.predicted_speedup is None
        else f"{plan.predicted_speedup:.2f}x in decode, by bytes read",
        "KV bytes per token": UNKNOWN
        if plan.kv_bytes_per_token is None
        else f"{plan.kv_bytes_per_token:,} in all layers, {plan.kept_kv_bytes_per_token:,} kept after the prompt",
        "the prompt runs": prompt,
    }
    if plan.prompt_layers == "kept":
        facts["KV bytes per token"] = UNKNOWN if plan.kept_kv_bytes_per_token is None else f"{plan.kept_kv_bytes_per_token:,}"
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
    """The layers of a schedule."""
    return [
        f"{model}, {plan.strategy}: {len(plan.kept_layers)} of {plan.num_layers} layers in each decode step",
        "",
        f"  {strip(plan.num_layers, plan.kept_layers)}   {KEPT} kept  {SKIPPED} skipped",
        f"  {ruler(plan.num_layers)}",
        f"  kept: {ranges(plan.kept_layers)}",
    ]


def _exits(rule: ExitRule, what: str) -> list[str]:
    """Where steps may end."""
    threshold = (
        "to be calibrated" if rule.threshold is None else f"{rule.threshold:g}, a tenth less after {rule.horizon} tokens"
    )
    return [
        f"{what}: {rule.target_depth} of {rule.num_layers} layers in a decode step on average, as many as each token needs",
        "",
        f"  checked: behind {ranges(rule.checks)} layers",
        f"  output heads in a step of {rule.target_depth} layers: {rule.heads(rule.target_depth)}",
        f"  leaves at: {rule.confidence} >= threshold, {threshold}",
    ]


def _memory_facts(memory: MemoryPlan, strategy: str) -> dict[str, str]:
    """The largest batches within a budget, beside those of the full model."""
    own, full = memory.strategy, memory.full

    def beside(mine: str, others: str) -> str:
        return mine if strategy == "full" else f"{mine}; full {others}"

    return {
        "weights": f"{_gib(memory.weight_bytes)} of {_gib(memory.budget_bytes)}",
        "tokens of a sequence": f"{memory.prompt_tokens} of the prompt, {memory.new_tokens} new",
        "peak of a sequence": beside(_mib(own.sequence_bytes), _mib(full.sequence_bytes)),
        "once it decodes": beside(_mib(own.decoding_bytes), _mib(full.decoding_bytes)),
        "largest batch": beside(f"{own.max_batch:,}", f"{full.max_batch:,}"),
        "most in flight": f"{beside(f'{own.max_in_flight:,}', f'{full.max_in_flight:,}')} (prompts encoded one by one)",
    }


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"


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
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
