"""One self-contained page: no file beside it, no network; a person sorts, filters, and reads what skipping did to a text."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from ulskip_cli.experiments.record import Row
from ulskip_cli.report import examples, page_data, table
from ulskip_cli.report.columns import Column
from ulskip_cli.report.gallery import Hung
from ulskip_cli.report.gate import Winner
from ulskip_cli.report.groups import Group
from ulskip_cli.report.status import reasons

SCRIPTS = ("state.js", "table.js", "diff.js", "reader.js")
ASSETS = files("ulskip_cli") / "assets" / "report"
_VERDICTS = {"holds": "good", "does not hold": "bad", "tie": "tie"}


@dataclass(frozen=True)
class Section:
    """A part of the page that is a table.

    Attributes:
        title: its heading.
        lines: rows of the table.
        columns: of it.
        note: below it.
        words: how many of the first columns are words and stand left.
        sentences: whether its cells are sentences, which break over lines.
    """

    title: str
    lines: list[Row]
    columns: list[Column]
    note: str = ""
    words: int = 2
    sentences: bool = False


@dataclass(frozen=True)
class Page:
    """What a page is made of.

    Attributes:
        groups: rows by setting.
        rows: in the order that the table has at first.
        gate: share of full's quality.
        winners: by setting's label.
        pictures: to embed.
        answers: stored answers.
        sections: tables after the examples.
    """

    groups: Sequence[Group]
    rows: Sequence[Row]
    gate: float
    winners: Mapping[str, Sequence[Winner]]
    pictures: Sequence[Hung]
    answers: examples.Answers
    sections: Sequence[Section] = field(default_factory=list)

    def html(self) -> str:
        """The whole file."""
        heading = table.title(self.rows) or "Skipped layers"
        links = {
            "summary": "Winners" if self.winners else "",
            **{_anchor(section.title): section.title for section in self.sections if section.sentences},
            "points": "Points",
            "plots": "Plots" if self.pictures else "",
            "examples": "Examples",
            **{_anchor(section.title): section.title for section in self.sections if not section.sentences},
            "provenance": "Provenance",
        }
        parts = {
            "title": html.escape(f"{heading} · ulskip report"),
            "css": _asset("page.css"),
            "js": "\n".join(_asset(name) for name in SCRIPTS),
            "nav": "".join(f'<a href="#{key}">{html.escape(title)}</a>' for key, title in links.items() if title),
            "heading": html.escape(heading),
            "lead": html.escape(self._lead()),
            "summary": self._summary(),
            "note": html.escape(self._note()),
            "plots": self._plots(),
            "examples_note": html.escape(self.answers.note),
            "claims": "\n".join(_section(one) for one in self.sections if one.sentences),
            "compared": "\n".join(_section(one) for one in self.sections if not one.sentences),
            "provenance": self._provenance(),
            "data": examples.safe_json(page_data.told(self.groups, self.rows, self.gate, self.answers.rows)),
            "answers": examples.safe_json(self.answers.told()),
        }
        return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))

    def _lead(self) -> str:
        folders = sorted({str(row["folder"]) for row in self.rows})
        named = ", ".join(folders[:4]) + (f" and {len(folders) - 4} more" if len(folders) > 4 else "")
        last = max((str(row["finished_at"]) for row in self.rows if row.get("finished_at")), default="")
        when = f", the last of them finished {last.replace('T', ' ').removesuffix('+00:00')} UTC" if last else ""
        return f"{len(self.rows)} points of {named}{when}."

    def _note(self) -> str:
        notes = [table.STARS, table.MEASURED, "of full: share of the full model's primary metric"]
        return "; ".join([*notes, *reasons(self.rows)])

    def _summary(self) -> str:
        if not self.winners:
            return ""
        many = len(self.winners) > 1
        blocks = []
        for label, found in self.winners.items():
            title = f"<h3>{html.escape(label)}</h3>" if many else ""
            blocks.append(f'{title}<div class="cards">{"".join(_card(one) for one in found)}</div>')
        asked = f"Among points that keep {self.gate:.0%} of full's primary metric"
        note = f"{asked}; what a 95% interval does not tell apart is a tie."
        body = f'<p class="note">{html.escape(note)}</p>{"".join(blocks)}'
        return f'<section id="summary" aria-labelledby="s-title"><h2 id="s-title">Winners</h2>{body}</section>'

    def _plots(self) -> str:
        if not self.pictures:
            return ""
        drawn = "".join(
            f"<figure>{one.svg}<figcaption>{html.escape(one.caption)}</figcaption></figure>" for one in self.pictures
        )
        body = f'<h2 id="p-title">Plots</h2><div class="plots">{drawn}</div>'
        return f'<section id="plots" aria-labelledby="p-title">{body}</section>'

    def _provenance(self) -> str:
        lines = table.provenance(self.rows).split("  \n")
        body = "".join(f'<p class="note">{html.escape(line)}</p>' for line in lines[:12] if line)
        more = f'<p class="note">and {len(lines) - 12} kinds of run more</p>' if len(lines) > 12 else ""
        return f'<section id="provenance" aria-labelledby="v-title"><h2 id="v-title">Provenance</h2>{body}{more}</section>'


def _card(one: Winner) -> str:
    word, kind = ("tie", "tie") if one.tie else ("winner", "good") if one.rows else ("none", "bad")
    who = html.escape(" · ".join(one.names[:3]) + (" …" if len(one.names) > 3 else "")) if one.names else "–"
    told = [f"{name}: {figure}" if one.tie else figure for name, figure in zip(one.names, one.figures, strict=True)]
    tag = "li" if one.tie else "p"
    lines = "".join(f"<{tag}>{html.escape(line)}</{tag}>" for line in told[:6])
    more = f"<p>and {len(one.figures) - 6} more</p>" if len(one.figures) > 6 else ""
    note = f"<p>{html.escape(one.note)}</p>" if one.note else ""
    head = f'<div class="what">{html.escape(one.title)}<span class="tag {kind}">{word}</span></div>'
    listed = f"<ul>{lines}</ul>" if one.tie else lines
    return f'<div class="card">{head}<div class="who">{who}</div>{listed}{more}{note}</div>'


def _section(section: Section) -> str:
    heads = "".join(f'<th scope="col"{_word(i, section)}>{html.escape(one.head)}</th>' for i, one in enumerate(section.columns))
    body = []
    for cells in table.cells_of(section.lines, section.columns):
        row = "".join(f"<td{_word(i, section)}>{_cell(cell)}</td>" for i, cell in enumerate(cells))
        body.append(f"<tr>{row}</tr>")
    key = _anchor(section.title)
    note = f'<p class="note">{html.escape(section.note)}</p>' if section.note else ""
    grid = f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    title = html.escape(section.title)
    return f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{grid}{note}</section>'


def _word(position: int, section: Section) -> str:
    if section.sentences:
        return ' class="word wrap"' if position == 0 else ' class="word"'
    return ' class="word"' if position < section.words else ""


def _cell(text: str) -> str:
    kind = _VERDICTS.get(text)
    return f'<span class="tag {kind}">{html.escape(text)}</span>' if kind else html.escape(text)


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text("utf-8")
