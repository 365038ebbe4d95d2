"""Checks of a configuration that need no model: bounds, choices, and combinations of values."""

import math
import operator
from dataclasses import fields, is_dataclass
from typing import Any

from ulskip_cli.core.config_schema import AUTO, COMPILED, LAYER, STARTS, Config, DecodingConfig, TrainingConfig, TrainOptions
from ulskip_cli.core.engines import ENGINES, require_packages
from ulskip_cli.core.errors import NotApplicable, UsageError, require_choice
from ulskip_cli.core.files import user_path
from ulskip_cli.core.tracking import check_installed

ADAPTER_KEYS = (
    *("patch", "patch_rank", "patch_learning_rate", "patch_examples", "start"),
    *("responses", "own", "prompt_share", "on_policy"),
)
LIMITS = {
    "minimum": (operator.ge, ">="),
    "above": (operator.gt, ">"),
    "maximum": (operator.le, "<="),
    "below": (operator.lt, "<"),
}


def check_fields(config: Any, prefix: str = "") -> None:
    """Raise UsageError for values outside the choices and limits of the schema, in a config and its parts."""
    for one in fields(config):
        key, value = f"{prefix}{one.name}", getattr(config, one.name)
        if is_dataclass(value):
            check_fields(value, f"{key}.")
        elif value is not None and one.metadata:
            if one.metadata["choices"]:
                require_choice(key, value, one.metadata["choices"])
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise UsageError(f"expected {key} to be a finite number, got {number}")
            for name, limit in one.metadata["limits"].items():
                holds, sign = LIMITS[name]
                if not holds(value, limit):
                    raise UsageError(f"expected {key} {sign} {limit}, got {str(value)[:80]}")


def check_run(config: Config) -> None:
    """Raise UsageError for invalid values of a run, or NotApplicable for valid values that are incompatible."""
    _check_shared(config)
    _check_decoding_together(config.decoding)
    _check_drafts(config)
    _check_patches(config)
    _check_unit(config)
    _check_engine(config)
    if not config.name or set(config.name) & set("/\\\0") or config.name.startswith("."):
        raise UsageError(f"expected name to be a folder name without slashes or a leading dot, got '{config.name}'")


def check_training(config: TrainingConfig) -> None:
    """Raise UsageError for invalid values of a training configuration."""
    _check_shared(config)
    train = config.train
    for key in ("quantization", "device_map"):
        if getattr(config.model, key) is not None:
            raise UsageError(
                f"model.{key} is not supported by ulskip train, which needs unquantized weights on one device; "
                f"use model.{key}=null"
            )
    if not train.ratios:
        raise UsageError("expected at least one number in train.ratios, got none; e.g. train.ratios=[1,2]")
    if not train.ce_weight + train.full_weight + train.distill_weight:
        raise UsageError("expected train.ce_weight, train.full_weight or train.distill_weight > 0, got 0 for all")
    if train.ratio_weights is not None and (
        len(train.ratio_weights) != len(train.ratios) or min(train.ratio_weights) < 0 or not sum(train.ratio_weights)
    ):
        raise UsageError(
            f"expected {len(train.ratios)} train.ratio_weights >= 0, one per ratio and not all 0, got {train.ratio_weights}"
        )
    if train.validation and train.held_out:
        raise UsageError("expected train.validation or train.held_out, got both; set one of them")
    if config.strategy.get("patch", "none") != "none":
        raise UsageError("strategy.patch is not supported by ulskip train; use train=adapter train.patch=KIND")
    if (unit := config.strategy.get("unit", LAYER)) != LAYER:
        raise UsageError(f"strategy.unit={unit} is not supported by ulskip train, which trains whole layers; use unit={LAYER}")
    if config.model.skip_adapter:
        raise UsageError("model.skip_adapter is not supported by ulskip train, which starts from the model; leave it out")
    if train.method == "adapter":
        _check_adapter_training(config)
    elif not train.lora.rank:
        raise UsageError("train.lora.rank=0 trains nothing without patches; use train.lora.rank=16")
    else:
        for key in ADAPTER_KEYS:
            default = getattr(TrainOptions(), key)
            if getattr(train, key) != default:
                raise UsageError(f"train.{key} is not supported with train.method={train.method}; use train=adapter")


