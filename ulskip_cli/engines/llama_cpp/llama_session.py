"""The session of llama.cpp: views as GGUF files, each with a context of its own, through the
declarations of llama-cpp-python.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_uint8
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.answer import Request
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.engines.base import (
    UNWATCHED,
    Prompts,
    Room,
    Views,
    Watch,
    cached_export,
    exportable_tensors,
)
from ulskip_cli.engines.llama_cpp import LlamaCpp
from ulskip_cli.engines.loop import SteppingSession
from ulskip_cli.inference.batching import unpadded
from ulskip_cli.inference.gguf_file import TYPES_OF_FORMAT, GgufTensors, architecture, write_model

try:
    import llama_cpp
except (AttributeError, OSError, RuntimeError) as error:
    raise UsageError(
        f"cannot load the library of llama.cpp ({error}); correct or unset LLAMA_CPP_LIB_PATH, or"
        " install llama-cpp-python again"
    ) from None

ENGINE = "llama_cpp"
CAPACITY_STEP = 64  # tokens; contexts are allocated in these steps
FORMAT_OF_DTYPE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
# llama-cpp-python prints errors of llama.cpp to stderr, which would break a display of progress.
_SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(_SILENT, None)
llama_cpp.llama_backend_init()


class LlamaContext:
    """A GGUF model in memory with the KV cache of several sequences."""

    def __init__(self, file: Path, room: Room, exact: bool) -> None:
        """Load a model with memory for the batches of `room`.

        With `exact`, keys and values are float32, without flash attention, which rounds them.
        """
        self._context = self._model = None
        model_options = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(file), model_options)
        if not self._model:
            raise RunError(f"llama.cpp could not load {file}; delete it and repeat the run")
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size: int = llama_cpp.llama_vocab_n_tokens(vocab)
        options = _context_options(room, exact)
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            size = f"{room.batch_size} x {room.num_tokens} tokens"
            raise RunError(f"llama.cpp could not allocate {size}; use a smaller batch_size")
        # token ids, one sequence for each
        self._batch = llama_cpp.llama_batch_init(options.n_batch, 0, 1)
        self._lengths = dict[int, int]()  # of the sequences, in tokens

    def __del__(self) -> None:
        if self._context:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
        if self._model:
            llama_cpp.llama_model_free(self._model)

    def clear(self) -> None:
        """Forget all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._lengths = {}

    def remove(self, sequence: int, count: int) -> None:
        """Forget the last `count` tokens of a sequence."""
        self._lengths[sequence] -= count
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_seq_rm(memory, sequence, self._lengths[sequence], -1)

    def append(self, tokens: Mapping[int, Sequence[int]], every: bool = False) -> Tensor:
        """Append tokens, given by the number of their sequence.

        Return the logits [rows, vocab_size] after the last token of each sequence, or after `every`
        token, in the order of `tokens`. They are in llama.cpp's buffer, which the next call
        overwrites.
        """
        batch, count = self._batch, 0
        for sequence, appended in tokens.items():
            begin = self._lengths.get(sequence, 0)
            for position, token in enumerate(appended, begin):
                batch.token[count], batch.pos[count] = token, position
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, sequence
                batch.logits[count] = every or position == begin + len(appended) - 1
                count += 1
            self._lengths[sequence] = begin + len(appended)
        batch.n_tokens = count
        if code := llama_cpp.llama_decode(self._context, batch):
            problem = f"llama.cpp could not decode {count} tokens (code {code})"
            raise RunError(f"{problem}; use a smaller batch_size")
        logits = llama_cpp.llama_get_logits(self._context)
        rows = count if every else len(tokens)
        return torch.from_numpy(np.ctypeslib.as_array(logits, (rows, self._vocab_size)))

    def state_bytes(self, sequence: int) -> int:
        """Return the size of the serialized keys and values of one sequence."""
        return int(llama_cpp.llama_state_seq_get_size(self._context, sequence))

    def take(self, source: "LlamaContext", sequence: int, layers: Sequence[int]) -> None:
        """Continue a sequence of another context: copy the keys and values of those `layers` of its
        model that this context's model has.
        """
        data = np.empty(source.state_bytes(sequence), np.uint8)
        pointer = data.ctypes.data_as(POINTER(c_uint8))
        get_data, set_data = llama_cpp.llama_state_seq_get_data, llama_cpp.llama_state_seq_set_data
        size = get_data(source._context, pointer, data.size, sequence)
        part = with_layers(data[:size], layers)
        pointer = part.ctypes.data_as(POINTER(c_uint8))
        if set_data(self._context, pointer, part.size, sequence) != part.size:
            problem = "llama.cpp refused the keys and values of the kept layers"
            raise RunError(f"{problem}; use prompt_layers=kept")
        self._lengths[sequence] = source._lengths[sequence]


