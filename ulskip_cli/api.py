"""ulskip from Python, in four functions.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from ulskip_cli import evaluate, generate, kept_layers, shallow_view

model = AutoModelForCausalLM.from_pretrained("some/model")
tokenizer = AutoTokenizer.from_pretrained("some/model")
kept = kept_layers(model.config.num_hidden_layers, ratio=2.0)
answers = generate(model, tokenizer, ["Once upon a time"], kept)
```

`kept_layers` chooses the layers, `shallow_view` makes a model of them, `generate` answers prompts with them, and `evaluate`
measures quality and speed. Nothing changes the model that is passed in. A request that cannot be served raises
`ulskip_cli.core.errors.UsageError` with one line that says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ulskip_cli.experiments.record import Row
    from ulskip_cli.experiments.runner import Session

__all__ = ["Answer", "evaluate", "generate", "kept_layers", "shallow_view"]


@dataclass(frozen=True)
class Answer:
    """What was generated for one prompt."""

    text: str
    """Special tokens left out."""
    token_ids: list[int]
    """Up to and with the first end token."""
    hit_limit: bool
    """Whether max_new_tokens ended it."""


def kept_layers(num_layers: int, ratio: float, strategy: str = "unified", **options: Any) -> tuple[int, ...]:
    """The layers that a decode step keeps. Imports no torch.

    >>> kept_layers(30, 5.0)
    (0, 6, 12, 17, 23, 29)
    >>> kept_layers(30, 5.0, spacing="reference")  # as the published code rounds
    (0, 6, 12, 18, 24, 29)

    Args:
        num_layers: N, the decoder layers of the model.
        ratio: r >= 1, the target speedup; floor(N / r) layers are kept.
        strategy: a name that `ulskip strategies` lists.
        **options: fields of the strategy, as `spacing` of `unified` and `layers` of `custom`.

    Returns:
        Ascending layer numbers from 0.

    Raises:
        UsageError: the ratio is out of reach, there is no such strategy or option, or the strategy needs more than numbers
            to decide.
    """
    from omegaconf import OmegaConf

    from ulskip_cli.core import config
    from ulskip_cli.core.errors import UsageError, require_choice

    known = config.group_choices("strategy")
    require_choice("strategy", strategy, known)
    node: Any = OmegaConf.to_container(OmegaConf.load(known[strategy]))
    chosen = config.instantiate({**node, **options}, "strategy")
    if hasattr(chosen, "stages") or hasattr(chosen, "exit_rule"):
        raise UsageError(f"strategy {strategy} runs other layers at other steps; no one schedule says which")
    if not getattr(chosen, "is_calibrated", True):
        raise UsageError(f"strategy {strategy} measures held-out examples first; give calibration.options of a run's row")
    kept: tuple[int, ...] = chosen.kept_layers(num_layers, chosen.num_kept(num_layers, ratio))
    return kept


def shallow_view(model: "PreTrainedModel", kept: Sequence[int]) -> "PreTrainedModel":
    """A model of some of a model's layers that shares its weights.

    It takes no memory of its own, is a Hugging Face model in every respect (its `generate`, caches and compilation work), and
    runs prompts through its own layers. What changes its weights changes the source's.

    Args:
        model: a decoder-only causal LM with one stack of decoder layers.
        kept: layer numbers, ascending.

    Raises:
        UsageError: the architecture cannot be viewed, or `kept` is no schedule for it.
    """
    from ulskip_cli.inference import shallow_view

    return shallow_view.shallow_view(model, kept)


def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    kept: Sequence[int] | None = None,
    *,
    prompt_layers: str = "all",
    batch_size: int = 8,
    seed: int = 1,
    **decoding: Any,
) -> list[Answer]:
    """Answer prompts: each is encoded by all layers, and the tokens after its first are decoded by the kept ones.

    Args:
        model: in evaluation mode, as `from_pretrained` returns it.
        tokenizer: the model's.
        prompts: as the model is to read them; a chat format is up to the caller.
        kept: layers of a decode step; None: all.
        prompt_layers: `all`, or `kept` to encode prompts with the kept layers too.
        batch_size: prompts at once; halved where they do not fit into memory.
        seed: of sampling.
        **decoding: keys of `decoding`, as `max_new_tokens=32`, `num_beams=4`, `do_sample=True`, `stop=["END"]`;
            greedy if nothing else is said.

    Returns:
        One answer a prompt, in their order.

    Raises:
        UsageError: an option is unknown or out of bounds, or the architecture cannot be viewed.
    """
    from ulskip_cli.core.config import decoding_of
    from ulskip_cli.core.config_schema import PROMPT_LAYERS
    from ulskip_cli.core.errors import require_choice
    from ulskip_cli.inference import shallow_view
    from ulskip_cli.inference.batching import BatchSize
    from ulskip_cli.inference.decoder import DecodeContext, Decoder, generate_all, until_stop
    from ulskip_cli.inference.engines import generate_options
    from ulskip_cli.strategies.plan import Plan
    from ulskip_cli.tasks.encoding import pad_token_id

    require_choice("prompt_layers", prompt_layers, PROMPT_LAYERS)
    chosen = decoding_of(decoding)
    generate_options.check(chosen)
    depth = shallow_view.num_layers(model)
    decoder = Decoder(model, Plan.from_layers(depth, range(depth) if kept is None else kept, prompt_layers), tokenizer)
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    answers: dict[int, Answer] = {}
    context = DecodeContext(chosen, pad_token_id(tokenizer), seed)
    for positions, output in generate_all(decoder, ids, context, BatchSize(batch_size)):
        for position, tokens, hit in zip(positions, output.token_ids, output.hit_max_length, strict=True):
            text, stopped = until_stop(tokenizer.decode(tokens, skip_special_tokens=True), chosen.stop)
            answers[position] = Answer(text, tokens, hit and not stopped)
    return [answers[i] for i in range(len(ids))]


def evaluate(*overrides: str, session: "Session | None" = None) -> "list[Row]":
    """Measure quality and speed of one configuration, as `ulskip run` does, and keep it in the results folder.

    Args:
        *overrides: `key=value`, as on the command line: `"model.path=DIR"`, `"task=wmt"`, `"ratio=2"`.
        session: an `ulskip_cli.experiments.runner.Session` to share between calls, so that weights are loaded once.

    Returns:
        The rows: the full model's if it is measured for comparison, and the point's own last. docs/results.md describes
        their keys.

    Raises:
        UsageError: the configuration cannot be served; nothing was run.
        RunError: it could, and failed.
    """
    from ulskip_cli.core import config
    from ulskip_cli.experiments.preflight import resolve
    from ulskip_cli.experiments.results import ResultsFolder

    point = resolve(config.compose(overrides))
    from ulskip_cli.experiments.runner import Session, run_point
    from ulskip_cli.report import tables

    folder = ResultsFolder.of(point.config)
    folder.check_writable()
    try:
        records = run_point(point, session or Session())
    finally:
        folder.remove_if_empty()
    tables.write_tables(folder)
    return [record.to_row() for record in records]