def _check_adapter_training(config: TrainingConfig) -> None:
    train = config.train
    refused = {
        "model=random, whose weights no later run has; use pretrained weights": config.model.source == "random",
        "prompt_layers=kept; use prompt_layers=all": config.prompt_layers == "kept",
        "1 in train.ratios, because the full model stays unchanged; leave out 1": 1 in train.ratios,
        "train.full_weight, because the full model stays unchanged; use train.full_weight=0": train.full_weight > 0,
        "train.dropout; use train.lora.dropout": train.dropout > 0,
        "train.label_smoothing; use train.label_smoothing=0": train.label_smoothing > 0,
        "train.freeze_embeddings, which it never trains; use train.freeze_embeddings=false": train.freeze_embeddings,
        "train.optimizer=muon; use train.optimizer=adamw": train.optimizer != "adamw",
        "train.patch=folded and several train.ratios; train one adapter per ratio": (
            train.patch == "folded" and len(train.ratios) > 1
        ),
        f"train.start={train.start}, which is no folder with adapter.json; use train.start=patch, zero or such a folder": (
            train.start not in STARTS and not (user_path(train.start, "train.start") / "adapter.json").is_file()
        ),
        "train.patch=folded and train.start=zero; use train.start=patch": train.patch == "folded" and train.start == "zero",
    }
    for reason, found in refused.items():
        if found:
            raise UsageError(f"train.method=adapter is not supported with {reason}")
    if not train.lora.rank and train.patch in ("none", "folded"):
        raise UsageError(f"train.patch={train.patch} with train.lora.rank=0 trains nothing; use train.lora.rank=16")


def check_decoding(decoding: DecodingConfig) -> None:
    """Raise UsageError for invalid values of a decoding configuration."""
    check_fields(decoding, "decoding.")
    _check_decoding_together(decoding)


def _check_decoding_together(decoding: DecodingConfig) -> None:
    if not all(decoding.stop):
        raise UsageError(f"expected decoding.stop to be a list of non-empty strings, got {decoding.stop}")
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    changed = [key for key, default in sampling.items() if getattr(decoding, key) != default]
    if changed and not decoding.do_sample:
        raise UsageError(f"decoding.{changed[0]} requires sampling; add decoding.do_sample=true or use decoding=sample")


def _check_drafts(config: Config) -> None:
    decoding, drafts = config.decoding, config.decoding.draft_tokens
    if drafts != AUTO and (isinstance(drafts, str) or drafts < 0):
        raise UsageError(f"expected decoding.draft_tokens to be a number >= 0 or {AUTO}, got {drafts}; 0 means no drafts")
    vocab = decoding.draft_vocab
    if vocab != AUTO and (isinstance(vocab, str) or vocab < 0):
        raise UsageError(f"expected decoding.draft_vocab to be a number >= 0 or {AUTO}, got {vocab}; 0 means all tokens")
    if not drafts:
        return
    refused = {
        "beam search; set decoding.num_beams=1": decoding.num_beams > 1,
        "stop strings; set decoding.stop=[]": bool(decoding.stop),
        "arguments of transformers' generate; set decoding.generate_kwargs=null": bool(decoding.generate_kwargs),
        "compiled steps; set decoding.compile=auto": decoding.compile in COMPILED,
        "prompt_layers=kept, because all layers verify the drafts; set prompt_layers=all": config.prompt_layers == "kept",
        "ratio_basis=latency, which times steps without drafts; set ratio_basis=cost": config.ratio_basis == "latency",
    }
    for reason, found in refused.items():
        if found:
            raise NotApplicable(f"decoding.draft_tokens={drafts} is incompatible with {reason}, or decoding.draft_tokens=0")


