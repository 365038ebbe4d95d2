"""Make the model card of an export, and the page about serving a prefill/decode pair, from templates. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import ModelCard, ModelCardData

from ulskip_cli.core.engines import copies_weights
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.model_config import ModelConfig
from ulskip_cli.core.printable import all_printable
from ulskip_cli.experiments.record import Row, is_done
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.export.request import ResolvedExport
from ulskip_cli.report.columns import speed_ends
from ulskip_cli.report.tables import escape_markdown, provenance
from ulskip_cli.strategies.plan import Plan
from ulskip_cli.tasks.metrics import DECODE_LOSS, metric_keys, row_key

CARD, SERVING, PREFILL = "README.md", "SERVING.md", "prefill"
_TEMPLATES = Path(__file__).parent
_MODEL_KEYS = ("source", "path", "revision", "adapter", "quantization", "dtype")
_TASK_KEYS = ("task", "dataset", "pair", "decoding", "batch_size", "num_examples")
_MACHINE_KEYS = ("processor", "accelerator", "threads")
_METRICS = (*metric_keys(), DECODE_LOSS.key)


@dataclass(frozen=True)
class CardFacts:
    """The facts of a model card that the request does not contain."""

    parameters: int  # elements of the exported tensors
    total_bytes: int
    checked: str  # the checks of the export and their result
    training: str  # the training of the source's weights, as in a row
    trained_for_these: bool | None  # True if the weights were trained with exactly these layers; None: unknown
    quantization: str | None  # earlier quantization of the source's weights
    license: str | None  # of the source, from its own card
    rows: Sequence[Row]  # results of this schedule of this model
    skip_adapter: Row | None = None  # the entry in a row of the skip adapter that is merged into the layers


def model_card(point: ResolvedExport, facts: CardFacts) -> ModelCard:
    """Return the model card of an export, with its metadata."""
    model = point.config.model
    is_hub = model.source == "hf" and not user_path(model.path, "model.path").exists()
    base, tags = [point.model_name] if is_hub else None, ["ulskip", "layer-skipping"]
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", license=facts.license, base_model=base, tags=tags
    )
    values: dict[str, Any] = {"point": point, "plan": point.plan, "facts": facts, "revision": model.revision}
    values["facts"] = replace(facts, training=escape_markdown(facts.training))
    values |= {"rows": list(map(_cells, facts.rows)), "provenance": escape_markdown(provenance(facts.rows))}
    values |= {"serving": SERVING, "prefill": PREFILL, "correction": _correction(facts.skip_adapter)}
    card: ModelCard = ModelCard.from_template(data, template_path=str(_TEMPLATES / "card.md"), **values)
    return card


def _correction(skip_adapter: Row | None) -> str:
    entry = skip_adapter or {}
    lora = entry.get("lora_rank")
    parts = ["folded patches"] * (entry.get("kind") == "folded") + [f"LoRA of rank {lora}"] * bool(lora)
    return " and ".join(parts) or "no patches"


def serving_page(plan: Plan, has_adapter: bool = False) -> str:
    """Return the page about serving a prefill/decode pair, in Markdown."""
    text = (_TEMPLATES / "serving.md").read_text("utf-8")
    page: str = jinja2.Template(text, keep_trailing_newline=True).render(plan=plan, has_adapter=has_adapter)
    return page


def source_license(folder: Path) -> str | None:
    """Return the license in the source model's card, or None if the card states no license."""
    try:
        name = ModelCard.load(folder / CARD, ignore_metadata_errors=True).data.license if (folder / CARD).is_file() else None
    except (ValueError, yaml.YAMLError):  # not UTF-8, or no valid metadata
        return None
    return name if isinstance(name, str) else None


def matching_rows(folder: Path, model: ModelConfig, plan: Plan, training: str, skip_adapter: Row | None = None) -> list[Row]:
    """Return the newest row with this model, schedule and skip adapter for each task and machine.

    `folder` may contain one experiment or several, or not exist. `training` describes how the weights were trained.
    """
    files = [folder / "runs.jsonl", *sorted(folder.glob("*/runs.jsonl"))]
    rows = [row for file in files for row in ResultsFolder(file.parent).rows() if is_done(row)]
    newest: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=lambda row: str(row.get("finished_at"))):
        if _matches(row, model, plan, training) and _is_corrected(row, skip_adapter):
            machine = row.get("environment", {})
            newest[*(row.get(key) for key in _TASK_KEYS), *(machine.get(key) for key in _MACHINE_KEYS)] = row
    return sorted(map(all_printable, newest.values()), key=lambda row: [str(row.get(key)) for key in _TASK_KEYS])


def _matches(row: Row, model: ModelConfig, plan: Plan, training: str) -> bool:
    config, engine = row.get("config", {}), row.get("engine")
    measured, other_baseline = config.get("model", {}), config.get("baseline_model") or config.get("baseline_engine")
    expected = {"num_layers": plan.num_layers, "kept_layers": list(plan.kept_layers), "prompt_layers": plan.prompt_layers}
    return (
        all(_same(key, measured.get(key), getattr(model, key)) for key in _MODEL_KEYS)
        and all(row.get(key) == value for key, value in {**expected, "training": training}.items())
        and not any(row.get(key) for key in ("later_stages", "exit_depths", "draft_tokens", "unit"))
        and not (engine and copies_weights(str(engine)))  # it computes with a copy of the weights in another format
        and other_baseline in (None, engine)
    )


def _is_corrected(row: Row, skip_adapter: Row | None) -> bool:
    """Return True if a row was measured with an adapter, also if its run computed the adapter with correction=patch."""
    own = row.get("skip_adapter") or row.get("patch")
    if own is None or skip_adapter is None:
        return own is skip_adapter
    shared = own.keys() & skip_adapter.keys() - {"path", "bytes"}
    return "base" in shared and all(own[key] == skip_adapter[key] for key in shared)


def _same(key: str, one: Any, other: Any) -> bool:
    if one == other or key != "path" or one is None:  # two paths are equal if they point to the same file
        return bool(one == other)
    try:
        paths = [user_path(str(text), "model.path") for text in (one, other)]
    except UsageError:  # a row can contain any text
        return False
    return all(path.exists() for path in paths) and paths[0].samefile(paths[1])


def _cells(row: Row) -> list[str]:
    def number(key: str, form: str) -> str:
        return "–" if row.get(key) is None else format(row[key], form)

    quality = []
    for key in _METRICS:
        if row.get(key) is not None:
            full, form = (row.get("vs_baseline") or {}).get(key, {}).get("full"), row_key(key).number_format
            quality.append(f"{key} {row[key]:{form}}" + ("" if full is None else f" (full {full:{form}})"))
    few = row.get("measured_speedup") is not None and speed_ends(row)[0] is None
    low, high = number("measured_speedup_low", ".2f"), number("measured_speedup_high", ".2f")
    coverage = f" ({row['speedup_interval_coverage']:.0%})" if few else ""
    cells = [
        " ".join(str(row[key]) for key in ("task", "pair", "dataset") if row.get(key)) or "random prompts",
        str(row.get("num_examples") or "–"),
        str(row.get("decoding")),
        str(row.get("batch_size")),
        ", ".join(quality) or "–",
        number("measured_speedup", ".2f"),
        "–" if row.get("measured_speedup") is None else f"{low}-{high}{coverage}",
        number("decode_tokens_per_second", ".0f"),
        f"`{row['id']}`",
    ]
    return [escape_markdown(cell).replace("|", r"\|") for cell in cells]
