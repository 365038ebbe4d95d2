"""`Record`: everything that results/ stores of one run, as one object that all other code reads.

A row of `runs.jsonl` is a record as one flat JSON object, whose keys are the names of the fields. A
section contains the values that one part of the code measures. A field declares its bounds and its
meaning for docs/results.md; `report/columns.py` names the values that tables show. Only `read` and
`to_row` know JSON.
"""

import json
import math
from itertools import compress
from statistics import median
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_serializer,
    field_validator,
    model_validator,
)

from ulskip_cli.core import environment
from ulskip_cli.core.config import StoredConfig
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.options import misfit
from ulskip_cli.core.schedule import first_layer_count, layer_ranges
from ulskip_cli.experiments.intervals import CONFIDENCE, UNITS, Interval, ratio_interval
from ulskip_cli.tasks import metrics

DONE: Final = "done"
NOT_APPLICABLE: Final = "n/a"
FAILED: Final = "failed"
HIGHEST_SCORE = 100.0  # of all metrics
MAX_SHARE = 10.0  # a larger share states only that one of the two scores is close to zero
MIN_FOR_STARS = 10  # examples; a bootstrap over fewer has no power
DEPTH_TOLERANCE = 0.05  # relative difference between two mean depths that count as the same
METRIC_KEYS = tuple(metrics.METRIC_OF)
GLOSSARY = "[glossary](measuring.md#glossary)"  # the meaning of these fields

Row = JsonObject  # a line of runs.jsonl
Text = str | None  # None: not known
Flag = bool | None
Whole = int | None
Name = Annotated[str, Field(pattern="^[A-Za-z0-9_][A-Za-z0-9_ .+=-]*$", max_length=128)]  # of files
KnownNumber = Annotated[float, Field(ge=-1e30, le=1e30)]
KnownCount = Annotated[int, Field(ge=0, le=10**18)]
KnownPositive = Annotated[float, Field(gt=0, le=1e30)]
Number = KnownNumber | None
Count = KnownCount | None
Positive = KnownPositive | None
Rate = Annotated[float, Field(ge=0, le=1e30)] | None
Ratio = Annotated[float, Field(ge=1e-6, le=1e6)] | None
Share = Annotated[float, Field(ge=0, le=1)] | None
AnyFloat = Annotated[float, Field(allow_inf_nan=True)]
Layers = Annotated[tuple[KnownCount, ...], Field(min_length=1)] | None
Seconds = Annotated[tuple[KnownPositive, ...], Field(min_length=1)]
Depth = Annotated[str, Field(pattern="^[0-9]{1,5}$")]


def described(text: str, *, detected: bool = False, default: Any = None, **bounds: Any) -> Any:
    """Declare a field: its meaning, and bounds in pydantic's words.

    A `detected` value is a setting that no configuration names, such as the device.
    """
    return Field(default, description=text, json_schema_extra={"detected": detected}, **bounds)


class Section(BaseModel):
    """A part of a record. Keys that it does not declare are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="after")
    def _check_ends(self) -> Self:
        """Refuse an interval whose lower end is above its upper end."""
        for key in (key for key in type(self).model_fields if key.endswith("_low")):
            low, high = getattr(self, key), getattr(self, f"{key.removesuffix('low')}high")
            if low is not None and high is not None and low > high:
                raise UsageError(f"expected {key} <= its upper end {high}, got {low}")
        return self

    def replace(self, **changes: object) -> Self:
        """Return a copy with other values, which are checked."""
        return type(self).model_validate({**dict(self), **changes})

    def value(self, key: str) -> Any:
        """Return the value of a field or of a metric, or None."""
        return getattr(self, key, None)


class CorrectionUsed(Section):
    """The correction of skipped layers. Further keys describe how fitted patches and adapters were
    made.
    """

    model_config = ConfigDict(extra="allow")

    name: str
    kind: Text = None
    path: Text = None
    id: Name | None = None
    task: Text = None  # on whose examples it was fitted or trained
    prompt_layers: Text = None  # which read the prompts of these examples
    lora_rank: Count = None

    @property
    def label(self) -> str:
        """The text that a label adds after the strategy."""
        if self.name == "adapter":
            return "adapter"
        return f"{self.kind} patch"


class StageUsed(Section):
    """A later stage of a schedule."""

    first_step: KnownCount
    kept_layers: Layers = None


class Compared(Section):
    """A score beside the full model's score."""

    full: KnownNumber
    delta: KnownNumber
    delta_low: KnownNumber
    delta_high: KnownNumber


