"""How fast the tokens of a point come: full and strategy in pairs."""

from statistics import median

from ulskip_cli.generation.batches import BatchSize, fitting
from ulskip_cli.generation.decode import Decoder
from ulskip_cli.generation.pairs import PairedSpeed, measure_pairs
from ulskip_cli.progress import Progress
from ulskip_cli.results import Row
from ulskip_cli.schema import Config
from ulskip_cli.tallies import drafting, exiting, throughput
from ulskip_cli.workload import Workload, timed_prompts


def measure_speed(full: Decoder | None, strategy: Decoder, work: Workload, config: Config, progress: Progress) -> Row:
    """Time full and strategy in pairs, or the strategy alone if full is None; row keys of speed."""
    size = BatchSize(config.batch_size)
    pairs = time_pairs(full, strategy, work, size, config, progress)
    row = speed_row(pairs, size)
    if work.encoded is None:
        row |= {**throughput(pairs.strategy, "timed pairs"), **drafting(pairs.strategy), **exiting(pairs.strategy)}
    return row


def time_pairs(
    full: Decoder | None, strategy: Decoder, work: Workload, size: BatchSize, config: Config, progress: Progress
) -> PairedSpeed:
    """Time full and strategy in pairs. A batch that does not fit into memory is halved, and `size` with it."""
    total = config.speed.warmup + config.speed.pairs

    def measured(count: int) -> PairedSpeed:
        prompts = timed_prompts(work, count, total, strategy.model, config)
        timed = progress.phase(f"{config.strategy['name']}: timed {'pairs' if full else 'alone'}", total)
        return measure_pairs(full, strategy, prompts, config.decoding, config.speed, work.pad, timed)

    return fitting(size, measured)


def speed_row(pairs: PairedSpeed, size: BatchSize) -> Row:
    """Row keys of timed pairs."""
    timed = pairs.strategy
    return {
        **pairs.row(),
        "timed_batch_size": size.used,
        "prefill_seconds": median(output.prefill_seconds for output in timed),
        "time_to_first_token_seconds": median(output.first_token_seconds for output in timed),
        "time_per_output_token_seconds": median(output.step_seconds for output in timed),
        "prompt_kv_bytes": max(output.prompt_kv_bytes for output in timed),
        "kept_kv_bytes": max(output.kept_kv_bytes for output in timed),
    }
