"""Engines around another library's runtime: the common loop, the export of a view for the runtime, and its cache on disk."""

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from ulskip_cli.core.cache import cache_dir
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference.decode_steps import StagedSteps, Steps
from ulskip_cli.inference.engines.base import BatchRequest, EngineOutput
from ulskip_cli.inference.engines.fast import choose_tokens, decode_steps
from ulskip_cli.inference.gap_patch import GapPatch
from ulskip_cli.inference.shallow_view import StageView
from ulskip_cli.inference.timing import now


class Runtime(Steps, Protocol):
    """The views of all stages in another library: it encodes prompts, and each call is a decode step of all sequences."""

    kv_bytes: tuple[int, int]  # of the last prompts: in the layers that encoded them, and in those that decode

    def fits(self, batch_size: int, num_tokens: int) -> bool:
        """Return True if this many sequences of this length fit into the allocated memory."""

    def encode(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after prompts [batch, prompt_len], padded on the left."""

    def switch_to_stage(self, stage: int) -> Self:
        """Continue the batch with the view of a later stage, which takes over the keys and values of its layers."""

    def describe(self) -> dict[str, Any]:
        """Return the version and the build of the library, as a row stores them."""


class RuntimeEngine:
    """Greedy decoding and sampling with a runtime. Tokens are chosen by the same code as in the torch engine."""

    def __init__(self, name: str, stages: Sequence[StageView], make: Callable[[int, int], Runtime]) -> None:
        """`make(batch_size, num_tokens)` loads the views with room for that many sequences of that length."""
        self.name, self.stages = name, stages
        self._make = make
        self._held: list[Runtime] = []  # at most one; copies of the engine with other first steps share it

    def prepare(self, request: BatchRequest) -> float:
        """Export the views unless they are cached, and load them; return the seconds, 0 if the loaded ones have room."""
        began, longest = time.perf_counter(), max(request.length, request.decoding.max_new_tokens)
        batch, prompt_len = request.input_ids.shape
        needed = batch, prompt_len + longest  # a warm-up is short, and the batches behind it need no other runtime
        if self._has_room(*needed):
            return 0.0
        self._loaded(*needed)
        return time.perf_counter() - began

    def run(self, request: BatchRequest) -> EngineOutput:
        """Generate for one batch."""
        batch, prompt_len = request.input_ids.shape
        runtime = self._loaded(batch, prompt_len + request.length)
        logits = runtime.encode(request.input_ids, request.attention_mask)
        prefilled_at = now(request.input_ids.device)
        tokens, first_at, end = choose_tokens(request, logits, self._steps(runtime), decode_steps)
        return EngineOutput(tokens, prefilled_at, first_at, end, *runtime.kv_bytes, linear_backend=self.name)

    def _loaded(self, batch_size: int, num_tokens: int) -> Runtime:
        """Return the runtime with room for a batch; load it, or load it anew, where necessary."""
        if not self._has_room(batch_size, num_tokens):
            self._held.clear()  # frees its memory first
            self._held.append(self._make(batch_size, num_tokens))
        return self._held[0]

    def _has_room(self, batch_size: int, num_tokens: int) -> bool:
        return bool(self._held) and self._held[0].fits(batch_size, num_tokens)

    def _steps(self, runtime: Runtime) -> Steps:
        """Return the decode steps of the batch that `runtime` encoded last."""
        later = [(stage.first_step, partial(_switched, stage=i)) for i, stage in enumerate(self.stages)]
        return StagedSteps(runtime, later[1:])

    @property
    def build(self) -> dict[str, Any] | None:
        """The version and build of the library, and the format of the weights; None before the first batch."""
        return {**self._held[0].describe(), "threads": torch.get_num_threads()} if self._held else None

    def losses(self, input_ids: Tensor, mask: Tensor, response_ids: Tensor) -> Tensor:
        """Return the teacher-forced cross-entropy [batch, response_len] of responses, padded on the right, after prompts."""
        batch, length = response_ids.shape
        runtime = self._loaded(batch, input_ids.shape[1] + length)
        logits, found = runtime.encode(input_ids, mask), list[Tensor]()
        steps = self._steps(runtime)
        for i in range(length):
            found.append(functional.cross_entropy(logits.float(), response_ids[:, i], reduction="none"))
            if i < length - 1:
                logits = steps(response_ids[:, i : i + 1])
        return torch.stack(found, 1)


def _switched(runtime: Runtime, stage: int) -> Runtime:
    return runtime.switch_to_stage(stage)


def exportable_tensors(view: PreTrainedModel, engine: str) -> dict[str, Tensor]:
    """Return the weights of a view by name, tied ones once; raise UsageError if the view has patches that do not fold."""
    kinds = {module.kind for module in view.modules() if isinstance(module, GapPatch)}
    if kinds:
        raise UsageError(
            f"engine={engine} supports patches of kind folded, got {', '.join(sorted(kinds))}; use correction.kind=folded, or "
            "engine=torch"
        )
    tied = set(getattr(view, "_tied_weights_keys", None) or ()) if view.config.tie_word_embeddings else set()
    return {name: tensor for name, tensor in view.state_dict().items() if name not in tied}


def cached_export(
    engine: str, tensors: Mapping[str, Tensor], settings: Sequence[Any], suffix: str, write: Callable[[Path], None]
) -> Path:
    """Return the file or folder that `write` makes from `tensors` and `settings`; an earlier one is used again.

    If `write` fails, nothing is left behind.
    """
    key = hashlib.blake2b(repr(list(settings)).encode(), digest_size=10)
    for name, tensor in tensors.items():
        key.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        key.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    target = cache_dir() / "engines" / engine / f"{key.hexdigest()}{suffix}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f"{target.name}.{time.time_ns()}.part")
        try:
            write(staging)
            staging.replace(target)
        finally:
            if staging.is_dir():
                shutil.rmtree(staging)
            else:
                staging.unlink(missing_ok=True)
    return target
