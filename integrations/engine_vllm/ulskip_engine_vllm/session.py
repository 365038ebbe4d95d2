"""The vLLM engine: each view is an exported checkpoint, decoded by vLLM in a process of its own.

vLLM needs another version of transformers than ulskip, so it has another environment, in whose Python `vllm_worker.py` runs.
"""

import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.engines import ENGINES
from ulskip_cli.core.errors import RunError, UsageError, one_line
from ulskip_cli.inference.batching import unpadded
from ulskip_cli.inference.engines import vllm_worker
from ulskip_cli.engines.base import BatchRequest, EngineOutput
from ulskip_cli.inference.engines.runtime import cached_export, exportable_tensors
from ulskip_cli.inference.model_comparison import first_difference, meta_model
from ulskip_cli.inference.shallow_view import StageView

ENGINE = "vllm"
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
GPU_SHARE = 0.4  # of a GPU's memory; the full model and the view of a timed pair are loaded at the same time
CAPACITY_STEP = 256  # tokens; a start takes most of a minute, so the room also suits somewhat longer sequences
END_SECONDS = 20.0  # that a worker has to end by itself


class VllmEngine:
    """Greedy decoding with vLLM. The layers that decode also encode the prompts."""

    def __init__(self, prompt_model: PreTrainedModel, stages: Sequence[StageView], weights: str | None) -> None:
        self._view = stages[0].view
        assert len(stages) == 1 and prompt_model is self._view, "engine=vllm has one depth"
        if self._view.dtype not in DTYPES.values():
            raise UsageError(f"engine=vllm does not support weights in {self._view.dtype}; use model.dtype=bfloat16")
        names = {dtype: name for name, dtype in DTYPES.items()}
        self.weights = weights or names[self._view.dtype]
        self._worker: Worker | None = None
        self._room = 0, 0  # sequences, and tokens of each, for which the worker has memory

    def prepare(self, request: BatchRequest) -> float:
        """Export the view unless it is cached, and start its worker; return the seconds, 0 if a worker with room runs."""
        began, longest = time.perf_counter(), max(request.length, request.decoding.max_new_tokens)
        batch, prompt_len = request.input_ids.shape
        before = self._worker
        return time.perf_counter() - began if self._started(batch, prompt_len + longest) is not before else 0.0

    def run(self, request: BatchRequest) -> EngineOutput:
        """Generate for one batch."""
        batch, prompt_len = request.input_ids.shape
        job = {
            "kind": "generate",
            "prompts": unpadded(request.input_ids, request.attention_mask),
            "length": request.length,
            "stop_token_ids": list(request.eos_token_ids),
            "forced": request.forced,
        }
        done = self._started(batch, prompt_len + request.length).answer(job, request.on_step)
        padded = [row + [request.pad_token_id] * (request.length - len(row)) for row in done["tokens"]]
        kv_bytes = int(request.attention_mask.sum()) * _kv_bytes_per_token(self._view, DTYPES[self.weights])
        return EngineOutput(padded, done["first_at"], done["first_at"], done["end"], kv_bytes, kv_bytes, linear_backend=ENGINE)

    def losses(self, input_ids: Tensor, mask: Tensor, response_ids: Tensor) -> Tensor:
        """Return the teacher-forced cross-entropy [batch, response_len] of responses, padded on the right, after prompts."""
        batch, length = response_ids.shape
        job = {"kind": "losses", "prompts": unpadded(input_ids, mask), "responses": response_ids.tolist()}
        return torch.tensor(self._started(batch, input_ids.shape[1] + length + 1).answer(job)["losses"])

    @property
    def build(self) -> dict[str, Any] | None:
        """The version and build of vLLM, and the format of the weights; None before the first batch."""
        if self._worker is None:
            return None
        return {**self._worker.build, "weights": self.weights, "threads": torch.get_num_threads()}

    def _started(self, batch_size: int, num_tokens: int) -> "Worker":
        """Return a worker with room for a batch; start it, or start it anew, where necessary."""
        if self._worker is None or batch_size > self._room[0] or num_tokens > self._room[1]:
            if self._worker:
                self._worker.end()
            self._worker = None
            tokens = -(-num_tokens // CAPACITY_STEP) * CAPACITY_STEP
            self._room = max(batch_size, self._room[0]), max(tokens, self._room[1])
            per_token = _kv_bytes_per_token(self._view, DTYPES[self.weights])
            self._worker = Worker(_export(self._view, DTYPES[self.weights]), self.weights, *self._room, per_token)
        return self._worker


class Worker:
    """A process in which vLLM serves one model."""

    def __init__(self, model: Path, weights: str, batch_size: int, num_tokens: int, kv_bytes_per_token: int) -> None:
        """Start the process with room for `batch_size` sequences of `num_tokens` tokens; raise RunError if vLLM fails."""
        settings = {
            "model": str(model),
            "dtype": str(DTYPES[weights]).removeprefix("torch."),  # vLLM's own choice for float32 is bfloat16
            "max_model_len": num_tokens,
            "max_num_seqs": batch_size,
            "max_num_batched_tokens": batch_size * num_tokens,  # all prompts in one pass, so that decoding is timed alone
            "gpu_memory_utilization": GPU_SHARE,
        }
        gigabytes = -(-2 * batch_size * num_tokens * kv_bytes_per_token // 2**30)
        environment = {
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(gigabytes),
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        }
        python = os.environ.get(ENGINES[ENGINE].variable) or sys.executable
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the worker
        try:
            self._process = subprocess.Popen(
                [python, vllm_worker.__file__, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C in a terminal ends this program, which ends the worker
            )
        except OSError as error:
            self._log.close()
            raise RunError(f"engine=vllm could not start {python} ({error.strerror}); set {ENGINES[ENGINE].variable}") from None
        self.end = weakref.finalize(self, _end, self._process, self._log)
        self.build = self._reply()

    def answer(self, job: dict[str, Any], on_tokens: Callable[[int], None] | None = None) -> dict[str, Any]:
        """Do a job; return the reply. `on_tokens` gets the number of tokens so far."""
        assert self._process.stdin
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            self._fail()
        reply = self._reply()
        while "progress" in reply:
            if on_tokens:
                on_tokens(reply["progress"])
            reply = self._reply()
        if on_tokens and "tokens" in reply:
            on_tokens(sum(map(len, reply["tokens"])))
        return reply

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        return dict(json.loads(line))

    def _fail(self) -> None:
        _stop(self._process)
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        self.end()
        raise RunError(f"engine=vllm failed with exit code {self._process.returncode}: {one_line(lines[-1] if lines else '')}")


def _end(process: "subprocess.Popen[str]", log: IO[str]) -> None:
    _stop(process)
    assert process.stdout
    process.stdout.close()
    log.close()


def _stop(process: "subprocess.Popen[str]") -> None:
    assert process.stdin
    with suppress(BrokenPipeError):
        process.stdin.close()  # ends the worker's loop
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # vLLM has processes of its own
        process.wait()


def _export(view: PreTrainedModel, dtype: torch.dtype) -> Path:
    """Return a checkpoint of a view without tokenizer; raise UsageError if no config describes the view."""
    tensors = exportable_tensors(view, ENGINE)
    config = view.config.to_dict() | {"architectures": [type(view).__name__], "dtype": str(dtype).removeprefix("torch.")}
    rebuilt = meta_model(type(view.config).from_dict(copy.deepcopy(config)), trust_remote_code=False)
    if difference := first_difference(view, rebuilt):
        raise UsageError(
            f"engine=vllm does not support these layers, which no config describes ({difference}); use engine=torch"
        )

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        copies = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
        save_file(copies, folder / "model.safetensors", {"format": "pt"})

    return cached_export(ENGINE, tensors, [str(dtype), config], "", write)


def _kv_bytes_per_token(view: PreTrainedModel, dtype: torch.dtype) -> int:
    config = view.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)
