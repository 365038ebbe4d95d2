"""Compile layers for benchmarks alone, and compare the bytes that a step reads with the read
bandwidth.
"""

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from ulskip_cli.core.config_schema import AUTO, Config
from ulskip_cli.core.strategy import MLP
from ulskip_cli.core.weight_sizes import WeightSizes, gaps, sort_weight_sizes
from ulskip_cli.engines.base import BatchOutput
from ulskip_cli.engines.torch import session as torch_session
from ulskip_cli.engines.torch.packed_linear import PANELS, choose_linear_backend
from ulskip_cli.experiments.paired_timing import TimedPairs
from ulskip_cli.experiments.record import Benchmark, FullSide, Limits
from ulskip_cli.experiments.throughput import measure_throughput
from ulskip_cli.inference.loading import LoadedModel
from ulskip_cli.strategies.plan import Plan


def describe_benchmark(
    pairs: TimedPairs, plan: Plan, loaded: LoadedModel, timed: Config, bandwidth: float
) -> Benchmark:
    """Return the section of a record that only benchmarks have; `timed` is the configuration that
    ran.
    """
    full_side, own_side = _describe_sides(pairs, plan, loaded, bandwidth, timed)
    compiled = pairs.strategy[0].compiled
    return Benchmark(
        timed_prompt_tokens=timed.speed.prompt_tokens,
        timed_new_tokens=plan.timed_tokens,
        compiled=compiled,
        compiled_layers=compiled and timed.decoding.compile == "layers",
        machine_limits=Limits(bytes_per_second=bandwidth),
        full=FullSide(
            **dict(measure_throughput(pairs.full, "timed pairs")),
            **full_side,
            **{key: getattr(pairs.full[0], key) for key in ("engine", "linear_backend")},
        ),
        **own_side,
    )


def with_compiled_layers(config: Config, loaded: LoadedModel) -> Config:
    """Return the configuration with compiled layers if decoding.compile=auto can use them: they
    need the CPU kernels' compiler.

    A benchmark is about long runs, in which the seconds of compiling pay; `ulskip run` does not
    compile on a CPU.
    """
    torch_engine = (
        config.engine.name in ("auto", "torch")
        and torch_session.unsupported_reason(loaded.model, config.decoding) is None
    )
    can_compile = choose_linear_backend(loaded.model).name == PANELS
    if (
        config.decoding.compile != AUTO
        or config.decoding.draft_tokens
        or not torch_engine
        or not can_compile
    ):
        return config
    return config.replace(decoding=config.decoding.replace(compile="layers"))


def _describe_sides(
    pairs: TimedPairs, plan: Plan, loaded: LoadedModel, bandwidth: float, config: Config
) -> list[dict[str, Any]]:
    """Return the bytes that a step reads and its share of the bandwidth, for the full model and
    then the schedule.

    Unknown values are None.
    """
    weights = loaded.metadata.weights
    if config.engine.weights:
        weights = config.engine.sizes(_parameters(loaded), 8)  # from one byte per weight
    drafted, patches = (
        pairs.strategy[0].drafts is not None,
        (
            0.0,
            _patches(plan, pairs.full[0].steps),
        ),
    )
    if patches[1] and weights is not None:
        weights = replace(
            weights, patch=(plan.patch_bytes or 0) // len(gaps(plan.kept_layers, plan.num_layers))
        )
    weights = weights and weights.of_unit(plan.unit)
    runs = dict.fromkeys(range(plan.num_layers), 1.0), _runs(plan, pairs.full[0].steps)
    sides = []
    for i, outputs in enumerate((pairs.full, pairs.strategy)):
        depth = sum(runs[i].values())
        cached = 1.0 if plan.unit == MLP else depth / (plan.num_kept if i else plan.num_layers)
        read, share = None, None
        if weights is not None and not (drafted and i):
            kv_bytes = len(outputs[0].token_ids) * _kv_bytes(outputs[0]) * cached
            read = round(_weight_bytes(weights, runs[i], patches[i]) + kv_bytes)
            share = read / median(output.step_seconds for output in outputs) / bandwidth
        sides.append({"step_bytes": read, "bandwidth_share": share})
    return sides


def _weight_bytes(weights: WeightSizes, runs: Mapping[int, float], patches: float) -> float:
    """Return the bytes of the output head, of `patches` patches, and of the layers by the share of
    steps that run them.
    """
    layers = sum(share * weights.layers[layer] for layer, share in runs.items())
    return weights.head + patches * weights.patch + layers


def _runs(plan: Plan, steps: int) -> dict[int, float]:
    """Return the share of decode steps that run each layer."""
    by_stage = plan.step_counts(steps)
    return {
        layer: sum(count for count, kept in by_stage if layer in kept) / steps
        for layer in plan.kept_layers
    }


def _patches(plan: Plan, steps: int) -> float:
    """Return the mean number of gaps in a decode step."""
    return (
        sum(count * len(gaps(kept, plan.num_layers)) for count, kept in plan.step_counts(steps))
        / steps
    )


def _kv_bytes(output: BatchOutput) -> float:
    """Return the KV cache bytes of one sequence after half of its new tokens, in the layers of the
    first stage.
    """
    batch_size = len(output.token_ids)
    middle = output.prompt_tokens / batch_size + len(output.token_ids[0]) / 2
    return output.kept_kv_bytes / output.prompt_tokens * middle


def _parameters(loaded: LoadedModel) -> WeightSizes | None:
    """Return the number of weights by layer, or None if quantization packs the weights into
    integers.
    """
    model = loaded.model
    if not all(p.is_floating_point() for p in model.parameters()):
        return None
    counts = {name: (list(p.shape), p.numel()) for name, p in model.named_parameters()}
    return sort_weight_sizes(
        counts, loaded.metadata.num_layers, model.config.get_text_config(decoder=True).vocab_size
    )
