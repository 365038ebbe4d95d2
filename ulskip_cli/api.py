"""The Python interface of ulskip, in five functions.

```python
from ulskip_cli import compare, generate

comparison = compare("Once upon a time", "model.path=some/model", "ratio=2")
print(comparison.full.text, comparison.full.tokens_per_second)
print(comparison.kept.text, comparison.kept.tokens_per_second)
(answer,) = generate("some/model", prompts=["Once upon a time"], ratio=2)
print(answer.text, answer.decode_seconds)
```

`compare` and `evaluate` are `ulskip generate` and `ulskip run`: `compare` answers a prompt with the
full model and with the kept layers, and `evaluate` measures quality and speed. `kept_layers`
chooses the layers, `shallow_view` makes a model of them, and `generate` answers prompts with them.
No function changes the given model. An invalid request raises
`ulskip_cli.core.errors.UsageError` with a one-line reason.
"""

import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat

from ulskip_cli.core import config
from ulskip_cli.core.answer import Answer, AnswerPair, Ends, Request
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.model_metadata import MAX_LAYERS
from ulskip_cli.core.schedule import first_layer_count
from ulskip_cli.core.strategy import ScheduleRequest, Strategy
from ulskip_cli.core.task import Example, Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ulskip_cli.experiments.record import Record
    from ulskip_cli.experiments.runner import Models
    from ulskip_cli.inference.skip_adapter import SkipAdapter

