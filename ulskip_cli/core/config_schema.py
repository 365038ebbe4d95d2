"""The configuration of a run, a training and a tuning: every key with type, default, help and
bounds.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ulskip_cli.core import fingerprint, schedule
from ulskip_cli.core.capabilities import Need, needed
from ulskip_cli.core.correction import KINDS, NO_PATCHES, AdapterKind, Correction
from ulskip_cli.core.engines import Engine, engine_named
from ulskip_cli.core.errors import UnknownKey, UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.model_metadata import ModelConfig as ModelConfig
from ulskip_cli.core.options import Condition, Options, Use, fields_on, option, use_of
from ulskip_cli.core.strategy import Strategy
from ulskip_cli.core.task import Task

_POINT = "run sweep"
_ANSWERS = f"{_POINT} generate"
_TIMED = f"{_POINT} tune bench"
_SCHEDULE = f"{_ANSWERS} bench plan export lm-eval"
_MODEL = f"{_SCHEDULE} tune train"


class DecodingConfig(Options):
    """How the next token is chosen. Presets are in `configs/decoding/`."""

    name: str = option("custom", "name of the preset", changes_results=False)
    num_beams: int = option(1, "number of beams; 1: no beam search", ge=1, le=1000)
    no_repeat_ngram_size: int = option(
        0, "length of n-grams that may occur only once; 0: no limit", ge=0
    )
    do_sample: bool = option(False, "sample tokens instead of taking the most likely one")
    temperature: float = option(1.0, "temperature of sampling", gt=0)
    top_p: float = option(1.0, "probability mass of nucleus sampling", gt=0, le=1)
    top_k: int = option(0, "sample from the k most likely tokens; 0: from all", ge=0)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = option((), "strings that end an answer")
    draft_tokens: int = option(0, "most tokens that are drafted per check; 0: none", ge=0)
    draft: Literal["4bit", "ngram"] = option(
        "4bit",
        "drafter; ngram: what followed the longest match of the last tokens earlier in the text, at"
        " most as many tokens as match; 4bit: the same after a long match, else the layers"
        " themselves with weights in 4 bits, as many tokens as pay",
        used_if=Condition(
            lambda config: config.decoding.draft_tokens, "decoding.draft_tokens=0 makes no drafts"
        ),
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        unread = self.non_defaults().keys() & {"temperature", "top_p", "top_k"}
        if unread and not self.do_sample:
            key = f"decoding.{min(unread)}"
            raise UnknownKey(
                f"{key} requires sampling; add decoding.do_sample=true or use decoding=sample", key
            )
        return self

    def needs(self) -> frozenset[Need]:
        """Return what the decoding needs of an engine."""
        return needed(
            {
                Need.BEAMS: self.num_beams > 1 or self.no_repeat_ngram_size,
                Need.SAMPLING: self.do_sample,
                Need.LOOK_UPS: self.draft_tokens and self.draft == "ngram",
                Need.COPY_DRAFTS: self.draft_tokens and self.draft == "4bit",
            }
        )

    def without_drafts(self) -> Self:
        """Return the decoding of the baseline, which chooses tokens in the same way."""
        if not self.draft_tokens:
            return self
        # Drafts exclude beams and sampling, so what remains is the preset greedy.
        return self.replace(name="greedy", draft_tokens=0, draft="4bit")


_TIMING = Condition(lambda config: config.speed.enabled, "speed.enabled=false measures no speed")
_SKIPPING = Condition(lambda config: not config.strategy.keeps_all, "all layers are kept")


class SpeedConfig(Options):
    """The speed measurement: timed pairs of the full model and the strategy on the same prompts."""

    enabled: bool = option(True, "measure speed in timed pairs", read_by=_POINT)
    seconds: float = option(
        30.0,
        "seconds of timing, unless the interval is narrow enough before",
        ge=0,
        changes_results=False,
        read_by=_TIMED,
        used_if=_TIMING,
    )
    precision: float = option(
        0.05,
        "share of the speedup to each side that the interval may reach",
        gt=0,
        changes_results=False,
        read_by=_TIMED,
        used_if=_TIMING,
    )
    new_tokens: int = option(32, "tokens generated per sequence", ge=2, used_if=_TIMING)
    prompt_tokens: int = option(64, "length of random prompts", ge=1, le=2**18, used_if=_TIMING)


class CalibrationConfig(Options):
    """The calibration: what some strategies and patches measure on held-out examples before a
    run.
    """

    examples: int = option(64, "number of held-out examples", ge=1)
    task: JsonObject | None = option(
        None, "task keys that differ for held-out examples, e.g. {source_file: val.de}"
    )


class LauncherConfig(Options):
    """The launcher of a sweep's points. Presets are in `configs/launcher/`."""

    name: Literal["inline", "local", "submitit", "ray"] = option("inline", "launcher of a sweep")
    workers: int | None = option(None, "number of workers; null: one for each device", ge=1)
    threads: int | None = option(
        None, "threads of each worker; null: the cores divided by the workers", ge=1
    )
    max_retries: int = option(2, "number of retries of a point whose worker died", ge=0)
    executor: str = option("auto", "submitit's executor")
    options: JsonObject | None = option(None, "options passed on to submitit or Ray")
    address: str | None = option(None, "address of the Ray cluster")

    @model_validator(mode="after")
    def _check(self) -> Self:
        unread = self.non_defaults()
        if self.name == "inline" and unread:
            raise UsageError(
                f"launcher.{min(unread)} requires workers; choose launcher=local, submitit or ray"
            )
        return self


