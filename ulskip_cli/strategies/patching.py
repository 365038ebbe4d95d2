"""Options that strategies which skip layers share: the skipped unit and patches at gaps; and the bytes of the patches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ulskip_cli.core.adapter_record import adapter_records
from ulskip_cli.core.config_schema import ATTENTION, LAYER, MLP, PATCHES, UNITS, Config, option
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.validation import check_fields

NO_PATCH = "none"
UNIT_NAMES = {LAYER: "layers", ATTENTION: "attentions", MLP: "MLPs"}


@dataclass(frozen=True, kw_only=True)
class SkippingOptions:
    """Options of all strategies that skip layers: what they skip, and the patches that correct it (docs/adapters.md)."""

    unit: str = option(LAYER, "what is skipped: whole layers, or only the attention or the MLP of layers", choices=UNITS)
    patch: str = option(NO_PATCH, "correction behind skipped layers, measured on held-out examples", choices=PATCHES)
    patch_rank: int = option(32, "rank of patch=low_rank", minimum=1)

    def __post_init__(self) -> None:
        check_fields(self, "strategy.")


def unit_of(strategy: Mapping[str, Any]) -> str:
    """Return what a strategy config skips: layer, attention or mlp."""
    return str(strategy.get("unit") or LAYER)


def patch_of(strategy: Mapping[str, Any]) -> str:
    """Return the kind of patch that a strategy config asks for, or `none`."""
    return str(strategy.get("patch") or NO_PATCH)


def not_computed(command: str, kind: str) -> UsageError:
    """Return the error of a command that cannot compute the patches of `strategy.patch`."""
    return UsageError(
        f"{command} does not compute the patches of strategy.patch={kind}; compute them with `ulskip run ... "
        f"strategy.patch={kind}`, then replace strategy.patch by model.skip_adapter=results/NAME/calibrations/KEY"
    )


def patch_kind(config: Config) -> tuple[str, int]:
    """Return the kind and rank of a configuration's patches, from `strategy.patch` or the record of `model.skip_adapter`."""
    found = {(str(record["kind"]), record.get("rank") or 0) for record in adapter_records(config.model)}
    if len(found) > 1:
        raise UsageError(
            f"expected adapters in model.skip_adapter with patches of one kind and rank, got {sorted(found)}; "
            "name only adapters of one kind"
        )
    return found.pop() if found else (patch_of(config.strategy), config.strategy.get("patch_rank", 0))


def patch_parameters(kind: str, hidden_size: int, rank: int) -> int:
    """Return the number of parameters of one patch that a decode step reads; a folded patch adds none.

    >>> patch_parameters("full", 10, 2), patch_parameters("low_rank", 10, 2), patch_parameters("folded", 10, 2)
    (110, 50, 0)
    """
    matrices = {"full": hidden_size * hidden_size, "low_rank": 2 * rank * hidden_size}
    return matrices.get(kind, 0) + (hidden_size if kind in ("bias", "low_rank", "full") else 0)
