"""The interface of engines: the views that an engine opens, the session that it returns, and the
prompts and the output of a batch.

`Engine.open(views, room)` returns a `Session`. If its library decodes step by step, the
session is a `SteppingSession` (`loop.py`) with `encode` and `logits`. If the library generates
whole answers, the session has `generate` and `losses`.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from operator import add
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.answer import Request
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject, cache_dir, replacing
from ulskip_cli.core.fingerprint import digest
from ulskip_cli.core.schedule import ExitRule, Layers, Schedule
from ulskip_cli.engines.torch.native_model import Backend, backend_for
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import padded
from ulskip_cli.inference.layerwise import LayerwiseModel, prompt_model_of
from ulskip_cli.inference.shallow_view import StageView
from ulskip_cli.inference.skip_adapter import PatchModule, SkipAdapter
from ulskip_cli.inference.teacher_forcing import EncodedPrompt


@dataclass(frozen=True)
class Views:
    """A model and the views of its schedule, from which an engine makes what it needs. Below the
    plan, only this object knows which layers run in which step.
    """

    model: PreTrainedModel  # with all layers
    # encodes the prompts: the model itself, the view of the first stage, or `prompt_model_of`
    prompt_model: PreTrainedModel
    stages: tuple[StageView, ...]  # of decoding
    exits: ExitRule | None = None  # the rule of early exit; its stage has all layers

    @classmethod
    def of(
        cls, model: PreTrainedModel, schedule: Schedule, adapter: SkipAdapter | None = None
    ) -> Self:
        """Build the views of a schedule; `adapter` corrects those that skip layers."""
        every_layer = tuple(range(schedule.num_layers))
        make_view = adapter.view if adapter else shallow_view.shallow_view

        @functools.cache  # equal sets of layers share a view
        def view(layers: Layers) -> PreTrainedModel:
            return model if layers == every_layer else make_view(model, layers)

        # the layers that have keys and values of the prompt
        cached_layers = schedule.kept_layers if schedule.prompt_layers == "kept" else every_layer
        stages = shallow_view.stage_views(schedule.stages, cached_layers, view)
        # `first:K` passes prompts through fewer layers, and the others only fill their cache
        prompt_model = prompt_model_of(view(cached_layers), schedule.prompt_layers)
        return cls(model, prompt_model, stages, schedule.exits)

    @functools.cached_property
    def backend(self) -> Backend:
        """The backend that runs the decode steps of these views on torch."""
        return backend_for(self.model)

    @functools.cached_property
    def layerwise(self) -> LayerwiseModel:
        """The full model, split into its layers."""
        return LayerwiseModel(self.model)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch, padded on the left."""

    input_ids: Tensor  # [batch, prompt_len]
    attention_mask: Tensor  # [batch, prompt_len], 0 at padding

    @classmethod
    def from_token_ids(cls, prompts: Sequence[Sequence[int]], pad_token_id: int) -> Self:
        """Pad the token ids of each prompt."""
        return cls(*padded(prompts, pad_token_id, left=True))

    def to(self, device: torch.device) -> "Prompts":
        """Return the prompts on a device."""
        return Prompts(self.input_ids.to(device), self.attention_mask.to(device))

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all prompts, without padding."""
        return int(self.attention_mask.sum())


@dataclass(frozen=True)
class Watch:
    """How a caller watches a batch while it is decoded."""

    # Gets the number of tokens generated so far in the batch: after every step, or at intervals if
    # a library answers as a whole.
    on_step: Callable[[int], None] = lambda count: None
    # Gets the prompts that a forward pass on torch has encoded.
    on_prompt: Callable[[EncodedPrompt], None] = lambda prompt: None
    pause_every: int | None = None  # decode steps between two pauses of the generation


UNWATCHED = Watch()


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

    checks: int = 0  # passes of the model, also without drafts
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
        layers = sum(depth * count for depth, count in self.depths.items())
        return layers / tokens if tokens else None


@dataclass(frozen=True)
class PhaseTimes:
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
    head_rows: float | None = None  # mean rows computed exactly for a token; None: all

    @classmethod
    def of(
        cls,
        prompts: Prompts,
        request: Request,
        rows: Sequence[Sequence[int]],
        times: PhaseTimes,
        kv_bytes: tuple[int, int],
        **details: Any,
    ) -> Self:
        """Return the output of a batch from the generated tokens `rows` of each sequence, which are
        truncated at EOS and behind the first stop string. `kv_bytes` are the sizes of the prompt's
        KV cache before and after skipped layers were dropped, and `details` are further fields.
        """
        answers = [request.cut_after_end(row) for row in rows]
        eos = request.stop_token_ids
        hit_max_length = [
            len(answer) >= request.length and answer[-1] not in eos for answer in answers
        ]
        prompt_kv_bytes, kept_kv_bytes = kv_bytes
        return cls(
            token_ids=answers,
            hit_max_length=hit_max_length,
            prompt_tokens=prompts.num_tokens,
            prefill_seconds=times.prefilled - times.start,
            first_token_seconds=times.first - times.start,
            decode_seconds=times.end - times.first,
            prompt_kv_bytes=prompt_kv_bytes,
            kept_kv_bytes=kept_kv_bytes,
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


class Session:
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

    def generate(self, prompts: Prompts, request: Request, watch: Watch) -> BatchOutput:
        """Generate for one batch. A `SteppingSession` needs no such method."""
        raise NotImplementedError

    def run(self, prompts: Prompts, request: Request, watch: Watch = UNWATCHED) -> Generation:
        """Generate for one batch, with pauses if the library decodes step by step."""
        return self.generate(prompts, request, watch)
        yield  # never reached; it makes this method a generator, without pauses

    def losses(self, prompts: Prompts, response_ids: Tensor) -> Tensor:
        """Return the cross-entropy [batch, response_len] of given responses, padded on the right,
        after the prompts.

        Engines that decode with the views (`decodes_outside_torch` is False) need no such method.
        """
        raise NotImplementedError

    def describe(self) -> JsonObject:
        """Return the package, version and build of the library and the format `weights`, as a row
        stores them.
        """
        return {}

    def close(self) -> None:
        """Free the memory."""


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
        if isinstance(module, PatchModule):
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
    name = digest(settings, described, content.hexdigest())
    target = cache_dir() / "engines" / engine / f"{name}{suffix}"
    if not target.exists():
        with replacing(target) as staging:
            write(staging)
    return target
