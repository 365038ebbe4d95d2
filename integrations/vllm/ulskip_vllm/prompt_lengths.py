"""A KV connector that tells the model of a step which tokens are generated. It transfers no keys
and values.

The scheduler knows the prompt length of each request, but a model of vLLM sees only the tokens of a
step, without requests. So the scheduler sends the prompt length for each KV cache block that the
step writes. Only one request writes into a block, because prefix caching is off, and the model's
forward context contains the block of each token.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.forward_context import ForwardContext, get_forward_context

from ulskip_vllm import PROMPT_LENGTHS
from ulskip_vllm.pair_export import SetupError
from ulskip_vllm.settings import checked_pair

if TYPE_CHECKING:
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request


@dataclass(frozen=True)
class GeneratedTokens:
    """The generated tokens of a step; all others are prompt tokens."""

    are_all: bool = False
    rows: torch.Tensor | None = None  # [generated tokens], if the step has tokens of both kinds


@dataclass
class StepTokens(KVConnectorMetadata):
    """The tokens of a step, as the scheduler knows them."""

    num_tokens: int = 0
    num_generated: int = 0
    # By block, for each block that the step writes.
    prompt_lengths: dict[int, int] = field(default_factory=dict)


class PromptLengthsConnector(KVConnectorBase_V1):
    """Sends the prompt lengths of the scheduled requests from the scheduler to the model."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        checked_pair(vllm_config, "serve")
        groups = kv_cache_config.kv_cache_groups
        if len(groups) != 1:
            raise SetupError(
                f"expected one KV cache group, got {len(groups)}; models with several kinds of"
                " layers are not supported"
            )
        self._block_size = groups[0].kv_cache_spec.block_size
        self._requests: dict[str, Request] = {}

    @property
    def requires_kv_delivery(self) -> bool:
        """Return False, because no other server waits for keys and values."""
        return False

    # Scheduler

    def on_new_request(self, request: "Request") -> None:
        """Remember a request; raise SetupError if its prompt can grow after tokens were
        generated.
        """
        if request.resumable:
            raise SetupError(
                "`ulskip-vllm serve` does not support streaming input; send the whole prompt"
            )
        self._requests[request.request_id] = request

    def request_finished(
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request."""
        self._requests.pop(request.request_id, None)
        return False, None

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> StepTokens:
        """Return the tokens of a step."""
        step, state = StepTokens(), scheduler_output.kv_connector_block_state
        for request_id, num_tokens in scheduler_output.num_scheduled_tokens.items():
            request = self._requests[request_id]
            start = request.num_computed_tokens
            end = start + num_tokens
            step.num_tokens += num_tokens
            step.num_generated += end - min(max(request.num_prompt_tokens, start), end)
            assert state is not None
            blocks = state.resolve_block_ids(request_id)[0][
                start // self._block_size : -(-end // self._block_size)
            ]
            step.prompt_lengths |= dict.fromkeys(blocks, request.num_prompt_tokens)
        return step

    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Return that there is nothing to load."""
        return 0, False

    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        """Do nothing, because there is nothing to load."""

    # Worker

    def generated_tokens(self, context: ForwardContext, positions: torch.Tensor) -> GeneratedTokens:
        """Return the generated tokens of a step; raise RuntimeError if the scheduler's information
        does not fit the step.
        """
        slots = (
            next(iter(context.slot_mapping.values()))
            if isinstance(context.slot_mapping, dict)
            else None
        )
        step = self._connector_metadata
        if slots is None or not isinstance(step, StepTokens):
            if slots is not None and bool((slots < 0).all()):
                return GeneratedTokens()  # a warm-up pass, whose keys and values are not stored
            raise RuntimeError(
                "expected the prompt lengths of the step, got none; start the server with"
                " `ulskip-vllm serve`"
            )
        if step.num_generated in (0, step.num_tokens):
            return GeneratedTokens(are_all=step.num_generated > 0)
        return GeneratedTokens(rows=self._rows(step, slots, positions))

    def _rows(self, step: StepTokens, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the rows of generated tokens: those whose position is not in the prompt of their
        request.
        """
        by_block = torch.full((self._kv_cache_config.num_blocks,), -1)
        by_block[list(step.prompt_lengths)] = torch.tensor(list(step.prompt_lengths.values()))
        is_token = slots >= 0  # others are padding
        lengths = by_block.to(slots.device)[slots // self._block_size]
        rows = (is_token & (positions[: len(slots)] >= lengths)).nonzero().squeeze(1)
        is_known = bool((lengths[is_token] >= 0).all())
        if (
            not is_known
            or len(rows) != step.num_generated
            or int(is_token.sum()) != step.num_tokens
        ):
            raise RuntimeError(
                f"expected {step.num_generated} generated of {step.num_tokens} tokens in known"
                f" blocks, got {len(rows)} of {int(is_token.sum())}; this setting of vLLM is not"
                " supported"
            )
        return rows

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Do nothing, because there is nothing to load."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing, because there is nothing to load."""

    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: "AttentionMetadata",
        **kwargs: Any,
    ) -> None:
        """Do nothing, because there is nothing to save."""

    def wait_for_save(self) -> None:
        """Do nothing, because there is nothing to save."""


def generated_tokens(positions: torch.Tensor) -> GeneratedTokens:
    """Return the generated tokens of the current forward pass, given the positions [tokens] of its
    tokens.

    A profiling pass, which has no attention metadata, has none. Raise RuntimeError if the connector
    is missing.
    """
    context = get_forward_context()
    if context.attn_metadata is None:
        return GeneratedTokens()
    connector = get_kv_transfer_group() if has_kv_transfer_group() else None
    if not isinstance(connector, PromptLengthsConnector):
        raise RuntimeError(
            f"expected the KV connector {PROMPT_LENGTHS}, got {connector}; start the server with"
            " `ulskip-vllm serve`"
        )
    return connector.generated_tokens(context, positions)
