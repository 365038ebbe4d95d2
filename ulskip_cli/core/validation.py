"""Checks of a configuration that need no model: values that depend on other values. Combinations
are in `capabilities.py`.
"""

from ulskip_cli.core import capabilities
from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.config_schema import Config, DecodingConfig, TrainingConfig
from ulskip_cli.core.correction import KINDS
from ulskip_cli.core.errors import UsageError

# Options of train that have no effect with a train.method.
FOREIGN_KEYS = {
    "full": {"start", "gap_weight", "lora"},
    "lora": {"start", "gap_weight"},
    "adapter": {"freeze_embeddings"},
}

DEVICES = ("auto", "cpu", "cuda", "mps")  # others are looked up in torch, whose import takes time


def check_run(config: Config, command: str) -> None:
    """Raise UsageError for values that another value makes invalid, or NotApplicable for needs that
    are not supported.
    """
    check_decoding(config.decoding)
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
    if device.partition(":")[0] in DEVICES:
        return
    import torch

    try:
        torch.device(device)
    except RuntimeError:
        raise UsageError(
            f"expected model.device to be {', '.join(DEVICES)}, cuda:NUMBER or another device of"
            f" torch, got '{device[:80]}'; use model.device=auto"
        ) from None


def check_training(config: TrainingConfig) -> None:
    """Raise UsageError for values of a training that another value makes invalid."""
    _check_device(config.model.device)
    needs = config.needs()
    capabilities.check(needs, "train")
    train, kind = config.train, KINDS[config.correction.kind]
    trains_adapter = train.method == "adapter"
    _, _, index = config.model.device.partition(":")
    changed = [f"train.{key}" for key in train.changed() if key in FOREIGN_KEYS[train.method]]
    if not trains_adapter:
        changed += [f"correction.{key}" for key in config.correction.changed()]
    refused = {  # by message: true if it applies
        # gap_weight, which only adapters have, is enough too
        "expected train.ce_weight or train.distill_weight > 0, got 0": not (
            train.ce_weight + train.distill_weight + train.gap_weight
        ),
        f"expected train.ratios without repetitions, got {list(train.ratios)}": (
            len({*train.ratios}) < len(train.ratios)
        ),
        "expected train.validation or train.held_out, got both; set one of them": (
            train.validation and train.held_out
        ),
        f"expected model.device=cuda to train, got {config.model.device}; choose the GPU by"
        f" CUDA_VISIBLE_DEVICES={index}": index not in ("", "0"),
        "train.own requires own answers; add train.responses=own or both": (
            train.responses == "reference" and train.own.changed()
        ),
        f"train.method={train.method} does not support {', '.join(changed)}": changed,
        "train.lora.rank=0 trains nothing without patches that are not folded; use"
        " train.lora.rank=16": (
            train.method != "full"
            and not train.lora.rank
            and not (trains_adapter and kind.takes_time)  # a patch that is not folded takes time
        ),
    }
    for_adapters = {  # continues "train.method=adapter does not support"
        "prompt_layers=kept; use prompt_layers=all": Need.KEPT_PROMPT in needs,
        "strategy=full, which skips no layers; use another": config.strategy.keeps_all,
        f"strategy={config.strategy.name}, whose steps end at any layer; use train.method=lora": (
            Need.EARLY_EXIT in needs
        ),
        "1 in train.ratios, because the full model stays unchanged; leave out 1": 1 in train.ratios,
        f"correction.kind={kind.name} and several train.ratios or strategies with other layers at"
        " later positions; train one adapter per ratio, or use correction.kind=full": (
            kind.is_folded and (len(train.ratios) > 1 or Need.STAGES in needs)
        ),
    }
    for reason, applies in for_adapters.items():
        refused[f"train.method=adapter does not support {reason}"] = trains_adapter and applies
    refused[
        f"train.distill_weight is not supported with strategy={config.strategy.name}, which trains"
        " every exit; set train.distill_weight=0"
    ] = config.strategy.exits_early and train.distill_weight > 0
    for message, is_wrong in refused.items():
        if is_wrong:
            raise UsageError(message)
