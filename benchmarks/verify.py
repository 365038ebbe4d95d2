"""Run the rows again from which README and docs/ have their figures, and say which figures hold on
this machine: those inside their bands (bands.py; a score, if its difference is not sure), those
that lead to the same conclusion, and those that differ. The speedups are appended to the bands'
measurements.

python benchmarks/verify.py [--only README] [--page FILE]

Only rows of models that need no network are run, with their stored configurations, into
results/verify. An interrupted verification goes on with the same command, and one that finished
only prints its table; without that folder it measures again. It takes about five minutes on two
cores, which should be idle otherwise.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bands import FILE, Band, append, bands, host, read

from ulskip_cli.cli.progress_bars import SweepDisplay
from ulskip_cli.core.command_line import overrides_of
from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.files import write_atomic
from ulskip_cli.experiments.intervals import Interval
from ulskip_cli.experiments.ledger import Job, Ledger, make_jobs
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.settings import key_title
from ulskip_cli.experiments.statistics import GATE, TIE, reaches, shares, verdict
from ulskip_cli.experiments.sweep import run_jobs
from ulskip_cli.report import pairs, rows
from ulskip_cli.report.columns import MISSING, Column
from ulskip_cli.report.tables import TableSection, markdown, provenance

RESULTS = Path("results")
NAME = "verify"
INSIDE, SAME, DIFFERS = "inside the band", "same conclusion", "differs"
NOT_COMPARABLE = "not comparable"
ENOUGH = 0.9  # share of the comparable figures that must be inside their bands; no other may differ


class Source(NamedTuple):
    """Where figures are printed, and the stored row that they are from."""

    page: str
    folder: str
    values: Mapping[str, object]  # that only this row of the folder has


class Figure(NamedTuple):
    """A figure as it is stored and as this machine measures it."""

    name: str
    stored: str
    band: str
    here: str
    verdict: str
    reason: str = ""

    @property
    def judged(self) -> str:
        """The verdict with its reason."""
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict


OPENING = {"strategy": "unified", "batch_size": 8}
HALF = {"strategy": "unified", "batch_size": 1}
SOURCES = [
    Source("README, make demo", "demo", {"strategy": "unified"}),
    Source("README, 6 of 12 layers", "reproduce", {**OPENING, "target_speedup": 2.0}),
    Source("README, 4 of 12 layers", "reproduce", {**OPENING, "target_speedup": 3.0}),
    Source("README, 2 of 12 layers", "reproduce", {**OPENING, "target_speedup": 5.0}),
    Source("speed.md, llama.cpp q8_0", "engines", {**HALF, "engine_weights": "q8_0"}),
    Source(
        "results/speed/README.md, all layers in torch",
        "speed",
        {
            "model": "tiny",
            "strategy": "full",
            "batch_size": 1,
            "engine": "torch",
            "decoding": "greedy",
        },
    ),
]


def stored_row(source: Source) -> Record:
    """Return the only row of a source's folder that has its values."""
    (row,) = [
        record
        for record in records(RESULTS / source.folder)
        if all(getattr(record, key) == value for key, value in source.values.items())
    ]
    return row


def records(folder: Path) -> list[Record]:
    """Read the rows of a folder; texts keep characters that a terminal cannot show, because the
    configurations run again. `folder` of a row is where statistics find its answers.
    """
    return [row.replace(folder=str(folder)) for row in ResultsFolder(folder).records()]


def measured_here(stored: Record) -> Record:
    """Return the row that this machine has for the configuration of a stored row; measure it if
    there is none.
    """
    jobs, own = jobs_of(stored)
    with SweepDisplay(jobs) as display:
        run_jobs(Ledger(jobs), display)
    (row,) = [record for record in records(RESULTS / NAME) if record.id == own.id]
    return row


def jobs_of(stored: Record) -> tuple[list[Job], Job]:
    """Return the jobs that measure the configuration of a stored row again, and among them that of
    the row itself, which is the last of its strategy: a run measures its baseline before, and a
    benchmark all layers afterwards.
    """
    command = stored.command
    words = [*overrides_of(stored.config, command), f"name={NAME}", f"results_dir={RESULTS}"]
    jobs = make_jobs([compose(words, command=command)], command=command)
    return jobs, [job for job in jobs if job.config.strategy.name == stored.strategy][-1]


