"""Make the model card of an export, and the page about serving a prefill/decode pair, from
templates. Imports no torch.
"""

from pathlib import Path

import jinja2
import yaml
from huggingface_hub import ModelCard, ModelCardData

from ulskip_cli.core.correction import PATCHES
from ulskip_cli.core.files import user_path
from ulskip_cli.experiments.record import Row
from ulskip_cli.export.run import ResolvedExport
from ulskip_cli.report.tables import escape_markdown
from ulskip_cli.strategies.plan import Plan

CARD, SERVING, PREFILL = "README.md", "SERVING.md", "prefill"
_TEMPLATES = Path(__file__).parent


def model_card(
    point: ResolvedExport, record: Row, skip_adapter: Row | None, has_chat: bool
) -> ModelCard:
    """Return the model card of an export, whose record it gets, with its metadata.

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
