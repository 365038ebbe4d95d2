"""The report as one HTML file that needs no network: winners, points, plots and answers side by
side.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ulskip_cli.experiments.record import MISSING, Column, Record, columns
from ulskip_cli.experiments.statistics import Share, shares
from ulskip_cli.report import tables
from ulskip_cli.report.answers import Answers
from ulskip_cli.report.plot_style import SavedPlot, strategy_colour
from ulskip_cli.report.rows import Group, setting_text, setting_title, varying
from ulskip_cli.report.tables import Section
from ulskip_cli.report.winners import Winner
from ulskip_cli.tasks.metrics import metric_of, row_key

NEGATIVE = re.compile(r"(?<![\w.%-])-(?=[\d.])")


@dataclass(frozen=True)
class Page:
    """The content of a page."""

    groups: Sequence[Group]
    records: Sequence[Record]  # in the order that the table has at first
    gate: float  # share of the full model's quality
    winners: Mapping[str, Sequence[Winner]]  # by the label of a setting
    plots: Sequence[SavedPlot]
    answers: Answers
    sections: Sequence[Section] = ()  # further tables

    def html(self) -> str:
        """Render the whole file."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("ulskip_cli", "assets/report"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.policies["json.dumps_kwargs"] = {
            "ensure_ascii": False,
            "separators": (",", ":"),
            "allow_nan": False,
        }
        environment.filters["minus"] = real_minus
        judged = {
            share.title
            for group in self.groups
            for share in shares(group.records, self.gate).values()
        }
        shown, rows = points(self.groups, self.records, self.gate)
        return environment.get_template("page.html").render(
            page=self,
            zip=zip,
            colour_of=strategy_colour,
            heading=tables.title(self.records) or "Skipped layers",
            folders=sorted({record.folder for record in self.records}),
            finished=max(
                (record.finished_at for record in self.records if record.finished_at), default=""
            ),
            columns=shown,
            rows=rows,
            readable={run["row"] for data_set in self.answers.sets for run in data_set["runs"]},
            metric=judged.pop() if len(judged) == 1 else "primary metric" if judged else None,
            notes=tables.explanations(self.records),
            provenance=[line for line in tables.provenance(self.records).split("  \n") if line],
        )


@dataclass(frozen=True)
class Field:
    """A column of the table of points."""

    key: str  # its name in the page's address
    title: str
    kind: str  # of cell in the template: text, number, interval, score, share, gate or layers
    value: Callable[[Record], Any]  # a number, a text, a tuple (sorted by its first item), or None
    tip: str = ""  # explanation of the title
    form: str = ".2f"  # format of its numbers
    facet: bool = False  # the page offers its values as a filter

    def order(self, value: Any) -> str:
        """Return the text by which the page sorts and filters a cell."""
        first = value[0] if isinstance(value, tuple) else value
        return (
            ""
            if first is None
            else f"{first:.10g}"
            if isinstance(first, (int, float))
            else str(first)
        )

    def show(self, value: float) -> str:
        """Format a number for the page."""
        return real_minus(format(value, self.form)) if math.isfinite(value) else MISSING


def real_minus(text: str) -> str:
    """Replace the hyphen before a negative number by a minus sign.

    >>> real_minus("-0.3 to 1.2 with top-skip, 2026-01-01")
    '−0.3 to 1.2 with top-skip, 2026-01-01'
    """
    return NEGATIVE.sub("−", text)


