"""The largest batches that fit into a budget of memory, with skipping and without. Imports no torch."""

import re
from dataclasses import dataclass

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelMetadata


@dataclass(frozen=True)
class Footprint:
    """What sequences take, and how many fit.

    Attributes:
        sequence_bytes: the peak of one sequence of a batch whose prompts are encoded at once, beams included.
        decoding_bytes: what one sequence takes once its prompt is encoded.
        max_batch: the largest batch that is encoded at once, as `ulskip` does.
        max_in_flight: sequences that decode together where prompts are encoded one by one, as serving engines do.
    """

    sequence_bytes: int
    decoding_bytes: int
    max_batch: int
    max_in_flight: int


@dataclass(frozen=True)
class MemoryPlan:
    """The largest batches that fit into a budget: what the dropped keys and values buy.

    Attributes:
        budget_bytes: for everything.
        weight_bytes: of all layers, since the prompt needs them.
        prompt_tokens: of each sequence.
        new_tokens: of each sequence.
        strategy: under the schedule.
        full: with every layer kept.
    """

    budget_bytes: int
    weight_bytes: int
    prompt_tokens: int
    new_tokens: int
    strategy: Footprint
    full: Footprint


def memory_plan(config: Config, facts: ModelMetadata, num_kept: int) -> MemoryPlan:
    """The largest batches within `config.memory_budget`, by weights, keys and values, and a rough workspace.

    While its prompt is encoded a sequence holds the keys and values of every layer; after it those of the kept layers,
    for prompt and new tokens. Beams multiply both, since `generate` encodes the prompt once a beam.

    Raises:
        UsageError: the budget is no number of bytes, not one sequence fits, or the model's sizes are unknown.
    """
    budget = parse_bytes(str(config.memory_budget))
    sizes = (facts.kv_bytes_per_layer, facts.total_bytes, facts.workspace_bytes_per_token, facts.workspace_bytes_per_sequence)
    if None in sizes:
        raise UsageError(
            "memory_budget= needs the sizes of weights and cache, which are unknown until the model's files are here"
        )
    per_layer, weights, per_token, per_sequence = (int(size or 0) for size in sizes)
    prompt, new, beams = config.speed.prompt_tokens, config.decoding.max_new_tokens, config.decoding.num_beams

    def footprint(kept: int) -> Footprint:
        prompt_layers = kept if config.prompt_layers == "kept" else facts.num_layers
        encoding = beams * (prompt * (prompt_layers * per_layer + per_token) + per_sequence)
        decoding = beams * ((prompt + new) * kept * per_layer + per_sequence)
        room, peak = budget - weights, max(encoding, decoding)
        beside = max(0, (room - peak) // decoding)
        return Footprint(peak, decoding, max(0, room // peak), 0 if room < peak else 1 + beside)

    own = footprint(cached_layers(config, facts.num_layers, num_kept))
    if not own.max_batch:
        raise UsageError(
            f"expected memory_budget= above the {weights / 2**20:,.1f} MiB of the weights and "
            f"{own.sequence_bytes / 2**20:,.1f} MiB of one sequence, got {budget / 2**20:,.1f} MiB"
        )
    return MemoryPlan(budget, weights, prompt, new, own, footprint(facts.num_layers))


def cached_layers(config: Config, num_layers: int, num_kept: int) -> int:
    """The layers whose keys and values stay after the prompt: all of them where every layer checks drafts."""
    return num_layers if config.decoding.draft_tokens else num_kept


def parse_bytes(text: str, key: str = "memory_budget=") -> int:
    """A number of bytes out of `24GiB`, `16 GB`, `800M` or `1000000`.

    >>> parse_bytes("1.5KiB"), parse_bytes("2 kb")
    (1536, 2000)

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"expected {key}<number of bytes>, e.g. 24GiB or 16GB, got '{text}'")
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)
