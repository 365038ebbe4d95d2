"""Row keys that are summed over all outputs of a point."""

from collections.abc import Sequence
from typing import Any

from ulskip_cli.inference.engines.base import BatchOutput, DraftStats, ExitStats
from ulskip_cli.strategies.exit_rule import MISSING_KV


def throughput(outputs: Sequence[BatchOutput], source: str) -> dict[str, Any]:
    """Both tokens/s conventions over all outputs; padding and ids after an end token count in neither.

    `decode_tokens_per_second`: ids after each sequence's first, over decode time. `total_tokens_per_second`:
    prompt and generated ids over prefill and decode time, as the paper counts.
    """
    prompt_tokens = sum(output.prompt_tokens for output in outputs)
    generated = sum(output.generated_tokens for output in outputs)
    decode_seconds = sum(output.decode_seconds for output in outputs)
    return {
        "decode_tokens_per_second": sum(output.decoded_tokens for output in outputs) / decode_seconds,
        "total_tokens_per_second": (prompt_tokens + generated) / sum(output.total_seconds for output in outputs),
        "throughput_from": source,
        "compile_seconds": sum(output.compile_seconds for output in outputs),
        "prompt_tokens": prompt_tokens,
        "generated_tokens": generated,
        "decode_seconds": decode_seconds,
        "total_seconds": sum(output.total_seconds for output in outputs),
    }


def draft_statistics(outputs: Sequence[BatchOutput]) -> dict[str, Any]:
    """How drafting went over all outputs; nothing where nothing was drafted."""
    total = sum((output.drafts for output in outputs if output.drafts), DraftStats())
    if not total.drafted:
        return {}
    return {
        "acceptance_rate": total.accepted / total.drafted,
        "mean_accepted_length": total.gained / total.passes,
    }


def exit_statistics(outputs: Sequence[BatchOutput]) -> dict[str, Any]:
    """Where tokens left the layers, over all outputs; nothing where they could not."""
    total = sum((output.exits for output in outputs if output.exits), ExitStats())
    if total.mean_depth is None:
        return {}
    return {
        "exit_depths": {str(depth): count for depth, count in total.depths.items()},
        "mean_kept_layers": total.mean_depth,
        "evaluated_mean_kept_layers": total.mean_depth,
        "head_share": total.check_seconds / sum(output.decode_seconds for output in outputs),
        "missing_kv": MISSING_KV,
    }