def _check_engine(config: Config) -> None:
    name, weights, spec, decoding = config.engine.name, config.engine.weights, ENGINES[config.engine.name], config.decoding
    if weights is not None and not spec.is_runtime:
        raise UsageError(f"engine.weights={weights} is not supported with engine={name}; use model.dtype or model.quantization")
    if weights is not None:
        require_choice("engine.weights", weights, spec.weights)
    patch = config.strategy.get("patch", "none")
    refused = {"decoding.draft_tokens; use engine=auto": bool(decoding.draft_tokens) and name not in ("auto", "torch")}
    if spec.is_runtime:
        refused |= {
            "beam search; use engine=transformers": decoding.num_beams > 1,
            "stop strings; use engine=transformers": bool(decoding.stop),
            "decoding.generate_kwargs; use engine=transformers": bool(decoding.generate_kwargs),
            f"decoding.compile={decoding.compile}; use decoding.compile=auto": decoding.compile in COMPILED,
            f"strategy.patch={patch}, only with folded ones; use strategy.patch=folded": patch not in ("none", "folded"),
            "model.quantization; use engine.weights": bool(config.model.quantization),
            "model.device_map; use engine=torch": bool(config.model.device_map),
            "sampling; use decoding.do_sample=false": decoding.do_sample and name == "vllm",
            "ratio_basis=latency; use ratio_basis=cost": config.ratio_basis == "latency" and spec.has_one_depth,
        }
    for reason, found in refused.items():
        if found:
            raise NotApplicable(f"engine={name} is not supported with {reason}")
    require_packages(name)


def _check_patches(config: Config) -> None:
    kind = config.strategy.get("patch", "none")
    if kind != "none" and config.model.skip_adapter:
        raise NotApplicable(
            f"strategy.patch={kind} is not supported with model.skip_adapter, which has patches of its own; set one of them"
        )
    if kind == "bias" and not config.calibration.patch_centered:
        raise NotApplicable("strategy.patch=bias consists of a bias alone; use calibration.patch_centered=true")
    if kind == "folded" and config.calibration.patch_order == "joint":
        raise NotApplicable("strategy.patch=folded is fitted in order; use calibration.patch_order=sequential")
    if kind == "folded" and config.model.quantization:
        raise NotApplicable(
            "strategy.patch=folded changes weights, which model.quantization does not allow; use strategy.patch=full"
        )


def _check_unit(config: Config) -> None:
    unit, patch = config.strategy.get("unit", LAYER), config.strategy.get("patch", "none")
    if unit == LAYER:
        return
    engine = config.engine.name
    refused = {
        "prompt_layers=kept; use prompt_layers=all": config.prompt_layers == "kept",
        "ratio_basis=latency, which times whole layers; use ratio_basis=cost": config.ratio_basis == "latency",
        f"strategy.patch={patch}; use strategy.patch=none": patch != "none",
        "strategy.search_patch; use strategy.search_patch=false": bool(config.strategy.get("search_patch")),
        "model.skip_adapter, which corrects skipped layers; leave it out": bool(config.model.skip_adapter),
        f"engine={engine}, which runs whole layers; use engine=auto": ENGINES[engine].is_runtime,
    }
    for reason, found in refused.items():
        if found:
            raise NotApplicable(f"strategy.unit={unit} is not supported with {reason}")


def _check_shared(config: Config | TrainingConfig) -> None:
    for group, node in (("task", config.task), ("strategy", config.strategy)):
        if not {"_target_", "name"} <= node.keys():
            raise UsageError(f"expected the keys _target_ and name in the {group} config, got {', '.join(node) or 'none'}")
    check_fields(config)
    check_installed(config.tracker)
    for key in ("quantization", "device_map", "adapter", "skip_adapter"):
        if getattr(config.model, key) and config.model.source == "random":
            raise UsageError(f"model.{key} requires pretrained weights; leave out model.{key} with model=random")