class BaseConfig(Options):
    """Options of runs, sweeps and trainings."""

    model: ModelConfig = option(..., "the model", read_by=_MODEL)
    task: Task = option(..., "the task", read_by=f"{_ANSWERS} tune plan export train")
    max_new_tokens: int | None = option(
        None,
        "maximum length of an answer in tokens; null: the task's",
        ge=1,
        read_by=f"{_ANSWERS} tune plan train",
    )
    strategy: Strategy = option(..., "the strategy", read_by=f"{_SCHEDULE} train")
    prompt_layers: str = option(
        "all",
        "layers that encode the prompt: all; kept; or first:K, and the others only fill their cache"
        " from the state behind these",
        read_by=_MODEL,
        used_if=Condition(
            lambda config: (
                not config.strategy.keeps_all
                or schedule.first_layer_count(config.prompt_layers) is not None
            ),
            "all layers are kept",
        ),
    )
    offset: int = option(
        0, "number of examples that are left out at the start", ge=0, read_by=f"{_ANSWERS} train"
    )
    limit: int | None = option(
        None, "number of examples; null: all", ge=1, read_by=f"{_ANSWERS} tune train"
    )
    seed: int = option(
        1,
        "seed for sampling and training",
        ge=0,
        le=2**32 - 1,  # of numpy
        read_by=f"{_TIMED} generate lm-eval train",
    )

    @field_validator("prompt_layers")
    @classmethod
    def _check_prompt_layers(cls, name: str) -> str:
        schedule.first_layer_count(name)
        return name

    @property
    def answer_tokens(self) -> int:
        """The maximum tokens of an answer."""
        return self.max_new_tokens or self.task.max_new_tokens

    def uses(self, key: str, command: str) -> bool:
        """Return True if a command reads a key, and its value has an effect here."""
        return command in self.readers(key) and not self.why_unused(key)

    def why_unused(self, key: str) -> str:
        """Return why the value of a key has no effect here, or an empty text."""
        for use in self._declared_uses(key):
            if use.condition and not use.condition.holds(self):
                return use.condition.otherwise
        return ""

    def changes_results(self, key: str, command: str) -> bool:
        """Return True if a command uses a key that changes results."""
        declared = self._declared_uses(key)
        return self.uses(key, command) and all(use.changes_results for use in declared)

    @classmethod
    def readers(cls, key: str) -> list[str]:
        """Return the commands that read a key, e.g. `speed.seconds`; without any of its own, those
        of its section.
        """
        declared = [use.read_by for use in cls._declared_uses(key) if use.read_by]
        return sorted(frozenset.intersection(*declared)) if declared else []

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def _declared_uses(cls, key: str) -> list[Use]:
        """Return the uses of the sections of a key and of the key. The options of a choice, whose
        class a preset decides, have only the use of their section.
        """
        return [use_of(field) for field in fields_on(cls, key.split("."))]

    def resolved(self) -> JsonObject:
        """Return what configs/ID.yaml or training.json stores: all but the launcher, which says
        where a sweep runs.
        """
        return {key: value for key, value in self.plain().items() if key != "launcher"}