__all__ = [
    "Answer",
    "AnswerPair",
    "compare",
    "evaluate",
    "generate",
    "kept_layers",
    "shallow_view",
]


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
        strategy: a name that `ulskip config strategy` lists.
        **options: fields of the strategy, e.g. `spacing` of `unified` or `layers` of `custom`.

    Raises:
        UsageError: the ratio is out of range, the strategy or an option is unknown, or the strategy
            lacks its calibration or runs different layers at different steps.
    """
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
    num_kept = chosen.num_kept(num_layers, float(ratio))
    return chosen.kept_layers(ScheduleRequest(num_layers, num_kept))


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

    return shallow_view.shallow_view(model, _layers(kept))


def generate(
    model: "PreTrainedModel | str | Path",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    prompts: Sequence[str] | None = None,
    kept: Sequence[int] | None = None,
    *,
    ratio: float | None = None,
    prompt_layers: str = "all",
    batch_size: int = 8,
    skip_adapter: "str | Path | SkipAdapter | None" = None,
    max_new_tokens: int = 64,
    **decoding: object,
) -> list[Answer]:
    """Answer prompts: all layers encode each prompt and choose the first token, the kept layers
    decode the others.

    Args:
        model: a model in evaluation mode, as `from_pretrained` returns it; or a folder, a hub id or
            a name that `ulskip config model` lists, from which each call loads it.
        tokenizer: the tokenizer of the model; None loads it with a model that is not loaded yet.
        prompts: texts as the model reads them. Only if no tokenizer is given and the model has a
            chat template, they are put into the template.
        kept: the layers of a decode step; None keeps those of `skip_adapter`, or all without one.
        ratio: a target speedup, in place of `kept`: the layers of `kept_layers(num_layers, ratio)`.
        prompt_layers: `all`; `kept` to encode prompts with the kept layers too; or `first:K`.
        batch_size: the number of prompts in a batch; it is halved if a batch does not fit into
            memory.
        skip_adapter: the folder of a skip adapter of this model, or a loaded
            `ulskip_cli.inference.skip_adapter.SkipAdapter`. It corrects the decode steps, and the
            model stays unchanged.
        max_new_tokens: the maximum length of an answer.
        **decoding: keys of `decoding`, e.g. `num_beams=4`, `do_sample=True`, `stop=["END"]`, and
            `seed` for sampling; greedy decoding by default.

    Returns:
        One answer per prompt, in their order, with the seconds of its batch. The first answers of a
        loaded model are slower; `compare` warms up before it measures.

    Raises:
        UsageError: an option is unknown or out of range, a prompt has no tokens, the architecture
            is not supported, or the skip adapter does not fit the model or the layers.
    """
    from ulskip_cli.core.correction import read_adapter_file
    from ulskip_cli.core.schedule import Schedule
    from ulskip_cli.engines.base import Views
    from ulskip_cli.engines.decoder import Decoder
    from ulskip_cli.experiments.evaluate import answers_of
    from ulskip_cli.inference import shallow_view
    from ulskip_cli.inference.batching import BatchSize
    from ulskip_cli.inference.loading import load, load_tokenizer
    from ulskip_cli.inference.skip_adapter import SkipAdapter
    from ulskip_cli.tasks.encoding import pad_token_id

    texts = _texts(tokenizer, prompts)
    for name, count in {"batch_size": batch_size, "max_new_tokens": max_new_tokens}.items():
        if _whole(count, name) < 1:
            raise UsageError(f"expected {name} >= 1, got {count}")
    first_layer_count(prompt_layers)  # raises UsageError
    seed = _whole(decoding.pop("seed", 1), "seed")
    chosen = config.decoding_of(decoding)
    # A given tokenizer gets the prompts as they are; a model that is loaded here can be a chat.
    may_chat, chat_options = tokenizer is None, None
    if isinstance(model, str | Path):
        named = config.model_named(str(model))
        if isinstance(skip_adapter, str | Path):  # raises UsageError if it is of another model
            read_adapter_file(Path(skip_adapter).expanduser(), named, "skip_adapter")
        chat_options = named.chat_options
        tokenizer = load_tokenizer(named) if tokenizer is None else tokenizer
        model = load(named).model
    if tokenizer is None:
        raise UsageError("expected the tokenizer of the model, got none; write tokenizer=TOKENIZER")
    if isinstance(skip_adapter, str | Path):
        skip_adapter = SkipAdapter.load(Path(skip_adapter).expanduser())
    depth = shallow_view.num_layers(model)
    layers = _chosen_layers(depth, kept, ratio, skip_adapter)
    schedule = Schedule.from_layers(depth, layers, prompt_layers)
    decoder = Decoder(Views.of(model, schedule, skip_adapter))
    ids = _encoded(texts, tokenizer, may_chat, chat_options)
    answers: dict[int, Answer] = {}  # by position, because batches are ordered by prompt length
    ends = Ends.of(model, pad_token_id(tokenizer), tokenizer)
    request = Request(chosen, max_new_tokens, seed=seed, ends=ends)
    for positions, output in decoder.answer_all(ids, request, BatchSize(batch_size)):
        answers |= zip(positions, answers_of(output, request), strict=True)
    return [answers[i] for i in range(len(ids))]


def _texts(tokenizer: object, prompts: object) -> list[str]:
    """Return the prompts; raise UsageError unless they are a list of texts, or if they stand in the
    place of the tokenizer.
    """
    if tokenizer is not None and not callable(tokenizer):
        raise UsageError(
            f"expected a tokenizer as the second argument, got {str(tokenizer)[:80]!r}; write"
            " prompts=[...] for prompts"
        )
    given = list(prompts) if isinstance(prompts, Iterable) else [prompts]
    texts = [text for text in given if isinstance(text, str)]
    if isinstance(prompts, str) or len(texts) < len(given):
        raise UsageError(f"expected a list of strings as prompts, got {str(prompts)[:80]!r}")
    return texts


def _encoded(
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    may_chat: bool,
    chat_options: JsonObject | None,
) -> list[list[int]]:
    """Return prompts as token ids, with the chat template of the tokenizer and its options
    (`model.chat_options`) if `may_chat` and there is one; raise UsageError for a prompt without
    tokens.
    """
    from ulskip_cli.tasks.encoding import PromptFormatter

    if may_chat:
        # The template of task=jsonl is the text alone, in the chat template if there is one.
        task = config.preset("task", "jsonl")
        formatter = PromptFormatter.for_task(task, tokenizer, chat_options)
    else:
        formatter = PromptFormatter(Template("{source}", ""), tokenizer)
    encoded = formatter.encode([Example(id="", source=text, reference="") for text in texts])
    ids = [example.prompt_ids for example in encoded]
    if [] in ids:
        raise UsageError(
            f"expected prompts of at least one token, got none in prompts[{ids.index([])}]"
        )
    return ids


def _chosen_layers(
    depth: int, kept: Sequence[int] | None, ratio: float | None, skip_adapter: "SkipAdapter | None"
) -> list[int]:
    """Return the layers of a decode step that the arguments of `generate` choose; raise UsageError
    if they choose twice, or leave open which of several sets of the adapter.
    """
    if kept is not None and ratio is not None:
        raise UsageError("expected kept= or ratio=, got both; leave out one of them")
    if ratio is not None:
        return list(kept_layers(depth, ratio))
    if kept is None and skip_adapter and len(skip_adapter.kept_sets) > 1:
        raise UsageError(
            "expected kept= with layers of the skip adapter, which has several sets; use one of"
            f" {skip_adapter.kept_sets}"
        )
    if kept is None:
        kept = skip_adapter.kept_sets[0] if skip_adapter else range(depth)
    return _layers(kept)


def _layers(kept: Sequence[int]) -> list[int]:
    """Return layer numbers as Python's `int`; raise UsageError for anything but whole numbers."""
    if not isinstance(kept, Iterable):
        raise UsageError(
            f"expected kept to be a list of layers, got {str(kept)[:80]!r}; kept_layers(num_layers,"
            " ratio) makes one"
        )
    return [_whole(layer, "a layer in kept") for layer in kept]