def points(
    groups: Sequence[Group], records: Sequence[Record], gate: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the columns of the table of points (with the values to filter by), and the lines of
    the table.
    """
    judged: dict[tuple[str, str], Share] = {}
    labels: dict[tuple[str, str], str] = {}
    for group in groups:
        judged |= shares(group.records, gate)
        labels |= {record.key: group.approach(record) for record in group.records}
    fields = _fields(records, judged)
    lines = [[field.value(record) for field in fields] for record in records]
    shown = [
        i
        for i, field in enumerate(fields)
        if field.key in ("strategy", "target_speedup", "batch_size")
        or any(line[i] is not None for line in lines)
    ]
    heads = []
    for i in shown:
        values = {line[i] for line in lines} - {None} if fields[i].facet else set()
        heads.append(
            {"field": fields[i], "values": [fields[i].order(value) for value in sorted(values)]}
        )
    drawn = []
    for record, line in zip(records, lines, strict=True):
        passes = record.keeps_all or (record.key in judged and judged[record.key].can_win)
        missing = None if record.is_done else (record.absent, record.reason or "no reason given")
        look = {
            "label": labels.get(record.key, record.strategy),
            "colour": strategy_colour(record.strategy),
        }
        drawn.append(
            {**look, "passes": passes, "missing": missing, "values": [line[i] for i in shown]}
        )
    return heads, drawn


def _fields(records: Sequence[Record], judged: Mapping[tuple[str, str], Share]) -> list[Field]:
    """Return the columns of the page: the settings, the columns of the record's fields, and the
    share of full's quality.
    """

    def share(record: Record) -> tuple[Any, ...] | None:
        own = judged.get(record.key)
        return (own.share, own.low, own.high, own.can_win) if own else None

    def gated(record: Record) -> str | None:
        return judged[record.key].word if record.key in judged and not record.keeps_all else None

    engines = {
        (record.strategy, record.decoding, record.engine) for record in records if record.engine
    }
    elsewhere = {"batch_size", "strategy", "correction", "ratio"}
    if len({(strategy, decoding) for strategy, decoding, _ in engines}) == len(engines):
        elsewhere.add("engine")  # strategy and decoding determine it
    fields = [
        Field("strategy", "strategy", "text", lambda record: record.strategy_name, facet=True),
        Field(
            "target_speedup",
            "target",
            "number",
            lambda r: r.target_speedup,
            "requested speedup",
            ".10g",
            facet=True,
        ),
        Field(
            "batch_size",
            "batch",
            "number",
            lambda record: record.batch_size,
            "batch size",
            ".10g",
            facet=True,
        ),
        *(_setting(records, key) for key in varying(records, but=elsewhere)),
    ]
    keys = {field.key for field in fields}
    for key, column in columns():
        if key not in keys:
            keys.add(key)
            fields.append(_field(key, column))
    quality = [
        Field(
            "share",
            "of full",
            "share",
            share,
            "share of the full model's primary metric that the point keeps",
            ".1%",
        ),
        Field(
            "gate",
            "gate",
            "gate",
            gated,
            "quality gate; ? marks an interval that includes the gate",
        ),
    ]
    at = next(i for i, field in enumerate(fields) if field.key == "decode_loss")
    return [*fields[:at], *quality, *fields[at:]]


def _field(key: str, column: Column) -> Field:
    """Make the column of a field; layers, intervals and scores are drawn in their own way."""
    if key == "kept_layers":
        return Field(
            "layers",
            "kept layers",
            "layers",
            _kept,
            "first layer on the left; pale layers do not run for every token",
        )
    if key == "measured_speedup":
        return Field(
            "measured",
            "measured",
            "interval",
            _measured,
            "measured decode speedup over the full model, with its interval",
        )
    if metric_of(key):
        return Field(
            key,
            column.head,
            "score",
            partial(_score, key=key),
            column.tip,
            row_key(key).number_format,
        )
    return Field(
        key,
        column.head,
        "number",
        column.show or (lambda record: record.value(key)),
        column.tip,
        column.form,
    )


def _score(record: Record, key: str) -> tuple[Any, ...] | None:
    score = record.value(key)
    return None if score is None else (score, record.is_significant(key))


def _measured(record: Record) -> tuple[Any, ...] | None:
    ends = (record.measured_speedup, record.measured_speedup_low, record.measured_speedup_high)
    return None if ends[0] is None else ends


def _setting(records: Sequence[Record], key: str) -> Field:
    """Make the column of a setting in which records differ: numbers if all values are numbers,
    otherwise words.
    """
    known = [value for record in records if (value := record.settings().get(key)) is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return Field(
            key,
            setting_title(key),
            "number",
            lambda record: record.settings().get(key),
            form=".10g",
            facet=True,
        )

    def words(record: Record) -> str | None:
        text = setting_text(record, key)
        return None if text == MISSING else text

    return Field(key, setting_title(key), "text", words, facet=True)


def _kept(record: Record) -> tuple[Any, ...] | None:
    if not record.kept_layers or not record.num_layers:
        return None
    last, kept = record.last_stage, record.kept_layers
    skipped = [layer for layer in range(record.num_layers) if layer not in kept]
    always, sometimes = (
        [layer for layer in kept if (layer in last) is there] for there in (True, False)
    )
    return (
        len(kept),
        record.num_layers,
        {"always": always, "sometimes": sometimes, "never": skipped},
    )
