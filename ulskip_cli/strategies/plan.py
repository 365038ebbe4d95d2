"""Plans: the layers to run, decided from a configuration and a model's metadata. Imports no
torch.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from pydantic import JsonValue

from ulskip_cli.core import capabilities, schedule
from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.correction import Adapter
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.core.schedule import ExitRule, Layers, Stage
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
    patch: int | None = 0  # of the patch at each gap
    kv_per_layer: int | None = None  # keys and values of one token in one layer


@dataclass(frozen=True)
class Schedule:
    """The layers that read the prompt and those of each decode step: all that decoding knows of a
    strategy.
    """

    num_layers: int
    stages: tuple[Stage, ...]  # of decoding, each with fewer layers
    prompt_layers: str = "all"  # all, kept or first:K
    exits: ExitRule | None = None  # None without early exit

    @staticmethod
    def from_layers(num_layers: int, kept: Sequence[int], prompt_layers: str = "all") -> "Schedule":
        """Make a schedule of one stage; raise UsageError for an invalid list."""
        stages = (Stage(0, schedule.checked(num_layers, kept)),)
        return Schedule(num_layers, stages, prompt_layers)

    @property
    def full(self) -> "Schedule":
        """The schedule of the full model."""
        return self.from_layers(self.num_layers, range(self.num_layers))

    @property
    def kept_layers(self) -> Layers:
        """The layers of the first steps, ascending."""
        return self.stages[0].kept_layers

    @property
    def later_stages(self) -> tuple[Stage, ...]:
        """The stages after the first one."""
        return self.stages[1:]

    @property
    def num_kept(self) -> int:
        """Number of layers of the first stage."""
        return len(self.kept_layers)

    @property
    def summary(self) -> str:
        """The layers of the first stage, e.g. `6 of 12 layers`."""
        return f"{self.num_kept} of {self.num_layers} layers"

    @property
    def keeps_all(self) -> bool:
        """True if no step skips a layer."""
        return self.num_kept == self.num_layers and not self.later_stages and self.exits is None

    @property
    def sets_with_gaps(self) -> list[Layers]:
        """The layers of each stage that skips some, for which corrections are made."""
        return [
            stage.kept_layers for stage in self.stages if len(stage.kept_layers) < self.num_layers
        ]

    def mean_kept(self, steps: int) -> float:
        """Return the mean layers of the first `steps` decode steps; with early exit, the target
        depth.
        """
        if self.exits:
            return float(self.exits.target_depth)
        return schedule.mean_kept(self.stages, [steps + 1])

    def cached_share(self, steps: int) -> float:
        """Return the mean share of the first stage's keys and values that the first `steps` decode
        steps read.
        """
        return self.mean_kept(steps) / self.num_kept


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
            return weights.staged_speedup(schedule.step_counts(self.stages, self.timed_tokens - 1))
        if self.exits:  # a step runs the first R layers on average
            depth = self.target_kept
            return weights.predicted_speedup(self.kept_layers[:depth], self.exits.heads(depth))
        return weights.predicted_speedup(self.kept_layers)

    @property
    def patch_bytes(self) -> int | None:
        """Bytes of patches that a first step reads; None if unknown."""
        patch = self.sizes.patch
        return None if patch is None else patch * len(gaps(self.kept_layers, self.num_layers))

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Keys and values of one token in all layers; None if unknown."""
        size = self.sizes.kv_per_layer
        return None if size is None else size * self.num_layers

    @property
    def kept_kv_bytes_per_token(self) -> int | None:
        """The part that remains after the prompt."""
        size = self.sizes.kv_per_layer
        return None if size is None else size * self.num_kept

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
    stages = schedule.checked_stages(num_layers, strategy.stages(request))
    target_speedup = config.ratio if strategy.follows_ratio else None
    plan = Plan(
        strategy=strategy.name,
        num_layers=num_layers,
        stages=stages,
        prompt_layers=_prompt_layers(config.prompt_layers, num_layers, stages[0]),
        target_speedup=1.0 if strategy.keeps_all else target_speedup,
        target_kept=num_kept,
        timed_tokens=_timed_tokens(stages, num_kept, config.speed.new_tokens),
        exits=strategy.exit_rule(request) if num_kept < num_layers else None,
        drafts=bool(config.decoding.draft_tokens),
    )
    needs = _needs(config, metadata, plan)
    capabilities.check(needs, command)
    config.engine.check(needs)
    return replace(
        plan,
        needs=tuple(need for need in Need if need in needs),
        sizes=step_sizes(config, metadata, needs),
        warnings=tuple(_warnings(config, plan)),
    )


