"""A logits processor of the decode server: the first token of an answer is the one that the prefill
server chose.
"""

from functools import partial
from typing import Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from ulskip_vllm.handoff import is_name


def handoff_of(params: SamplingParams) -> dict[str, Any]:
    """Return the hand-off that a request carries, or an empty dict."""
    given = (params.extra_args or {}).get("kv_transfer_params")
    return given if isinstance(given, dict) else {}


class FirstToken(AdapterLogitsProcessor):
    """Forces the first token, and refuses requests that a decode server cannot answer exactly."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError, which becomes HTTP status 400, for a request without a hand-off or with
        unsupported options.
        """
        given = handoff_of(sampling_params)
        if not is_name(given.get("handoff")) or not isinstance(given.get("first_token"), int):
            raise ValueError(
                "a decode server requires the hand-off of a prefill server, got a request without"
                " one; send requests to the proxy (`ulskip-vllm proxy`)"
            )
        if not isinstance(given.get("num_prompt_tokens"), int) or given["num_prompt_tokens"] < 2:
            raise ValueError(
                "a pair requires prompts of at least two tokens; use a longer prompt, or the"
                " prefill server alone"
            )
        if sampling_params.n != 1:
            raise ValueError(f"a pair does not support n={sampling_params.n}; send n requests")
        for key in ("logprobs", "prompt_logprobs"):
            if getattr(sampling_params, key) is not None:
                raise ValueError(
                    f"a pair does not support {key}, because the prefill server chooses the first"
                    " token; leave it out"
                )

    def is_argmax_invariant(self) -> bool:
        """Return False, because the processor changes greedy decoding too."""
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> partial[torch.Tensor] | None:
        """Return the function that forces the first token of a request."""
        token = handoff_of(params).get("first_token")
        return None if token is None else partial(_force, token)


def _force(token: int, output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
    if not output_ids and 0 <= token < len(logits):
        logits.fill_(float("-inf"))
        logits[token] = 0.0
    return logits