def _context_options(room: Room, exact: bool) -> llama_cpp.llama_context_params:
    """Return the options of a context for the batches of `room`; raise UsageError if the library of
    llama.cpp is not the one that llama-cpp-python declares.
    """
    options = llama_cpp.llama_context_default_params()
    # Another version has another layout of this structure, so its defaults are misread.
    if {options.type_k, options.type_v} != {llama_cpp.GGML_TYPE_F16}:
        raise UsageError(
            f"expected the llama.cpp of llama-cpp-python {llama_cpp.__version__}, got another "
            "version; correct or unset LLAMA_CPP_LIB_PATH"
        )
    num_tokens = room.batch_size * room.num_tokens  # of all sequences
    options.n_ctx = options.n_batch = num_tokens
    options.n_ubatch = min(num_tokens, 512)
    options.n_seq_max = room.batch_size
    options.n_threads = options.n_threads_batch = torch.get_num_threads()
    if exact:
        options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return options


def with_layers(state: ndarray, kept: Sequence[int]) -> ndarray:
    """Return the serialized state of a sequence, [bytes], with only the layers `kept`.

    llama.cpp's format: three words, the last the number of streams; for each stream its number of
    cells and, if it has some, three words a cell, a flag, the number of layers, the keys of each
    layer, the values of each layer. Keys or values are their type (4 bytes), the size of a row (8),
    and a row for each cell. Raises RunError if the format does not describe every byte.
    """
    words = state[: state.size // 4 * 4].view("<u4")
    try:
        stream = int(words[3:].nonzero()[0][0])  # the only one with cells
        num_cells = int(words[3 + stream])
        start = 4 * (6 + stream + 3 * num_cells)  # of the first layer's keys
        end = state.size - 4 * (int(words[2]) - stream - 1)  # later streams are empty: one word
        row_bytes = int(state[start + 4 : start + 12].view("<u8")[0])
        # keys and values; layers; bytes of the keys or values of a layer
        shape = 2, int(words[start // 4 - 1]), 12 + num_cells * row_bytes
        if end - start != math.prod(shape):
            raise ValueError
    except (ValueError, IndexError):
        raise RunError(
            "expected the format in which llama-cpp-python 0.3.36 serializes keys and values, got "
            "another; use prompt_layers=kept, or install that version"
        ) from None
    count = np.array([len(kept)], "<u4").view(np.uint8)
    layers = state[start:end].reshape(shape)[:, list(kept)].ravel()
    return np.concatenate([state[: start - 4], count, layers, state[end:]])


class LlamaCppSession(SteppingSession):
    """The views of all stages in llama.cpp, and the full model if it encodes the prompts. Keys and
    values move to a view from the full model, or from the view of the stage before.
    """

    def __init__(self, views: Views, room: Room, weights: str | None) -> None:
        """Load the views in the format `weights`, or in that of the model; raise UsageError if GGUF
        lacks the latter.
        """
        weights = weights or FORMAT_OF_DTYPE.get(views.model.dtype)
        if weights is None:
            raise UsageError(
                f"engine={ENGINE} does not support weights in {views.model.dtype}; use"
                " model.dtype=bfloat16"
            )
        self.views, self.weights = views, weights
        self._room = Room(room.batch_size, -(-room.num_tokens // CAPACITY_STEP) * CAPACITY_STEP)
        self.contexts = [self._load(stage.view) for stage in views.stages]
        self.context = self.contexts[0]  # of the current stage
        is_same = views.prompt_model is views.stages[0].view
        self.prompt_context = self.context if is_same else self._load(views.prompt_model)

    def _load(self, model: PreTrainedModel) -> LlamaContext:
        return LlamaContext(write_gguf(model, self.weights), self._room, self.weights == "f32")

    def fits(self, room: Room) -> bool:
        """Return True if the contexts are large enough."""
        return self._room.holds(room)

    def encode(self, prompts: Prompts, request: Request, watch: Watch = UNWATCHED) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after its prompts. If the full model
        encodes them, the first view gets the keys and values of its layers.
        """
        rows = unpadded(prompts.input_ids, prompts.attention_mask)
        self._sequences = list(range(len(rows)))
        self.prompt_context.clear()
        logits = self.prompt_context.append(dict(enumerate(rows)))
        self.context = self.contexts[0]
        if self.prompt_context is not self.context:
            self._move(self.prompt_context, self.views.stages[0].places)
        self.kv_bytes = self._bytes_in(self.prompt_context), self._bytes_in(self.context)
        return logits

    def _bytes_in(self, context: LlamaContext) -> int:
        """Return the size of the keys and values of all sequences in a context."""
        return sum(map(context.state_bytes, self._sequences))

    def switch(self, stage: int) -> None:
        """Continue with the view of a later stage, which takes over the keys and values of its
        layers.
        """
        self.context = self.contexts[stage]
        # The context of the stage before has only the layers of its view.
        before, after = (self.views.stages[number].places for number in (stage - 1, stage))
        self._move(self.contexts[stage - 1], list(map(before.index, after)))

    def _move(self, source: LlamaContext, layers: Sequence[int]) -> None:
        """Copy the keys and values of `layers` from another context to the current view, for all
        sequences.
        """
        self.context.clear()
        for sequence in self._sequences:
            self.context.take(source, sequence, layers)

    def remove(self, count: int) -> None:
        """Forget the last `count` positions."""
        for sequence in self._sequences:
            self.context.remove(sequence, count)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] after each of `tokens` [batch, count]."""
        appended = dict(zip(self._sequences, tokens.tolist(), strict=True))
        return self.context.append(appended, every=True).view(*tokens.shape, -1)

    def keep(self, alive: Tensor) -> None:
        """Continue with the sequences at the indices `alive` [sequences] only."""
        self._sequences = [self._sequences[i] for i in alive.tolist()]

    def describe(self) -> JsonObject:
        """Return the package, version and build options (e.g. AVX512) of the library, and the
        format of the weights.
        """
        info = llama_cpp.llama_print_system_info().decode()
        package, version = "llama-cpp-python", llama_cpp.__version__
        if "LLAMA_CPP_LIB_PATH" in os.environ:
            package, version = "LLAMA_CPP_LIB_PATH", llama_cpp.llama_version().decode()
        return {
            "package": package,
            "version": version,
            "build": re.findall(r"(\w+) = 1\b", info),
            "weights": self.weights,
        }


def write_gguf(model: PreTrainedModel, weights: str) -> Path:
    """Return a GGUF file of a model without its tokenizer, in the format `weights`, made once and
    kept in the cache; raise UsageError if GGUF does not support the model.
    """
    config = model.config.to_dict()
    LlamaCpp.check_model(config)
    tensors = exportable_tensors(model, ENGINE)

    def write(file: Path) -> None:
        writer = gguf.GGUFWriter(file, architecture(config))
        writer.add_tokenizer_model("no_vocab")
        write_model(writer, GgufTensors(tensors, config, *TYPES_OF_FORMAT[weights]))

    return cached_export(ENGINE, tensors, [weights, version("gguf"), config], ".gguf", write)
