"""The result of `ulskip tune`: layers, speed, quality, certainty, the command to run it, its record
in the results folder, and its export.
"""

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from ulskip_cli.core.errors import RunError
from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.schedule import listed
from ulskip_cli.experiments.record import Record, Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import QualityShare, sentence, shares, speedup_text
from ulskip_cli.export import run
from ulskip_cli.export.run import MERGEABLE, ExportRequest, resolve_export
from ulskip_cli.report.rows import warnings
from ulskip_cli.tuning.request import Chosen, Trial, TuneRequest

ADAPTER = "skip_adapter"  # folder in an export


@dataclass(frozen=True)
class TuneResult:
    """The chosen configuration with its measurements."""

    request: TuneRequest
    chosen: Chosen
    record: Record  # on the examples that chose nothing
    trials: tuple[Trial, ...]
    training: Row | None  # of a skip adapter: its folder and size, or `refused` with the reason
    minutes: float

    @property
    def trial(self) -> Trial:
        """The chosen trial."""
        return self.chosen.trial

    @property
    def _results(self) -> Path:
        return ResultsFolder.of(self.request.config).path

    @property
    def skip_adapter(self) -> Path | None:
        """The folder of the chosen patches or trained adapter; None without corrections."""
        if self.trial.adapter:
            return Path(self.trial.adapter)
        return self._results / "calibrations" / self.trial.patch if self.trial.patch else None

    @property
    def run_overrides(self) -> list[str]:
        """The overrides that run the chosen layers and patches again, without calibration."""
        layers = str(list(self.trial.kept_layers)).replace(" ", "")
        overrides = [*self.request.overrides, "strategy=custom", f"strategy.layers={layers}"]
        if self.skip_adapter:
            overrides += ["correction=adapter", f"correction.path={self.skip_adapter}"]
        return overrides

    @property
    def export_overrides(self) -> list[str]:
        """The overrides that export the chosen layers, without what an export does not use."""
        unused = ("engine", "decoding", "limit")
        return [
            text
            for text in self.run_overrides
            if text.partition("=")[0].partition(".")[0] not in unused
        ]

    @property
    def patch_kind(self) -> str:
        """The kind of the patches, e.g. `full`, or `none`."""
        return (self.record.correction and self.record.correction.kind) or "none"

    @property
    def is_slower(self) -> bool:
        """True if the chosen layers are no faster than the full model in the timed pairs."""
        return (self.record.measured_speedup or 2.0) <= 1

    def as_json(self) -> Row:
        """Return the record that `results/NAME/tuning/KEY.json` and `--json` contain."""
        request, record = self.request, self.record
        config = request.config
        judged = judge(record, config.quality or 1.0)
        met = judged.passes
        if config.speedup:
            met = (record.measured_speedup or 0.0) >= config.speedup
        return {
            "key": request.key,
            "speedup": config.speedup,
            "quality": config.quality,
            "model": config.model.label,
            "task": config.task.name,
            "num_choice": request.split.num_choice,
            "num_final": request.split.num_final,
            "refused": list(request.refused),
            "kept_layers": list(self.trial.kept_layers),
            "candidate": self.trial.candidate,
            "patch": self.trial.patch,
            "adapter": self.training and {**self.training, "chosen": bool(self.trial.adapter)},
            "meets_wish": met,
            "share": judged.share,
            "share_low": judged.low,
            "share_high": judged.high,
            "run": self.run_overrides,
            "row": record.to_row(),
            "choice_row_id": self.chosen.record.id,
            "trials": [trial.plain() for trial in self.trials],
            "minutes": round(self.minutes, 1),
        }

    def store(self) -> None:
        """Write the record to `results/NAME/tuning/KEY.json`."""
        text = json.dumps(self.as_json(), indent=1, ensure_ascii=False)
        write_atomic(self._results / "tuning" / f"{self.request.key}.json", f"{text}\n")

    def export(self, to: Path, config_dir: Path | None) -> list[str]:
        """Export the chosen layers to a folder, and return lines that describe it.

        Patches that an ordinary checkpoint can contain are merged into one; otherwise the folder
        holds the schedule and the skip adapter, which ulskip applies to the unchanged model.
        """
        if self.patch_kind in MERGEABLE:
            wanted = ExportRequest(to, results=self._results)
            return run.summary(run.run_export(self.export_overrides, config_dir, wanted))
        assert self.skip_adapter is not None
        schedule = ExportRequest(to / run.SCHEDULE, "schedule")
        point = resolve_export(self.export_overrides, config_dir, schedule)
        with run.staged(to, is_folder=True) as folder:
            (folder / run.SCHEDULE).write_text(run.schedule_file(point).to_json(), "utf-8")
            (folder / ADAPTER).mkdir()
            for file in self.skip_adapter.glob("adapter.*"):
                shutil.copy(file, folder / ADAPTER)
            kept = list(self.trial.kept_layers)
            run.write_record(folder, {"made_by": point.made_by, "kept_layers": kept})
        custom = ["strategy=custom", f"strategy.file={to / run.SCHEDULE}"]
        adapter = ["correction=adapter", f"correction.path={to / ADAPTER}"]
        command = shlex.join(["ulskip", "run", *self.request.overrides, *custom, *adapter])
        return [
            f"wrote the schedule and its skip adapter to {to}, without the model's weights",
            f"next: {command}",
        ]

    def lines(self) -> list[str]:
        """Return the result in a sentence and six lines, a line if the full model is as fast, and
        the warnings of its run.
        """
        config, record, trial = self.request.config, self.record, self.trial
        judged = judge(record, config.quality or 1.0)
        skipped = listed(sorted(set(range(self.request.num_layers)) - set(trial.kept_layers)))
        wish, key, value, low = config.quality or 1.0, "quality", judged.share, judged.low
        if config.speedup and record.speedup:
            wish, key, (value, low, _) = config.speedup, "speedup", record.speedup
        export = ["ulskip", "export", *self.export_overrides, "--to", "DIR"]
        patch = []
        if self.patch_kind not in MERGEABLE:
            export += ["--format", "schedule"]
            patch = [f"patches:  in {self.skip_adapter}; the exported schedule has layers alone"]
        return [
            sentence(record),
            f"layers:   {len(trial.kept_layers)} of {self.request.num_layers}, without {skipped}"
            f" ({trial.candidate})",
            f"speed:    {speedup_text(record)} over the full model",
            f"quality:  {judged.title} {judged.value:.2f} of {judged.full:.2f},"
            f" {judged.text()}, on {record.num_examples} examples that were not used to choose",
            f"goal:     {key}={wish:g} is {wish_verdict(wish, value, low)}",
            f"run:      {shlex.join(['ulskip', 'run', *self.run_overrides])}",
            f"export:   {shlex.join(export)}",
            *patch,
            *(["slower:   the full model is at least as fast; use strategy=full"] * self.is_slower),
            *(f"warning:  {warning}" for warning in warnings([record])),
        ]


def wish_verdict(wish: float, value: float, low: float | None) -> str:
    """Describe how surely a measured value, with the low end of its interval, reaches a wanted one.

    >>> verdict(1.5, 1.6, 1.55), verdict(1.5, 1.6, 1.4), verdict(1.5, 1.4, 1.3)
    ('surely met', 'met, but not surely', 'missed; this is the nearest')
    """
    if value < wish:
        return "missed; this is the nearest"
    return "surely met" if low is not None and low >= wish else "met, but not surely"


def judge(record: Record, gate: float) -> QualityShare:
    """Return the share of the full model's quality that a record keeps; raise RunError if it has no
    score.
    """
    share = shares([record], gate).get(record.key)
    if share is None:
        raise RunError(
            f"run {record.id} has no score to compare, because the full model's score is 0; use"
            " another task or model"
        )
    return share