def _whole(value: object, name: str) -> int:
    """Return a whole number, also one of numpy or PyTorch, as `int`; raise UsageError for any other
    value of the argument `name`.
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(f"expected {name} to be a whole number, got {str(value)[:80]!r}") from None


def compare(prompt: str, *overrides: str, models: "Models | None" = None) -> AnswerPair:
    """Answer a prompt with the full model and with the kept layers as `ulskip generate` does, and
    measure the speed of both after a warm-up.

    Args:
        prompt: the prompt; the model's chat template is applied if there is one, and the bundled
            translator gets the prompt of its task.
        *overrides: `key=value` as on the command line: `"model.path=DIR"`, `"ratio=2"`.
        models: an `ulskip_cli.experiments.runner.Models`; calls that share it load the weights
            once.

    Returns:
        Both answers with their times, and the first difference between them.

    Raises:
        UsageError: the configuration is invalid or not supported; nothing was run.
        RunError: the run failed.
    """
    from ulskip_cli.experiments.point import resolve_prompts

    if not isinstance(prompt, str):
        raise UsageError(f"expected a text as prompt, got {str(prompt)[:80]!r}")
    _check_overrides(overrides)
    point = resolve_prompts(config.compose_prompts(overrides), prompt)
    from ulskip_cli.experiments.comparison import PromptComparer
    from ulskip_cli.experiments.runner import Models

    return PromptComparer(point, models or Models()).compare(0)


def evaluate(*overrides: str, models: "Models | None" = None) -> "list[Record]":
    """Measure quality and speed of one configuration as `ulskip run` does, and store them in the
    results folder, unless it has them.

    Args:
        *overrides: `key=value` as on the command line: `"model.path=DIR"`, `"task=wmt"`,
            `"ratio=2"`.
        models: an `ulskip_cli.experiments.runner.Models`; calls that share it load the weights
            once.

    Returns:
        The record of the baseline, if it is measured, and the record of the configuration.
        docs/results.md describes their fields, e.g. `record.measured_speedup` and `record.bleu`;
        `record.to_row()` is the stored JSON object.

    Raises:
        UsageError: the configuration is invalid or not supported; nothing was run.
        RunError: the run failed.
    """
    from ulskip_cli.experiments.ledger import Ledger, make_jobs
    from ulskip_cli.experiments.sweep import run_jobs
    from ulskip_cli.report import tables

    _check_overrides(overrides)
    ledger = Ledger(make_jobs([config.compose(overrides, command="run")]))
    run_jobs(ledger, models=models, raises=True)
    tables.write_tables(ledger.folder)
    return list(ledger.outcome().records.values())


def _check_overrides(overrides: Sequence[object]) -> None:
    """Raise UsageError unless overrides are strings."""
    for value in overrides:
        if not isinstance(value, str):
            raise UsageError(
                f"expected overrides as strings, e.g. 'ratio=2', got {str(value)[:80]!r}"
            )
