"""The interface of engines: what an engine opens, the session that it returns, and the request and
output of a batch.

`Engine.open(views, room)` returns an `EngineSession`. If its library decodes step by step, the
session is a `SteppingSession` (`loop.py`) with `encode` and `step`. If the library generates whole
answers, the session has `generate` and `losses`.
"""

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from operator import add
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import Table, cache_dir, replacing
from ulskip_cli.core.fingerprint import key
from ulskip_cli.core.schedule import ExitRule
from ulskip_cli.inference.shallow_view import StageView, num_layers
from ulskip_cli.inference.skip_adapter import GapPatch
from ulskip_cli.inference.teacher_forcing import EncodedPrompt


@dataclass(frozen=True)
class Views:
    """A model and the views of its plan, from which an engine makes what it needs."""

    model: PreTrainedModel  # with all layers
    # encodes the prompts: the model itself, or the view of the first stage
    prompt_model: PreTrainedModel
    stages: tuple[StageView, ...]  # of decoding
    linear_backend: str = "torch"  # the name of a `Backend`

    def at_full_depth(self) -> Self:
        """Return the views of a plan that keeps all layers."""
        layers = tuple(range(num_layers(self.model)))
        stages = (StageView(0, self.model, layers),)
        return replace(self, prompt_model=self.model, stages=stages)


@dataclass(frozen=True)
class Room:
    """The size of batches for which a session has memory."""

    batch_size: int
    num_tokens: int  # of each sequence, with its prompt

    def holds(self, room: "Room") -> bool:
        """Return True if batches of another size fit."""
        return room.batch_size <= self.batch_size and room.num_tokens <= self.num_tokens


@dataclass(frozen=True)
class DraftStats:
    """Counts of speculative decoding; the counts of several batches can be added."""

    checks: int = 0  # passes of the full model
    gained: int = 0  # tokens that checks added to answers: accepted drafts, and one of the model
    drafted: int = 0  # tokens
    accepted: int = 0  # drafted tokens that are in answers

    def __add__(self, other: "DraftStats") -> "DraftStats":
        return DraftStats(*map(add, astuple(self), astuple(other)))

    @property
    def mean_length(self) -> float | None:
        """The mean number of drafts per check; None without drafts."""
        return self.drafted / self.checks if self.drafted else None


@dataclass(frozen=True)
class ExitStats:
    """Tokens by the depth of their early exit; the counts of several batches can be added."""

    # tokens by number of layers, without the first
    depths: Mapping[int, int] = field(default_factory=dict)
    check_seconds: float = 0.0

    def __add__(self, other: "ExitStats") -> "ExitStats":
        counts = Counter(self.depths) + Counter(other.depths)
        return ExitStats(dict(sorted(counts.items())), self.check_seconds + other.check_seconds)

    @property
    def mean_depth(self) -> float | None:
        """The mean number of layers per token; None without tokens."""
        tokens = sum(self.depths.values())
        return (
            sum(depth * count for depth, count in self.depths.items()) / tokens if tokens else None
        )


@dataclass(frozen=True)
class BatchRequest:
    """One batch for a session."""

    input_ids: Tensor  # [batch, prompt_len], padded on the left
    attention_mask: Tensor  # [batch, prompt_len]
    decoding: DecodingConfig
    pad_token_id: int
    eos_token_ids: Sequence[int]
    length: int  # the maximal number of new tokens
    forced: bool = False  # generate exactly `length` tokens with EOS suppressed
    # Gets the number of tokens generated so far in the batch.
    on_step: Callable[[int], None] = lambda count: None
    # Gets the prompts that a forward pass on torch has encoded.
    on_prompt: Callable[[EncodedPrompt], None] = lambda prompt: None
    pause_every: int | None = None  # decode steps between two pauses of `EngineSession.run`
    stages: tuple[StageView, ...] = ()  # those of the plan's views
    exits: ExitRule | None = None
    tokenizer: PreTrainedTokenizerBase | None = None  # of stop strings

    @property
    def stop_token_ids(self) -> list[int]:
        """The tokens that end a sequence; empty with a forced length."""
        return [] if self.forced else list(self.eos_token_ids)

    @property
    def stops(self) -> Sequence[str]:
        """The texts that end a sequence; empty with a forced length."""
        return () if self.forced else self.decoding.stop

    def is_stopped(self, row: Sequence[int]) -> bool:
        """Return True if the text of an answer's tokens has a stop string."""
        if not self.stops:
            return False
        assert self.tokenizer is not None
        text = self.tokenizer.decode(row)
        return any(stop in text for stop in self.stops)