class Side(Section):
    """The raw values of one side of timed pairs, each list with one of every pair, and how it
    ran.
    """

    decode_seconds: Seconds
    decoded_tokens: tuple[KnownCount, ...] | None = None
    generated_tokens: tuple[KnownCount, ...] | None = None
    prefill_seconds: tuple[KnownNumber, ...] | None = None
    first_token_seconds: tuple[KnownNumber, ...] | None = None
    engine: Text = None
    linear_backend: Text = None

    def costs(self, with_prompt: bool = False) -> list[float]:
        """Return for each pair the decode seconds per decoded token or, `with_prompt`, the seconds
        until the first token and of decoding per generated token.
        """
        if not with_prompt:
            tokens = self.decoded_tokens or ()
            counts = zip(self.decode_seconds, tokens, strict=True)
            # An answer of EOS alone has no decoded token.
            return [seconds / max(1, count) for seconds, count in counts]
        totals = zip(self.first_token_seconds or (), self.decode_seconds, strict=True)
        tokens = self.generated_tokens or ()
        return [sum(seconds) / count for seconds, count in zip(totals, tokens, strict=True)]

    @property
    def tokens_per_second(self) -> float | None:
        """The decoded tokens per second, summed over the batch: the median of the pairs."""
        if not self.decoded_tokens:
            return None
        counts = zip(self.decoded_tokens, self.decode_seconds, strict=False)
        return median(tokens / seconds for tokens, seconds in counts)


class Unit(Section):
    """Consecutive timed pairs, and the state of the machine at that time."""

    pairs: KnownCount
    began: Text = None  # time (UTC)
    bytes_per_second: Positive = None  # at which the machine read memory


class Pairs(Section):
    """Both sides of timed pairs, or the strategy's alone, and the units to which they belong."""

    strategy: Side
    full: Side | None = None
    units: tuple[Unit, ...] = ()
    precision: Positive = None  # asked for: the share that the interval may reach to each side

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        """Refuse lists with another number of values than there are pairs."""
        count = len(self.strategy.decode_seconds)
        for side in filter(None, (self.strategy, self.full)):
            # With two sides, `decoded_tokens` is required: a missing list counts as an empty one.
            lists = {"decoded_tokens": ()} if self.full else {}
            lists |= {key: values for key, values in side if isinstance(values, tuple)}
            for key, values in lists.items():
                if len(values) != count:
                    raise UsageError(
                        f"expected {count} values of {key} in pairs, got {len(values)}"
                    )
        return self

    def ratios(self, with_prompt: bool = False) -> list[float]:
        """Return the speedup of each pair, for decoding or `with_prompt`."""
        assert self.full
        sides = zip(self.full.costs(with_prompt), self.strategy.costs(with_prompt), strict=True)
        return [full / strategy for full, strategy in sides]

    def speedup(self, with_prompt: bool = False, confidence: float = CONFIDENCE) -> Interval:
        """Return the speedup with its interval over units."""
        return ratio_interval(self.unit_ratios(with_prompt), confidence)

    @property
    def num_units(self) -> int:
        """The number of units that count."""
        return len(self.unit_ratios()) if self.full else len(self.units)

    def unit_ratios(self, with_prompt: bool = False) -> list[float]:
        """Return the speedup of each unit, the median of its pairs. A pair in which a side decoded
        no token (its answers are EOS alone) does not count, unless all pairs are such. A unit
        without a pair that counts is left out.
        """
        assert self.full
        decoded = self.full.decoded_tokens or (), self.strategy.decoded_tokens or ()
        have_tokens = [all(counts) for counts in zip(*decoded, strict=True)]
        counted = have_tokens if any(have_tokens) else [True] * len(have_tokens)
        ratios = self.ratios(with_prompt)
        medians, start = [], 0
        for unit in self.units:
            of_unit = slice(start, start + unit.pairs)
            start += unit.pairs
            if any(counted[of_unit]):
                medians.append(median(compress(ratios[of_unit], counted[of_unit])))
        return medians

    @property
    def is_precise(self) -> bool:
        """True if the interval reaches at most `precision` of the speedup to each side, or if the
        strategy was timed alone or no precision was asked for.
        """
        if self.full is None or self.precision is None:
            return True
        value, _, high = self.speedup()  # the upper end is the farther one (an interval of logs)
        return self.num_units >= UNITS and (high or math.inf) <= value * (1 + self.precision)

    def speedups(self) -> JsonObject:
        """Return the values of a row that are computed from the pairs of both sides."""
        if self.full is None:
            return {}
        total = self.speedup(with_prompt=True)
        return self.speedup().row("measured_speedup") | total.row("end_to_end_speedup")


