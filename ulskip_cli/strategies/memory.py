"""Memory plan: the largest batches that fit into a budget, with layer skipping and without."""

import re
from dataclasses import dataclass

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.strategies.plan import Plan


@dataclass(frozen=True)
class MemoryPlan:
    """The largest batches within a memory budget, if the prompts of a batch are encoded
    together.
    """

    max_batch: int  # with the schedule
    full_max_batch: int  # with all layers


def memory_plan(config: Config, metadata: ModelMetadata, plan: Plan) -> MemoryPlan:
    """Return the largest batches within `config.memory_budget`, or raise UsageError if one sequence
    does not fit.

    During prefill a sequence stores its prompt's keys and values in all layers that read the
    prompt. During decoding it stores all its keys and values in the kept layers. Beams multiply
    both: `generate` encodes the prompt once per beam.
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
            "memory_budget requires the sizes of weights and KV cache, which this model's files do"
            " not contain; set memory_budget=null"
        )
    per_layer, weights, per_token, per_sequence = (int(size or 0) for size in sizes)
    prompt, new, beams = (
        config.speed.prompt_tokens,
        config.decoding.max_new_tokens,
        config.decoding.num_beams,
    )

    def sequence_bytes(kept: int) -> int:
        prompt_layers = kept if config.prompt_layers == "kept" else metadata.num_layers
        encoding = prompt * (prompt_layers * per_layer + per_token) + per_sequence
        decoding = (prompt + new) * kept * per_layer + per_sequence
        return beams * max(encoding, decoding)

    sequence = sequence_bytes(plan.num_cached)
    room = budget - weights
    if room < sequence:
        raise UsageError(
            f"expected memory_budget above the {weights / 2**20:,.1f} MiB of the weights plus the "
            f"{sequence / 2**20:,.1f} MiB of one sequence, got {budget / 2**20:,.1f} MiB; "
            "raise memory_budget, e.g. 24GiB, or lower decoding.max_new_tokens"
        )
    return MemoryPlan(room // sequence, room // sequence_bytes(metadata.num_layers))


def parse_bytes(text: str, key: str = "memory_budget=") -> int:
    """Parse a number of bytes such as `24GiB`, `16 GB`, `800M` or `1000000`; raise UsageError for
    any other text.

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
