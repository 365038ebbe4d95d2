"""The KV connector: the prefill server stores the kept layers' keys and values, the decode server
loads them.

A decode server takes keys and values of the whole prompt from the full model, as ulskip does. vLLM
has to compute at least one token of a prompt, so the decode server computes the last one: its
logits are replaced (`first_token.py`), and its keys and values are overwritten after the step with
those of the full model. From then on only kept layers run.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index
from vllm.platforms import current_platform

from ulskip_vllm.handoff import HandoffError, HandoffFolder, hash_tokens, is_name, make_private
from ulskip_vllm.pair_export import ROLES, SetupError
from ulskip_vllm.settings import checked_pair

if TYPE_CHECKING:
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger(f"vllm.{__name__}")  # vLLM configures loggers below its own name only


@dataclass(frozen=True)
class Transfer:
    """The blocks of one prompt that a worker stores or loads in a step."""

    name: str  # of the hand-off
    block_ids: Sequence[int]  # of all prompt tokens
    prompt_hash: str
    computes_prompt: bool = False  # this step computes the last prompt token


@dataclass
class StepTransfers(KVConnectorMetadata):
    """The transfers of one step."""

    saves: list[Transfer] = field(default_factory=list)
    loads: list[Transfer] = field(default_factory=list)


class KeptLayersConnector(KVConnectorBase_V1):
    """Hands the keys and values of the kept layers from a prefill server to a decode server."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        extra = self._kv_transfer_config.kv_connector_extra_config
        self._is_prefill = self._kv_transfer_config.kv_role == ROLES["prefill"]
        self._pair = checked_pair(vllm_config, "prefill" if self._is_prefill else "decode")
        self._block_size = vllm_config.cache_config.block_size
        size = vllm_config.parallel_config.tensor_parallel_size
        folder, rank = make_private(Path(extra["handoff_dir"])), 0
        if role == KVConnectorRole.WORKER:
            rank = get_tensor_model_parallel_rank()
        self._files = HandoffFolder(folder, float(extra.get("max_age_seconds", 600)), rank, size)
        self._caches: list[torch.Tensor] = []  # [block, ...] of each kept layer
        self._rewrites: list[
            tuple[int, list[torch.Tensor]]
        ] = []  # last blocks, written again after the step
        self._failed_blocks: set[int] = set()
        self._requests: dict[str, tuple[Request, str]] = {}  # with the name of the hand-off
        self._admitted: dict[
            str, bool
        ] = {}  # requests to load; True if the step computes the last prompt token
        self._next_upkeep = 0.0

    # Scheduler

    def on_new_request(self, request: "Request") -> None:
        """Remember a request that takes part in a hand-off."""
        given = request.kv_transfer_params if isinstance(request.kv_transfer_params, dict) else {}
        if self._is_prefill:
            if given.get("handoff") is True:
                self._requests[request.request_id] = (request, secrets.token_hex(16))
            return
        name, token = given.get("handoff"), given.get("first_token", -1)
        is_valid = (
            is_name(name)
            and isinstance(token, int)
            and 0 <= token < self._vllm_config.model_config.get_vocab_size()
        )
        # No such file: it fails.
        self._requests[request.request_id] = (
            request,
            str(name) if is_valid else secrets.token_hex(16),
        )

    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Return the number of prompt tokens to load: all, without the last one if it has to be
        computed.
        """
        if self._is_prefill:
            return 0, False
        return _num_loaded(request) - num_computed_tokens, False

    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        """Plan the load of a request that starts, or starts again after a preemption."""
        if not self._is_prefill:
            self._admitted[request.request_id] = _num_loaded(request) < request.num_prompt_tokens

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> StepTransfers:
        """Return the transfers of a step: loads of admitted requests, saves of prompts that the
        step completes.
        """
        step, state = StepTransfers(), scheduler_output.kv_connector_block_state
        for request_id, num_tokens in scheduler_output.num_scheduled_tokens.items():
            request, name = self._requests.get(request_id, (None, ""))
            if request is None or state is None:
                continue
            start = request.num_computed_tokens
            completes = start < request.num_prompt_tokens <= start + num_tokens
            if not (completes if self._is_prefill else request_id in self._admitted):
                continue
            num_blocks = -(-request.num_prompt_tokens // self._block_size)
            block_ids = state.resolve_block_ids(request_id)[0][:num_blocks]
            prompt_hash = hash_tokens(request.prompt_token_ids or [])
            transfers = step.saves if self._is_prefill else step.loads
            transfers.append(
                Transfer(name, block_ids, prompt_hash, self._admitted.pop(request_id, False))
            )
        self._keep_or_remove_files()
        return step

    def _keep_or_remove_files(self) -> None:
        if (now := time.monotonic()) < self._next_upkeep:
            return
        self._next_upkeep = now + self._files.max_age_seconds / 10
        if self._is_prefill:
            self._files.remove_expired()
        else:
            for _, name in self._requests.values():
                self._files.keep(name)

    def request_finished(
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Return the hand-off of an answered request on the prefill server; delete it on the decode
        server.
        """
        _, name = self._requests.pop(request.request_id, (None, None))
        self._admitted.pop(request.request_id, None)
        if name is None:
            return False, None
        if not self._is_prefill or not request.num_output_tokens:
            self._files.remove(name)
            return False, None
        facts = {
            "handoff": name,
            "first_token": request.output_token_ids[0],
            "num_prompt_tokens": request.num_prompt_tokens,
        }
        return False, {**facts, "pair": self._pair.id}

    # Worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Find the cache of each kept layer; raise SetupError if the model has other layers."""
        layers = {extract_layer_index(name): cache for name, cache in kv_caches.items()}
        expected = self._pair.num_layers if self._is_prefill else len(self._pair.kept_layers)
        if sorted(layers) != list(range(expected)) or len(layers) != len(kv_caches):
            raise SetupError(
                f"expected one KV cache for each of {expected} layers, got {sorted(kv_caches)[:3]}"
                " and others"
            )
        kept = self._pair.kept_layers if self._is_prefill else range(expected)
        self._caches = [layers[i] for i in kept]
        for cache in self._caches:
            if (
                not isinstance(cache, torch.Tensor)
                or cache.shape[0] != self._kv_cache_config.num_blocks
            ):
                raise SetupError(
                    "expected one KV cache tensor per layer, with blocks first; this attention"
                    " backend is not supported"
                )

    def _facts(self, transfer: Transfer) -> dict[str, Any]:
        cache = self._caches[0]
        is_amx = cache.device.type == "cpu" and torch.cpu._is_amx_tile_supported()
        layout = [current_platform.device_type, is_amx, str(cache.dtype), list(cache.shape[1:])]
        return {"pair": self._pair.id, "prompt": transfer.prompt_hash, "layout": layout}

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """Write the stored keys and values into the blocks of the step's new requests."""
        for transfer in self._step.loads:
            try:
                cache = self._caches[0]
                shapes = [(len(transfer.block_ids), *one.shape[1:]) for one in self._caches]
                stored = self._files.read(
                    transfer.name, shapes, cache.dtype, self._facts(transfer), cache.device
                )
            except HandoffError as error:
                logger.error("%s", error)
                self._failed_blocks |= set(transfer.block_ids)
                continue
            self._inject(transfer.block_ids, stored)
            if transfer.computes_prompt:
                self._rewrites.append(
                    (transfer.block_ids[-1], [blocks[-1:].clone() for blocks in stored])
                )

    def _inject(self, block_ids: Sequence[int], stored: Sequence[torch.Tensor]) -> None:
        for cache, blocks in zip(self._caches, stored, strict=True):
            cache[torch.tensor(block_ids, device=cache.device)] = blocks

    def wait_for_save(self) -> None:
        """Store the prompts that the step completed; write the last prompt token's keys and values
        of the full model again.
        """
        for block_id, blocks in self._rewrites:
            self._inject([block_id], blocks)
        self._rewrites.clear()
        for transfer in self._step.saves:
            try:
                index = torch.tensor(transfer.block_ids, device=self._caches[0].device)
                self._files.write(
                    transfer.name, [cache[index] for cache in self._caches], self._facts(transfer)
                )
            except (OSError, SafetensorError) as error:
                logger.error("could not write a hand-off to %s: %s", self._files.folder, error)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks of failed loads; vLLM ends their requests with an error."""
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    @property
    def _step(self) -> StepTransfers:
        step = self._get_connector_metadata()
        assert isinstance(step, StepTransfers)
        return step

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Return at once, because `start_load_kv` has loaded all layers."""

    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: "AttentionMetadata",
        **kwargs: Any,
    ) -> None:
        """Do nothing, because `wait_for_save` stores all layers."""


def _num_loaded(request: "Request") -> int:
    """Return how many prompt tokens to load; without an answer yet, the last one is computed for
    vLLM's sampler.
    """
    return request.num_prompt_tokens - (request.num_tokens <= request.num_prompt_tokens)
