"""The result of `ulskip tune`: layers, speed, quality, certainty, the command to run it, its record
in the results folder, and its export.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ulskip_cli.core.command_line import command_line, overrides_of
from ulskip_cli.core.config import baseline_config, preset
from ulskip_cli.core.config_schema import Config, TuneConfig
from ulskip_cli.core.correction import KINDS
from ulskip_cli.core.engines import engine_named
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.files import write_atomic
from ulskip_cli.core.schedule import listed
from ulskip_cli.experiments.record import Record, Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import (
    QualityShare,
    is_faster,
    sentence,
    shares,
    speedup_text,
)
from ulskip_cli.export import run
from ulskip_cli.export.run import ExportRequest, resolve_export
from ulskip_cli.report.rows import warnings
from ulskip_cli.tuning.request import Candidate, Chosen, Trial, TuneRequest, plain

ADAPTER = "skip_adapter"  # folder in an export
NO_GAIN = (
    "no gain:  the timed pairs do not show that these layers are faster; raise speed.seconds to"
    " measure again, or use strategy=full"
)


@dataclass(frozen=True)
class Alternative:
    """A measured alternative that keeps all layers: drafts by look-up, or another engine."""

    candidate: Candidate
    record: Record
    num_same: int  # answers that equal those of the full model
    judged: QualityShare

    @property
    def label(self) -> str:
        """The choice that tells the alternative, e.g. `engine=llama_cpp_q8_0`."""
        return self.candidate.label

    @property
    def is_same(self) -> bool:
        """True if all answers equal those of the full model."""
        return self.num_same == self.record.num_examples

    def meets(self, config: TuneConfig) -> bool:
        """Return True if the alternative is surely faster and reaches the wanted speedup without a
        significant loss, or keeps the wanted quality.
        """
        judged, speedup = self.judged, self.record.measured_speedup or 0.0
        keeps = judged.can_win if config.quality else judged.passes and judged.has_no_loss
        fast = is_faster(self.record) and speedup >= (config.speedup or 1.0)
        return fast and (self.is_same or keeps)

    def text(self) -> str:
        """Describe speed and quality."""
        facts = "the same answers"
        if not self.is_same:
            facts = f"{self.num_same} of {self.record.num_examples} answers are the same"
            facts += f", {self.judged.title} {self.judged.text()} of full's"
        return f"{speedup_text(self.record)}, {facts}"

    def as_json(self) -> Row:
        """Return what the record of a tuning contains."""
        return {
            "alternative": self.label,
            "num_same": self.num_same,
            **self.judged.interval.row("share"),
            "row": self.record.to_row(),
        }


def best_alternative(alternatives: Sequence[Alternative], config: TuneConfig) -> Alternative | None:
    """Return the fastest alternative that meets the request; for a wanted speedup, the same answers
    are preferred.
    """
    meeting = [option for option in alternatives if option.meets(config)]
    return max(
        meeting,
        key=lambda option: (
            bool(config.speedup) and option.is_same,
            option.record.measured_speedup or 0.0,
        ),
        default=None,
    )


@dataclass(frozen=True)
class TuneResult:
    """The chosen configuration with its measurements."""

    request: TuneRequest
    chosen: Chosen
    record: Record  # on the examples that chose nothing
    trials: tuple[Trial, ...]
    training: Row | None  # of a skip adapter: its folder and size, or `refused` with the reason
    minutes: float
    alternatives: tuple[Alternative, ...] = ()  # on the examples that choose
    best: Alternative | None = None  # the one that met the request, on the reported examples

    @cached_property
    def judged(self) -> QualityShare:
        """The share of the full model's quality that the layers keep."""
        return judge(self.record, self.request.config.quality or 1.0)

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
    def config(self) -> Config:
        """The configuration that runs the chosen layers and patches again, without calibration."""
        return self._configured(str(self.skip_adapter) if self.skip_adapter else None)

    @property
    def recommended(self) -> Alternative | None:
        """The alternative to use instead of skipping layers; None if none meets the request, or
        if the layers meet a wanted quality and are faster.
        """
        best, wanted, speedup = self.best, self.request.config, self.record.measured_speedup
        if best is None or not best.meets(wanted):
            return None
        is_slower = (best.record.measured_speedup or 0.0) < (speedup or 0.0)
        return None if wanted.quality and self.meets_wish and is_slower else best

    @property
    def meets_wish(self) -> bool:
        """True if the layers reach the wanted speedup or quality."""
        if wanted := self.request.config.speedup:
            return (self.record.measured_speedup or 0.0) >= wanted
        return self.judged.passes

    @property
    def _export_config(self) -> Config:
        """The configuration without the engine, which no export contains."""
        return self.config.replace(engine=engine_named("auto"))

    def _configured(self, adapter: str | None) -> Config:
        """Return the request's configuration with the chosen layers and a skip adapter."""
        kept = {"layers": self.trial.kept_layers}
        correction = preset("correction", "none")
        if adapter:
            correction = preset("correction", "adapter", {"path": [adapter]})
        config = plain(self.request.config).replace(limit=self.record.num_examples)
        return config.replace(strategy=preset("strategy", "custom", kept), correction=correction)

    @property
    def _is_mergeable(self) -> bool:
        """True if an ordinary checkpoint can contain the correction."""
        used = self.record.correction
        return not (used and used.kind and KINDS[used.kind].takes_time)

    def as_json(self) -> Row:
        """Return the record that `results/NAME/tuning/KEY.json` and `--json` contain."""
        request, record = self.request, self.record
        config = request.config
        judged, recommended = self.judged, self.recommended
        label, used = "layers", self.config
        if recommended:
            label, used = recommended.label, recommended.candidate.config
        elif not is_faster(record):
            label, used = "strategy=full", baseline_config(self.config)
        return {
            "key": request.key,
            "speedup": config.speedup,
            "quality": config.quality,
            "model": config.model.label,
            "task": config.task.name,
            "num_choice": request.split.num_choice,
            "num_final": record.num_examples,
            "refused": list(request.refused),
            "kept_layers": list(self.trial.kept_layers),
            "candidate": self.trial.candidate,
            "patch": self.trial.patch,
            "adapter": self.training and {**self.training, "chosen": bool(self.trial.adapter)},
            "meets_wish": self.meets_wish,
            **judged.interval.row("share"),
            "alternatives": [option.as_json() for option in self.alternatives],
            "best_alternative": self.best and self.best.as_json(),
            "recommended": label,
            "use": overrides_of(used, "run"),
            "run": overrides_of(self.config, "run"),
            "row": record.to_row(),
            "trials": [trial.plain() for trial in self.trials],
            "minutes": round(self.minutes, 1),
        }

    def store(self) -> None:
        """Write the record to `results/NAME/tuning/KEY.json`."""
        text = json.dumps(self.as_json(), indent=1, ensure_ascii=False)
        write_atomic(self._results / "tuning" / f"{self.request.key}.json", f"{text}\n")

    def export(self, to: Path) -> list[str]:
        """Export the chosen layers to a folder, and return lines that describe it.

        Patches that an ordinary checkpoint can contain are merged into one; otherwise the folder
        holds the schedule and the skip adapter, which ulskip applies to the unchanged model.
        """
        if self._is_mergeable:
            return run.summary(run.run_export(self._export_config, ExportRequest(to)))
        assert self.skip_adapter is not None  # only a correction cannot be merged
        request = ExportRequest(to / run.SCHEDULE, "schedule")
        point = resolve_export(self._export_config, request)
        with run.staged(to, is_folder=True) as folder:
            (folder / run.SCHEDULE).write_text(run.schedule_text(point), "utf-8")
            (folder / ADAPTER).mkdir()
            for file in self.skip_adapter.glob("adapter.*"):
                shutil.copy(file, folder / ADAPTER)
            kept = list(self.trial.kept_layers)
            run.write_record(folder, {"made_by": point.made_by, "kept_layers": kept})
        config = self._configured(str(to / ADAPTER))
        return [
            f"wrote the schedule and its skip adapter to {to}, without the model's weights",
            f"next: {command_line(config, 'run')}",
        ]

    def _advice(self, goal: str) -> str:
        """Return the sentence that says what to use."""
        if option := self.recommended:
            return (
                f"use {option.label} with all layers: {option.text()}, on"
                f" {option.record.num_examples} examples of {option.record.task} that were not used"
                " to choose"
            )
        if not is_faster(self.record):
            return f"use strategy=full: nothing that was tried is surely faster and meets {goal}"
        if not self.meets_wish:
            return f"nothing that was tried meets {goal}; the nearest layers are below"
        if self.best and self.best.meets(self.request.config):
            return f"use the layers below, which are faster than {self.best.label}"
        without = f": nothing that was tried with all layers meets {goal} without a loss"
        return f"use the layers below{without * bool(self.alternatives)}"

    def lines(self) -> list[str]:
        """Return what to use, a line for each alternative, the layers in a sentence and six lines,
        a line if the pairs show no gain, and the warnings of its run.
        """
        config, record, trial, judged = self.request.config, self.record, self.trial, self.judged
        skipped = listed(sorted(set(range(self.request.num_layers)) - set(trial.kept_layers)))
        wish, key, value, low = config.quality or 1.0, "quality", judged.share, judged.low
        if config.speedup and record.speedup:
            wish, key, (value, low, _) = config.speedup, "speedup", record.speedup
        options, patch, command = ["--to", "DIR"], [], []
        if self.recommended:
            command = [f"command:  {command_line(self.recommended.candidate.config, 'run')}"]
        if not self._is_mergeable:
            options += ["--format", "schedule"]
            patch = [f"patches:  in {self.skip_adapter}; the exported schedule has layers alone"]
        return [
            self._advice(f"{key}={wish:g}"),
            *command,
            *(f"{option.label}: {option.text()}" for option in self.alternatives),
            sentence(record),
            f"layers:   {len(trial.kept_layers)} of {self.request.num_layers}, without {skipped}"
            f" ({trial.candidate})",
            f"speed:    {speedup_text(record)}, compared with the full model",
            f"quality:  {judged.title} {judged.value:.2f} of {judged.full:.2f},"
            f" {judged.text()}, on {record.num_examples} examples of {record.task} that were not"
            " used to choose",
            f"goal:     {key}={wish:g} is {wish_verdict(wish, value, low)}",
            f"run:      {command_line(self.config, 'run')}",
            f"export:   {command_line(self.config, 'export', *options)}",
            *patch,
            *([NO_GAIN] * (not is_faster(record))),
            *(f"warning:  {warning}" for warning in warnings([record])),
        ]


def wish_verdict(wish: float, value: float, low: float | None) -> str:
    """Describe how surely a measured value, with the low end of its interval, reaches a wanted one.

    >>> wish_verdict(1.5, 1.6, 1.55), wish_verdict(1.5, 1.6, 1.4), wish_verdict(1.5, 1.4, 1.3)
    ('surely met', 'met, but not surely', 'missed; this is the nearest')
    """
    if value < wish:
        return "missed; this is the nearest"
    return "surely met" if low is not None and low >= wish else "met, but not surely"


def judge(record: Record, gate: float) -> QualityShare:
    """Return the share of the full model's quality that a record keeps, to be compared with the
    wanted share `gate`; raise RunError if it has none, because the full model's score is 0.
    """
    share = shares([record], gate).get(record.key)
    if share is None:
        raise RunError(
            f"run {record.id} has no score to compare, because the full model's score is 0; use"
            " another task or model"
        )
    return share
