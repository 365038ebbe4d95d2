"""The records of skip adapters, read before any weight is loaded."""

from dataclasses import dataclass, replace
from typing import Any

from ulskip_cli.core.config_schema import ModelConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import user_path
from ulskip_cli.core.model_metadata import fingerprint
from ulskip_cli.core.typed_json import load_object, parse


@dataclass(frozen=True)
class _AdapterBase:
    fingerprint: str
    model: str | None = None


@dataclass(frozen=True)
class _AdapterRecord:
    """The keys of a skip adapter's adapter.json that must have values of their types."""

    base: _AdapterBase
    kept_sets: tuple[tuple[int, ...], ...]
    kind: str


def adapter_records(model: ModelConfig) -> list[dict[str, Any]]:
    """Return the adapter.json of every skip adapter of a model; raise UsageError if one is missing or of another model."""
    records = []
    for name in model.skip_adapter:
        file = user_path(name, "model.skip_adapter") / "adapter.json"
        try:
            record = load_object(file, "the record of a skip adapter")
            base = parse(record, _AdapterRecord, file).base
        except UsageError as error:
            raise UsageError(
                f"expected model.skip_adapter={name} to be a folder with adapter.json, got an error: {error}; make one with "
                "`ulskip train train=adapter`"
            ) from None
        if base.fingerprint != fingerprint(replace(model, skip_adapter=[])):
            raise UsageError(
                f"expected model.skip_adapter={name} to be made for the weights of {model.label}, got one for other weights "
                f"({base.model}); use its own model, or train an adapter for this one"
            )
        records.append(record)
    return records
