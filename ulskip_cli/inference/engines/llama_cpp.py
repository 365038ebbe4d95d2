"""The llama.cpp engine: views as GGUF files, decoded by llama.cpp on the CPU.

With prompt_layers=all the full model encodes the prompts, and the kept layers' keys and values move to the view's context.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference.engines.llama_library import LlamaContext, load_library
from ulskip_cli.inference.engines.llama_state import with_layers
from ulskip_cli.inference.engines.runtime import cached_export, exportable_tensors
from ulskip_cli.inference.gguf_file import FORMATS, GgufTensors, unsupported_reason, write_model
from ulskip_cli.inference.shallow_view import StageView

ENGINE = "llama_cpp"
CAPACITY_STEP = 64  # tokens; contexts are allocated in these steps


class LlamaCppRuntime:
    """A view in llama.cpp, and the full model if it encodes the prompts."""

    can_shrink = True

    def __init__(
        self, prompt_model: PreTrainedModel, stage: StageView, weights: str | None, batch_size: int, num_tokens: int
    ) -> None:
        self.weights = weights or default_weights(stage.view)
        capacity = -(-num_tokens // CAPACITY_STEP) * CAPACITY_STEP
        self._shape, exact = (batch_size, capacity), self.weights == "f32"
        threads = torch.get_num_threads()
        self.kept = stage.kept
        self.view = LlamaContext(write_gguf(stage.view, self.weights), batch_size, capacity, threads, exact)
        self.full = self.view
        if prompt_model is not stage.view:
            self.full = LlamaContext(write_gguf(prompt_model, self.weights), batch_size, capacity, threads, exact)
        self.kv_bytes = (0, 0)

    def fits(self, batch_size: int, num_tokens: int) -> bool:
        """Return True if this many sequences of this length fit into the allocated memory."""
        return batch_size <= self._shape[0] and num_tokens <= self._shape[1]

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after prompts [batch, prompt_len], padded on the left."""
        prompts = [row[seen.bool()].tolist() for row, seen in zip(input_ids, mask, strict=True)]
        self._sequences = list(range(len(prompts)))
        for context in (self.view, self.full):
            context.clear()
        logits = self.full.append(dict(enumerate(prompts)))
        sizes = [0, 0]
        for sequence, prompt in enumerate(prompts):
            state = self.full.state(sequence)
            kept = state
            if self.full is not self.view:
                kept = with_layers(state, self.kept, self.full.num_layers)
                self.view.set_state(sequence, kept, len(prompt))
            sizes = [sizes[0] + state.size, sizes[1] + kept.size]
        self.kv_bytes = (sizes[0], sizes[1])
        return torch.from_numpy(logits)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, vocab_size] after `tokens` [batch, 1]."""
        return torch.from_numpy(self.view.append(dict(zip(self._sequences, tokens.tolist(), strict=True))))

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences with the indices `alive` [sequences]."""
        self._sequences = [self._sequences[i] for i in alive.tolist()]

    def describe(self) -> dict[str, Any]:
        """Return the version and the build of the library, as a row stores them."""
        library = load_library()
        return {"package": library.package, "version": library.version, "build": library.build, "weights": self.weights}


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
