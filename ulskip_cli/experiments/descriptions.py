"""The sections of a record that describe how a result was made: its schedule, engine, weights and
machine.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from ulskip_cli.core import environment, schedule
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.strategy import LAYER
from ulskip_cli.engines.base import BatchOutput
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.experiments.latency_target import LatencyTargetFit
from ulskip_cli.experiments.record import (
    CorrectionUsed,
    Environment,
    Provenance,
    Schedule,
    StageUsed,
)
from ulskip_cli.experiments.throughput import sum_drafts, sum_exits
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.strategies.plan import Plan, is_trained_for


@dataclass(frozen=True)
class ScheduleProvenance:
    """The measurements that decided a schedule: timing on this machine, or calibration on held-out
    examples.
    """

    latency: LatencyTargetFit | None = None
    calibration: dict[str, Any] | None = None
    patch: dict[str, Any] | None = None
    skip_adapter: dict[str, Any] | None = None

    @property
    def correction(self) -> CorrectionUsed | None:
        """The correction that ran, as a record stores it."""
        name, details = (
            ("adapter", self.skip_adapter) if self.skip_adapter else ("patch", self.patch)
        )
        return CorrectionUsed(name=name, **details) if details else None


def describe_schedule(
    plan: Plan,
    found: ScheduleProvenance,
    outputs: Sequence[BatchOutput] = (),
    timed: Sequence[BatchOutput] = (),
) -> Schedule:
    """Return the schedule section of a row; depths of early exit and of stages are means over the
    evaluated `outputs` and the `timed` pairs.
    """
    evaluated = sum_exits(outputs).mean_depth
    mean_exit = sum_exits(timed).mean_depth or evaluated
    if plan.later_stages and outputs:
        evaluated = schedule.mean_kept(
            plan.stages, [len(ids) for output in outputs for ids in output.token_ids]
        )
    return Schedule(
        num_layers=plan.num_layers,
        kept_layers=plan.kept_layers,
        unit=None if plan.unit == LAYER else plan.unit,
        later_stages=tuple(StageUsed(**asdict(stage)) for stage in plan.later_stages),
        target_kept_layers=plan.target_kept,
        mean_kept_layers=mean_exit or plan.mean_kept(plan.timed_tokens - 1),
        evaluated_mean_kept_layers=evaluated,
        layer_ratio=plan.num_layers / mean_exit if mean_exit else plan.layer_ratio,
        predicted_speedup=plan.predicted_speedup or sum_drafts(timed or outputs).expected_speedup,
        draft_cost=plan.draft_cost,
        latency_fit=found.latency.as_dict() if found.latency else None,
        calibration=found.calibration,
    )


def describe_provenance(
    config: Config, plan: Plan, loaded: LoadedModel, decoder: Decoder, num_examples: int
) -> Provenance:
    """Return the provenance of a result: engine, device, weights and environment."""
    engine, engine_reason = decoder.engine(config.decoding)
    backend = decoder.linear_backend(config.decoding)
    build, device = decoder.build, str(loaded.model.device)
    return Provenance(
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        engine=engine,
        engine_reason=engine_reason,
        engine_weights=build.pop("weights") if build else None,
        engine_build=build,
        linear_backend=backend.name,
        linear_backend_reason=backend.reason,
        device=device,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        **loaded.notes,
        trained_for_these_layers=is_trained_for(loaded.notes["trained_for"], plan),
        num_examples=num_examples,
        environment=Environment.model_validate(environment.code() | environment.machine(device)),
    )