@dataclass(frozen=True)
class Clock:
    """The times in seconds at which the phases of a batch ended."""

    start: float
    prefilled: float  # the KV cache of the prompt is ready for decoding
    first: float  # after the choice of the first token
    end: float  # after the last token


@dataclass(frozen=True)
class BatchOutput:
    """The tokens of one batch and the seconds of every phase."""

    token_ids: list[list[int]]  # one list per sequence, including EOS, without padding
    hit_max_length: list[bool]  # the sequence ended at the length limit instead of EOS
    prompt_tokens: int  # without padding; a prompt counts once, also with several beams
    prefill_seconds: float  # until the prompt's KV cache is ready for decoding
    first_token_seconds: float  # from the call to the choice of the first token
    decode_seconds: float  # from the choice of the first token to that of the last
    prompt_kv_bytes: int  # KV cache after the prompt
    kept_kv_bytes: int  # KV cache after the skipped layers were dropped
    engine: str = ""
    compile_seconds: float = 0.0  # for batches of this shape; not part of the other durations
    drafts: DraftStats | None = None
    exits: ExitStats | None = None
    linear_backend: str = "torch"
    head_rows: float | None = None  # mean exact rows of a screened head; None: all

    @classmethod
    def of(
        cls,
        request: BatchRequest,
        rows: Sequence[Sequence[int]],
        clock: Clock,
        kv_bytes: tuple[int, int],
        **details: Any,
    ) -> Self:
        """Return the output of a request from the clock and the tokens of each sequence, which are
        truncated at EOS and behind the first stop string. `kv_bytes` are the sizes of the prompt's
        KV cache, before and after skipped layers were dropped, and `details` are further fields.
        """
        ends = request.stop_token_ids
        truncated = [_until_end(row, request) for row in rows]
        return cls(
            token_ids=truncated,
            hit_max_length=[
                len(row) >= request.length and row[-1] not in ends for row in truncated
            ],
            prompt_tokens=int(request.attention_mask.sum()),
            prefill_seconds=clock.prefilled - clock.start,
            first_token_seconds=clock.first - clock.start,
            decode_seconds=clock.end - clock.first,
            prompt_kv_bytes=kv_bytes[0],
            kept_kv_bytes=kv_bytes[1],
            **details,
        )

    @property
    def generated_tokens(self) -> int:
        """The number of generated tokens of all sequences."""
        return sum(len(ids) for ids in self.token_ids)

    @property
    def decoded_tokens(self) -> int:
        """The number of tokens of all sequences, without the first token of each sequence."""
        return sum(max(0, len(ids) - 1) for ids in self.token_ids)

    @property
    def steps(self) -> int:
        """The number of decode steps of the longest sequence."""
        return max(len(ids) for ids in self.token_ids) - 1

    @property
    def step_seconds(self) -> float:
        """The mean seconds of a decode step."""
        return self.decode_seconds / max(1, self.steps)

    @property
    def total_seconds(self) -> float:
        """The seconds from the call to the last token."""
        return self.first_token_seconds + self.decode_seconds


# A generation that pauses; it returns its output, whose times do not contain the pauses. At a pause
# it yields the tokens so far, [batch, new_tokens], without the last ones if the batch shrank.
Generation = Generator[Tensor, None, BatchOutput]