def _prompt_layers(asked: str, num_layers: int, first_stage: Stage) -> str:
    """Return the plan's `prompt_layers`: `all` also for `kept` and `first:K` if these are all
    layers. Raise UsageError for a K above N.
    """
    count = schedule.first_layers(asked)
    if count is None:
        count = len(first_stage.kept_layers)
    elif count > num_layers:
        raise UsageError(
            f"expected at most {num_layers} layers, all of the model, got prompt_layers={asked}"
        )
    return "all" if count == num_layers else asked


def _warnings(config: Config, plan: Plan) -> Iterator[str]:
    name, wanted = f"strategy={config.strategy.name}", plan.target_kept
    if not config.strategy.is_calibrated:
        yield (
            f"{name} is not calibrated yet; a run calibrates it, and this plan uses"
            f" {config.strategy.stand_in}"
        )
    kept = plan.mean_kept(plan.timed_tokens - 1)
    if config.strategy.follows_ratio and round(kept) != wanted:
        yield (
            f"{name} keeps {kept:.3g} of {plan.num_layers} layers, but ratio={config.ratio:.4g}"
            f" asks for {wanted}"
        )
    if isinstance(config.correction, Adapter) and wanted == plan.num_layers:
        yield f"correction=adapter has no effect with {name}, which keeps all layers"


def schedule_request(config: Config, num_layers: int) -> ScheduleRequest:
    """Return what the strategy of a run knows."""
    return ScheduleRequest(
        num_layers,
        config.strategy.num_kept(num_layers, config.ratio),
        max_new_tokens=config.answer_tokens,
        lengths=(config.speed.new_tokens,),
    )


def _needs(config: Config, metadata: ModelMetadata, plan: Plan) -> frozenset[Need]:
    """Return all needs of a configuration."""
    kind = config.correction.patch_kind(config.model)
    first_step_skips = plan.num_kept < plan.num_layers
    needs = capabilities.needed(
        {
            Need.BATCHES: config.batch_size > 1,
            Need.EARLY_EXIT: plan.exits,
            Need.SINGLE_EXITS: not config.strategy.takes_batches,
            Need.STAGES: plan.later_stages,
            Need.SKIPPED_LAYERS: not plan.keeps_all,
            Need.ALL_LAYERS: plan.keeps_all,
            # An engine needs two models then: one for the prompt, one for the steps.
            Need.FULL_PROMPT: first_step_skips and plan.prompt_layers == "all",
            Need.KEPT_PROMPT: not plan.keeps_all and config.prompt_layers == "kept",
            Need.FIRST_PROMPT: schedule.first_layers(plan.prompt_layers),
            Need.FITTED_PATCHES: config.correction.is_fitted,
            Need.PATCHES: plan.sets_with_gaps and kind.has_module,
            Need.ADAPTER: isinstance(config.correction, Adapter),
            Need.NO_TOKENIZER: not metadata.has_tokenizer,
            Need.CALIBRATION: not config.strategy.is_calibrated,
            Need.OTHER_BASELINE: config.crosses_engines,
            Need.OTHER_ENGINE: config.engine.decodes_outside_torch,
        }
    )
    return needs | config.decoding.needs()


def is_trained_for(trained_for: JsonObject | None, plan: Schedule) -> bool | None:
    """Return True if weights were trained with the layers of a plan, also for the prompts; None if
    unknown. `trained_for` has keys of training.json: `kept_layers` {ratio: layers}, `later_stages`
    {ratio: [stage]}, `exits` [depth] and `prompt_layers`.
    """
    if trained_for is None:
        return None
    prompts = trained_for.get("prompt_layers") or plan.prompt_layers  # assumed if unstated
    begins_with_all = plan.num_kept == plan.num_layers  # so that all layers read the prompt
    if not begins_with_all and prompts != plan.prompt_layers:
        return False
    if plan.exits:
        return set(plan.exits.checks) <= set(trained_for.get("exits") or [])
    trained = _trained_layers(trained_for)
    return all(stage.kept_layers in trained for stage in plan.stages)


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
        weights = replace(weights, patch=patch)
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
        depth = schedule.mean_kept(stages, [length])
        return abs(depth - num_kept), abs(length - new_tokens)

    return min(range(2, longest + 1), key=errors)
