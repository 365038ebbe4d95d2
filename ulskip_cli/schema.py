"""What a configuration may hold: keys, types and defaults. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

AUTO = "auto"


@dataclass
class ModelConfig:
    """Which weights, and how they are held. `configs/model/`."""

    name: str = MISSING
    description: str = ""
    source: str = MISSING
    path: str = MISSING
    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    device_map: str | None = None
    quantization: str | None = None
    adapter: str | None = None
    chat_options: dict[str, Any] | None = None


@dataclass
class DecodingConfig:
    """How tokens are chosen. `configs/decoding/`."""

    name: str = MISSING
    description: str = ""
    num_beams: int = 1
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 64
    stop: list[str] = field(default_factory=list)
    engine: str = "auto"
    compile: str = "auto"
    options: dict[str, Any] | None = None
    draft_tokens: int | str = 0


@dataclass
class SpeedConfig:
    """How speed is measured: pairs of full and strategy on the same prompts."""

    enabled: bool = True
    pairs: int = 7
    warmup: int = 2
    new_tokens: int = 32
    prompt_tokens: int = 64


@dataclass
class CalibrationConfig:
    """The held-out examples that some strategies measure on before they decide."""

    examples: int = 64
    task: dict[str, Any] | None = None


@dataclass
class LauncherConfig:
    """What runs the points of a sweep. `configs/launcher/`."""

    name: str = "inline"
    description: str = ""
    workers: int | None = None
    threads: int | None = None
    deaths: int = 3
    executor: str = "auto"
    options: dict[str, Any] | None = None
    address: str | None = None


@dataclass
class Config:
    """One experiment. `task` and `strategy` are checked by the classes that they name."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    name: str = "default"
    results_dir: str = "results"
    ratio: float = 2.0
    ratio_basis: str = "layers"
    prompt_layers: str = "all"
    batch_size: int = 8
    limit: int | None = None
    seed: int = 1
    baseline: bool = True
    memory: str | None = None
    sweep: dict[str, Any] = field(default_factory=dict)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)


@dataclass
class LoraOptions:
    """Low-rank adapters on the linear layers, merged into the weights at the end."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = "all-linear"


@dataclass
class TrainOptions:
    """How to train with skipping. `configs/train/`."""

    name: str = MISSING
    description: str = ""
    ratios: list[float] = field(default_factory=lambda: [2.0])
    ratio_weights: list[float] | None = None
    ce_weight: float = 1.0
    full_weight: float = 0.0
    distill_weight: float = 0.0
    teacher: str = "self"
    label_smoothing: float = 0.0
    dropout: float = 0.0
    method: str = "full"
    lora: LoraOptions = field(default_factory=LoraOptions)
    freeze_embeddings: bool = False
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 16
    accumulation: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    scheduler: str = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: str = "float32"
    attention: str | None = None
    max_length: int | None = 512
    vocab_size: int = 8000
    reversed_share: float = 0.0
    validation: dict[str, Any] | None = None
    held_out: int = 0
    evaluate_every: int | None = None
    save_every: int = 500
    log_every: int = 50
    arguments: dict[str, Any] | None = None


@dataclass
class TrainingConfig:
    """One training: the weights to start from, the task's examples, the strategy to train for."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    train: TrainOptions = field(default_factory=TrainOptions)
    output: str = MISSING
    prompt_layers: str = "all"
    limit: int | None = None
    seed: int = 1
