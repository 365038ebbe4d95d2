"""Generate with one schedule: build the views, choose the engine and open it when it is first
used.
"""

import copy
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.engines import Engine, engine_named
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.files import Table
from ulskip_cli.core.schedule import Layers
from ulskip_cli.engines.base import (
    BatchOutput,
    BatchRequest,
    EngineSession,
    Generation,
    Room,
    Views,
    take_turns,
)
from ulskip_cli.engines.torch import Torch
from ulskip_cli.engines.torch.session import TORCH, Backend, choose_backend
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import BatchSize, in_batches, longest_first, padded
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.skip_adapter import SkipAdapter
from ulskip_cli.inference.teacher_forcing import EncodedPrompt
from ulskip_cli.strategies.plan import Schedule


@dataclass(frozen=True)
class DecodeContext:
    """How batches are decoded."""

    decoding: DecodingConfig
    pad_token_id: int  # of shorter prompts and finished sequences
    max_new_tokens: int = 64
    seed: int = 0  # of sampling
    tokenizer: PreTrainedTokenizerBase | None = None  # only stop strings require it
    pause_every: int | None = None  # decode steps between two pauses of `Decoder.run`
    # Gets the number of tokens generated so far in the batch: after every step, or at intervals if
    # a library answers as a whole.
    on_step: Callable[[int], None] = lambda count: None
    # gets the prompts that a forward pass on torch has encoded
    on_prompt: Callable[[EncodedPrompt], None] = lambda prompt: None


