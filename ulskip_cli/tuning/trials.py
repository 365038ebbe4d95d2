"""Trials: the schedule of a candidate at a number of kept layers, and its decode loss on the
examples that choose.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.options import Options, parse
from ulskip_cli.core.schedule import MIN_KEPT
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.scoring import ReferenceLoss
from ulskip_cli.experiments.calibration import KEPT_PROMPT_BYTES
from ulskip_cli.experiments.preflight import Resolver
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.runner import Session, prepare_run
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.tuning.request import Candidate

_PATCH_ID = re.compile(r"[0-9a-f]{12}")
NEAR = 0.99  # share of the wanted speedup that a number of layers must reach by the fitted line


class Trial(Options):
    """A candidate at one number of kept layers."""

    candidate: str  # its label
    kept_layers: tuple[int, ...]
    loss: float  # decode loss in nats per token
    patch: str | None  # the id of its patches, which names their folder
    adapter: str | None = None  # the folder of its trained skip adapter

    @classmethod
    def from_step(cls, value: Mapping[str, Any], log: Path) -> Self:
        """Read a trial that a log of steps stores; raise UsageError if it names other folders than
        a tuning with this log.
        """
        trial = parse(cls, value, file=log)
        if trial.patch is not None and not _PATCH_ID.fullmatch(trial.patch):
            raise UsageError(
                f"expected patch in {log} to be 12 hexadecimal digits, got {trial.patch[:80]!r};"
                " remove the file"
            )
        adapters = log.with_name(f"{log.stem}-adapter").resolve()
        if trial.adapter is not None and Path(trial.adapter).resolve().parent != adapters:
            raise UsageError(
                f"expected adapter in {log} to be inside {adapters}, got {trial.adapter[:80]!r};"
                " remove the file"
            )
        return trial

    def as_step(self) -> dict[str, Any]:
        """Return the trial as a stored step."""
        return self.plain()


@dataclass(frozen=True)
class Chosen:
    """The best candidate at one number of layers, measured on the examples that choose."""

    trial: Trial
    candidate: Candidate
    record: Record

    @property
    def num_kept(self) -> int:
        """Number of kept layers."""
        return len(self.trial.kept_layers)


@dataclass
class Trials:
    """Runs trials in this process; the weights and the encoded prompts are kept between them."""

    session: Session
    num_layers: int
    resolver: Resolver = field(default_factory=Resolver)
    _loss: ReferenceLoss | None = None

    def run(self, candidate: Candidate, num_kept: int) -> Trial:
        """Calibrate a candidate, fit its patches, and measure its decode loss."""
        run = prepare_run(
            self.resolver.resolve(candidate.at(self.num_layers, num_kept)), self.session
        )
        decoder = Decoder(
            run.loaded.model, run.plan, run.loaded.tokenizer, run.adapter, run.point.config.engine
        )
        examples = run.workload.encoded or []
        if self._loss is None:
            held = KEPT_PROMPT_BYTES if run.plan.prompt_layers == "all" else 0
            self._loss = ReferenceLoss(
                examples, BatchSize(run.point.config.batch_size), run.workload.pad_token_id, held
            )
        loss = self._loss.of(
            decoder, self.session.progress.phase(f"{candidate.label}: decode loss", len(examples))
        )
        patch, adapter = (
            (run.found.patch or {}).get("id"),
            (run.found.skip_adapter or {}).get("path"),
        )
        layers = run.plan.kept_layers
        return Trial(
            candidate=candidate.label, kept_layers=layers, loss=loss, patch=patch, adapter=adapter
        )

    def speedups(self, config: Config, wanted: float) -> dict[str, Any]:
        """Return the speedup at every number of layers, by a line fitted to timed depths and
        corrected by timed pairs.
        """
        asked = config.replace(ratio=wanted, ratio_basis="latency")
        workload, _ = self.session.encode(self.resolver.resolve(asked))
        loaded = self.session.load(config.model, config.seed)
        fit, offset = self.session.fit_latency(asked, loaded, workload), 0.0
        try:
            solution = self.session.solve_depth(asked, loaded, workload, rounds=1)
            offset = solution.offset if solution else 0.0
        except NotApplicable:  # out of reach: the line gives the nearest
            pass
        return {
            str(count): round(1 / (fit.share(count) + offset), 4)
            for count in range(MIN_KEPT, self.num_layers)
        }

    def release(self) -> None:
        """Free the weights before workers load them."""
        self._loss = None
        self.session = Session(self.session.progress)


def num_kept_for(speedups: Mapping[str, float], wanted: float) -> int:
    """Return the largest number of layers whose speedup is near the wanted one, or the smallest
    number if none is.

    >>> num_kept_for({"2": 3.0, "3": 2.0, "4": 1.5}, 2.01), num_kept_for({"2": 3.0, "3": 2.0}, 9)
    (3, 2)
    """
    enough = [int(count) for count, speedup in speedups.items() if speedup >= NEAR * wanted]
    return max(enough, default=min(map(int, speedups)))
