"""The session of llama.cpp: views as GGUF files, each with a context of its own.

The keys and values of a view's layers move there from the full model, which encodes the prompts
with prompt_layers=all, and from the view of the stage before.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.errors import UsageError
from ulskip_cli.engines.base import BatchRequest, Room, Views
from ulskip_cli.engines.export import cached_export, exportable_tensors
from ulskip_cli.engines.llama_cpp.library import LlamaContext, describe_library
from ulskip_cli.engines.llama_cpp.state import with_layers
from ulskip_cli.engines.loop import SteppingSession
from ulskip_cli.inference.batching import unpadded
from ulskip_cli.inference.gguf_file import FORMATS, GgufTensors, unsupported_reason, write_model

ENGINE = "llama_cpp"
CAPACITY_STEP = 64  # tokens; contexts are allocated in these steps


class LlamaCppSession(SteppingSession):
    """The views of all stages in llama.cpp, and the full model if it encodes the prompts."""

    def __init__(self, views: Views, weights: str | None, room: Room) -> None:
        self.weights = weights or default_weights(views.prompt_model)
        self._room = Room(room.batch_size, -(-room.num_tokens // CAPACITY_STEP) * CAPACITY_STEP)
        self.stages = views.stages
        self.views = [self._load(stage.view) for stage in self.stages]
        encodes = views.prompt_model is self.stages[0].view
        self.full = self.views[0] if encodes else self._load(views.prompt_model)
        self._now = 0  # index of the current stage

    def _load(self, model: PreTrainedModel) -> LlamaContext:
        shape = self._room.batch_size, self._room.num_tokens
        return LlamaContext(
            write_gguf(model, self.weights), *shape, torch.get_num_threads(), self.weights == "f32"
        )

    def fits(self, room: Room) -> bool:
        """Return True if the contexts are large enough."""
        return self._room.holds(room)

    def encode(self, request: BatchRequest) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after its prompts."""
        prompts = unpadded(request.input_ids, request.attention_mask)
        self._sequences, self._now = list(range(len(prompts))), 0
        self.full.clear()
        logits = self.full.append(dict(enumerate(prompts)))
        if self.full is self.views[0]:
            size = sum(self.full.state_bytes(sequence) for sequence in self._sequences)
            self.kv_bytes = size, size
        else:
            self.kv_bytes = self._move(self.full, self.stages[0].kept)
        return torch.from_numpy(logits)

    def _move(self, source: LlamaContext, kept: Sequence[int]) -> tuple[int, int]:
        """Move all sequences to the current view with the layers `kept` of `source`; return the
        bytes there and here.
        """
        view, sizes = self.views[self._now], (0, 0)
        view.clear()
        for sequence in self._sequences:
            state = source.state(sequence)
            part = with_layers(state, kept, source.num_layers)
            view.set_state(sequence, part, source.num_tokens(sequence))
            sizes = sizes[0] + state.size, sizes[1] + part.size
        return sizes

    def switch(self, stage: int) -> None:
        """Continue with the view of a later stage, which takes over the keys and values of its
        layers.
        """
        before, self._now = self._now, stage
        self._move(
            self.views[before],
            [self.stages[before].kept.index(layer) for layer in self.stages[stage].kept],
        )

    def step(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, vocab_size] after `tokens` [batch, 1]."""
        appended = dict(zip(self._sequences, tokens.tolist(), strict=True))
        return torch.from_numpy(self.views[self._now].append(appended))

    def keep(self, alive: Tensor) -> None:
        """Continue with the sequences at the indices `alive` [sequences] only."""
        self._sequences = [self._sequences[i] for i in alive.tolist()]

    def describe(self) -> dict[str, Any]:
        """Return the package, version and build of the library, and the format of the weights."""
        return {**describe_library(), "weights": self.weights}


def default_weights(model: PreTrainedModel) -> str:
    """Return the format of a model's own weights."""
    names = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
    if model.dtype not in names:
        raise UsageError(
            f"engine=llama_cpp does not support weights in {model.dtype}; use model.dtype=bfloat16"
        )
    return names[model.dtype]


def write_gguf(model: PreTrainedModel, weights: str) -> Path:
    """Return a GGUF file of a model without its tokenizer; raise UsageError if GGUF does not
    support the model.
    """
    config = model.config.to_dict()
    if reason := unsupported_reason(config):
        raise UsageError(
            f"engine=llama_cpp does not support this model ({reason}); use engine=torch"
        )
    tensors = exportable_tensors(model, ENGINE)

    def write(file: Path) -> None:
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_tokenizer_model("no_vocab")
        write_model(
            writer,
            GgufTensors(tensors.__getitem__, config, *FORMATS[weights]),
            {name: name for name in tensors},
        )

    return cached_export(ENGINE, tensors, [weights, version("gguf"), config], ".gguf", write)
