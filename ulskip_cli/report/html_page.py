"""The report as one HTML file that needs no network: winners, points, plots and answers side by side."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ulskip_cli.experiments.record import Row, is_done
from ulskip_cli.report import tables
from ulskip_cli.report.answers import Answers
from ulskip_cli.report.columns import Column, Section, axes_of, kv_share, starred, varying, words
from ulskip_cli.report.corrections import strategy_name
from ulskip_cli.report.plot_style import SavedPlot, strategy_colour
from ulskip_cli.report.plots import last_stage
from ulskip_cli.report.quality import METRICS, Quality, Winner, quality
from ulskip_cli.report.rows import MISSING, Group, absent, setting_title
from ulskip_cli.tasks.metrics import metric_keys, row_key

NEGATIVE = re.compile(r"(?<![\w.%-])-(?=[\d.])")


@dataclass(frozen=True)
class Page:
    """The content of a page."""

    groups: Sequence[Group]
    rows: Sequence[Row]  # in the order that the table has at first
    gate: float  # share of the full model's quality
    winners: Mapping[str, Sequence[Winner]]  # by the label of a setting
    plots: Sequence[SavedPlot]
    answers: Answers
    sections: Sequence[Section] = ()  # further tables

    def html(self) -> str:
        """Render the whole file."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("ulskip_cli", "assets/report"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
        environment.filters["minus"] = real_minus
        judged = {METRICS[one.metric] for group in self.groups for one in quality(group, self.gate).values()}
        columns, rows = points(self.groups, self.rows, self.gate)
        return environment.get_template("page.html").render(
            page=self,
            zip=zip,
            colour_of=strategy_colour,
            heading=tables.title(self.rows) or "Skipped layers",
            folders=sorted({str(row["folder"]) for row in self.rows}),
            finished=max((str(row["finished_at"]) for row in self.rows if row.get("finished_at")), default=""),
            columns=columns,
            rows=rows,
            readable={run["row"] for one in self.answers.sets for run in one["runs"]},
            metric=judged.pop() if len(judged) == 1 else "primary metric" if judged else None,
            notes=tables.explanations(self.rows),
            provenance=[line for line in tables.provenance(self.rows).split("  \n") if line],
        )


@dataclass(frozen=True)
class Field:
    """A column of the table of points."""

    key: str  # its name in the page's address
    title: str
    kind: str  # of cell in the template: text, number, interval, score, share, gate or layers
    value: Callable[[Row], Any]  # a number, a text, a tuple (sorted by its first item), or None
    tip: str = ""  # explanation of the title
    form: str = ".2f"  # format of its numbers
    facet: bool = False  # the page offers its values as a filter

    def order(self, value: Any) -> str:
        """Return the text by which the page sorts and filters a cell."""
        first = value[0] if isinstance(value, tuple) else value
        return "" if first is None else f"{first:.10g}" if isinstance(first, (int, float)) else str(first)

    def show(self, value: float) -> str:
        """Format a number for the page."""
        return real_minus(format(value, self.form)) if math.isfinite(value) else MISSING


def real_minus(text: str) -> str:
    """Replace the hyphen before a negative number by a minus sign.

    >>> real_minus("-0.3 to 1.2 with top-skip, 2026-01-01")
    '−0.3 to 1.2 with top-skip, 2026-01-01'
    """
    return NEGATIVE.sub("−", text)


