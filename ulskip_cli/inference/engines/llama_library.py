"""llama.cpp's C interface by ctypes, for the library in llama-cpp-python or xllamacpp.

Both packages contain the same functions. The structs of parameters grow at their ends between versions, so they are passed with
room to spare, only their first fields are set, and every set value is read back.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint8, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ulskip_cli.core.errors import RunError, UsageError

_F32, _F16 = 0, 1  # ggml_type
_FILE = "libllama.dylib" if sys.platform == "darwin" else "libllama.so"
_PACKAGES = {"llama-cpp-python": ("llama_cpp", f"lib/{_FILE}"), "xllamacpp": ("xllamacpp", "*.so")}


class _ModelParams(ctypes.Structure):
    _fields_ = [("devices", c_void_p), ("overrides", c_void_p), ("n_gpu_layers", c_int32), ("rest", c_int8 * 1004)]


class _ContextParams(ctypes.Structure):
    _fields_ = [
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")),
        ("rest", c_int8 * 1008),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_model_default_params": (_ModelParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, _ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_n_layer": (c_int32, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_context_default_params": (_ContextParams, []),
    "llama_init_from_model": (c_void_p, [c_void_p, _ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_n_batch": (c_uint32, [c_void_p]),
    "llama_n_seq_max": (c_uint32, [c_void_p]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_batch_init": (_Batch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (c_int32, [c_void_p, _Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_state_seq_get_size": (c_size_t, [c_void_p, c_int32]),
    "llama_state_seq_get_data": (c_size_t, [c_void_p, POINTER(c_uint8), c_size_t, c_int32]),
    "llama_state_seq_set_data": (c_size_t, [c_void_p, POINTER(c_uint8), c_size_t, c_int32]),
    "llama_print_system_info": (c_char_p, []),
    "llama_log_set": (None, [c_void_p, c_void_p]),
}


@dataclass(frozen=True)
class LlamaLibrary:
    """A loaded library, with the package and version that it is from."""

    functions: Any  # the functions of llama.h
    package: str
    version: str

    @property
    def build(self) -> list[str]:
        """The instruction sets and options that the library was built with, e.g. AVX512."""
        info = self.functions.llama_print_system_info().decode()
        parts = [part.split(":")[-1] for part in info.replace("|", ",").split(",")]
        return [name.strip() for name, value in (part.split("=") for part in parts if "=" in part) if value.strip() == "1"]


@functools.cache
def load_library() -> LlamaLibrary:
    """Load the library in LLAMA_CPP_LIB_PATH or in the first installed package; raise UsageError if there is none."""
    for package, version, file in _libraries():
        try:
            functions = ctypes.CDLL(str(file))
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(functions, name)
                function.restype, function.argtypes = result, arguments
        except (AttributeError, OSError) as error:
            raise UsageError(f"expected llama.cpp's library in {package}, got {error}; install another version") from None
        functions.llama_log_set(_SILENT, None)
        functions.llama_backend_init()
        return LlamaLibrary(functions, package, version)
    raise UsageError(
        "engine=llama_cpp requires llama.cpp's library, got none; run: pip install 'ulskip[llama-cpp]', or set "
        "LLAMA_CPP_LIB_PATH to the folder with libllama.so of your own build"
    )


def _libraries() -> Iterator[tuple[str, str, Path]]:
    """Return the source, the version and the file of every library found, the best first."""
    if own := os.environ.get("LLAMA_CPP_LIB_PATH"):
        file = Path(own).expanduser() / _FILE
        if not file.is_file():
            raise UsageError(f"expected {_FILE} in LLAMA_CPP_LIB_PATH={own}, got no such file; correct or unset the variable")
        yield "LLAMA_CPP_LIB_PATH", str(file.resolve().name), file
    for package, (module, pattern) in _PACKAGES.items():
        spec = importlib.util.find_spec(module)
        for folder in (spec and spec.submodule_search_locations) or []:
            for file in sorted(Path(folder).glob(pattern)):
                yield package, importlib.metadata.version(package), file


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)(lambda level, text, data: None)


def _set_exact(options: _ContextParams) -> None:
    """Keep keys and values in float32 and turn off flash attention, which rounds them to float16.

    The place of these fields depends on the version. The types of keys and values are two equal numbers behind two null
    pointers; the kind of flash attention is the last of several fields with the default -1.
    """
    words = (c_int32 * (ctypes.sizeof(options) // 4)).from_buffer(options)
    types = [i for i in range(8, len(words) - 2, 2) if words[i] == words[i + 1] == _F16 and not any(words[i - 4 : i])]
    automatic = [i for i in range(8, 32) if words[i] == -1 and words[i + 1] != -1]
    if not types or not automatic:
        raise unknown_format()
    words[types[0]] = words[types[0] + 1] = _F32
    words[automatic[0]] = 0


class LlamaContext:
    """A GGUF model in memory with the KV cache of several sequences."""

    def __init__(self, file: Path, num_sequences: int, capacity: int, threads: int, exact: bool) -> None:
        """Load a model for `num_sequences` sequences of up to `capacity` tokens; `exact` keeps keys and values in float32."""
        self.library = load_library()
        self._c = self.library.functions
        self._context = self._model = None
        self._model = self._c.llama_model_load_from_file(os.fsencode(file), self._c.llama_model_default_params())
        if not self._model:
            raise RunError(f"llama.cpp could not load {file}; delete it and repeat the run")
        self.num_layers = self._c.llama_model_n_layer(self._model)
        self.vocab_size = self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model))
        options = self._c.llama_context_default_params()
        rows = num_sequences * capacity
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = rows, rows, min(rows, 512), num_sequences
        if exact:
            _set_exact(options)
        self._context = self._c.llama_init_from_model(self._model, options)
        if not self._context:
            raise RunError(f"llama.cpp could not allocate {num_sequences} x {capacity} tokens; use a smaller batch_size")
        got = self._c.llama_n_ctx(self._context), self._c.llama_n_batch(self._context), self._c.llama_n_seq_max(self._context)
        if got[0] < rows or got[1:] != (rows, num_sequences):
            raise RunError(
                f"expected llama.cpp to take n_ctx, n_batch and n_seq_max {rows}, {rows}, {num_sequences}, got {got}; "
                f"{self.library.package} {self.library.version} is not supported, install another version"
            )
        self._c.llama_set_n_threads(self._context, threads, threads)
        self._batch = self._c.llama_batch_init(rows, 0, 1)
        self._positions = [0] * num_sequences

    def close(self) -> None:
        """Free the memory."""
        if self._context:
            self._c.llama_batch_free(self._batch)
            self._c.llama_free(self._context)
        if self._model:
            self._c.llama_model_free(self._model)
        self._context = self._model = None

    def __del__(self) -> None:
        self.close()

    def clear(self) -> None:
        """Forget all sequences."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        self._positions = [0] * len(self._positions)

    def append(self, tokens: Mapping[int, Sequence[int]]) -> np.ndarray[Any, Any]:
        """Append tokens to sequences by number; return the logits [sequences, vocab_size] after the last token of each.

        The logits are in llama.cpp's buffer, which the next call overwrites.
        """
        batch, count = self._batch, 0
        for sequence, several in tokens.items():
            begin, final = self._positions[sequence], len(several) - 1
            for offset, token in enumerate(several):
                batch.token[count], batch.pos[count], batch.n_seq_id[count] = token, begin + offset, 1
                batch.seq_id[count][0], batch.logits[count] = sequence, offset == final
                count += 1
            self._positions[sequence] += len(several)
        batch.n_tokens = count
        if code := self._c.llama_decode(self._context, batch):
            raise RunError(f"llama.cpp could not decode {count} tokens (code {code}); use a smaller batch_size")
        return np.ctypeslib.as_array(self._c.llama_get_logits(self._context), (len(tokens), self.vocab_size))

    def num_tokens(self, sequence: int) -> int:
        """Return the number of tokens of a sequence."""
        return self._positions[sequence]

    def state_bytes(self, sequence: int) -> int:
        """Return the size of the serialized keys and values of one sequence."""
        return int(self._c.llama_state_seq_get_size(self._context, sequence))

    def state(self, sequence: int) -> np.ndarray[Any, Any]:
        """Return the keys and values of one sequence as llama.cpp serializes them, in bytes."""
        data = np.empty(self.state_bytes(sequence), np.uint8)
        size = self._c.llama_state_seq_get_data(self._context, data.ctypes.data_as(POINTER(c_uint8)), data.size, sequence)
        return data[:size]

    def set_state(self, sequence: int, state: np.ndarray[Any, Any], num_tokens: int) -> None:
        """Replace the keys and values of one sequence; `state` has those of `num_tokens` tokens."""
        pointer = state.ctypes.data_as(POINTER(c_uint8))
        if self._c.llama_state_seq_set_data(self._context, pointer, state.size, sequence) != state.size:
            raise RunError("llama.cpp refused the keys and values of the kept layers; use prompt_layers=kept")
        self._positions[sequence] = num_tokens


def unknown_format() -> RunError:
    """Return the error for a version of llama.cpp whose structs or states are not known."""
    library = load_library()
    return RunError(
        f"expected llama.cpp's known format of keys and values, got another from {library.package} {library.version}; "
        "use prompt_layers=kept, or another version"
    )
