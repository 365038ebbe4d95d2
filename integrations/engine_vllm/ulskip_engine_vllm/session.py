"""The session of vLLM: a view is exported as a checkpoint, which `worker.py` serves in the Python
that has vLLM.
"""

import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from ulskip_cli.core.answer import Request
from ulskip_cli.core.errors import RunError, UsageError, one_line
from ulskip_cli.engines.base import (
    BatchOutput,
    PhaseTimes,
    Prompts,
    Room,
    Session,
    Views,
    Watch,
    cached_export,
    exportable_tensors,
)
from ulskip_cli.engines.loop import synchronized_time
from ulskip_cli.inference.batching import unpadded
from ulskip_cli.inference.loading import first_difference, meta_model

from ulskip_engine_vllm import PYTHON, worker

ENGINE = "vllm"
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# of a GPU's memory; the full model and the view of a timed pair are loaded at the same time
GPU_SHARE = 0.4
CAPACITY_STEP = (
    256  # tokens; a start takes most of a minute, so the room also suits somewhat longer sequences
)
END_SECONDS = 20.0  # that a worker has to end by itself


class VllmSession(Session):
    """Greedy decoding with vLLM. The layers that decode also encode the prompts."""

    def __init__(self, views: Views, room: Room, weights: str | None) -> None:
        view = views.stages[0].view
        if view.dtype not in DTYPES.values():
            raise UsageError(
                f"engine=vllm does not support weights in {view.dtype}; use model.dtype=bfloat16"
            )
        self.weights = weights or next(
            name for name, dtype in DTYPES.items() if dtype == view.dtype
        )
        dtype = DTYPES[self.weights]
        self._kv_bytes = _kv_bytes_per_token(view, dtype)
        num_tokens = room.num_tokens + 1  # for losses, vLLM generates one token more
        self._room = Room(room.batch_size, -(-num_tokens // CAPACITY_STEP) * CAPACITY_STEP)
        self._worker = Worker(_export(view, dtype), self.weights, self._room, self._kv_bytes)

    def fits(self, room: Room) -> bool:
        """Return True if the worker has memory for a batch."""
        return self._room.holds(Room(room.batch_size, room.num_tokens + 1))

    def generate(self, prompts: Prompts, request: Request, watch: Watch) -> BatchOutput:
        """Generate for one batch."""
        start = synchronized_time(prompts.input_ids.device)
        job = {
            "kind": "generate",
            "prompts": unpadded(prompts.input_ids, prompts.attention_mask),
            "length": request.length,
            "stop_token_ids": list(request.ends.eos_token_ids),
            "fixed_length": request.fixed_length,
        }
        answer = self._worker.answer(job, watch.on_step)
        kv_bytes = prompts.num_tokens * self._kv_bytes
        times = PhaseTimes(start, answer["first_at"], answer["first_at"], answer["end"])
        return BatchOutput.of(prompts, request, answer["tokens"], times, (kv_bytes, kv_bytes))

    def losses(self, prompts: Prompts, response_ids: Tensor) -> Tensor:
        """Return the cross-entropy [batch, response_len] of given responses, padded on the right,
        after the prompts.
        """
        rows = unpadded(prompts.input_ids, prompts.attention_mask)
        job = {"kind": "losses", "prompts": rows, "responses": response_ids.tolist()}
        return torch.tensor(self._worker.answer(job)["losses"])

    def describe(self) -> dict[str, Any]:
        """Return the version and build of vLLM, and the format of the weights."""
        return {**self._worker.build, "weights": self.weights}

    def close(self) -> None:
        """End the worker."""
        self._worker.end()


class Worker:
    """A process in which vLLM serves one model."""

    def __init__(self, model: Path, weights: str, room: Room, kv_bytes_per_token: int) -> None:
        """Start the process with memory for batches of a size; raise RunError if vLLM fails."""
        tokens = room.batch_size * room.num_tokens
        settings = {
            "model": str(model),
            "dtype": (
                str(DTYPES[weights]).removeprefix("torch.")
            ),  # vLLM's own choice for float32 is bfloat16
            "max_model_len": room.num_tokens,
            "max_num_seqs": room.batch_size,
            "max_num_batched_tokens": (
                tokens
            ),  # all prompts in one pass, so that decoding is timed alone
            "gpu_memory_utilization": GPU_SHARE,
        }
        gigabytes = -(-2 * tokens * kv_bytes_per_token // 2**30)
        environment = {
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(gigabytes),
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # the room is rounded up
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        }
        python = os.environ.get(PYTHON) or sys.executable
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the worker
        try:
            self._process = subprocess.Popen(
                [python, worker.__file__, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                env={**os.environ, **environment},
                # Ctrl-C in a terminal ends this program, which ends the worker
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise RunError(
                f"engine=vllm could not start {python} ({error.strerror}); set {PYTHON}"
            ) from None
        self.end = weakref.finalize(self, _end, self._process, self._log)
        self.build = self._reply()

    def answer(
        self, job: dict[str, Any], on_tokens: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
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
        raise RunError(
            f"engine=vllm failed with exit code {self._process.returncode}:"
            f" {one_line(lines[-1] if lines else '')}"
        )


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
    """Return a checkpoint of a view without tokenizer; raise UsageError if no config describes the
    view.
    """
    tensors = exportable_tensors(view, ENGINE)
    config = view.config.to_dict() | {
        "architectures": [type(view).__name__],
        "dtype": str(dtype).removeprefix("torch."),
    }
    rebuilt = meta_model(type(view.config).from_dict(copy.deepcopy(config)))
    if difference := first_difference(view, rebuilt):
        raise UsageError(
            f"engine=vllm does not support these layers, which no config describes ({difference});"
            " use engine=torch"
        )

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        copies = {
            name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()
        }
        save_file(copies, folder / "model.safetensors", {"format": "pt"})

    return cached_export(ENGINE, tensors, [str(dtype), config], "", write)


def _kv_bytes_per_token(view: PreTrainedModel, dtype: torch.dtype) -> int:
    config = view.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)
