"""Compute tokens/s, draft statistics and exit statistics over all batches of a point."""

from collections.abc import Sequence

from ulskip_cli.core.exit_rule import MISSING_KV
from ulskip_cli.engines.base import BatchOutput, DraftStats, ExitStats
from ulskip_cli.experiments.record import Throughput


def measure_throughput(outputs: Sequence[BatchOutput], source: str) -> Throughput:
    """Compute tokens/s in both conventions; neither counts padding or ids after an EOS token.

    `decode_tokens_per_second` divides the decoded ids (all but each sequence's first) by the decode
    time only. `total_tokens_per_second` divides prompt and generated ids by prefill and decode
    time, as the paper counts.
    """
    prompt_tokens = sum(output.prompt_tokens for output in outputs)
    generated_tokens = sum(output.generated_tokens for output in outputs)
    decode_seconds = sum(output.decode_seconds for output in outputs)
    total_seconds = sum(output.total_seconds for output in outputs)
    drafts = sum_drafts(outputs)
    exits = sum_exits(outputs)
    return Throughput(
        decode_tokens_per_second=sum(output.decoded_tokens for output in outputs) / decode_seconds,
        total_tokens_per_second=(prompt_tokens + generated_tokens) / total_seconds,
        throughput_from=source,
        compile_seconds=sum(output.compile_seconds for output in outputs),
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        decode_seconds=decode_seconds,
        total_seconds=total_seconds,
        acceptance_rate=drafts.accepted / drafts.drafted if drafts.drafted else None,
        mean_accepted_length=drafts.gained / drafts.passes if drafts.drafted else None,
        exit_depths={str(depth): count for depth, count in exits.depths.items()} or None,
        exit_check_fraction=exits.check_seconds / decode_seconds if exits.depths else None,
        missing_kv=MISSING_KV if exits.depths else None,
    )


def sum_drafts(outputs: Sequence[BatchOutput]) -> DraftStats:
    """Sum the draft statistics of all batches."""
    return sum((output.drafts for output in outputs if output.drafts), DraftStats())


def sum_exits(outputs: Sequence[BatchOutput]) -> ExitStats:
    """Sum the exit statistics of all batches."""
    return sum((output.exits for output in outputs if output.exits), ExitStats())