def take_turns(generations: Sequence[Generation]) -> list[BatchOutput]:
    """Continue several generations in turn, each until its next pause, and return their outputs.
    The order changes in every round, so that none always comes first.
    """
    outputs = dict[Generation, BatchOutput]()
    waiting = list(generations)
    try:
        while waiting:
            for generation in waiting:
                try:
                    next(generation)
                except StopIteration as stop:
                    outputs[generation] = stop.value
            waiting = [paused for paused in reversed(waiting) if paused not in outputs]
    finally:
        for generation in generations:
            generation.close()  # frees the batch of the others if one failed
    return [outputs[generation] for generation in generations]


class EngineSession:
    """An opened engine: the views of one plan, ready to generate. A session holds at most one batch
    at a time.
    """

    def __init__(self, views: Views, *settings: object) -> None:
        """Open an engine; `settings` are the room and the format of the weights, if it has any."""
        self.views = views

    def fits(self, room: Room) -> bool:
        """Return True if the session has memory for a batch; else the decoder closes it and opens
        another.
        """
        return True

    def prepare(self) -> None:
        """Do the work that all batches need once, such as packing weights."""

    def generate(self, request: BatchRequest) -> BatchOutput:
        """Generate for one batch. A `SteppingSession` needs no such method."""
        raise NotImplementedError

    def run(self, request: BatchRequest) -> Generation:
        """Generate for one batch, with pauses if the library decodes step by step."""
        return self.generate(request)
        yield  # never reached; it makes this method a generator, without pauses

    def losses(self, request: BatchRequest, response_ids: Tensor) -> Tensor:
        """Return the cross-entropy [batch, response_len] of given responses, padded on the right,
        after the prompts.

        Engines that decode with the views themselves (`Engine.is_runtime` is False) need no such
        method.
        """
        raise NotImplementedError

    def describe(self) -> Table:
        """Return the package, version and build of the library and the format `weights`, as a row
        stores them.
        """
        return {}

    def close(self) -> None:
        """Free the memory."""


def _until_end(row: Sequence[int], request: BatchRequest) -> list[int]:
    """Return the tokens of a sequence up to its first EOS, and up to the token that completes its
    first stop string.
    """
    eos = request.stop_token_ids
    first_eos = next((i for i, token in enumerate(row) if token in eos), len(row))
    row = row[: first_eos + 1]
    if request.stops:
        lengths = range(len(row))
        # All longer beginnings contain the stop string too, so bisection finds the shortest.
        row = row[: bisect_left(lengths, True, key=lambda length: request.is_stopped(row[:length]))]
    return list(row)


def exportable_tensors(view: PreTrainedModel, engine: str) -> dict[str, Tensor]:
    """Return the weights of a view by name, without the second name of tied weights; raise
    UsageError if the view is not on the CPU, where the libraries decode, or has patches that are
    not folded, which files of the libraries cannot contain.
    """
    if view.device.type != "cpu":
        raise UsageError(
            f"engine={engine} decodes on the CPU, got a model on {view.device}; set"
            " model.device=cpu"
        )
    for module in view.modules():
        if isinstance(module, GapPatch):
            raise UsageError(
                f"engine={engine} supports folded patches, got {module.kind.name} ones; use"
                " correction.kind=folded, or engine=torch"
            )
    tied = view._tied_weights_keys if view.config.tie_word_embeddings else None
    return {name: tensor for name, tensor in view.state_dict().items() if name not in (tied or ())}


def cached_export(
    engine: str,
    tensors: Mapping[str, Tensor],
    settings: Sequence[object],
    suffix: str,
    write: Callable[[Path], None],
) -> Path:
    """Return the file or folder in the cache that `write` makes at a given path. If an earlier
    call had the same tensors and `settings` (everything else on which the content depends), return
    its result. If `write` fails, nothing is left behind.
    """
    content = hashlib.blake2b()
    for tensor in tensors.values():
        content.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    described = [(name, str(tensor.dtype), tensor.shape) for name, tensor in tensors.items()]
    name = key(settings, described, content.hexdigest())
    target = cache_dir() / "engines" / engine / f"{name}{suffix}"
    if not target.exists():
        with replacing(target) as staging:
            write(staging)
    return target
