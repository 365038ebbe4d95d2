"""Checks of a configuration that need no model: values that depend on other values. Combinations
are in `capabilities.py`.
"""

from ulskip_cli.core import capabilities
from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.config_schema import (
    STARTS,
    Config,
    DecodingConfig,
    TrainingConfig,
)
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.tracking import check_installed

ADAPTER_KEYS = (
    "start",
    "tv_weight",
    "gap_weight",
    "draft_length",
)  # of train, for train.method=adapter alone

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "meta")  # types of torch


def check_run(config: Config, command: str) -> None:
    """Raise UsageError for values that another value makes invalid, or NotApplicable for needs that
    are not supported.
    """
    check_decoding(config.decoding)
    check_installed(config.tracker)
    _check_device(config.model.device)
    needs = config.needs()
    capabilities.check(needs, command)
    config.engine.check(needs)


def check_decoding(decoding: DecodingConfig) -> None:
    """Raise UsageError for sampling options without sampling."""
    changed = decoding.changed().keys() & {"temperature", "top_p", "top_k"}
    if changed and not decoding.do_sample:
        raise UsageError(
            f"decoding.{min(changed)} requires sampling; add decoding.do_sample=true or use"
            " decoding=sample"
        )


def _check_device(device: str) -> None:
    if device.partition(":")[0] not in DEVICES:
        raise UsageError(
            f"expected model.device to be {', '.join(DEVICES)} or cuda:NUMBER, got '{device[:80]}';"
            " use model.device=auto"
        )


def check_training(config: TrainingConfig) -> None:
    """Raise UsageError for values of a training that another value makes invalid."""
    check_installed(config.tracker)
    _check_device(config.model.device)
    capabilities.check(config.needs(), "train")
    train = config.train
    adapter_weights = (train.tv_weight, train.gap_weight)
    if not any((train.ce_weight, train.full_weight, train.distill_weight, *adapter_weights)):
        raise UsageError(
            "expected train.ce_weight, train.full_weight or train.distill_weight > 0, got 0 for all"
        )
    weights = train.ratio_weights
    if weights is not None and (len(weights) != len(train.ratios) or not sum(weights)):
        raise UsageError(
            f"expected {len(train.ratios)} train.ratio_weights, one per ratio and not all 0, got"
            f" {list(weights)}"
        )
    if train.validation and train.held_out:
        raise UsageError("expected train.validation or train.held_out, got both; set one of them")
    if train.responses != "reference" and config.model.source == "random":
        raise UsageError(
            "answers of model=random are no training data; use train.responses=reference"
        )
    if train.method == "adapter":
        _check_adapter_training(config)
        return
    if not train.lora.rank:
        raise UsageError("train.lora.rank=0 trains nothing without patches; use train.lora.rank=16")
    changed = [f"train.{key}" for key in train.changed() if key in ADAPTER_KEYS]
    changed += [f"correction.{key}" for key in config.correction.changed()]
    if changed:
        raise UsageError(
            f"{changed[0]} is not supported with train.method={train.method}; use train=adapter"
        )


def _check_adapter_training(config: TrainingConfig) -> None:
    train, kind, needs = config.train, config.correction.kind, config.needs()
    refused = {
        "model=random, whose weights no later run has; use pretrained weights": (
            Need.RANDOM_WEIGHTS in needs
        ),
        "prompt_layers=kept; use prompt_layers=all": Need.KEPT_PROMPT in needs,
        f"strategy={config.strategy.name}, whose steps end at any layer; use train.method=lora": (
            Need.EARLY_EXIT in needs
        ),
        "1 in train.ratios, because the full model stays unchanged; leave out 1": 1 in train.ratios,
        "train.full_weight, because the full model stays unchanged; use train.full_weight=0": (
            train.full_weight > 0
        ),
        "train.dropout; use train.lora.dropout": train.dropout > 0,
        "train.label_smoothing; use train.label_smoothing=0": train.label_smoothing > 0,
        "train.freeze_embeddings, which it never trains; use train.freeze_embeddings=false": (
            train.freeze_embeddings
        ),
        "train.optimizer=muon; use train.optimizer=adamw": train.optimizer != "adamw",
        "correction.kind=folded and several train.ratios; train one adapter per ratio": (
            kind == "folded" and len(train.ratios) > 1
        ),
        f"train.start={train.start}, which is no folder with adapter.json; "
        "use train.start=patch, zero or such a folder": (
            train.start not in STARTS
            and not (user_path(train.start, "train.start") / "adapter.json").is_file()
        ),
        "correction.kind=folded and train.start=zero; use train.start=patch": (
            kind == "folded" and train.start == "zero"
        ),
    }
    for reason, applies in refused.items():
        if applies:
            raise UsageError(f"train.method=adapter is not supported with {reason}")
    if not train.lora.rank and kind in ("none", "folded"):
        raise UsageError(
            f"correction.kind={kind} with train.lora.rank=0 trains nothing; use train.lora.rank=16"
        )
