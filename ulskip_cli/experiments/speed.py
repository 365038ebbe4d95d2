"""How fast the tokens of a point come: full and strategy in pairs."""

from statistics import median

from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.experiments.paired_timing import PairedSpeed, measure_pairs
from ulskip_cli.experiments.results import Row
from ulskip_cli.experiments.throughput import draft_statistics, exit_statistics, throughput
from ulskip_cli.experiments.workload import Workload, timed_prompts
from ulskip_cli.inference.batching import BatchSize, run_with_oom_retry
from ulskip_cli.inference.decoder import Decoder


def measure_speed(full: Decoder | None, strategy: Decoder, work: Workload, config: Config, progress: ProgressCallback) -> Row:
    """Time full and strategy in pairs, or the strategy alone if full is None; row keys of speed."""
    size = BatchSize(config.batch_size)
    pairs = time_pairs(full, strategy, work, size, config, progress)
    row = speed_row(pairs, size)
    if work.encoded is None:
        row |= {
            **throughput(pairs.strategy, "timed pairs"),
            **draft_statistics(pairs.strategy),
            **exit_statistics(pairs.strategy),
        }
    return row


def time_pairs(
    full: Decoder | None, strategy: Decoder, work: Workload, size: BatchSize, config: Config, progress: ProgressCallback
) -> PairedSpeed:
    """Time full and strategy in pairs. A batch that does not fit into memory is halved, and `size` with it."""
    total = config.speed.warmup + config.speed.pairs

    def measured(count: int) -> PairedSpeed:
        prompts = timed_prompts(work, count, total, strategy.model, config)
        timed = progress.phase(f"{config.strategy['name']}: timed {'pairs' if full else 'alone'}", total)
        return measure_pairs(full, strategy, prompts, config.decoding, config.speed, work.pad, timed)

    return run_with_oom_retry(size, measured)


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
