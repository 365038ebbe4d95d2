"""The transformers engine: `generate` in two phases, with support for every option."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.engines import generate_options
from ulskip_cli.inference.engines.base import BatchRequest, EngineOutput
from ulskip_cli.inference.shallow_view import StageView
from ulskip_cli.inference.timing import now


class TransformersEngine:
    """Decoding with transformers' `generate`; only stop strings require the tokenizer."""

    def __init__(
        self,
        prompt_model: PreTrainedModel,
        stages: Sequence[StageView],
        device: torch.device,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        self.kept, self.device, self.tokenizer = stages[0].kept, device, tokenizer
        self._prompt_kv_bytes = self._kept_kv_bytes = 0
        self._prefilled_at = 0.0
        self._model = shallow_view.two_phase(prompt_model, stages, self._on_prefill)

    def prepare(self, request: BatchRequest) -> float:
        """Do nothing and return 0."""
        return 0.0

    def run(self, request: BatchRequest) -> EngineOutput:
        """Generate for one batch."""
        input_ids, decoding, length = request.input_ids, request.decoding, request.length
        settings: dict[str, Any] = {
            **generate_options.settings(decoding),
            "use_cache": True,
            "pad_token_id": request.pad_token_id,
            "eos_token_id": list(request.eos_token_ids) or None,
            "max_new_tokens": length,
        }
        if request.forced:
            settings["min_new_tokens"] = length
        stops = bool(decoding.stop) and not request.forced
        if stops:
            settings["stop_strings"] = list(decoding.stop)
        observer = StepObserver(self.device, input_ids.shape, request.on_step)
        sequences = self._model.generate(
            input_ids=input_ids,
            attention_mask=request.attention_mask,
            generation_config=GenerationConfig(**settings),
            stopping_criteria=[observer],
            **({"tokenizer": self.tokenizer} if stops else {}),
        )
        end = now(self.device)
        ids = sequences[:, input_ids.shape[1] :].tolist()
        return EngineOutput(ids, self._prefilled_at, observer.first_at, end, self._prompt_kv_bytes, self._kept_kv_bytes)

    def _on_prefill(self, cache: DynamicCache) -> None:
        self._prefilled_at = now(self.device)
        self._prompt_kv_bytes = shallow_view.kv_bytes(cache)
        self._kept_kv_bytes = shallow_view.kv_bytes(cache, self.kept)


class StepObserver(StoppingCriteria):  # type: ignore[misc]
    """A stopping criterion that never stops; it records the time of the first token and reports the number of tokens."""

    def __init__(self, device: torch.device, prompt_shape: Sequence[int], on_step: Callable[[int], None] | None) -> None:
        self.device = device
        self.batch, self.prompt_len = prompt_shape
        self.on_step = on_step
        self.first_at = 0.0
        self._never: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Return False for every sequence, [batch * beams]."""
        if self._never is None:
            self.first_at = now(self.device)
            self._never = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        if self.on_step is not None:
            self.on_step(self.batch * (input_ids.shape[1] - self.prompt_len))
        return self._never
