"""Plans: the layers to run, decided from a configuration and a model's metadata. Imports no
torch.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from pydantic import JsonValue

from ulskip_cli.core import capabilities
from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.correction import Adapter
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.core.schedule import (
    Layers,
    Schedule,
    Stage,
    checked_stages,
    first_layer_count,
    mean_kept,
    step_counts,
)
from ulskip_cli.core.strategy import ScheduleRequest
from ulskip_cli.core.weight_sizes import WeightSizes, gaps

PREDICTIONS = (
    "kept_layers",
    "layer_ratio",
    "predicted_speedup",
    "patch_bytes",
    "kv_bytes_per_token",
    "kept_kv_bytes_per_token",
)


@dataclass(frozen=True)
class StepSizes:
    """Bytes that decode steps read; None means unknown."""

    weights: WeightSizes | None = None  # in the engine's format, with patches
    bytes_per_patch: int | None = 0  # of the patch at each gap
    kv_per_layer: int | None = None  # keys and values of one token in one layer


@dataclass(frozen=True, kw_only=True)
class Plan(Schedule):
    """The schedule of a configuration on a model, its needs, and a forecast of depth, bytes and
    speed.
    """

    strategy: str  # name of the preset
    target_speedup: float | None = None  # None if the strategy ignores the ratio
    target_kept: int = 0  # R, the requested mean number of layers per step
    # new tokens per sequence in timed pairs, the first of them by prefill; positional strategies
    # need a mean depth of R over the others
    timed_tokens: int = 32
    drafts: bool = False  # the layers of a step check drafts
    needs: tuple[Need, ...] = ()  # in the order of their declaration, so that hashes are stable
    warnings: tuple[str, ...] = ()
    sizes: StepSizes = StepSizes()

    @property
    def is_full_model(self) -> bool:
        """True for the plan of the baseline."""
        return self.keeps_all and not self.drafts and self.prompt_layers == "all"

    @property
    def layer_ratio(self) -> float:
        """N over the mean number of layers per step."""
        return self.num_layers / self.mean_kept(self.timed_tokens - 1)

    @property
    def predicted_speedup(self) -> float | None:
        """The speedup predicted from bytes of weights; None if they are unknown, and with drafts,
        because it depends on how many are accepted.
        """
        weights = self.sizes.weights
        if weights is None or self.drafts:
            return None
        if self.later_stages:
            return weights.staged_speedup(step_counts(self.stages, self.timed_tokens - 1))
        if self.exits:  # a step runs the first R layers on average
            depth = self.target_kept
            return weights.predicted_speedup(self.kept_layers[:depth], self.exits.heads(depth))
        return weights.predicted_speedup(self.kept_layers)

    @property
    def patch_bytes(self) -> int | None:
        """Bytes of patches that a first step reads; None if unknown."""
        size = self.sizes.bytes_per_patch
        return None if size is None else size * len(gaps(self.kept_layers, self.num_layers))

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Keys and values of one token in all layers; None if unknown."""
        size = self.sizes.kv_per_layer
        return None if size is None else size * self.num_layers

    @property
    def kept_kv_bytes_per_token(self) -> int | None:
        """Keys and values of one token in the layers of the first stage; None if unknown."""
        size = self.sizes.kv_per_layer
        return None if size is None else size * len(self.kept_layers)

    def as_dict(self) -> dict[str, JsonValue]:
        """Return decisions and predictions, JSON-ready."""
        values = asdict(self)
        del values["sizes"], values["needs"]
        return values | {name: getattr(self, name) for name in PREDICTIONS}


def make_plan(config: Config, metadata: ModelMetadata, command: str = "run") -> Plan:
    """Make the plan of a configuration for a model; raise UsageError if settings do not fit the
    model, and NotApplicable if command or engine do not support its needs, or needs exclude each
    other.
    """
    strategy, num_layers = config.strategy, metadata.num_layers
    request = schedule_request(config, num_layers)
    num_kept = request.num_kept
    stages = checked_stages(num_layers, strategy.stages(request))
    schedule = Schedule(
        num_layers,
        stages,
        _prompt_layers(config.prompt_layers, num_layers, stages[0]),
        strategy.exit_rule(request) if num_kept < num_layers else None,
    )
    needs = _needs(config, metadata, schedule)
    capabilities.check(needs, command)
    config.engine.check(needs)
    target_speedup = config.ratio if strategy.follows_ratio else None
    timed_tokens = _timed_tokens(stages, num_kept, config.speed.new_tokens)
    return Plan(
        **vars(schedule),
        strategy=strategy.name,
        target_speedup=1.0 if strategy.keeps_all else target_speedup,
        target_kept=num_kept,
        timed_tokens=timed_tokens,
        drafts=bool(config.decoding.draft_tokens),
        needs=tuple(need for need in Need if need in needs),
        sizes=step_sizes(config, metadata, needs),
        warnings=tuple(_warnings(config, schedule, num_kept, timed_tokens - 1)),
    )


def _prompt_layers(asked: str, num_layers: int, first_stage: Stage) -> str:
    """Return the plan's `prompt_layers`: `all` also for `kept` and `first:K` if these are all
    layers. Raise UsageError for a K above N.
    """
    count = first_layer_count(asked)
    if count is None:
        count = len(first_stage.kept_layers)
    elif count > num_layers:
        raise UsageError(
            f"expected at most {num_layers} layers, all of the model, got prompt_layers={asked}"
        )
    return "all" if count == num_layers else asked


