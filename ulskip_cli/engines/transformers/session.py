"""The session of transformers: `generate` of a model with two phases."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.engines.base import BatchOutput, BatchRequest, Clock, EngineSession, Views
from ulskip_cli.engines.loop import now
from ulskip_cli.engines.transformers import options
from ulskip_cli.inference import kv_cache, shallow_view


class TransformersSession(EngineSession):
    """Decoding with transformers' `generate`."""

    def __init__(self, views: Views, *settings: object) -> None:
        """Open a session; it needs no room and no format of weights."""
        self.views, self.device = views, shallow_view.input_device(views.model)
        self._kv_bytes = (0, 0)
        self._prefilled_at = 0.0

    def generate(self, request: BatchRequest) -> BatchOutput:
        """Generate for one batch."""
        input_ids, decoding = request.input_ids, request.decoding
        stops = () if request.forced else decoding.stop
        settings = options.generate_settings(decoding) | {
            "use_cache": True,
            "pad_token_id": request.pad_token_id,
            "eos_token_id": list(request.eos_token_ids) or None,
            "max_new_tokens": request.length,
            **({"min_new_tokens": request.length} if request.forced else {}),
            "stop_strings": list(stops) or None,
        }
        model = shallow_view.two_phase(self.views.prompt_model, request.stages, self._on_prefill)
        observer = StepObserver(self.device, input_ids.shape, request.on_step)
        start = now(self.device)
        try:
            sequences = model.generate(
                input_ids=input_ids,
                attention_mask=request.attention_mask,
                generation_config=GenerationConfig(**settings),
                stopping_criteria=[observer],
                tokenizer=request.tokenizer if stops else None,
            )
        # transformers checks many options only when it uses them
        except (TypeError, ValueError) as error:
            if not (decoding.draft_tokens or decoding.generate_kwargs):
                raise
            raise UsageError(
                "decoding.draft_tokens or decoding.generate_kwargs is refused by transformers"
                f" ({reason(error)}); correct or remove them, or use"
                " engine=auto or batch_size=1"
            ) from None
        # transformers' own drafts run the prompt together with the first check.
        prefilled_at = self._prefilled_at if self._prefilled_at > start else observer.first_at
        clock = Clock(start, prefilled_at, observer.first_at, now(self.device))
        rows = sequences[:, input_ids.shape[1] :].tolist()
        if stops:
            rows = [_until_stop(row, stops, request.tokenizer) for row in rows]
        return BatchOutput.of(request, rows, clock, self._kv_bytes)

    def _on_prefill(self, cache: DynamicCache) -> None:
        self._prefilled_at = now(self.device)
        self._kv_bytes = (
            kv_cache.kv_bytes(cache),
            kv_cache.kv_bytes(cache, self.views.stages[0].kept),
        )


class StepObserver(StoppingCriteria):  # type: ignore[misc]
    """A stopping criterion that never stops; it records the time of the first token and reports the
    number of tokens.
    """

    def __init__(
        self,
        device: torch.device,
        prompt_shape: Sequence[int],
        on_step: Callable[[int], None],
    ) -> None:
        self.device, self.on_step, self.first_at = device, on_step, 0.0
        self.batch, self.prompt_len = prompt_shape

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Return False for every sequence, [batch * beams]."""
        self.first_at = self.first_at or now(self.device)
        self.on_step(self.batch * (input_ids.shape[1] - self.prompt_len))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=self.device)


def _until_stop(
    row: list[int], stops: Sequence[str], tokenizer: PreTrainedTokenizerBase | None
) -> list[int]:
    """Truncate a sequence behind its first stop string; `generate` runs until all sequences have
    stopped.
    """
    assert tokenizer is not None

    def stopped(length: int) -> bool:
        text = tokenizer.decode(row[:length], skip_special_tokens=True)
        return any(stop in text for stop in stops)

    return row[: bisect_left(range(len(row)), True, key=stopped)]
