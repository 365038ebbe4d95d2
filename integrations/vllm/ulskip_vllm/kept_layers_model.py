"""Models of the Llama family in which prompt tokens run through all layers and generated tokens
through the kept layers.

A generated token never reads the keys and values of a skipped layer, so a skipped layer has to be
right for prompt tokens only. If a step has no prompt tokens, skipped layers do not run at all. In a
step of both kinds they run for all tokens, and generated tokens get back the hidden states that
they had before. `prompt_lengths.py` knows which tokens are generated.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.sequence import IntermediateTensors

from ulskip_vllm.prompt_lengths import GeneratedTokens, generated_tokens
from ulskip_vllm.settings import checked_pair

# Two tensors [tokens, hidden size], whose sum is the hidden state.
HiddenStates = tuple[torch.Tensor, torch.Tensor | None]


class _KeptLayers:
    """A mix-in for causal language models of vLLM, whose layers are in `self.model.layers`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        kept_layers = checked_pair(vllm_config, "serve").kept_layers
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._generated = GeneratedTokens()
        for i, layer in enumerate(self.model.layers):
            if i not in kept_layers:
                layer.forward = partial(self._run_for_prompt_tokens, layer.forward)

    def forward(
        self,
        input_ids: torch.Tensor | None,  # [tokens]
        positions: torch.Tensor,  # [tokens], in the sequence of each request
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """Return the hidden states [tokens, hidden size] of a step."""
        self._generated = generated_tokens(positions)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)

    def _run_for_prompt_tokens(
        self,
        run: Callable[..., HiddenStates],
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        **options: Any,
    ) -> HiddenStates:
        """Run a skipped layer, which changes the hidden states of prompt tokens only."""
        if self._generated.are_all:
            return hidden_states, residual
        rows = self._generated.rows
        if rows is None:
            return run(positions, hidden_states, residual, **options)
        if residual is None:  # before the first layer
            before = torch.zeros_like(hidden_states[rows]), hidden_states[rows]
        else:
            # Copies, because the layer writes into both tensors.
            before = (
                hidden_states[rows],
                residual[rows],
            )
        after = run(positions, hidden_states, residual, **options)
        for new, old in zip(after, before, strict=True):
            new[rows] = old
        return after


class KeptLayersLlamaForCausalLM(_KeptLayers, LlamaForCausalLM):
    """Llama."""


class KeptLayersMistralForCausalLM(_KeptLayers, MistralForCausalLM):
    """Mistral."""


class KeptLayersQwen2ForCausalLM(_KeptLayers, Qwen2ForCausalLM):
    """Qwen2."""


class KeptLayersQwen3ForCausalLM(_KeptLayers, Qwen3ForCausalLM):
    """Qwen3."""
