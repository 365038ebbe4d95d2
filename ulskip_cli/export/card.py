"""What a reader of an exported folder must know: the model card, and the page on serving a pair. Imports no torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ulskip_cli.export.matching import RULE
from ulskip_cli.plan import Plan
from ulskip_cli.report.columns import interval, number
from ulskip_cli.report.status import MISSING
from ulskip_cli.report.table import provenance
from ulskip_cli.results import Row

CARD, SERVING, PREFILL = "README.md", "SERVING.md", "prefill"
_METRICS = (
    "bleu",
    "chrf",
    "ter",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "exact_match",
    "comet",
    "bertscore",
    "decode_loss",
)


@dataclass(frozen=True)
class About:
    """What a card tells.

    Attributes:
        name: of the source: hub id, folder or bundled name.
        is_hub: whether the name is a hub id.
        revision: of a hub model.
        plan: the schedule.
        training: how the source's weights were trained, as rows tell it.
        trained_for_these: whether with just these layers; None: not known.
        dtype: that the export loads in.
        quantization: what the source's weights went through.
        total_bytes: of the export's weights.
        parameters: their number.
        checked: how the export was held against the view.
        rows: measured on this schedule of this model.
        results: the folder that was searched for them.
        made_by: program, version, commit and overrides.
        license: of the source, as its own card says.
    """

    name: str
    is_hub: bool
    revision: str | None
    plan: Plan
    training: str
    trained_for_these: bool | None
    dtype: str
    quantization: str | None
    total_bytes: int
    parameters: int
    checked: str
    rows: Sequence[Row]
    results: Path
    made_by: str
    license: str | None = None


def card(about: About) -> str:
    """The README.md of an export, in Markdown with the hub's front matter."""
    plan = about.plan
    title = f"# {Path(about.name).name}, {plan.num_kept} of {plan.num_layers} layers"
    return "\n\n".join(
        [
            _front_matter(about),
            title,
            _what(about),
            "## Use",
            _use(plan),
            "## Schedule",
            _table(_schedule(about)),
            "## Training",
            _training(about),
            "## Quality and speed",
            *_measured(about),
            "## Made by",
            f"{about.made_by}\n\nChecked: {about.checked}.",
        ]
    ) + ("\n")


def serving(plan: Plan) -> str:
    """The page on how a pair is served."""
    text = (Path(__file__).parent / "serving.md").read_text("utf-8")
    said = {
        "@KEPT@": str(tuple(plan.kept_layers)),
        "@SHARE@": f"{plan.num_kept} of {plan.num_layers}",
        "@PERCENT@": f"{plan.num_kept / plan.num_layers:.0%}",
    }
    for key, value in said.items():
        text = text.replace(key, value)
    return text


def _what(about: About) -> str:
    plan = about.plan
    lead = (
        f"The decoder layers {', '.join(map(str, plan.kept_layers))} of `{about.name}`, chosen by ulskip's strategy "
        f"`{plan.strategy}` (see [arXiv:2404.06954](https://arxiv.org/abs/2404.06954)), as an ordinary checkpoint: every "
        "weight is the source's own."
    )
    if plan.prompt_layers == "kept" or plan.keeps_all:
        return f"{lead} Prompt and answer run through these layers."
    return (
        f"{lead} It is the decode half of a pair: prompts are meant to run through all {plan.num_layers} layers, which "
        f"`{PREFILL}/` holds. Loaded alone it runs its prompts through its own layers, which costs quality. "
        f"See [{SERVING}]({SERVING})."
    )


def _use(plan: Plan) -> str:
    code = (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained(".")\nmodel = AutoModelForCausalLM.from_pretrained(".")\n'
        'inputs = tokenizer("...", return_tensors="pt")\nprint(tokenizer.decode(model.generate(**inputs)[0]))\n```'
    )
    return f'{code}\n\n`"."` is this folder. Nothing of ulskip is needed.'


def _schedule(about: About) -> dict[str, str]:
    plan = about.plan
    return {
        "strategy": plan.strategy,
        "kept layers": f"{', '.join(map(str, plan.kept_layers))} of 0 to {plan.num_layers - 1}",
        "target speedup": MISSING if plan.target_speedup is None else f"{plan.target_speedup:g}",
        "layer ratio": f"{plan.layer_ratio:.2f}",
        "predicted speedup": MISSING
        if plan.predicted_speedup is None
        else f"{plan.predicted_speedup:.2f}, by bytes of weights",
        "prompt": "all layers" if plan.prompt_layers == "all" else "the kept layers",
        "parameters": f"{about.parameters:,}",
        "weights": f"{about.total_bytes:,} bytes, loaded in {about.dtype}",
        "source": about.name + (f" at {about.revision}" if about.revision else ""),
    }


def _training(about: About) -> str:
    lines = [f"Weights: {about.training}."]
    if about.quantization:
        lines.append(f"Before that they went through: {about.quantization}.")
    if about.trained_for_these is True or about.plan.keeps_all:
        return " ".join(lines)
    known = (
        "They were trained for other layers than these"
        if about.trained_for_these is False
        else "Nothing says that it was for these layers"
    )
    return " ".join([*lines, f"{known}: expect a loss of quality that grows with the ratio."])


def _measured(about: About) -> list[str]:
    if not about.rows:
        return [
            f"No row in `{about.results}` was measured on this. `ulskip run` with the overrides below measures quality and "
            "speed; export again, and they stand here.",
            f"A row counts where it has {RULE}.",
        ]
    lines = ["| " + " | ".join(head for head, _ in _COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    lines += ["| " + " | ".join(show(row) for _, show in _COLUMNS) + " |" for row in about.rows]
    return [
        "\n".join(lines),
        "measured speedup: full depth over these layers in decode seconds, first token excluded, median of pairs; tok/s: "
        f"generated ids after the first over decode seconds. Rows of `{about.results}`: a row counts where it has {RULE}.",
        provenance(about.rows),
    ]


def _quality(row: Row) -> str:
    """Every metric, with the full model's beside it."""
    cells = []
    for key in _METRICS:
        if row.get(key) is not None:
            full = (row.get("against_full") or {}).get(key, {}).get("full")
            form = ".3f" if key in ("decode_loss", "comet", "bertscore") else ".1f"
            cells.append(f"{key} {row[key]:{form}}" + ("" if full is None else f" (full {full:{form}})"))
    return ", ".join(cells) or MISSING


def _task(row: Row) -> str:
    return " ".join(str(row[key]) for key in ("task", "pair", "dataset") if row.get(key)) or "random prompts"


_COLUMNS = (
    ("task", _task),
    ("examples", lambda row: str(row.get("num_examples") or MISSING)),
    ("decoding", lambda row: str(row.get("decoding"))),
    ("batch", lambda row: str(row.get("batch_size"))),
    ("quality", _quality),
    ("measured speedup", number("measured_speedup")),
    ("95%", interval),
    ("decode tok/s", number("decode_tokens_per_second", ".0f")),
    ("row", lambda row: f"`{row['id']}`"),
)


def _table(values: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in values.items())])


def _front_matter(about: About) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    if about.license:
        lines.append(f"license: {about.license}")
    if about.is_hub:
        lines += ["base_model:", f"- {about.name}"]
    return "\n".join(["---", *lines, "tags:", "- ulskip", "- layer-skipping", "---"])


def license_of(folder: Path) -> str | None:
    """What the source's card says, where it has one."""
    file = folder / CARD
    text = file.read_text("utf-8", errors="replace")[:4000] if file.is_file() else ""
    match = re.match(r"---\n(?:.*\n)*?license:\s*([\w.-]+)\s*\n", text)
    return match[1] if match else None
