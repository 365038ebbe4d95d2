"""The llama.cpp engine: views as GGUF files, decoded by llama.cpp on the CPU.

Each view has a context of its own. The keys and values of its layers move there from the full model, which encodes the prompts
with prompt_layers=all, and from the view of the stage before.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference.batching import unpadded
from ulskip_cli.inference.engines.llama_library import LlamaContext, describe_library
from ulskip_cli.inference.engines.llama_state import with_layers
from ulskip_cli.inference.engines.runtime import cached_export, exportable_tensors
from ulskip_cli.inference.gguf_file import FORMATS, GgufTensors, unsupported_reason, write_model
from ulskip_cli.inference.shallow_view import StageView

ENGINE = "llama_cpp"
CAPACITY_STEP = 64  # tokens; contexts are allocated in these steps


class LlamaCppRuntime:
    """The views of all stages in llama.cpp, and the full model if it encodes the prompts."""

    can_shrink = True

    def __init__(
        self, prompt_model: PreTrainedModel, stages: Sequence[StageView], weights: str | None, batch_size: int, num_tokens: int
    ) -> None:
        self.weights = weights or default_weights(prompt_model)
        capacity = -(-num_tokens // CAPACITY_STEP) * CAPACITY_STEP
        self._shape = batch_size, capacity
        self.stages = stages
        self.views = [self._load(stage.view) for stage in stages]
        self.full = self.views[0] if prompt_model is stages[0].view else self._load(prompt_model)
        self._now = 0  # index of the current stage
        self.kv_bytes = (0, 0)

    def _load(self, model: PreTrainedModel) -> LlamaContext:
        return LlamaContext(write_gguf(model, self.weights), *self._shape, torch.get_num_threads(), self.weights == "f32")

    def fits(self, batch_size: int, num_tokens: int) -> bool:
        """Return True if this many sequences of this length fit into the allocated memory."""
        return batch_size <= self._shape[0] and num_tokens <= self._shape[1]

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after prompts [batch, prompt_len], padded on the left."""
        prompts = unpadded(input_ids, mask)
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
        """Move all sequences to the current view with the layers `kept` of `source`; return the bytes there and here."""
        view, sizes = self.views[self._now], (0, 0)
        view.clear()
        for sequence in self._sequences:
            state = source.state(sequence)
            part = with_layers(state, kept, source.num_layers)
            view.set_state(sequence, part, source.num_tokens(sequence))
            sizes = sizes[0] + state.size, sizes[1] + part.size
        return sizes

    def switch_to_stage(self, stage: int) -> Self:
        """Continue the batch with the view of a later stage, which takes over the keys and values of its layers."""
        before, self._now = self._now, stage
        self._move(self.views[before], [self.stages[before].kept.index(layer) for layer in self.stages[stage].kept])
        return self

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, vocab_size] after `tokens` [batch, 1]."""
        return torch.from_numpy(self.views[self._now].append(dict(zip(self._sequences, tokens.tolist(), strict=True))))

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences with the indices `alive` [sequences]."""
        self._sequences = [self._sequences[i] for i in alive.tolist()]

    def describe(self) -> dict[str, Any]:
        """Return the version and the build of the library, as a row stores them."""
        return {**describe_library(), "weights": self.weights}


def default_weights(model: PreTrainedModel) -> str:
    """Return the format of a model's own weights."""
    names = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
    if model.dtype not in names:
        raise UsageError(f"engine=llama_cpp does not support weights in {model.dtype}; use model.dtype=bfloat16")
    return names[model.dtype]


def write_gguf(model: PreTrainedModel, weights: str) -> Path:
    """Return a GGUF file of a model without its tokenizer; raise UsageError if GGUF does not support the model."""
    config = model.config.to_dict()
    if reason := unsupported_reason(config):
        raise UsageError(f"engine=llama_cpp does not support this model ({reason}); use engine=torch")
    tensors = exportable_tensors(model, ENGINE)

    def write(file: Path) -> None:
        writer = gguf.GGUFWriter(file, "llama")
        writer.add_tokenizer_model("no_vocab")
        write_model(writer, GgufTensors(tensors.__getitem__, config, *FORMATS[weights]), {name: name for name in tensors})

    return cached_export(ENGINE, tensors, [weights, version("gguf"), config], ".gguf", write)
