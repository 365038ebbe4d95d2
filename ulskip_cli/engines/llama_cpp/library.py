"""A GGUF model in memory, decoded by llama.cpp through the declarations of llama-cpp-python."""

import os
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_uint8
from pathlib import Path
from typing import Any

import numpy as np

from ulskip_cli.core.errors import RunError, UsageError

try:
    import llama_cpp
except (AttributeError, OSError, RuntimeError) as error:
    raise UsageError(
        f"expected a library of llama.cpp, got the error '{error}'; "
        "correct or unset LLAMA_CPP_LIB_PATH, or install llama-cpp-python again"
    ) from None

# llama-cpp-python prints errors of llama.cpp to stderr, which would break a display of progress.
_SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(_SILENT, None)
llama_cpp.llama_backend_init()


def describe_library() -> dict[str, Any]:
    """Return the source, the version and the build options (e.g. AVX512) of the loaded library."""
    info = llama_cpp.llama_print_system_info().decode()
    parts = [part.split(":")[-1] for part in info.replace("|", ",").split(",")]
    options = [part.split("=") for part in parts if "=" in part]
    own = "LLAMA_CPP_LIB_PATH" in os.environ
    return {
        "package": "LLAMA_CPP_LIB_PATH" if own else "llama-cpp-python",
        "version": llama_cpp.llama_version().decode() if own else llama_cpp.__version__,
        "build": [name.strip() for name, value in options if value.strip() == "1"],
    }


class LlamaContext:
    """A GGUF model in memory with the KV cache of several sequences."""

    def __init__(
        self,
        file: Path,
        num_sequences: int,
        capacity: int,
        threads: int,
        exact: bool,
    ) -> None:
        """Load a model for `num_sequences` sequences of up to `capacity` tokens.

        With `exact`, keys and values stay in float32, without the flash attention that rounds them.
        """
        self._context = self._model = None
        model_options = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(file), model_options)
        if not self._model:
            raise RunError(f"llama.cpp could not load {file}; delete it and repeat the run")
        self.num_layers: int = llama_cpp.llama_model_n_layer(self._model)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(vocab)
        rows = num_sequences * capacity
        options = _default_options()
        options.n_ctx, options.n_batch, options.n_ubatch = rows, rows, min(rows, 512)
        options.n_seq_max = num_sequences
        options.n_threads = options.n_threads_batch = threads
        if exact:
            options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
            options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            size = f"{num_sequences} x {capacity} tokens"
            raise RunError(f"llama.cpp could not allocate {size}; use a smaller batch_size")
        self._batch = llama_cpp.llama_batch_init(rows, 0, 1)
        self._positions = [0] * num_sequences

    def close(self) -> None:
        """Free the memory."""
        if self._context:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._context = self._model = None

    def __del__(self) -> None:
        self.close()

    def clear(self) -> None:
        """Forget all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._positions = [0] * len(self._positions)

    def append(self, tokens: Mapping[int, Sequence[int]]) -> np.ndarray[Any, Any]:
        """Append tokens to sequences by number.

        Return the logits [sequences, vocab_size] after the last token of each. They are in
        llama.cpp's buffer, which the next call overwrites.
        """
        batch, count = self._batch, 0
        for sequence, appended in tokens.items():
            begin, final = self._positions[sequence], len(appended) - 1
            for offset, token in enumerate(appended):
                batch.token[count], batch.pos[count] = token, begin + offset
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, sequence
                batch.logits[count] = offset == final
                count += 1
            self._positions[sequence] += len(appended)
        batch.n_tokens = count
        if code := llama_cpp.llama_decode(self._context, batch):
            problem = f"llama.cpp could not decode {count} tokens (code {code})"
            raise RunError(f"{problem}; use a smaller batch_size")
        logits = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (len(tokens), self.vocab_size))

    def num_tokens(self, sequence: int) -> int:
        """Return the number of tokens of a sequence."""
        return self._positions[sequence]

    def state_bytes(self, sequence: int) -> int:
        """Return the size of the serialized keys and values of one sequence."""
        return int(llama_cpp.llama_state_seq_get_size(self._context, sequence))

    def state(self, sequence: int) -> np.ndarray[Any, Any]:
        """Return the keys and values of one sequence as llama.cpp serializes them, in bytes."""
        data = np.empty(self.state_bytes(sequence), np.uint8)
        get_data = llama_cpp.llama_state_seq_get_data
        return data[: get_data(self._context, _pointer(data), data.size, sequence)]

    def set_state(self, sequence: int, state: np.ndarray[Any, Any], num_tokens: int) -> None:
        """Replace the keys and values of one sequence; `state` has those of `num_tokens` tokens."""
        set_data = llama_cpp.llama_state_seq_set_data
        if set_data(self._context, _pointer(state), state.size, sequence) != state.size:
            problem = "llama.cpp refused the keys and values of the kept layers"
            raise RunError(f"{problem}; use prompt_layers=kept")
        self._positions[sequence] = num_tokens


def _default_options() -> Any:
    """Return the defaults of a context; raise UsageError if llama.cpp has other fields."""
    options, half = llama_cpp.llama_context_default_params(), llama_cpp.GGML_TYPE_F16
    if (options.type_k, options.type_v) != (half, half):
        raise UsageError(
            f"expected the llama.cpp of llama-cpp-python {llama_cpp.__version__}, got another "
            "version; correct or unset LLAMA_CPP_LIB_PATH"
        )
    return options


def _pointer(data: np.ndarray[Any, Any]) -> Any:
    return data.ctypes.data_as(POINTER(c_uint8))
