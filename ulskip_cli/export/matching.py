"""Which measured rows speak of what is exported. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ulskip_cli.plan import Plan
from ulskip_cli.results import ResultsFolder, Row, is_done
from ulskip_cli.schema import ModelConfig

RULE = (
    "the same model source, path, revision, adapter and dtype, the same kept layers, the same layers for the prompt, no "
    "drafts, and the same training record; of several rows for one task, decoding, batch size and machine the newest"
)
_MODEL_KEYS = ("source", "path", "revision", "adapter", "quantization", "dtype")
_ONE_ROW_FOR = ("task", "dataset", "pair", "decoding", "batch_size", "num_examples")
_MACHINE_KEYS = ("processor", "accelerator", "threads")


def matching(folder: Path, model: ModelConfig, plan: Plan, training: str) -> list[Row]:
    """Rows of a results folder, or of the experiments in it, that were measured on this schedule of this model.

    Args:
        folder: one experiment, or a folder of them; may be missing.
        model: what is exported.
        plan: its schedule.
        training: how its weights were trained, as rows tell it.
    """
    newest: dict[tuple[Any, ...], Row] = {}
    for row in sorted(_rows(folder), key=lambda row: str(row.get("finished_at"))):
        if _matches(row, model, plan, training):
            machine = row.get("environment", {})
            key = (*(row.get(name) for name in _ONE_ROW_FOR), *(machine.get(name) for name in _MACHINE_KEYS))
            newest[key] = row
    return sorted(newest.values(), key=lambda row: [str(row.get(name)) for name in _ONE_ROW_FOR])


def _rows(folder: Path) -> Sequence[Row]:
    files = [folder / "runs.jsonl", *sorted(folder.glob("*/runs.jsonl"))]
    return [row for file in files for row in ResultsFolder(file.parent).rows() if is_done(row)]


def _matches(row: Row, model: ModelConfig, plan: Plan, training: str) -> bool:
    measured = row.get("config", {}).get("model", {})
    return (
        row.get("status", "done") == "done"
        and all(_same(key, measured.get(key), getattr(model, key)) for key in _MODEL_KEYS)
        and row.get("num_layers") == plan.num_layers
        and row.get("kept_layers") == list(plan.kept_layers)
        and not row.get("later_stages")
        and not row.get("exit_depths")
        and row.get("prompt_layers") == plan.prompt_layers
        and not row.get("draft_tokens")
        and row.get("training") == training
    )


def _same(key: str, one: Any, other: Any) -> bool:
    """Paths are the same where they lead to one place."""
    if key != "path" or one is None:
        return bool(one == other)
    paths = [Path(str(text)).expanduser() for text in (one, other)]
    return bool(one == other) or (paths[0].exists() and paths[1].exists() and paths[0].samefile(paths[1]))