def figures(
    page: str,
    stored: Record,
    here: Record | None,
    known: Mapping[str, Band],
    reason: str = "",
) -> Iterator[Figure]:
    """Compare the figures of a stored row: its speedup, and the share of the full model's score if
    it has one. `known` are the bands, and `reason` says why there is no row of this machine.
    """
    pair = None  # the comparison of both rows
    if here:
        compared = pairs.compare([here], [stored], GATE)
        # `here.reason` if the run failed; else settings differ, such as the version of the weights
        reason = here.reason or f"other {', '.join(map(key_title, compared.differs))}"
        pair = None if compared.differs or not compared.pairs else compared.pairs[0]

    def figure(
        what: str,
        show: Callable[[Record | None], str],
        change: Interval | None,
        is_inside: bool,
        conclude: Callable[[Record], str],
        band: str = MISSING,
    ) -> Figure:
        """Judge a figure: `change` is its difference or ratio, and `conclude` tells what a row
        leads to. A changed figure without an interval is not judged.
        """
        told = f"{page}: {what}", show(stored), band, show(here)
        if here is None or pair is None or change is None:
            return Figure(*told, NOT_COMPARABLE, reason)
        if change.low is None and change.value not in (0.0, 1.0):  # of a score, of a ratio
            few = "too few timed units or examples for an interval"
            return Figure(*told, NOT_COMPARABLE, few)
        is_same = conclude(here) == conclude(stored)
        return Figure(*told, INSIDE if is_inside else SAME if is_same else DIFFERS)

    if stored.speedup:
        change, band = pair and pair.speedup, known.get(stored.id)
        is_inside = verdict(change, 1.0) == TIE
        if band and here and here.speedup:
            is_inside = verdict(band.interval, here.speedup.value) == TIE
        text = band.text() if band else MISSING
        yield figure("speedup", speed, change, is_inside, conclusion, text)
    for share in shares([stored]):
        change = pair and pair.quality
        is_inside = verdict(change) == TIE
        yield figure(f"{share.title} kept", quality, change, is_inside, keeps)


def conclusion(record: Record) -> str:
    """Judge the claim that a row is faster than the full model."""
    return verdict(record.speedup, 1.0)


def keeps(record: Record) -> str:
    """Judge the claim that a row keeps GATE of the full model's score."""
    return reaches(record.quality_share, GATE) if record.quality_share else MISSING


def speed(record: Record | None) -> str:
    """Return the speedup of a row with its interval."""
    if record is None or record.speedup is None:
        return MISSING
    return f"{record.speedup.value:.2f}x ({record.speedup.ends() or MISSING})"


def quality(record: Record | None) -> str:
    """Return the share of the full model's score that a row keeps, with its interval."""
    kept = record and record.quality_share
    return kept.text(".1%") if kept else MISSING


def verify(sources: Sequence[Source], page: Path | None = None, file: Path = FILE) -> int:
    """Measure the rows of all sources, print the table, write it to `page`, and return the exit
    code: 1 if a figure differs, or fewer than ENOUGH of the comparable ones are inside their bands.
    The bands are those of other machines; the speedups of this one are appended to `file`.
    """
    known = bands(line for line in read(file) if line.host != host())
    judged, measured = list[Figure](), list[Record]()
    stored_rows = list(map(stored_row, sources))
    for number, (source, stored) in enumerate(zip(sources, stored_rows, strict=True), start=1):
        print(f"{number} of {len(sources)}: {source.page}", file=sys.stderr, flush=True)
        try:
            measured.append(measured_here(stored))
        except (UsageError, RunError) as error:
            judged += figures(source.page, stored, None, known, str(error))
        else:
            judged += figures(source.page, stored, measured[-1], known)
            append(measured[-1], file)
    # attributes of `Figure` by the titles of their columns
    titles = {"figure": "name", "stored": "stored", "band": "band", "this machine": "here"}
    columns = [Column(title, name) for title, name in (titles | {"verdict": "judged"}).items()]
    table = TableSection.of("", judged, columns, words=len(columns))
    print(markdown(table))
    for warning in rows.warnings(measured):
        print(f"warning: {warning}")
    counts = Counter(figure.verdict for figure in judged)
    num_comparable = len(judged) - counts[NOT_COMPARABLE]
    grades = [f"{counts[grade]} {grade}" for grade in (SAME, DIFFERS, NOT_COMPARABLE)]
    shown = [text for text in grades if not text.startswith("0")]
    count = ", ".join([f"{counts[INSIDE]} of {num_comparable} figures {INSIDE}", *shown])
    if others := machines(stored_rows) - machines(measured):
        here, there = ("; ".join(sorted(names)) for names in (machines(measured), others))
        count += f"; measured on {here}, some stored figures on {there}"
    print(count)
    if page:
        parts = "# Which figures hold?", f"{count}.", markdown(table), provenance(measured)
        write_atomic(page, "\n\n".join(parts) + "\n")
    if num_comparable and not counts[DIFFERS] and counts[INSIDE] >= ENOUGH * num_comparable:
        return 0
    print(f"exit code 1, because a figure differs, or fewer than {ENOUGH:.0%} are {INSIDE}")
    return 1


def machines(records: Sequence[Record]) -> set[str]:
    """Return the machines of the records."""
    return {record.environment.machine for record in records if record.environment}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="text that the names of the figures contain")
    parser.add_argument("--page", type=Path, help="file to which the table is written")
    args = parser.parse_args()
    chosen = [source for source in SOURCES if args.only in source.page]
    if not chosen:
        pages = "; ".join(source.page for source in SOURCES)
        parser.error(f"expected a part of a name, got {args.only!r}; known: {pages}")
    sys.exit(verify(chosen, args.page))


if __name__ == "__main__":
    main()