class Config(BaseConfig):
    """Configuration of one experiment."""

    correction: Correction = option(
        ...,
        "the correction after skipped layers",
        read_by=_SCHEDULE,
        used_if=_SKIPPING,
    )
    decoding: DecodingConfig = option(
        DecodingConfig(), "decoding", read_by=f"{_TIMED} generate plan lm-eval"
    )
    engine: Engine = option(..., "the engine", read_by=f"{_TIMED} generate plan")
    speed: SpeedConfig = option(SpeedConfig(), "the speed measurement", read_by=f"{_TIMED} plan")
    calibration: CalibrationConfig = option(
        CalibrationConfig(),
        "the calibration",
        read_by=f"{_ANSWERS} tune",
        used_if=Condition(lambda config: config.needs_held_out, "nothing is calibrated"),
    )
    name: str = option(
        "default",
        "folder of the results under results_dir",
        changes_results=False,
        read_by=f"{_TIMED} generate lm-eval",
    )
    results_dir: str = option(
        "results",
        "folder of all results",
        changes_results=False,
        read_by=f"{_TIMED} generate lm-eval",
    )
    ratio: float = option(
        2.0,
        "all layers divided by the kept ones",
        ge=1,
        read_by=_SCHEDULE,
        used_if=Condition(
            lambda config: config.strategy.follows_ratio, "the strategy does not follow it"
        ),
    )
    batch_size: int = option(
        8,
        "sequences decoded together",
        ge=1,
        le=65536,
        read_by=f"{_TIMED} plan lm-eval",
    )
    answers: bool = option(
        True, "generate answers; false: the decode loss of the references alone", read_by=_POINT
    )
    baseline: bool = option(True, "also run the full model, as the baseline", read_by=_POINT)
    baseline_engine: str | None = option(
        None,
        "engine in which the full model runs as baseline, e.g. auto; null: the same engine",
        read_by=f"{_POINT} bench",
        used_if=Condition(
            lambda config: config.crosses_engines, "the full model is in that engine anyway"
        ),
    )
    sweep: JsonObject = option(
        {}, "keys and values of a sweep's grid", changes_results=False, read_by="sweep bench"
    )
    launcher: LauncherConfig = option(
        LauncherConfig(), "launcher of a sweep", changes_results=False, read_by="sweep"
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name or set(name) & set("/\\\0") or name.startswith("."):
            raise UsageError(
                f"expected name to be a folder name without slashes or a leading dot, got '{name}'"
            )
        return name

    @field_validator("baseline_engine")
    @classmethod
    def _check_baseline_engine(cls, name: str | None) -> str | None:
        return None if name is None else engine_named(name).name

    def identity(self, command: str = "run") -> str:
        """Hash all values that change the results of a command, to 12 hexadecimal digits.

        Values that are defaults are left out, so identities stay when ulskip gains an option; so
        are data and weights.
        """
        return fingerprint.digest(self._recorded(lambda key: self.changes_results(key, command)))

    def recorded(self, command: str = "run") -> JsonObject:
        """Return the values that a row of a command stores: used ones that are not defaults. Keys
        of a section that changes results, such as `decoding.name`, are stored even if they change
        none; top-level keys such as `name` only if they change some.
        """
        return self._recorded(
            lambda key: self.uses(key, command) and self._declared_uses(key)[0].changes_results
        )

    @property
    def needs_held_out(self) -> bool:
        """True if a run measures options or patches on held-out examples."""
        strategy = self.strategy
        return not strategy.is_calibrated or (self.correction.is_fitted and not strategy.keeps_all)

    @property
    def crosses_engines(self) -> bool:
        """True if the baseline runs in another engine or weights format."""
        return (
            self.baseline_engine is not None and engine_named(self.baseline_engine) != self.engine
        )

    def _recorded(self, accepts: Callable[[str], bool]) -> JsonObject:
        """Return accepted values that are not defaults. The full model, which uses no correction,
        always has the correction none.
        """
        values = self.non_defaults(accepts)
        if self.strategy.keeps_all and accepts("strategy"):
            values["correction"] = {"name": "none"}
        return values


class TuneConfig(Config):
    """Configuration of `ulskip tune`."""

    speedup: float | None = option(
        None, "wanted speedup over the full model, measured on this machine", gt=1, read_by="tune"
    )
    quality: float | None = option(
        None, "wanted share of the full model's score", gt=0, le=1, read_by="tune"
    )
    choice_examples: int = option(
        50, "held-out examples that choose between candidates", ge=4, read_by="tune"
    )
    finalists: int = option(
        2,
        "candidates with the lowest decode loss that also generate answers",
        ge=1,
        read_by="tune",
    )
    candidates: tuple[str, ...] = option(
        (),
        "keys of strategy and correction of each candidate, or correction.path of an adapter",
        read_by="tune",
    )


class LoraOptions(Options):
    """LoRA on the linear layers, merged into the weights after training."""

    rank: int = option(16, "rank of the adapters; 0, only with train.method=adapter: none", ge=0)
    alpha: int = option(32, "scale of the adapters (lora_alpha)", ge=1)


class OwnResponses(Options):
    """The full model's own answers as training responses, generated once and stored."""

    samples: int = option(
        1, "answers per prompt; the first is greedy or of beams, the others are sampled", ge=1
    )
    num_beams: int = option(1, "number of beams of the first answer; 1: greedy", ge=1)
    file: str | None = option(
        None,
        "file that stores the answers, for several trainings; null: in the output folder",
        changes_results=False,
    )


class TrainedPatches(Options):
    """The patches of a skip adapter that is trained."""

    kind: AdapterKind = option("full", f"patches of the skip adapter; none: {NO_PATCHES.text}")
    learning_rate: float = option(2e-4, "peak learning rate of the patches", gt=0)
    examples: int = option(64, "examples from which the first patches are computed", ge=1)


# For a key of `train` that some values of train.method do not read: those that read it.
METHODS_OF: Mapping[str, tuple[str, ...]] = {
    "lora": ("lora", "adapter"),
    "start": ("adapter",),
    "gap_weight": ("adapter",),
    "freeze_embeddings": ("full", "lora"),
}


class TrainOptions(Options):
    """Options of a training. Presets are in `configs/train/`."""

    name: str = option("default", "name of the preset", changes_results=False)
    ratios: tuple[float, ...] = option(
        (2.0,), "target speedups to train for; 1 trains the full depth", min_length=1
    )
    ce_weight: float = option(1.0, "weight of the cross-entropy with skipped layers", ge=0)
    distill_weight: float = option(
        0.0, "weight of the distillation from the model at full depth", ge=0
    )
    gap_weight: float = option(
        0.0,
        "weight of the gap loss of a skip adapter: the layers around each gap alone reproduce the"
        " full model's state behind it",
        ge=0,
    )
    method: Literal["full", "lora", "adapter"] = option(
        "full", "train all weights, LoRA adapters, or a skip adapter of the unchanged model"
    )
    lora: LoraOptions = option(LoraOptions(), "LoRA")
    start: str | None = option(
        None, "folder of a skip adapter that is trained further; null: patches in closed form"
    )
    responses: Literal["reference", "own", "both"] = option(
        "reference", "responses to train on: references, own answers of the full model, or both"
    )
    own: OwnResponses = option(OwnResponses(), "own answers")
    prompt_share: float = option(
        0.0, "share of each prompt, at its end, that is trained on as a response too", ge=0, lt=1
    )
    freeze_embeddings: bool = option(False, "do not train the embeddings")
    epochs: float = option(1.0, "passes over the examples", gt=0)
    max_steps: int | None = option(
        None, "number of optimizer steps; null: computed from epochs", ge=1
    )
    batch_size: int = option(16, "examples per device and step", ge=1)
    gradient_accumulation_steps: int = option(
        1, "batches whose gradients are accumulated for one optimizer step", ge=1
    )
    learning_rate: float = option(1e-4, "peak learning rate", gt=0)
    warmup: float = option(0.03, "share of steps for the learning rate warmup", ge=0, lt=1)
    weight_decay: float = option(0.0, "weight decay", ge=0)
    precision: Literal["float32", "bf16", "fp16"] = option("float32", "precision of the training")
    max_length: int | None = option(
        512, "maximum length of an example, in tokens; null: no limit", ge=2
    )
    validation: JsonObject | None = option(
        None,
        "task keys that differ for validation, e.g. {source_file: val.de}",
        changes_results=False,
    )
    held_out: int = option(0, "examples held out for validation", ge=0, changes_results=False)
    evaluate_every: int | None = option(
        None, "steps between validations", ge=1, changes_results=False
    )
    save_every: int = option(500, "steps between checkpoints", ge=1, changes_results=False)
    log_every: int = option(50, "steps between log lines", ge=1, changes_results=False)
    training_args: JsonObject | None = option(None, "further TrainingArguments of transformers")

    @model_validator(mode="after")
    def _check(self) -> Self:
        # gap_weight, which only adapters have, is enough too
        if not self.ce_weight + self.distill_weight + self.gap_weight:
            raise UsageError("expected train.ce_weight or train.distill_weight > 0, got 0")
        if len({*self.ratios}) < len(self.ratios):
            raise UsageError(
                f"expected train.ratios without repetitions, got {list(self.ratios)}; leave out the"
                " repeated ones"
            )
        if self.validation and self.held_out:
            raise UsageError(
                "expected train.validation or train.held_out, got both; set one of them"
            )
        if self.responses == "reference" and self.own.non_defaults():
            raise UsageError("train.own requires own answers; add train.responses=own or both")
        for key in self.non_defaults():
            if key in METHODS_OF and self.method not in METHODS_OF[key]:
                raise UsageError(
                    f"train.method={self.method} does not support train.{key}; leave it out"
                )
        return self


class TrainingConfig(BaseConfig):
    """Configuration of one training."""

    train: TrainOptions = option(TrainOptions(), "the training", read_by="train")
    correction: TrainedPatches = option(
        TrainedPatches(), "the patches of a skip adapter", read_by="train"
    )
    output: str = option(
        "runs/{model}-{strategy}",
        "folder of the trained model; {model} and {strategy} are replaced by their names",
        read_by="train",
    )

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        _, _, index = self.model.device.partition(":")
        if index not in ("", "0"):
            raise UsageError(
                f"expected model.device=cuda to train, got {self.model.device}; choose the GPU by"
                f" CUDA_VISIBLE_DEVICES={index}"
            )
        return self

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        train, strategy, patch = self.train, self.strategy, KINDS[self.correction.kind]
        trains_adapter = train.method == "adapter"
        changed = self.correction.non_defaults()
        if changed and not trains_adapter:
            raise UsageError(
                f"train.method={train.method} does not support correction.{min(changed)}; use"
                " train.method=adapter"
            )
        trains_patches = trains_adapter and patch.has_module
        if train.method != "full" and not train.lora.rank and not trains_patches:
            raise UsageError(
                "train.lora.rank=0 trains nothing without patches that are not folded; use"
                " train.lora.rank=16"
            )
        has_several_schedules = strategy.is_positional or len(train.ratios) > 1
        if trains_adapter and patch.is_folded and has_several_schedules:
            raise UsageError(
                f"train.method=adapter does not support correction.kind={patch.name} and several"
                " train.ratios or strategies with other layers at later positions; train one"
                " adapter per ratio, or use correction.kind=full"
            )
        if strategy.exits_early and train.distill_weight and not trains_adapter:
            raise UsageError(
                f"train.distill_weight is not supported with strategy={strategy.name}, which trains"
                " every exit; set train.distill_weight=0"
            )
        return self

    @property
    def own_answer_tokens(self) -> int:
        """The maximum tokens of the model's own answers; 0 without any."""
        return 0 if self.train.responses == "reference" else self.answer_tokens
