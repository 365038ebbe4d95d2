"""Make the model card of an export, and the page about serving a prefill/decode pair, from
templates. Imports no torch.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import ModelCard, ModelCardData

from ulskip_cli.core.correction import PATCHES
from ulskip_cli.core.files import user_path
from ulskip_cli.experiments.record import MIN_FOR_STARS, MISSING, Record, Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.settings import settings
from ulskip_cli.export.run import ResolvedExport
from ulskip_cli.report.rows import displayed
from ulskip_cli.report.tables import escape_markdown, provenance
from ulskip_cli.strategies.plan import Plan
from ulskip_cli.tasks.metrics import ROW_KEYS

CARD, SERVING, PREFILL = "README.md", "SERVING.md", "prefill"
_TEMPLATES = Path(__file__).parent
# Settings that decide weights, layers and corrections; `_matches` compares these separately.
_MADE_BY = ("folder", "model", "correction", "calibration")
# Options of a model that choose its weights.
_WEIGHTS = ("source", "path", "revision", "adapter", "dtype")


def model_card(
    point: ResolvedExport,
    record: Row,
    records: Sequence[Record],
    skip_adapter: Row | None,
    has_chat: bool,
) -> ModelCard:
    """Return the model card of an export, with its metadata.

    `record` is that of the export, and `records` are results of this schedule of this model.
    `has_chat` shows the use of the tokenizer's chat template.
    """
    model, adapter = point.config.model, skip_adapter or {}
    is_hub = model.source == "hf" and not user_path(model.path, "model.path").exists()
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=record["license"],
        base_model=[model.label] if is_hub else None,
        tags=["ulskip", "layer-skipping"],
    )
    kind, rank = adapter.get("kind"), adapter.get("lora_rank")
    parts = [f"{kind} patches"] * (kind in PATCHES) + [f"LoRA of rank {rank}"] * bool(rank)
    card: ModelCard = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATES / "card.md"),
        point=point,
        record=record,
        skip_adapter=skip_adapter,
        training=escape_markdown(record["training"] or "not recorded"),
        rows=list(map(_cells, records)),
        provenance=escape_markdown(provenance(records)),
        correction=" and ".join(parts) or "no patches",
        has_chat=has_chat,
        chat_options="".join(
            f", {key}={value!r}" for key, value in (model.chat_options or {}).items()
        ),
    )
    return card


def serving_page(plan: Plan, has_adapter: bool) -> str:
    """Return the page about serving a prefill/decode pair, in Markdown."""
    text = (_TEMPLATES / "serving.md").read_text("utf-8")
    template = jinja2.Template(text, keep_trailing_newline=True)
    page: str = template.render(plan=plan, has_adapter=has_adapter)
    return page


def source_license(folder: Path) -> str | None:
    """Return the license in the source model's card, or None if the card states no license."""
    try:
        name = ModelCard.load(folder / CARD, ignore_metadata_errors=True).data.license
    except (ValueError, yaml.YAMLError):  # no file, not UTF-8, or no valid metadata
        return None
    return name if isinstance(name, str) else None


def matching_records(
    point: ResolvedExport, training: str | None, skip_adapter: Row | None
) -> list[Record]:
    """Return the newest record with this model, schedule and skip adapter for each setting and
    machine.

    `results_dir` may contain one experiment or several, or not exist. `training` describes how the
    weights were trained.
    """
    folder = user_path(point.config.results_dir, "results_dir")
    records = [
        displayed(record, path)
        for path in (folder, *folder.glob("*"))
        for record in ResultsFolder(path).records()
        if _matches(record, point, training) and _is_corrected(record, skip_adapter)
    ]
    newest: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: str(record.finished_at)):
        kept = [item for item in settings(record).items() if item[0].part not in _MADE_BY]
        newest[f"{kept} {record.environment and record.environment.machine}"] = record
    return sorted(
        newest.values(),
        key=lambda record: (str(record.task), str(record.dataset), record.batch_size),
    )


def _matches(record: Record, point: ResolvedExport, training: str | None) -> bool:
    measured, model, plan = record.config.model, point.files.model, point.plan
    baseline = record.config.baseline_model or record.config.baseline_engine
    layers = record.num_layers, record.kept_layers, record.prompt_layers, record.training
    return (
        record.is_done
        and layers == (plan.num_layers, plan.kept_layers, plan.prompt_layers, training)
        and not (record.later_stages or record.exit_depths or record.draft_tokens)
        and not record.config.engine.is_runtime  # it may compute in another format
        and baseline in (None, record.engine)
        and all(getattr(measured, key) == getattr(model, key) for key in _WEIGHTS)
    )


def _is_corrected(record: Record, skip_adapter: Row | None) -> bool:
    """Return True if a record was measured with an adapter, also if its run fitted it as
    `correction=patch`.
    """
    if record.correction is None or skip_adapter is None:
        return record.correction is None and skip_adapter is None
    used = record.correction.model_dump(exclude_none=True)
    shared = used.keys() & skip_adapter.keys() - {"path", "bytes"}
    return "base" in shared and all(used[key] == skip_adapter[key] for key in shared)


def _quality(record: Record) -> str:
    """Return the scores with the intervals of their differences from the full model's, or the
    reason why there are none.
    """
    if record.has_few_examples:
        return f"left out: fewer than {MIN_FOR_STARS} examples say little"
    scores = []
    for key, row_key in ROW_KEYS.items():
        if record.value(key) is not None:
            form, text = row_key.number_format, ""
            if compared := record.vs_baseline.get(key):
                low, high = compared.delta_low, compared.delta_high
                text = f" (full {compared.full:{form}}; difference {low:+{form}} to {high:+{form}})"
            scores.append(f"{row_key.title} {record.value(key):{form}}{text}")
    return ", ".join(scores) or MISSING


def _cells(record: Record) -> list[str]:
    interval = (record.interval or MISSING).replace(" to ", "-")
    rate, speedup = record.timed_tokens_per_second, record.measured_speedup
    cells = [
        " ".join(filter(None, (record.task, record.pair, record.dataset))) or "random prompts",
        str(record.num_examples or MISSING),
        str(record.decoding),
        str(record.batch_size),
        _quality(record),
        MISSING if speedup is None else f"{speedup:.2f}",
        interval,
        MISSING if rate is None else f"{rate:.0f}",
        f"`{record.id}`",
    ]
    return [escape_markdown(cell).replace("|", r"\|") for cell in cells]