class Packages(Section):
    """The versions of packages; every report names two."""

    model_config = ConfigDict(extra="allow")

    torch: str
    transformers: str


class Environment(Section):
    """The code and the machine of a run."""

    ulskip: str
    git_commit: Text = None
    git_dirty: Flag = None
    packages: Packages
    accelerator: Text = None
    processor: Text = None
    threads: KnownCount
    instruction_set: Text = None
    python: Text = None
    platform: Text = None

    @property
    def version(self) -> str:
        """The version of the code and its commit."""
        commit = self.git_commit[:10] if self.git_commit else "no commit"
        return f"{self.ulskip} at {commit}{' (modified)' if self.git_dirty else ''}"

    @property
    def machine(self) -> str:
        """The processor or accelerator and the number of threads, which decide times."""
        chip = f"{self.processor}, {self.threads} threads, {self.instruction_set}"
        return self.accelerator or chip


class Settings(Section):
    """The settings that identify a run; they are equal whether it finished or failed."""

    id: Name = described("hash of configuration, data and weights", default=...)
    command: Literal["run", "bench", "lm-eval"] = described(
        "`run` (also for a sweep), `bench` or `lm-eval`", default="run"
    )
    baseline_id: Name | None = described("row of the baseline")
    config: StoredConfig = described("used settings that differ from the defaults", default=...)
    dataset: Text = described("data of the task", detected=True)
    correction: CorrectionUsed | None = described(
        "[patches or adapter](adapters.md), and how they were made"
    )
    chat: Flag = described("true if prompts used the chat template", detected=True)

    @classmethod
    def of(cls, config: Config, run_id: str, command: str = "run", **known: object) -> Self:
        """Return the settings of a point, which are stored also if its run fails. `known` has those
        that do not follow from the configuration.
        """
        correction, used = config.correction, None
        if correction.label:  # a run replaces it by the values of its fit or its adapter
            used = CorrectionUsed(name=correction.name, kind=getattr(correction, "kind", None))
        stored = StoredConfig.of(config, command)
        point = {"id": run_id, "command": command, "config": stored, "correction": used}
        return cls.model_validate(point | known)

    @field_validator("config", mode="plain")
    @classmethod
    def _read_config(cls, values: object) -> StoredConfig:
        if not isinstance(values, StoredConfig | dict):
            raise UsageError(f"expected config to be a JSON object, got {str(values)[:60]!r}")
        return values if isinstance(values, StoredConfig) else StoredConfig.read(values)

    @field_serializer("config")
    def _write_config(self, config: StoredConfig) -> JsonObject:
        return config.non_defaults()

    def uses(self, key: str) -> bool:
        """Return True if the run used a key of the configuration."""
        return self.config.uses(key, self.command)

    @property
    def identity(self) -> str:
        """A hash of the settings, without data and weights."""
        return self.config.identity(self.command)

    @property
    def model(self) -> str:
        """The hub id, folder or shape of the model, or the name of its preset."""
        return self.config.model.label

    @property
    def pair(self) -> Text:
        """The language pair of a translation."""
        return getattr(self.config.task, "pair", None) if self.uses("task") else None

    @property
    def decoding(self) -> str:
        """The name of the decoding."""
        return self.config.decoding.name

    @property
    def strategy(self) -> str:
        """The name of the strategy."""
        return self.config.strategy.name

    @property
    def draft_tokens(self) -> int:
        """The largest number of drafts per check; 0 without drafts."""
        return self.config.decoding.draft_tokens

    @property
    def batch_size(self) -> int:
        """The number of sequences decoded together."""
        return self.config.batch_size

    @property
    def prompt_layers(self) -> str:
        """The layers that encode the prompt, `all`, `kept` or `first:K`."""
        return self.config.prompt_layers

    @property
    def target_speedup(self) -> Ratio:
        """The requested ratio: 1 for the full model, None for a strategy that has its own."""
        if self.uses("ratio"):
            return self.config.ratio
        return 1.0 if self.config.strategy.keeps_all else None


