"""The result of `ulskip tune`: what was kept, how fast and how good it is, how sure that is, and
the command to run it.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulskip_cli.core.errors import RunError
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.experiments.statistics import Share, sentence, shares, speedup_text
from ulskip_cli.export.recipe import layer_ranges
from ulskip_cli.export.request import MERGEABLE
from ulskip_cli.tuning.request import TuneRequest, describe
from ulskip_cli.tuning.trials import Chosen, Trial


@dataclass(frozen=True)
class TuneResult:
    """The chosen configuration with its measurements."""

    request: TuneRequest
    chosen: Chosen
    record: Record  # on the examples that chose nothing
    trials: tuple[Trial, ...]
    training: (
        dict[str, Any] | None
    )  # of a skip adapter: its folder and size, or `refused` with the reason
    minutes: float

    @property
    def trial(self) -> Trial:
        """The chosen trial."""
        return self.chosen.trial

    @property
    def skip_adapter(self) -> Path | None:
        """The folder of the chosen patches or trained adapter; None without corrections."""
        results = ResultsFolder.of(self.request.config)
        patches = results.path / "calibrations" / self.trial.patch if self.trial.patch else None
        return Path(self.trial.adapter) if self.trial.adapter else patches

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
        """The overrides that export the chosen layers, without the engine and the decoding, which
        an export does not use.
        """
        return [
            text
            for text in self.run_overrides
            if text.partition("=")[0].partition(".")[0] not in ("engine", "decoding")
        ]

    @property
    def patch_kind(self) -> str:
        """The kind of the patches, or `none`."""
        return (self.record.correction and self.record.correction.kind) or "none"

    def meets_wish(self) -> bool:
        """True if the speedup or the share of the score, as measured at the end, reaches the
        wish.
        """
        config = self.request.config
        if config.speedup:
            return (self.record.measured_speedup or 0.0) >= config.speedup
        return share_of(self.record) >= (config.quality or 0.0)

    def as_json(self) -> dict[str, Any]:
        """Return the record that `results/NAME/tuning/KEY.json` and `--json` contain."""
        judged = judge(self.record, self.request.config.quality or 1.0)
        return {
            **describe(self.request),
            "kept_layers": list(self.trial.kept_layers),
            "candidate": self.trial.candidate,
            "patch": self.trial.patch,
            "adapter": (
                self.training and {**self.training, "chosen": self.trial.adapter is not None}
            ),
            "meets_wish": self.meets_wish(),
            "share": judged.share,
            "share_low": judged.low,
            "share_high": judged.high,
            "run": self.run_overrides,
            "row": self.record.to_row(),
            "choice_row_id": self.chosen.record.id,
            "trials": [trial.plain() for trial in self.trials],
            "minutes": round(self.minutes, 1),
        }

    def lines(self) -> list[str]:
        """Return the result in a sentence and five lines, and another one with a command to export
        it.
        """
        config, record = self.request.config, self.record
        judged = judge(record, config.quality or 1.0)
        layers = f"{len(self.trial.kept_layers)} of {self.request.num_layers}"
        skipped = spans(sorted(set(range(self.request.num_layers)) - set(self.trial.kept_layers)))
        run = ["ulskip", "run", *self.run_overrides]
        export = ["ulskip", "export", *self.export_overrides, "--to", "DIR"]
        if self.patch_kind not in MERGEABLE:
            export += ["--format", "schedule"]
        return [
            sentence(record),
            f"layers:   {layers}, without {skipped} ({self.trial.candidate}{self._trained()})",
            f"speed:    {speedup_text(record)} over the full model",
            (
                f"quality:  {judged.title} {judged.value:.2f} of {judged.full:.2f},"
                f" {judged.text()}, on {record.num_examples} examples that chose nothing"
            ),
            f"sure:     {self._sure(judged)}",
            f"run:      {shlex.join(run)}",
            f"export:   {shlex.join(export)}",
        ]

    def _trained(self) -> str:
        """Return the size of a training, and that its adapter is no better if the trial without it
        was chosen.
        """
        if self.training is None or "refused" in self.training:
            return ""
        size = f"{self.training['steps']} steps on {self.training['examples']} examples"
        return (
            f": {size}" if self.trial.adapter else f"; an adapter trained for {size} is no better"
        )

    def _sure(self, judged: Share) -> str:
        config, speedup = self.request.config, self.record.speedup
        if config.speedup and speedup:
            wish, key = config.speedup, "speedup"
            value, low, high = speedup
        else:
            wish, key = config.quality or 1.0, "quality"
            low, value, high = judged.low, judged.share, judged.high
        return f"{key}={wish:g} is {verdict(wish, value, low, high)}"


def verdict(wish: float, value: float, low: float | None, high: float | None) -> str:
    """Tell how sure it is that a measured value with its interval reaches a wish.

    >>> verdict(1.5, 1.6, 1.55, 1.7), verdict(1.5, 1.6, 1.4, 1.7), verdict(1.5, 1.4, 1.3, 1.45)
    ('surely met', 'met, but the interval includes less', 'missed; this is the nearest')
    """
    if value < wish:
        return (
            "missed, but the interval includes it"
            if high is not None and high >= wish
            else "missed; this is the nearest"
        )
    if low is None:
        return "met, without an interval: too few examples or timed pairs"
    return "surely met" if low >= wish else "met, but the interval includes less"


def judge(record: Record, gate: float) -> Share:
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


def share_of(record: Record) -> float:
    """Return the share of the full model's score that a record keeps."""
    return judge(record, 1.0).share


def spans(layers: Sequence[int]) -> str:
    """Format at least one layer number as ranges.

    >>> spans([1, 2, 3, 7, 9, 10])
    '1-3, 7, 9-10'
    """
    return ", ".join(
        f"{start}-{end - 1}" if end - start > 1 else str(start)
        for start, end in layer_ranges(layers)
    )