class Decoder:
    """Generates with a model, which is not changed, and one schedule."""

    def __init__(
        self,
        model: PreTrainedModel,
        plan: Schedule,
        adapter: SkipAdapter | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Build the views of a plan; `adapter` corrects those that skip layers, and `engine`
        decodes (None: auto).
        """
        self.model, self.device = model, model.device
        self.exits = plan.exits  # the rule of early exit, or None
        self.asked = engine or engine_named("auto")  # it chooses the engine of a request
        every_layer = tuple(range(plan.num_layers))
        make_view = adapter.view if adapter else shallow_view.shallow_view

        @functools.cache  # equal sets of layers share a view
        def view(kept: Layers) -> PreTrainedModel:
            return model if kept == every_layer else make_view(model, kept)

        prompt_layers = plan.kept_layers if plan.prompt_layers == "kept" else every_layer
        self.prompt_model = view(prompt_layers)
        self.stages = shallow_view.stage_views(plan.stages, prompt_layers, view)
        self._torch_backend = choose_backend(model)
        self._views = Views(model, self.prompt_model, self.stages, self._torch_backend.name)
        # opened engines, by name and format of the weights
        self._sessions: dict[tuple[str, str | None], EngineSession] = {}

    @property
    def view(self) -> PreTrainedModel:
        """The view that runs the first decode steps."""
        return self.stages[0].view

    def with_engine(self, name: str) -> "Decoder":
        """Return a decoder with another engine; both decoders share views and sessions."""
        return self.changed(asked=engine_named(name))

    def with_own_sessions(self) -> "Decoder":
        """Return a decoder that shares only the views, so that both can hold a batch at once."""
        return self.changed(_sessions={})

    def changed(self, **attributes: object) -> "Decoder":
        """Return a decoder with other attributes; both decoders share views and sessions."""
        changed = copy.copy(self)
        vars(changed).update(attributes)
        return changed

    @functools.cached_property
    def layerwise(self) -> LayerwiseModel:
        """The full model, split into its layers."""
        return LayerwiseModel(self.model)

    def engine(self, decoding: DecodingConfig) -> tuple[Engine, str | None]:
        """Return the engine for `decoding`, and the reason if it is not our loop on torch."""
        needs = decoding.needs() | ({Need.EARLY_EXIT} if self.exits else set())
        return self.asked.engine_for(needs, self.model)

    @property
    def is_runtime(self) -> bool:
        """True if another library than torch decodes."""
        return self.asked.is_runtime

    @property
    def build(self) -> Table | None:
        """The version and build of the engine's library, and the format of the weights; None on
        torch, or before the first batch.
        """
        session = self._sessions.get((self.asked.name, self.asked.weights))
        if not session or not self.is_runtime:
            return None
        return {**session.describe(), "threads": torch.get_num_threads()}

    def linear_backend(self, decoding: DecodingConfig) -> Backend:
        """Return the linear backend that decodes with `decoding`; raise UsageError if no engine
        supports `decoding`.
        """
        return self._backend(self.engine(decoding)[0])

    def _backend(self, engine: Engine) -> Backend:
        if isinstance(engine, Torch):
            return self._torch_backend
        return Backend(engine.name if engine.is_runtime else TORCH)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        context: DecodeContext,
        forced_length: int | None = None,
    ) -> BatchOutput:
        """Generate for one batch; `input_ids` and `attention_mask` are [batch, prompt_len], padded
        on the left.

        With `forced_length`, every sequence gets exactly that many tokens with EOS suppressed.
        """
        return take_turns([self.run(input_ids, attention_mask, context, forced_length)])[0]

    @torch.inference_mode()
    def run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        context: DecodeContext,
        forced_length: int | None = None,
    ) -> Generation:
        """Generate like `generate`, with the pauses that the context asks for (`pause_every`). The
        first call opens the engine, in which a library loads a copy of the weights.
        """
        eos: int | list[int] | None = self.model.generation_config.eos_token_id
        length = forced_length or context.max_new_tokens
        decoding = context.decoding
        request = BatchRequest(
            input_ids=input_ids.to(self.device),
            attention_mask=attention_mask.to(self.device),
            decoding=decoding,
            pad_token_id=context.pad_token_id,
            tokenizer=context.tokenizer,
            eos_token_ids=[] if eos is None else [eos] if isinstance(eos, int) else list(eos),
            length=length,
            forced=bool(forced_length),
            on_step=context.on_step,
            on_prompt=context.on_prompt,
            pause_every=context.pause_every,
            stages=self.stages,
            exits=self.exits,
        )
        engine, _ = self.engine(decoding)
        batch, prompt_len = input_ids.shape
        # A warm-up is short, but the batches after it must fit into the same session.
        room = Room(batch, prompt_len + max(length, context.max_new_tokens))
        session, load_seconds = self._session(engine, room)
        session.prepare()
        if decoding.do_sample:
            torch.manual_seed(context.seed)
        output = yield from session.run(request)
        return replace(
            output,
            engine=engine.name,
            linear_backend=self._backend(engine).name,
            compile_seconds=load_seconds,
        )

    def losses(self, input_ids: Tensor, mask: Tensor, response_ids: Tensor) -> Tensor:
        """Return the cross-entropy [batch, response_len] in an engine that is not on torch
        (`is_runtime`).

        `input_ids` and `mask` are [batch, prompt_len], padded on the left. The responses are padded
        on the right.
        """
        batch, length = response_ids.shape
        request = BatchRequest(
            input_ids,
            mask,
            DecodingConfig(),
            pad_token_id=0,  # as no token is chosen, the settings of decoding do not matter
            eos_token_ids=(),
            length=length,
            stages=self.stages,
        )
        with torch.inference_mode():
            session, _ = self._session(self.asked, Room(batch, input_ids.shape[1] + length))
            return session.losses(request, response_ids)

    def _session(self, engine: Engine, room: Room) -> tuple[EngineSession, float]:
        """Return the open session of an engine, or a new one if it has no room for a batch, and
        the seconds in which a library loaded its copy of the weights: 0 on torch, or if the session
        was open.
        """
        key = engine.name, engine.weights
        if key in self._sessions and not self._sessions[key].fits(room):
            self._sessions.pop(key).close()  # frees its memory first
        loads = engine.is_runtime and key not in self._sessions
        began = time.perf_counter()
        if loads:
            _check_memory(engine, self._views)
        if key not in self._sessions:
            self._sessions[key] = engine.open(self._views, room)
        return self._sessions[key], time.perf_counter() - began if loads else 0.0


def generate_all(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    context: DecodeContext,
    size: BatchSize,
    on_tokens: Callable[[int, int], None] = lambda done, tokens: None,
    skip: int = 0,
    on_prompts: Callable[[Sequence[int], EncodedPrompt], None] = lambda positions, prompt: None,
) -> Iterator[tuple[Sequence[int], BatchOutput]]:
    """Generate in batches of similar prompt length, longest first; yield the indices of each
    batch's prompts and the output.

    The first `skip` prompts in this order are left out. After every step `on_tokens` gets the
    numbers of finished prompts and generated tokens. If a forward pass on torch encoded the prompts
    of a batch, `on_prompts` gets their indices and the encoded prompts when the batch is finished.
    """
    done, tokens = skip, 0

    def work(positions: Sequence[int]) -> BatchOutput:
        """Decode the prompts at these indices as one batch, padded on the left."""
        ids, mask = padded([prompts[i] for i in positions], context.pad_token_id, left=True)
        encoded = list[EncodedPrompt]()
        batch_context = replace(
            context,
            # Does not depend on earlier batches, as some are skipped; torch accepts 63 bits.
            seed=(context.seed * 1_000_003 + positions[0]) % 2**63,
            on_step=lambda new: on_tokens(done, tokens + new),
            on_prompt=encoded.append,
        )
        output = decoder.generate(ids, mask, batch_context)
        for prompt in encoded:
            on_prompts(positions, prompt)
        return output

    order = longest_first(list(map(len, prompts)))
    for positions, output in in_batches(order[skip:], size, work):
        done += len(positions)
        tokens += output.generated_tokens
        on_tokens(done, tokens)
        yield positions, output


def until_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Truncate a text before its first stop string; return the text, and True if a stop string was
    found.

    >>> until_stop("a b. END c", ["END"])
    ('a b. ', True)
    """
    starts = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(starts)], True) if starts else (text, False)


def _check_memory(engine: Engine, views: Views) -> None:
    """Raise RunError if the free memory cannot hold a copy of each model in the engine's format."""
    models = {views.prompt_model, *(stage.view for stage in views.stages)}
    # Bits per weight: `formats` has those of layers, and of embedding and head.
    bits = engine.formats[engine.weights][0] if engine.weights else 8 * views.model.dtype.itemsize
    needed = sum(weight.numel() for model in models for weight in model.parameters()) * bits / 8
    free = psutil.virtual_memory().available
    if needed > free:
        raise RunError(
            f"out of memory: engine={engine.name} needs {needed / 2**30:.1f} GiB for its copies of"
            f" the weights, {free / 2**30:.1f} GiB are free; set engine.weights to a smaller"
            " format, or use engine=torch or a smaller model"
        )
