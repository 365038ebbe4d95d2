"""The commands that load no weights: `ulskip plan`, `config` and `env`."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ulskip_cli.cli.shared import (
    ConfigDir,
    Json,
    Overrides,
    PrintConfig,
    print_json,
    print_yaml,
    tell_unused,
)

if TYPE_CHECKING:
    from ulskip_cli.core.schedule import ExitRule
    from ulskip_cli.strategies.plan import Plan

KEPT, SKIPPED = "█", "·"
UNKNOWN = "unknown without the model's files"


def plan(
    overrides: Overrides,
    config_dir: ConfigDir = None,
    as_json: Json = False,
    print_config: PrintConfig = False,
) -> None:
    """Show which layers a strategy keeps and the predicted speedup, without loading weights."""
    from ulskip_cli.core import config
    from ulskip_cli.experiments.point import Resolver

    chosen = config.compose(overrides, "plan")
    if print_config:
        print_yaml(chosen)
        return
    folder, planned = Resolver().schedule(chosen, "plan")
    tell_unused(overrides, [chosen])
    total, device = folder.metadata.total_bytes, chosen.model.device
    copies = chosen.engine.copied_bytes(folder.metadata, device, set(planned.needs))
    if as_json:
        print_json(planned.as_dict() | {"weight_bytes": total, "copied_bytes": copies})
        return
    weights = UNKNOWN
    if total is not None:
        weights = (
            f"{gigabytes(total)} in {folder.model.dtype}, and {gigabytes(copies)} for the copies of"
            " the engine"
        )
    lines = plan_lines(planned, chosen.model.label, chosen.correction.label, weights)
    print("\n".join(lines))


def gigabytes(size: int) -> str:
    """Name a number of bytes.

    >>> gigabytes(2_520_000_000), gigabytes(41_000_000)
    ('2.5 GB', '41 MB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def plan_lines(plan: "Plan", model: str, correction: str, weights: str) -> list[str]:
    """Draw and list the kept layers, with predictions. `correction` is a label, empty for none, and
    `weights` the text of their size.
    """
    readers = "the kept" if plan.prompt_layers == "kept" else plan.prompt_layers
    facts = {
        "target_speedup": "–" if plan.target_speedup is None else f"{plan.target_speedup:g}x",
        "layer_ratio": f"{plan.layer_ratio:.2f}x",
        "predicted_speedup": _speedup(plan),
        "weights": weights,
        "KV bytes per token": _kv_bytes(plan),
        "prompt_layers": f"{readers} layers encode the prompt",
    }
    may_read_patches = plan.patch_bytes != 0  # None: unknown
    if correction or may_read_patches:
        facts["correction"] = f"{correction}, {_patches(plan)}"
    width = max(map(len, facts))
    lines = (
        _exits(plan.exits, f"{model}, {plan.strategy}") if plan.exits else _kept_lines(plan, model)
    )
    lines.append("")
    lines += [f"  {key:<{width}}  {value}" for key, value in facts.items()]
    return lines + [f"  warning: {warning}" for warning in plan.warnings]


def _speedup(plan: "Plan") -> str:
    if plan.drafts:
        return "depends on the accepted drafts, which a run counts"
    if plan.predicted_speedup is None:
        return UNKNOWN
    times = f"{plan.predicted_speedup:.2f}x"
    return f"{times} in decode over all layers in this engine, by the bytes of a step"


def _kv_bytes(plan: "Plan") -> str:
    prompt_bytes, decode_bytes = plan.kv_bytes_per_token, plan.kept_kv_bytes_per_token
    if prompt_bytes is None:
        return UNKNOWN
    if plan.prompt_layers == "kept":  # both are equal
        return f"{decode_bytes:,}"
    return f"{prompt_bytes:,} during the prompt, {decode_bytes:,} in decode"


def _patches(plan: "Plan") -> str:
    from ulskip_cli.core.weight_sizes import gaps

    num_gaps, size = len(gaps(plan.kept_layers, plan.num_layers)), UNKNOWN
    if plan.patch_bytes is not None:
        size = f"{plan.patch_bytes:,} bytes in each decode step"
    return f"{num_gaps} gaps, {size}"


def _kept_lines(plan: "Plan", model: str) -> list[str]:
    """Draw and list the kept layers of the first steps."""
    from ulskip_cli.core.schedule import listed

    when = "in each decode step"
    if plan.later_stages:
        when = f"in the first decode steps, {len(plan.stages[-1].kept_layers)} in the last"
    return [
        f"{model}, {plan.strategy}: {plan.summary} {when}",
        "",
        f"  {strip(plan.num_layers, plan.kept_layers)}   {KEPT} kept  {SKIPPED} skipped",
        f"  {ruler(plan.num_layers)}",
        f"  kept: {listed(plan.kept_layers)}",
    ]


def _exits(rule: "ExitRule", what: str) -> list[str]:
    """Describe early exit in place of a drawing; `what` names model and strategy."""
    from ulskip_cli.core.schedule import listed

    threshold = "calibrated by the run"
    if rule.threshold is not None:
        threshold = f"{rule.threshold:g}, lowered by a tenth over {rule.horizon} tokens"
    return [
        (
            f"{what}: {rule.target_depth} of {rule.num_layers} layers per decode step on average,"
            " chosen for each token"
        ),
        "",
        f"  confidence checks after layers: {listed(rule.checks)}",
        (
            f"  output heads computed in a step of {rule.target_depth} layers:"
            f" {rule.heads(rule.target_depth)}"
        ),
        f"  exit rule: gap of the top two probabilities >= threshold; threshold: {threshold}",
    ]


def strip(num_layers: int, kept: Sequence[int]) -> str:
    """Draw kept layers as blocks and skipped ones as dots, the first layer on the left.

    >>> strip(8, (0, 2, 5, 7))
    '█·█··█·█'
    """
    return "".join(KEPT if i in kept else SKIPPED for i in range(num_layers))


def ruler(num_layers: int) -> str:
    """Return every fifth layer number, below a strip.

    >>> ruler(12)
    '0    5    10'
    """
    return "".join(str(i).ljust(5) for i in range(0, num_layers, 5)).rstrip()


def config(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A group, e.g. model; a choice, e.g. strategy=early_exit; or a key.",
            show_default=False,
        ),
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """List config groups, their choices and their keys, e.g. `ulskip config model` or `ulskip
    config speed.seconds`.
    """
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from ulskip_cli.core.config_reference import describe

    console = Console(highlight=False)
    for title, entries in describe(name or ""):
        table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column()
        for key, text in entries.items():
            table.add_row(Text(key), Text(text))
        console.print(Panel(table, title=Text(title), title_align="left", border_style="dim"))


def env() -> None:
    """Show versions, device, threads and instruction set as JSON, for bug reports."""
    from ulskip_cli.core import environment

    print(json.dumps(environment.versions() | environment.machine(), indent=1))
