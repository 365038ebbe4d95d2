"""The Python interface of ulskip, in four functions.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from ulskip_cli import evaluate, generate, kept_layers, shallow_view

model = AutoModelForCausalLM.from_pretrained("some/model")
tokenizer = AutoTokenizer.from_pretrained("some/model")
kept = kept_layers(model.config.num_hidden_layers, ratio=2.0)
answers = generate(model, tokenizer, ["Once upon a time"], kept)
```

`kept_layers` chooses the layers, `shallow_view` makes a model of them, `generate` answers prompts
with them, and `evaluate` measures quality and speed. No function changes the given model. An
invalid request raises `ulskip_cli.core.errors.UsageError` with a one-line reason.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsFloat

from ulskip_cli.core.errors import UsageError, require_choice

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ulskip_cli.core.strategy import Strategy
    from ulskip_cli.experiments.record import Record
    from ulskip_cli.experiments.runner import Session
    from ulskip_cli.inference.skip_adapter import SkipAdapter

__all__ = ["Answer", "evaluate", "generate", "kept_layers", "shallow_view"]


@dataclass(frozen=True)
class Answer:
    """The generated answer to one prompt."""

    text: str
    """The decoded answer without special tokens."""
    token_ids: list[int]
    """Token ids up to and including the first EOS token."""
    hit_limit: bool
    """True if `max_new_tokens` ended the answer."""


def kept_layers(
    num_layers: int, ratio: float, strategy: str = "unified", **options: object
) -> tuple[int, ...]:
    """Return the layers that a decode step keeps, as ascending numbers from 0. Imports no torch.

    Examples:
        >>> kept_layers(30, 5.0)
        (0, 6, 12, 17, 23, 29)
        >>> kept_layers(30, 5.0, spacing="reference")  # as the published code rounds
        (0, 6, 12, 18, 24, 29)

    Args:
        num_layers: the number N of decoder layers of the model.
        ratio: the target speedup r >= 1; floor(N / r) layers are kept.
        strategy: a name that `ulskip strategies` lists.
        **options: fields of the strategy, e.g. `spacing` of `unified` or `layers` of `custom`.

    Raises:
        UsageError: the ratio is out of range, the strategy or an option is unknown, or the strategy
            lacks its calibration or runs different layers at different steps.
    """
    from ulskip_cli.core import config
    from ulskip_cli.core.model_metadata import MAX_LAYERS

    if (num_layers := _whole(num_layers, "num_layers")) > MAX_LAYERS:
        raise UsageError(f"expected num_layers <= {MAX_LAYERS}, got {num_layers}")
    if not isinstance(ratio, SupportsFloat) or isinstance(ratio, bool):
        raise UsageError(f"expected ratio to be a number, got {str(ratio)[:80]!r}")
    chosen: Strategy = config.preset("strategy", strategy, options)
    if chosen.is_positional or chosen.exits_early:
        raise UsageError(
            f"kept_layers does not support strategy={strategy}, whose layers change between steps; "
            f"measure it with evaluate('strategy={strategy}', ...), or choose another strategy"
        )
    if not chosen.is_calibrated:
        raise UsageError(
            f"strategy={strategy} requires calibrated options; run evaluate('strategy={strategy}',"
            " ...), and pass the values under calibration.options of its row as keyword arguments"
        )
    return chosen.kept_layers(num_layers, chosen.num_kept(num_layers, float(ratio)))


def shallow_view(model: "PreTrainedModel", kept: Sequence[int]) -> "PreTrainedModel":
    """Return a model that consists of some layers of a model and shares its weights.

    The view needs no memory for weights. It is a regular Hugging Face model: `generate`, caches and
    compilation work. Its own layers also encode the prompts. A change to its weights changes the
    source model.

    Args:
        model: a decoder-only causal LM with one stack of decoder layers.
        kept: ascending layer numbers.

    Raises:
        UsageError: the architecture is not supported, or `kept` is not a valid schedule for it.
    """
    from ulskip_cli.inference import shallow_view

    return shallow_view.shallow_view(model, [_whole(layer, "a layer in kept") for layer in kept])


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    kept: Sequence[int] | None = None,
    *,
    prompt_layers: str = "all",
    batch_size: int = 8,
    skip_adapter: "str | Path | SkipAdapter | None" = None,
    **decoding: object,
) -> list[Answer]:
    """Answer prompts: all layers encode each prompt and choose the first token, the kept layers
    decode the others.

    Args:
        model: a model in evaluation mode, as `from_pretrained` returns it.
        tokenizer: the tokenizer of the model.
        prompts: texts as the model reads them; no chat template is applied.
        kept: the layers of a decode step; None keeps those of `skip_adapter`, or all without one.
        prompt_layers: `all`, or `kept` to encode prompts with the kept layers too.
        batch_size: the number of prompts in a batch; it is halved if a batch does not fit into
            memory.
        skip_adapter: the folder of a skip adapter of this model, or a loaded
            `ulskip_cli.inference.skip_adapter.SkipAdapter`. It corrects the decode steps, and the
            model stays unchanged.
        **decoding: keys of `decoding`, e.g. `max_new_tokens=32`, `num_beams=4`, `do_sample=True`,
            `stop=["END"]`, and `seed` for sampling; greedy decoding by default.

    Returns:
        One answer per prompt, in their order.

    Raises:
        UsageError: an option is unknown or out of range, a prompt has no tokens, the architecture
            is not supported, or the skip adapter does not fit the model or the layers.
    """
    from pathlib import Path

    from ulskip_cli.core.config import decoding_of
    from ulskip_cli.engines.decoder import DecodeContext, Decoder, generate_all, until_stop
    from ulskip_cli.engines.transformers import options as generate_options
    from ulskip_cli.inference import shallow_view
    from ulskip_cli.inference.batching import BatchSize
    from ulskip_cli.inference.skip_adapter import SkipAdapter
    from ulskip_cli.strategies.plan import Plan
    from ulskip_cli.tasks.encoding import pad_token_id

    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UsageError(f"expected a list of strings as prompts, got {str(prompts)[:80]!r}")
    if _whole(batch_size, "batch_size") < 1:
        raise UsageError(f"expected batch_size >= 1, got {batch_size}")
    require_choice("prompt_layers", prompt_layers, ("all", "kept"))
    seed = _whole(decoding.pop("seed", 1), "seed")
    chosen = decoding_of(decoding)
    generate_options.check_generate_kwargs(chosen)
    depth = shallow_view.num_layers(model)
    if isinstance(skip_adapter, str | Path):
        skip_adapter = SkipAdapter.load(Path(skip_adapter).expanduser())
    if kept is None and skip_adapter and len(skip_adapter.kept_sets) > 1:
        raise UsageError(
            "expected kept= with layers of the skip adapter, which has several sets; use one of"
            f" {skip_adapter.kept_sets}"
        )
    if kept is None:
        kept = skip_adapter.kept_sets[0] if skip_adapter else range(depth)
    kept = [_whole(layer, "a layer in kept") for layer in kept]
    plan = Plan.from_layers(depth, kept, prompt_layers)
    decoder = Decoder(model, plan, tokenizer, skip_adapter)
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    if [] in ids:
        raise UsageError(
            f"expected prompts of at least one token, got none in prompts[{ids.index([])}]"
        )
    answers: dict[int, Answer] = {}
    context = DecodeContext(chosen, pad_token_id(tokenizer), seed)
    for positions, output in generate_all(decoder, ids, context, BatchSize(batch_size)):
        for position, tokens, hit in zip(
            positions, output.token_ids, output.hit_max_length, strict=True
        ):
            text, stopped = until_stop(
                tokenizer.decode(tokens, skip_special_tokens=True), chosen.stop
            )
            answers[position] = Answer(text, tokens, hit and not stopped)
    return [answers[i] for i in range(len(ids))]


def _whole(value: object, name: str) -> int:
    """Return a whole number, also one of numpy or PyTorch; raise UsageError for any other value."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(f"expected {name} to be a whole number, got {str(value)[:80]!r}") from None


def evaluate(*overrides: str, session: "Session | None" = None) -> "list[Record]":
    """Measure quality and speed of one configuration as `ulskip run` does, and store them in the
    results folder.

    Args:
        *overrides: `key=value` as on the command line: `"model.path=DIR"`, `"task=wmt"`,
            `"ratio=2"`.
        session: an `ulskip_cli.experiments.runner.Session`; calls that share it load the weights
            once.

    Returns:
        The record of the baseline, if it is measured, and the record of the configuration.
        docs/results.md describes their fields, e.g. `record.measured_speedup` and `record.bleu`;
        `record.to_row()` is the stored JSON object.

    Raises:
        UsageError: the configuration is invalid or not supported; nothing was run.
        RunError: the run failed.
    """
    from ulskip_cli.core import config
    from ulskip_cli.experiments.preflight import resolve
    from ulskip_cli.experiments.results import ResultsFolder

    point = resolve(config.compose(overrides, command="run"))
    folder = ResultsFolder.of(point.config)
    folder.check_writable()
    from ulskip_cli.experiments.runner import Session, run_point
    from ulskip_cli.report import tables

    records = run_point(point, session or Session())
    tables.write_tables(folder)
    return records