def points(groups: Sequence[Group], rows: Sequence[Row], gate: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the columns of the table of points (with the values to filter by), and the rows of the table."""
    judged: dict[int, Quality] = {}
    labels: dict[int, str] = {}
    for group in groups:
        judged |= quality(group, gate)
        labels |= {id(row): group.approach(row) for row in group.rows}
    fields = _fields(rows, judged)
    lines = [[one.value(row) for one in fields] for row in rows]
    shown = [i for i, one in enumerate(fields) if one.key in ("strategy", "target_speedup", "batch_size")
             or any(line[i] is not None for line in lines)]  # fmt: skip
    columns = []
    for i in shown:
        values = {line[i] for line in lines} - {None} if fields[i].facet else set()
        columns.append({"field": fields[i], "values": [fields[i].order(one) for one in sorted(values)]})
    drawn = []
    for row, line in zip(rows, lines, strict=True):
        passes = row["strategy"] == "full" or (id(row) in judged and judged[id(row)].can_win)
        missing = None if is_done(row) else (absent(row), row.get("reason") or "no reason given")
        look = {"label": labels.get(id(row), row["strategy"]), "colour": strategy_colour(row["strategy"])}
        drawn.append({**look, "passes": passes, "missing": missing, "values": [line[i] for i in shown]})
    return columns, drawn


def _fields(rows: Sequence[Row], judged: dict[int, Quality]) -> list[Field]:
    def get(key: str) -> Callable[[Row], Any]:
        return lambda row: row.get(key)

    def share(row: Row) -> tuple[Any, ...] | None:
        own = judged.get(id(row))
        return (own.share, own.low, own.high, own.can_win) if own else None

    def measured(row: Row) -> tuple[Any, ...] | None:
        ends = (row.get("measured_speedup"), row.get("measured_speedup_low"), row.get("measured_speedup_high"))
        return None if ends[0] is None else ends

    def gated(row: Row) -> str | None:
        return judged[id(row)].word if id(row) in judged and row["strategy"] != "full" else None

    def number(key: str, title: str, tip: str, form: str = ".2f") -> Field:
        return Field(key, title, "number", get(key), tip, form)

    engines = {(row["strategy"], row.get("decoding"), row["engine"]) for row in rows if row.get("engine")}
    shown_elsewhere = {"batch_size", "strategy_options"}
    if len({(strategy, decoding) for strategy, decoding, _ in engines}) == len(engines):
        shown_elsewhere.add("engine")  # strategy and decoding determine it
    axes = [key for key in varying(rows, ["folder", *axes_of(rows)]) if key not in shown_elsewhere]
    return [
        Field("strategy", "strategy", "text", strategy_name, facet=True),
        Field("target_speedup", "target", "number", get("target_speedup"), "requested speedup", ".10g", facet=True),
        Field("batch_size", "batch", "number", get("batch_size"), "batch size", ".10g", facet=True),
        *(_axis(rows, key) for key in axes),
        Field("layers", "kept layers", "layers", _kept, "first layer on the left; pale layers do not run for every token"),
        number("layer_ratio", "layer ratio", "all layers divided by kept layers"),
        number("predicted_speedup", "predicted", "speedup predicted from the bytes of weights that a decode step reads"),
        Field("measured", "measured", "interval", measured, "measured decode speedup over the full model, with its interval"),
        *(_score(key) for key in metric_keys()),
        Field("share", "of full", "share", share, "share of the full model's primary metric that the point keeps", ".1%"),
        Field("gate", "gate", "gate", gated, "quality gate; ? marks an interval that includes the gate"),
        number("decode_loss", "decode loss", "cross-entropy of the references, nats per token"),
        number("decode_tokens_per_second", "decode tok/s", "generated tokens after the first, per second of decoding", ".0f"),
        number(
            "total_tokens_per_second", "total tok/s", "prompt and generated tokens, per second of prefill and decoding", ".0f"
        ),
        number("acceptance_rate", "acceptance", "share of drafted tokens that were accepted"),
        Field("kv", "KV kept", "number", kv_share, "share of the prompt's KV cache that is kept", ".0%"),
    ]


def _score(key: str) -> Field:
    """Make the column of a metric; a star marks a score that differs significantly from the full model's score."""

    def value(row: Row) -> tuple[Any, ...] | None:
        return None if row.get(key) is None else (row[key], starred(row, key))

    head = Column(row_key(key).column_title, str, key).head
    return Field(key, head, "score", value, "* differs from the full model, p < 0.05", row_key(key).number_format)


def _axis(rows: Sequence[Row], key: str) -> Field:
    """Make the column of a setting in which rows differ; the cells are numbers if all values are numbers, otherwise words."""
    known = [own for row in rows if (own := row.get(key)) is not None]
    if all(isinstance(own, (int, float)) and not isinstance(own, bool) for own in known):
        return Field(key, setting_title(key), "number", lambda row: row.get(key), form=".10g", facet=True)
    return Field(key, setting_title(key), "text", partial(words, key=key), facet=True)


def _kept(row: Row) -> tuple[Any, ...] | None:
    if not row.get("kept_layers") or not row.get("num_layers"):
        return None
    last = last_stage(row)
    skipped = [layer for layer in range(row["num_layers"]) if layer not in row["kept_layers"]]
    always, sometimes = ([layer for layer in row["kept_layers"] if (layer in last) is there] for there in (True, False))
    return len(row["kept_layers"]), row["num_layers"], {"always": always, "sometimes": sometimes, "never": skipped}
