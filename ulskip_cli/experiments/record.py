"""Row keys that a failed and a finished run of one point share. Imports no torch."""

from ulskip_cli.core.config import identity
from ulskip_cli.core.config_schema import Config
from ulskip_cli.experiments.results import ROW_VERSION, Row
from ulskip_cli.strategies.plan import target_speedup


def asked_row(config: Config) -> Row:
    """Return the row keys that say what was asked for. They depend on the configuration alone."""
    target = target_speedup(config)
    return {
        "row_version": ROW_VERSION,
        "identity": identity(config),
        "experiment": config.name,
        "model": config.model.path if config.model.source in ("hf", "random") else config.model.name,
        "task": config.task["name"],
        "pair": config.task.get("pair"),
        "strategy": config.strategy["name"],
        "strategy_options": {k: v for k, v in config.strategy.items() if k not in ("_target_", "name", "description")},
        "decoding": config.decoding.name,
        "draft_tokens": config.decoding.draft_tokens,
        "batch_size": config.batch_size,
        "ratio_basis": config.ratio_basis,
        "prompt_layers": "all" if target == 1 else config.prompt_layers,
        "target_speedup": target,
        "seed": config.seed,
    }
