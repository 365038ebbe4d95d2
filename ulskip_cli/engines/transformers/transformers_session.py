"""The session of transformers: `generate` of a model with two phases."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteria

from ulskip_cli.core.answer import Request
from ulskip_cli.core.files import JsonObject
from ulskip_cli.engines.base import BatchOutput, PhaseTimes, Prompts, Session, Watch
from ulskip_cli.engines.loop import synchronized_time
from ulskip_cli.inference import kv_cache, shallow_view


class TransformersSession(Session):
    """Decoding with transformers' `generate`."""

    def generate(self, prompts: Prompts, request: Request, watch: Watch) -> BatchOutput:
        """Generate for one batch."""
        input_ids, device = prompts.input_ids, prompts.input_ids.device
        views = self.views
        kv_bytes, prefilled_at = (0, 0), 0.0

        def on_prefill(cache: DynamicCache) -> None:
            nonlocal kv_bytes, prefilled_at
            prefilled_at = synchronized_time(device)
            decoded = kv_cache.kv_bytes(cache, views.stages[0].places)
            kv_bytes = kv_cache.kv_bytes(cache), decoded

        model = shallow_view.two_phase(views.prompt_model, views.stages, on_prefill)
        observer = StepObserver(device, input_ids.shape, watch.on_step)
        start = synchronized_time(device)
        sequences = model.generate(
            input_ids=input_ids,
            attention_mask=prompts.attention_mask,
            generation_config=generation_config(request),
            stopping_criteria=[observer],
        )
        times = PhaseTimes(start, prefilled_at, observer.first_at, synchronized_time(device))
        rows = sequences[:, input_ids.shape[1] :].tolist()
        return BatchOutput.of(prompts, request, rows, times, kv_bytes)


def generation_config(request: Request) -> GenerationConfig:
    """Return the options of `generate` for a request, which override the checkpoint's own
    defaults.
    """
    decoding = request.decoding
    # Greedy decoding ignores these three; transformers' defaults cause no warning.
    sampling: JsonObject = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if decoding.do_sample:
        sampling = {key: getattr(decoding, key) for key in sampling}
    return GenerationConfig(
        do_sample=decoding.do_sample,
        num_beams=decoding.num_beams,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        pad_token_id=request.ends.pad_token_id,
        eos_token_id=list(request.ends.eos_token_ids) or None,
        max_new_tokens=request.length,
        min_new_tokens=request.length if request.fixed_length else None,
        use_cache=True,
        **sampling,
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
        self.first_at = self.first_at or synchronized_time(self.device)
        self.on_step(self.batch * (input_ids.shape[1] - self.prompt_len))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=self.device)
