"""Trials: the schedule of a candidate at a number of kept layers, and its decode loss on the
examples that choose; and the log of the finished steps of a tuning.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import NotApplicable, UsageError
from ulskip_cli.core.files import append_line, read_jsonl
from ulskip_cli.core.options import Options, parse
from ulskip_cli.core.printable import all_printable
from ulskip_cli.core.schedule import MIN_KEPT
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.scoring import ReferenceLoss
from ulskip_cli.experiments.calibration import KEPT_PROMPT_BYTES
from ulskip_cli.experiments.preflight import Resolver
from ulskip_cli.experiments.record import Record, Row
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
    def from_step(cls, value: Row, log: Path) -> Self:
        """Read a trial that a log of steps stores; raise UsageError if it names other folders than
        a tuning with this log.
        """
        trial = parse(cls, value, file=log)
        adapters = log.with_name(f"{log.stem}-adapter").resolve()
        is_patch = trial.patch is None or _PATCH_ID.fullmatch(trial.patch)
        if not is_patch or (trial.adapter and Path(trial.adapter).resolve().parent != adapters):
            raise UsageError(
                f"expected patch and adapter in {log} to be those of a tuning, got"
                f" {f'{trial.patch} and {trial.adapter}'[:120]!r}; remove the file"
            )
        return trial


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
        return Trial(
            candidate=candidate.label,
            kept_layers=run.plan.kept_layers,
            loss=loss,
            patch=(run.found.patch or {}).get("id"),
            adapter=(run.found.skip_adapter or {}).get("path"),
        )

    def speedups(self, config: Config, wanted: float) -> dict[str, float]:
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


class StepLog:
    """Stores the value of every finished step under its name, one JSON line each, with its
    seconds, so that the same command continues after an interruption.
    """

    def __init__(self, path: Path) -> None:
        """Read the steps that earlier processes finished; a damaged line counts as a step that is
        missing.
        """
        self.path = path
        steps = [step for step in read_jsonl(path) if {"step", "value", "seconds"} <= step.keys()]
        self._values = {step["step"]: all_printable(step["value"]) for step in steps}
        earlier: dict[str, float] = {step["step"]: step["seconds"] for step in steps}
        self._began = time.monotonic() - sum(earlier.values())

    def once(self, step: str, run: Callable[[], Any]) -> Any:
        """Return the stored value of a step, or run the step and store the JSON-ready value that it
        returns.
        """
        if step not in self._values:
            began = time.monotonic()
            self._values[step] = run()
            seconds = round(time.monotonic() - began, 1)
            line = {"step": step, "value": self._values[step], "seconds": seconds}
            append_line(self.path, json.dumps(line, ensure_ascii=False))
        return self._values[step]

    @property
    def minutes(self) -> float:
        """The minutes that the tuning has taken, with those of the steps that earlier processes
        finished.
        """
        return (time.monotonic() - self._began) / 60