def _warnings(config: Config, schedule: Schedule, wanted: int, steps: int) -> Iterator[str]:
    """Yield what a user may not expect; `wanted` is the mean number of layers that the ratio asks
    for in `steps` decode steps.
    """
    name = f"strategy={config.strategy.name}"
    if not config.strategy.is_calibrated:
        yield (
            f"{name} is not calibrated yet; a run calibrates it, and this plan uses"
            f" {config.strategy.stand_in}"
        )
    kept = schedule.mean_kept(steps)
    if config.strategy.follows_ratio and round(kept) != wanted:
        yield (
            f"{name} keeps {kept:.3g} of {schedule.num_layers} layers, but ratio={config.ratio:.4g}"
            f" asks for {wanted}"
        )
    if isinstance(config.correction, Adapter) and wanted == schedule.num_layers:
        yield f"correction=adapter has no effect with {name}, which keeps all layers"


def schedule_request(config: Config, num_layers: int) -> ScheduleRequest:
    """Return what the strategy of a run knows."""
    return ScheduleRequest(
        num_layers,
        config.strategy.num_kept(num_layers, config.ratio),
        max_new_tokens=config.answer_tokens,
        lengths=(config.speed.new_tokens,),
    )


def _needs(config: Config, metadata: ModelMetadata, schedule: Schedule) -> frozenset[Need]:
    """Return all needs of a configuration."""
    kind = config.correction.patch_kind(config.model)
    first_step_skips = len(schedule.kept_layers) < schedule.num_layers
    needs = capabilities.needed(
        {
            Need.BATCHES: config.batch_size > 1,
            Need.EARLY_EXIT: schedule.exits,
            Need.SINGLE_EXITS: not config.strategy.takes_batches,
            Need.STAGES: schedule.later_stages,
            Need.SKIPPED_LAYERS: not schedule.keeps_all,
            Need.ALL_LAYERS: schedule.keeps_all,
            # An engine needs two models then: one for the prompt, one for the steps.
            Need.FULL_PROMPT: first_step_skips and schedule.prompt_layers == "all",
            Need.KEPT_PROMPT: not schedule.keeps_all and config.prompt_layers == "kept",
            Need.FIRST_PROMPT: first_layer_count(schedule.prompt_layers),
            Need.FITTED_PATCHES: config.correction.is_fitted,
            Need.PATCHES: schedule.sets_with_gaps and kind.has_module,
            Need.ADAPTER: isinstance(config.correction, Adapter),
            Need.NO_TOKENIZER: not metadata.has_tokenizer,
            Need.CALIBRATION: not config.strategy.is_calibrated,
            Need.OTHER_BASELINE: config.crosses_engines,
            Need.OTHER_ENGINE: config.engine.decodes_outside_torch,
        }
    )
    return needs | config.decoding.needs()


def is_trained_for(trained_for: JsonObject | None, schedule: Schedule) -> bool | None:
    """Return True if weights were trained with the layers of a schedule, also for the prompts; None
    if unknown. `trained_for` has keys of training.json: `kept_layers` {ratio: layers},
    `later_stages` {ratio: [stage]}, `exits` [depth] and `prompt_layers`.
    """
    if trained_for is None:
        return None
    prompts = trained_for.get("prompt_layers") or schedule.prompt_layers  # assumed if unstated
    begins_with_all = (
        len(schedule.kept_layers) == schedule.num_layers
    )  # so that all layers read the prompt
    if not begins_with_all and prompts != schedule.prompt_layers:
        return False
    if schedule.exits:
        return set(schedule.exits.checks) <= set(trained_for.get("exits") or [])
    trained = _trained_layers(trained_for)
    return all(stage.kept_layers in trained for stage in schedule.stages)


def _trained_layers(trained_for: JsonObject) -> set[Layers]:
    """Return the sets of layers that a training used; an exit trains all layers before it."""
    trained = {tuple(range(depth)) for depth in trained_for.get("exits") or []}
    trained.update(map(tuple, (trained_for["kept_layers"] or {}).values()))
    for stages in (trained_for.get("later_stages") or {}).values():
        trained.update(tuple(stage["kept_layers"]) for stage in stages)
    return trained


def step_sizes(config: Config, metadata: ModelMetadata, needs: Collection[Need]) -> StepSizes:
    """Return the bytes that decode steps with these needs read."""
    kind, hidden_size = config.correction.patch_kind(config.model), metadata.hidden_size
    bytes_per_weight = metadata.bytes_per_weight or 2  # as most checkpoints have
    patch = kind.num_parameters(hidden_size or 0) * bytes_per_weight
    weights = config.engine.sizes(metadata, config.model.device, frozenset(needs))
    if weights is not None:
        weights = replace(weights, bytes_per_patch=patch)
    is_unknown = kind.has_module and hidden_size is None
    return StepSizes(weights, None if is_unknown else patch, metadata.kv_bytes_per_layer)


def _timed_tokens(stages: Sequence[Stage], num_kept: int, new_tokens: int) -> int:
    """Return the length of timed answers: `new_tokens` with one stage, or else the nearest length
    over which a step runs `num_kept` layers on average.
    """
    # At four times the start of the last stage, three quarters of the steps are in it.
    longest = max(new_tokens, 4 * stages[-1].first_step + 2)

    def errors(length: int) -> tuple[float, int]:
        """Return the error of the mean depth and, between equal ones, that of the length."""
        depth = mean_kept(stages, [length])
        return abs(depth - num_kept), abs(length - new_tokens)

    return min(range(2, longest + 1), key=errors)