# Settings that a row repeats under one name each, for readers of the file and of `--json`. The
# program reads `config` alone.
REPEATED = (
    *("model", "task", "pair", "strategy", "target_speedup", "decoding", "draft_tokens"),
    *("batch_size", "prompt_layers"),
)


class ScheduleUsed(Section):
    """The layers that ran, and the speedup that the cost model predicts for them."""

    num_layers: Whole = described("layers of the model", ge=1, le=100_000)
    kept_layers: Layers = described("layers that every step runs, or the first stage")
    later_stages: tuple[StageUsed, ...] = described(
        "first step and layers of later stages", default=()
    )
    target_kept_layers: Positive = described("requested mean number of layers")
    mean_kept_layers: Positive = described(
        "mean layers in the timed pairs, and in the evaluated answers"
    )
    evaluated_mean_kept_layers: Positive = described(
        "mean layers in the timed pairs, and in the evaluated answers"
    )
    layer_ratio: Positive = described("`num_layers` divided by the mean number of kept layers")
    predicted_speedup: Ratio = described(
        f"{GLOSSARY}; none with drafts, or if the baseline is in another engine"
    )
    calibration: JsonObject | None = described(
        "id, examples, options and notes of the [calibration](strategies.md#calibration)"
    )


class Timing(Section):
    """Timed pairs of the full model and the strategy: speedups with intervals, seconds, KV cache
    bytes.
    """

    measured_speedup: Ratio = described(GLOSSARY)
    measured_speedup_low: Ratio = described("lower end of its 95% interval over units")
    measured_speedup_high: Ratio = described("upper end of its interval")
    end_to_end_speedup: Ratio = described("the same, prefill included")
    end_to_end_speedup_low: Ratio = described("lower end of its interval")
    end_to_end_speedup_high: Ratio = described("upper end of its interval")
    pairs: Pairs | None = described(
        "raw values of each pair and of its `units`, and the machine's read rate"
    )
    timed_batch_size: Count = described(
        "smaller than `batch_size` if a batch did not fit into memory"
    )
    other_cpus: Rate = described("mean number of CPUs used by other processes")
    prefill_seconds: Number = described("medians per batch")
    time_to_first_token_seconds: Number = described("medians per batch")
    time_per_output_token_seconds: Positive = described("medians per batch")
    prompt_kv_bytes: Count = described("size of the prompt's KV cache, of all and of kept layers")
    kept_kv_bytes: Count = described("size of the prompt's KV cache, of all and of kept layers")
    step_bytes: Count = described("bytes that a step halfway through the answer reads")


# One field for each number of a metric, e.g. `bleu`.
_FIELDS: Any = {key: (Number, described(metrics.ROW_KEYS[key].title)) for key in METRIC_KEYS}
Scores: type[Section] = create_model("Scores", __base__=Section, **_FIELDS)


class Quality(Scores):  # type: ignore[misc, valid-type]
    """The quality of the answers; each metric of the task has a value under its own key."""

    vs_baseline: dict[str, Compared] = described(
        "per metric: the full model's score, and `delta` with its interval",
        default={},
    )
    decode_loss: Number = described(GLOSSARY)
    decode_loss_mean_kept_layers: Number = described("mean exit depth of `decode_loss`")
    agreement: Share = described(GLOSSARY)
    agreement_low: Share = described("lower end of its 95% bootstrap interval over answers")
    agreement_high: Share = described("upper end of its interval")
    copied_share: Share = described("share of these positions whose token copies the prompt")
    new_agreement: Share = described("agreement on the other tokens")
    new_agreement_low: Share = described("lower end of its interval")
    new_agreement_high: Share = described("upper end of its interval")
    kl_divergence: Number = described(GLOSSARY)
    kl_divergence_low: Number = described("lower end of its interval")
    kl_divergence_high: Number = described("upper end of its interval")
    signatures: dict[str, str] = described("settings of each metric", default={})
    degenerate: dict[str, KnownCount] = described(
        "outputs that are `empty`, end in a `loop`, or reach the maximum length (`hit_limit`)",
        default={},
    )
    length_ratio: Number = described("words of hypotheses, divided by those of references")
    num_truncated_sources: Count = described("sources and references truncated to fit the context")
    num_truncated_references: Count = described(
        "sources and references truncated to fit the context"
    )
    evaluated_batch_size: Count = described(
        "smaller than `batch_size` if a batch did not fit into memory"
    )
    peak_memory_bytes: Count = described(
        "peak of the GPU's allocator or, on a CPU, of the process, without prompts held for scores"
    )


