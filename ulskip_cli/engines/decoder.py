"""Generate with the views of one schedule: choose the engine, and open it at its first use."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import psutil
import torch
from torch import Tensor

from ulskip_cli.core.answer import Request
from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.engines import AUTO, Engine, engine_named
from ulskip_cli.core.errors import RunError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.engines.base import (
    UNWATCHED,
    BatchOutput,
    Generation,
    Prompts,
    Room,
    Session,
    Views,
    Watch,
    take_turns,
)
from ulskip_cli.engines.torch import Torch
from ulskip_cli.engines.torch.native_model import Backend, PlainBackend
from ulskip_cli.inference.batching import BatchSize, in_batches, longest_first
from ulskip_cli.inference.teacher_forcing import EncodedPrompt


class Decoder:
    """Generates with the views of one schedule. Its sessions stay open for later batches; another
    decoder of the same views has its own, so that both can hold a batch at once.
    """

    def __init__(self, views: Views, engine: Engine | None = None) -> None:
        """Decode with `engine` (None: auto), which chooses the engine of a request."""
        self.views, self.device = views, views.model.device
        self.requested_engine = engine or engine_named(AUTO)
        # opened engines, by name and format of the weights
        self._sessions: dict[tuple[str, str | None], Session] = {}

    def engine(self, decoding: DecodingConfig) -> tuple[Engine, str | None]:
        """Return the engine for `decoding`, and the reason if it is not our loop on torch; raise
        UsageError if there is none.
        """
        needs = decoding.needs() | ({Need.EARLY_EXIT} if self.views.exits else set())
        return self.requested_engine.engine_for(needs, self.views.model)

    def backend(self, engine: Engine) -> Backend:
        """Return what runs the decode steps of an engine; that of a library has its name."""
        if isinstance(engine, Torch):
            return self.views.backend
        return PlainBackend(name=engine.name) if engine.decodes_outside_torch else PlainBackend()

    @property
    def decodes_outside_torch(self) -> bool:
        """True if another library than torch decodes."""
        return self.requested_engine.decodes_outside_torch

    @property
    def build(self) -> JsonObject | None:
        """The version and build of the engine's library, and the format of the weights; None on
        torch, or before the first batch.
        """
        session = self._sessions.get((self.requested_engine.name, self.requested_engine.weights))
        if not session or not self.decodes_outside_torch:
            return None
        return {**session.describe(), "threads": torch.get_num_threads()}

    def answer_all(
        self,
        prompts: Sequence[Sequence[int]],
        request: Request,
        size: BatchSize,
        on_tokens: Callable[[int, int], None] = lambda done, tokens: None,
        skip: int = 0,
        on_prompts: Callable[[Sequence[int], EncodedPrompt], None] = lambda batch, prompt: None,
    ) -> Iterator[tuple[Sequence[int], BatchOutput]]:
        """Answer prompts in batches of similar length, longest first; yield the indices of each
        batch's prompts and the output. A batch that runs out of memory is halved.

        The first `skip` prompts in this order are left out. After every step `on_tokens` gets the
        numbers of finished prompts and generated tokens. If a forward pass on torch encoded the
        prompts of a batch, `on_prompts` gets their indices and the encoded prompts when the batch
        is finished.
        """
        done, tokens = skip, 0  # prompts and tokens of the batches so far

        def on_step(new_tokens: int) -> None:
            on_tokens(done, tokens + new_tokens)

        def answer(batch: Sequence[int]) -> BatchOutput:
            """Answer the prompts with these indices as one batch."""
            encoded = list[EncodedPrompt]()
            padded = Prompts.from_token_ids([prompts[i] for i in batch], request.ends.pad_token_id)
            # Does not depend on earlier batches, as some are skipped; torch accepts 63 bits.
            seed = (request.seed * 1_000_003 + batch[0]) % 2**63
            watch = Watch(on_step, on_prompt=encoded.append)
            output = self.generate(padded, replace(request, seed=seed), watch)
            for prompt in encoded:  # of a batch that did not run out of memory
                on_prompts(batch, prompt)
            return output

        order = longest_first(list(map(len, prompts)))
        for batch, output in in_batches(order[skip:], size, answer):
            done += len(batch)
            tokens += output.generated_tokens
            on_tokens(done, tokens)
            yield batch, output

    def generate(
        self,
        prompts: Prompts,
        request: Request,
        watch: Watch = UNWATCHED,
        room: Room | None = None,
    ) -> BatchOutput:
        """Generate for one batch, without pauses."""
        return take_turns([self.run(prompts, request, watch, room)])[0]

    @torch.inference_mode()
    def run(
        self,
        prompts: Prompts,
        request: Request,
        watch: Watch = UNWATCHED,
        room: Room | None = None,
    ) -> Generation:
        """Generate for one batch, with the pauses that `watch` asks for. The first call opens the
        engine with memory for this batch, or with more `room` for later ones.
        """
        engine, _ = self.engine(request.decoding)
        batch, prompt_len = prompts.input_ids.shape
        own_room = Room(batch, prompt_len + request.length)
        session, load_seconds = self._session(engine, room or own_room)
        if request.decoding.do_sample:
            torch.manual_seed(request.seed)
        output = yield from session.run(prompts.to(self.device), request, watch)
        return replace(
            output,
            engine=engine.name,
            linear_backend=self.backend(engine).name,
            compile_seconds=load_seconds,
        )

    @torch.inference_mode()
    def losses(self, prompts: Prompts, response_ids: Tensor) -> Tensor:
        """Return the cross-entropy [batch, response_len] of responses, padded on the right, in an
        engine that is not on torch (`decodes_outside_torch`).
        """
        length = prompts.input_ids.shape[1] + response_ids.shape[1]
        session, _ = self._session(self.requested_engine, Room(len(response_ids), length))
        return session.losses(prompts, response_ids)

    def _session(self, engine: Engine, room: Room) -> tuple[Session, float]:
        """Return the open session of an engine, or a new one if it has no room for a batch, and
        the seconds in which a library loaded its copy of the weights: 0 on torch, or if the session
        was open.
        """
        key = engine.name, engine.weights
        if key in self._sessions and not self._sessions[key].fits(room):
            self._sessions.pop(key).close()  # No name holds it, so its memory is free.
        if key in self._sessions:
            return self._sessions[key], 0.0
        began = time.perf_counter()
        if engine.decodes_outside_torch:
            _check_memory(engine, self.views)
        self._sessions[key] = engine.open(self.views, room)
        load_seconds = time.perf_counter() - began if engine.decodes_outside_torch else 0.0
        return self._sessions[key], load_seconds


def _check_memory(engine: Engine, views: Views) -> None:
    """Raise RunError if the free memory cannot hold a copy of each model in the engine's format.
    The estimate is a lower bound: embedding and head may have more bits than the layers.
    """
    models = {views.prompt_model, *(stage.view for stage in views.stages)}
    bits_per_weight: float = 8 * views.model.dtype.itemsize
    if engine.weights:
        bits_per_weight, _bits_of_head = engine.formats[engine.weights]
    num_weights = sum(weight.numel() for model in models for weight in model.parameters())
    needed = num_weights * bits_per_weight / 8
    free = psutil.virtual_memory().available
    if needed > free:
        raise RunError(
            f"out of memory: engine={engine.name} needs {needed / 2**30:.1f} GiB for its copies of"
            f" the weights, {free / 2**30:.1f} GiB are free; set engine.weights to a smaller"
            " format, or use engine=torch or a smaller model"
        )
