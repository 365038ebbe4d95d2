"""Memory plan: the largest batches that fit into a budget, with layer skipping and without."""

import re
from dataclasses import dataclass

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.core.strategy import MLP


@dataclass(frozen=True)
class Footprint:
    """Memory of one sequence, and the number of sequences that fit into the budget."""

    sequence_bytes: int  # peak of a sequence if all prompts of a batch are encoded together, beams included
    decoding_bytes: int  # of a sequence after prefill
    max_batch: int  # if its prompts are encoded together, as `ulskip` does
    max_in_flight: int  # decoding sequences if prompts are encoded one by one, as serving engines do


@dataclass(frozen=True)
class MemoryPlan:
    """Largest batches within a memory budget."""

    budget_bytes: int  # for weights, keys and values, and workspace
    weight_bytes: int  # of all layers, because the prompt needs them
    prompt_tokens: int  # per sequence
    new_tokens: int  # per sequence
    strategy: Footprint  # with the schedule
    full: Footprint  # with all layers


def memory_plan(config: Config, metadata: ModelMetadata, num_kept: int) -> MemoryPlan:
    """Return the largest batches within `config.memory_budget`, or raise UsageError if one sequence does not fit.

    During prefill a sequence stores its prompt's keys and values in all layers that read the prompt. During decoding it
    stores all its keys and values in the kept layers. Beams multiply both: `generate` encodes the prompt once per beam.
    """
    budget = parse_bytes(str(config.memory_budget))
    sizes = (
        metadata.kv_bytes_per_layer,
        metadata.total_bytes,
        metadata.workspace_bytes_per_token,
        metadata.workspace_bytes_per_sequence,
    )
    if None in sizes:
        raise UsageError(
            "memory_budget requires the sizes of weights and KV cache, which this model's files do not contain; "
            "set memory_budget=null"
        )
    per_layer, weights, per_token, per_sequence = (int(size or 0) for size in sizes)
    prompt, new, beams = config.speed.prompt_tokens, config.decoding.max_new_tokens, config.decoding.num_beams

    def footprint(kept: int) -> Footprint:
        prompt_layers = kept if config.prompt_layers == "kept" else metadata.num_layers
        encoding = beams * (prompt * (prompt_layers * per_layer + per_token) + per_sequence)
        decoding = beams * ((prompt + new) * kept * per_layer + per_sequence)
        room, peak = budget - weights, max(encoding, decoding)
        others = max(0, (room - peak) // decoding)
        return Footprint(peak, decoding, max(0, room // peak), 0 if room < peak else 1 + others)

    own = footprint(cached_layers(config, metadata.num_layers, num_kept))
    if not own.max_batch:
        raise UsageError(
            f"expected memory_budget above the {weights / 2**20:,.1f} MiB of the weights plus the "
            f"{own.sequence_bytes / 2**20:,.1f} MiB of one sequence, got {budget / 2**20:,.1f} MiB; "
            "raise memory_budget, e.g. 24GiB, or lower decoding.max_new_tokens"
        )
    return MemoryPlan(budget, weights, prompt, new, own, footprint(metadata.num_layers))


def cached_layers(config: Config, num_layers: int, num_kept: int) -> int:
    """Return the number of layers that hold a KV cache after prefill: all if they verify drafts or if MLPs are skipped."""
    return num_layers if config.decoding.draft_tokens or config.strategy.skipped_unit == MLP else num_kept


def parse_bytes(text: str, key: str = "memory_budget=") -> int:
    """Parse a number of bytes such as `24GiB`, `16 GB`, `800M` or `1000000`; raise UsageError for any other text.

    >>> parse_bytes("1.5KiB"), parse_bytes("2 kb")
    (1536, 2000)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"expected {key}<number of bytes>, e.g. 24GiB or 16GB, got '{text[:80]}'")
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix.lower() or " ")
    if not float(number):
        raise UsageError(f"expected {key}<number of bytes> above 0, got '{text}'")
    return int(float(number) * (1024 if binary else 1000) ** power)