class Throughput(Section):
    """Tokens/s in both conventions, and the counts and seconds from which they are computed."""

    decode_tokens_per_second: Rate = described(
        "generated tokens but the first of each answer, per decode second"
    )
    total_tokens_per_second: Rate = described("the same with the prompt and its seconds")
    throughput_from: Text = described("`evaluation`, or without answers `timed pairs`")
    prompt_tokens: Count = described("tokens and seconds of these rates")
    generated_tokens: Count = described("tokens and seconds of these rates")
    decode_seconds: Number = described("tokens and seconds of these rates")
    total_seconds: Number = described("tokens and seconds of these rates")
    compile_seconds: Number = described("compilation or conversion, excluded from all times")
    acceptance_rate: Share = described("accepted share of drafts; tokens and drafts per check")
    mean_accepted_length: Number = described(
        "accepted share of drafts; tokens and drafts per check"
    )
    mean_draft_length: Number = described("accepted share of drafts; tokens and drafts per check")
    head_rows: Number = described(
        "mean rows of the output head that a greedy choice computes exactly; missing: all"
    )
    exit_depths: dict[Depth, KnownCount] | None = described("tokens by exit depth")
    exit_check_fraction: Number = described("share of decode time in exit checks")


class LmEval(Section):
    """Scores of one task of lm-evaluation-harness; the task of its rows is `lm_eval:NAME`."""

    lm_eval_task: Text = described("name and version of the task", detected=True)
    lm_eval: dict[str, AnyFloat] | None = described("scores by metric, in the harness's units")
    lm_eval_version: Text = described("version of the harness")
    scored_prompt_layers: Text = described(
        "layers that read the context of scored continuations", detected=True
    )
    num_fewshot: Whole = described("examples in the prompt", detected=True)
    task_version: object = described("name and version of the task")
    lm_eval_options: JsonObject | None = described(
        "other options that change the answers", detected=True
    )


class Provenance(Section):
    """Everything that a result depends on besides its settings: engine, device, weights,
    environment.
    """

    finished_at: Text = described("time of the end (UTC)")
    engine: Text = described("engine that decoded, e.g. `torch` or `transformers`", detected=True)
    engine_reason: Text = described("why another engine than `torch` decoded")
    engine_weights: Text = described("format of the weights in another library", detected=True)
    engine_build: JsonObject | None = described(
        "package, version, instruction sets and threads of that library"
    )
    linear_backend: Text = described(
        "`native` (a step is one call), `panels` (our products) or `torch`"
    )
    linear_backend_reason: Text = described("why decoding on a CPU is not `native`")
    device: Text = described("of the weights", detected=True)
    dtype: Text = described("of the weights", detected=True)
    quantization: Text = described("of the weights", detected=True)
    training: Text = described("how the weights were trained")
    trained_for: JsonObject | None = described(
        "strategy, ratios, layers, `prompt_layers` and examples of the training"
    )
    trained_for_these_layers: Flag = described(
        "true if this row's layers were trained, with its `prompt_layers`"
    )
    num_examples: Count = described("evaluated examples", detected=True)
    environment: Environment | None = described(
        "versions, git commit, processor, threads, instruction set, accelerator"
    )


class Outcome(Section):
    """How a run ended."""

    status: Literal["done", "n/a", "failed"] = described("`done`, `n/a` or `failed`", default=DONE)
    reason: Text = described("why there is no result, and the file with the traceback")
    log: Text = described("why there is no result, and the file with the traceback")
    wall_seconds: Number = described("duration, with interrupted attempts")
    warnings: tuple[str, ...] = described(
        "differences between the requested and the actual run", default=()
    )


class Record(Outcome, Provenance, LmEval, Throughput, Quality, Timing, ScheduleUsed, Settings):
    """The record of one run. A failed or inapplicable run has a reason and no measurements."""

    folder: str = Field("", exclude=True)  # from which a report read it

    @classmethod
    def joined(cls, *sections: Section) -> Self:
        """Join the sections that a run made."""
        return cls.model_validate({key: item for section in sections for key, item in section})

    def to_row(self) -> Row:
        """Return the record as a JSON object, without values that do not apply."""
        repeated = {key: item for key in REPEATED if (item := getattr(self, key)) is not None}
        row = self.model_dump(mode="json", exclude_none=True)
        return {"id": row.pop("id"), **repeated, **row}

    @property
    def scores(self) -> dict[str, float]:
        """The values of the metrics: those that the task names come first, in its order."""
        named = list(dict.fromkeys([*self.config.task.metrics, *metrics.METRICS]))
        keys = sorted(METRIC_KEYS, key=lambda key: named.index(metrics.METRIC_OF[key].name))
        return {key: score for key in keys if (score := self.value(key)) is not None}

    @property
    def primary(self) -> Text:
        """The key of the primary metric: the first that the task names, or else the decode loss,
        or without references the agreement with the full model.
        """
        named = (metrics.METRIC_OF[key].primary for key in self.scores)
        keys = (*named, metrics.DECODE_LOSS.key, metrics.AGREEMENT.key)
        return next((key for key in keys if self.value(key) is not None), None)

    @property
    def quality_share(self) -> Interval | None:
        """The kept share of the full model's primary score, which can exceed 1. Without a
        comparison it is 1 for the full model and None for others. Fewer than `MIN_FOR_STARS`
        examples have no interval, because a bootstrap over so few has no power.
        """
        metric = self.primary or ""
        score, compared = self.value(metric), self.vs_baseline.get(metric)
        if compared is None:
            return Interval(1.0) if score and self.keeps_all else None
        full = compared.full
        if not full:
            return None
        ends = () if self.has_few_examples else (compared.delta_low, compared.delta_high)
        scores, most = Interval(score, *(full + end for end in ends)), HIGHEST_SCORE / full
        return scores.through(lambda score: max(0.0, min(score / full, most, MAX_SHARE)))

    @property
    def task(self) -> Text:
        """The name of the task, or None if the command reads no task."""
        if self.lm_eval_task:
            return f"lm_eval:{self.lm_eval_task}"
        return self.config.task.name if self.uses("task") else None

    @property
    def is_done(self) -> bool:
        """True for a finished run."""
        return self.status == DONE

    @property
    def keeps_all(self) -> bool:
        """True for the full model without drafts, which reads prompts with all layers."""
        return self.strategy == "full" and not self.draft_tokens and not self._reads_first

    @property
    def _reads_first(self) -> bool:
        return first_layer_count(self.prompt_layers) is not None

    @property
    def is_own_baseline(self) -> bool:
        """True if the full model was timed against itself, which shows noise alone."""
        has_all = self.num_layers and len(self.kept_layers or ()) == self.num_layers
        others = self.draft_tokens, self.later_stages, self.exit_depths
        return bool(has_all) and not (self.config.crosses_engines or any(others))

    @property
    def summary(self) -> str:
        """The kept layers as text, e.g. `6 of 12 layers`."""
        return f"{self.depth} of {self.num_layers} layers"

    @property
    def label(self) -> str:
        """The strategy with its correction and its drafts, e.g. `unified + full patch`."""
        correction = f" + {self.correction.label}" if self.correction else ""
        reads = f" + prompt_layers={self.prompt_layers}" * self._reads_first
        label = f"{self.strategy}{self._skipped}{correction}{reads}"
        if not self.draft_tokens:
            return label
        drafts = "n-gram drafts" if self.config.decoding.draft == "ngram" else "4-bit drafts"
        return drafts if self.strategy == "full" else f"{label} with {drafts}"

    @property
    def _skipped(self) -> str:
        """The layers that a custom strategy skips, if they are fewer than the kept ones, e.g.
        ` without 3-5, 9`.
        """
        kept = self.kept_layers or ()
        skipped = sorted({*range(self.num_layers or 0)} - {*kept})
        if self.strategy != "custom" or not 0 < len(skipped) < len(kept):
            return ""
        ranges = ((start, end - 1) for start, end in layer_ranges(skipped))
        texts = [f"{start}" if start == last else f"{start}-{last}" for start, last in ranges]
        return f" without {', '.join(texts)}"

    @property
    def speedup(self) -> Interval | None:
        """The measured speedup, with its interval if verdicts can rely on it."""
        return self._ratio("measured_speedup")

    @property
    def with_prompt(self) -> Interval | None:
        """The measured speedup of prefill and decode together, like `speedup`."""
        return self._ratio("end_to_end_speedup")

    def _ratio(self, key: str) -> Interval | None:
        """Return the speedup of a key, without an interval if fewer than `UNITS` units count. Of a
        full model that was timed against itself it is 1.
        """
        if self.value(key) is None:
            return None
        if self.is_own_baseline:
            return Interval(1.0)
        has_few = self.pairs is not None and self.pairs.num_units < UNITS
        ends = (None if has_few else self.value(f"{key}_{end}") for end in ("low", "high"))
        return Interval(self.value(key), *ends)

    @property
    def decoded_by(self) -> str:
        """The engine and the format of its weights."""
        return " ".join(filter(None, [self.engine, self.engine_weights]))

    @property
    def full_engine(self) -> Text:
        """The engine of the full model in the timed pairs, if it is another one."""
        full = self.pairs.full if self.pairs and self.config.crosses_engines else None
        return full.engine if full else None

    @property
    def depth(self) -> str:
        """The number of layers of a decode step; if it varies between steps, its mean over the
        evaluated answers.
        """
        mean = self.evaluated_mean_kept_layers or self.mean_kept_layers
        varies = mean is not None and (self.later_stages or self.exit_depths)
        return f"{mean:.1f}" if varies else str(len(self.kept_layers or ()))

    @property
    def has_two_depths(self) -> bool:
        """True if the timed answers and the evaluated ones ran different mean depths, so that speed
        and quality do not belong together: the depth varies, and the answers differ in length.
        """
        timed, evaluated = self.mean_kept_layers, self.evaluated_mean_kept_layers
        if not timed or not evaluated:
            return False
        return abs(timed - evaluated) > DEPTH_TOLERANCE * evaluated

    @property
    def has_few_examples(self) -> bool:
        """True if there are too few examples for a significance test; an unknown number counts as
        enough.
        """
        return 0 < (self.num_examples or 0) < MIN_FOR_STARS

    def is_from_here(self, *also: str, quick: bool = False) -> bool:
        """Return True if the record was measured on a machine like this one; `also` names further
        facts of the environment that must agree. `quick` compares processors alone, which needs no
        torch.
        """
        where = self.environment
        if quick or where is None:
            return where is not None and where.processor == environment.processor()
        here = environment.machine(self.device or "cpu")
        return all(getattr(where, key) == here[key] for key in (*environment.MACHINE, *also))

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Refuse values that contradict one another, or that need another value."""
        for key, needed in _NEEDS.items():
            missing = [companion for companion in needed.split() if self.value(companion) is None]
            if self.value(key) is not None and missing:
                raise UsageError(f"expected the key {missing[0]} beside {key}, got none")
        for kept in (self.kept_layers, *(stage.kept_layers for stage in self.later_stages)):
            highest = max(kept or (0,))
            if self.num_layers and highest >= self.num_layers:
                raise UsageError(
                    f"expected kept_layers below num_layers={self.num_layers}, got {highest}"
                )
        return self


_NEEDS = {  # keys without which the value of another key means nothing
    "kept_layers": "num_layers layer_ratio",
    "measured_speedup": "measured_speedup_low measured_speedup_high",
}


DETECTED = tuple(
    key
    for key, field in Record.model_fields.items()
    if field.json_schema_extra == {"detected": True}
)


def read(line: str | bytes) -> Record:
    """Read a row; keys of later versions are left out. Raises UsageError, which names the key that
    does not fit, or says that the line is damaged.
    """
    try:
        return _parse(line)
    except (UsageError, ValidationError) as error:
        reason: object = error
        if isinstance(error, ValidationError):
            reason = "expected a JSON object, got a line that is damaged or cut off"
            location = error.errors(include_url=False)[0]["loc"]
            if location:  # empty if the line is no JSON object at all
                reason = misfit(Record, error)
        raise UsageError(f"{reason}; repeat the run") from None


def _parse(line: str | bytes) -> Record:
    """Read a row; if it has unknown keys, leave them out and read it again."""
    validate = Record.model_validate_json  # JSON mode: a list is a tuple
    try:
        return validate(line, strict=True)
    except ValidationError as error:
        unknown = [part["loc"] for part in error.errors() if part["type"] == "extra_forbidden"]
        if not unknown:
            raise
    values = json.loads(line)
    for *sections, key in unknown:  # e.g. ("environment", "unknown_key")
        section = values
        for part in sections:
            section = section[part]
        del section[key]
    return validate(json.dumps(values), strict=True)
