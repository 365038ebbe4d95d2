"""Adapter with which lm-evaluation-harness evaluates a model under a skipping schedule.

Needs `pip install 'ulskip[lm-eval]'`. Importing this module registers the model with the harness
under the name `ulskip`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lm_eval import __version__ as lm_eval_version
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import fingerprint
from ulskip_cli.core.strategy import LAYER
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.engines.scoring import given_logits
from ulskip_cli.experiments.batch_checkpoints import digest
from ulskip_cli.experiments.descriptions import (
    ScheduleProvenance,
    describe_provenance,
    describe_schedule,
)
from ulskip_cli.experiments.record import LmEval, Point, Record
from ulskip_cli.inference.batching import BatchSize, in_batches, padded
from ulskip_cli.inference.loading import load
from ulskip_cli.inference.skip_adapter import load_adapter
from ulskip_cli.inference.teacher_forcing import encode_prompt
from ulskip_cli.strategies.plan import make_plan

# texts of the request, token ids of its context and of its continuation
ScoringRequest = tuple[object, list[int], list[int]]
# log probability of a continuation, and True if greedy decoding would generate it
Score = tuple[float, bool]

# Arguments of the harness's `hf` model that do not concern the weights. All others are keys of our
# configuration.
_HARNESS_KEYS = (
    *("max_length", "add_bos_token", "truncation", "logits_cache", "prefix_token_id"),
    *("softmax_dtype", "think_end_token", "enable_thinking", "chat_template_args"),
)
_SAMPLING = ("temperature", "top_p", "top_k")
_DECODING = (*_SAMPLING, "num_beams", "repetition_penalty", "no_repeat_ngram_size")
FIRST_TOKEN_ONLY = (
    "have a single token, which the full model predicts under prompt_layers=all, so their scores"
    " show no effect of skipping; do not set prompt_layers=all, or use tasks with longer"
    " continuations"
)


@register_model("ulskip")
class SkippingLM(HFLM):  # type: ignore[misc]
    """A causal LM with one schedule, as a model of lm-evaluation-harness. It generates text as
    `ulskip run` does.

    The kept layers score continuations and read their contexts. With an explicit
    `prompt_layers=all`, all layers read the context, so the full model scores the first token of
    every continuation; the same holds with `strategy.unit`.
    """

    def __init__(
        self,
        overrides: Sequence[str] = (),
        batch_size: int | str = 1,
        max_batch_size: int | None = 64,
        device: str | None = None,
        pretrained: str | None = None,
        **arguments: Any,
    ) -> None:
        """Load the model and make the schedule; raise UsageError if the harness does not support
        the model or the strategy.

        `overrides` and `arguments` are keys of the ulskip configuration, e.g. `model`, `strategy`,
        `ratio`; `arguments` may also contain arguments of the harness's `hf` model that do not
        concern the weights. `device` and `pretrained` are defaults of `model.device` and
        `model.path`. With `batch_size="auto"`, `max_batch_size` is halved until a batch fits.
        """
        harness_arguments = {key: arguments.pop(key) for key in _HARNESS_KEYS if key in arguments}
        defaults = {"model.device": device, "model.path": pretrained}
        arguments = {key: value for key, value in defaults.items() if value} | arguments
        overrides = [*map(_override, arguments.items()), *overrides]  # later overrides win
        config = self.ulskip_config = compose(overrides, command="lm-eval")
        self.loaded = load(config.model, config.seed)
        tokenizer = self.loaded.tokenizer
        assert tokenizer is not None  # only model=random has none
        self.plan = make_plan(config, self.loaded.metadata)
        asked = any(text.startswith("prompt_layers=") for text in overrides)
        stays = asked or self.plan.keeps_all or self.plan.exits or self.plan.unit != LAYER
        scoring = self.plan if stays else replace(self.plan, prompt_layers="kept")
        adapter, self.skip_adapter = load_adapter(config, self.plan)
        parts = tokenizer, adapter, config.engine
        self.decoder = self.scorer = Decoder(self.loaded.model, self.plan, *parts)
        if scoring != self.plan:
            self.scorer = Decoder(self.loaded.model, scoring, *parts)
        self.scoring_plan = scoring
        self.continuations = self.first_token_only = self._batches = 0
        super().__init__(
            pretrained=self.scorer.prompt_model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            **harness_arguments,
        )

    @property
    def _is_one_model(self) -> bool:
        """True if the same layers read context and continuation, so that `HFLM` can score them in
        one pass.
        """
        scorer = self.scorer
        return scorer.prompt_model is scorer.view and len(scorer.stages) == 1 and not scorer.exits

    def _loglikelihood_tokens(
        self,
        requests: Sequence[ScoringRequest],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Score]:
        self.continuations += len(requests)
        self.first_token_only += sum(len(continuation) == 1 for _, _, continuation in requests)
        if self._is_one_model:
            harness_scores: list[Score] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            return harness_scores
        size = self.max_batch_size if self.batch_size == "auto" else self.batch_size
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        order = sorted(range(len(requests)), key=lambda i: -lengths[i])
        scores: dict[int, Score] = {}
        for positions, batch in in_batches(
            order, BatchSize(override_bs or size), lambda at: self._scored(requests, at)
        ):
            for position, score in zip(positions, batch, strict=True):
                scores[position] = score
                if requests[position][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[position][0], score)
        return [scores[i] for i in range(len(requests))]

    def _scored(self, requests: Sequence[ScoringRequest], positions: Sequence[int]) -> list[Score]:
        """Score one batch in two passes: encode the contexts, then score the continuations."""
        responses = [requests[i][2] for i in positions]
        # truncated on the left, as by `hf`
        wholes = [(requests[i][1] + requests[i][2])[-self.max_length - 1 :] for i in positions]
        prompts = [ids[: -len(tail)] for ids, tail in zip(wholes, responses, strict=True)]
        pad, device = self.tokenizer.pad_token_id, self.scorer.device
        prompt_ids, prompt_mask = (tensor.to(device) for tensor in padded(prompts, pad, left=True))
        response_ids, mask = (tensor.to(device) for tensor in padded(responses, pad, left=False))
        with torch.inference_mode():
            prompt = encode_prompt(self.scorer.prompt_model, prompt_ids, prompt_mask)
            logits = given_logits(self.scorer, prompt, response_ids, mask)[0]
            chances = torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        chosen = chances.gather(2, response_ids[:, :, None])[:, :, 0]
        greedy = (chances.argmax(-1) == response_ids) | (mask == 0)
        totals = (chosen * mask).sum(1).tolist()
        return list(zip(totals, greedy.all(1).tolist(), strict=True))

    def _model_generate(
        self,
        context: Tensor,
        max_length: int,
        stop: list[str],
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Generate new tokens, and return context and new token ids, [batch, context + new
        tokens].
        """
        mask = torch.ones_like(context) if attention_mask is None else attention_mask
        eos = self.loaded.model.generation_config.eos_token_id
        ends = self.tokenizer.batch_decode(
            [[end] for end in ([eos] if type(eos) is int else eos or [])]
        )
        known = {key: options.pop(key) for key in _DECODING if options.get(key) is not None}
        samples = bool(options.pop("do_sample", None)) and known.get("temperature", 1.0) > 0
        if not samples:
            known = {key: value for key, value in known.items() if key not in _SAMPLING}
        decoding = self.ulskip_config.decoding
        decoding = decoding.replace(
            max_new_tokens=max_length - context.shape[1],
            stop=tuple(text for text in stop if text not in ends),
            generate_kwargs={**(decoding.generate_kwargs or {}), **options} or None,
            do_sample=samples,
            **known,
        )
        self._batches += 1
        seed = self.ulskip_config.seed * 1_000_003 + self._batches
        how = DecodeContext(decoding, self.tokenizer.pad_token_id, seed)
        output = self.decoder.generate(context, mask, how)
        new, _ = padded(output.token_ids, self.tokenizer.pad_token_id, left=False)
        return torch.cat([context, new.to(context.device)], dim=1)

    def get_model_info(self) -> dict[str, Any]:
        """Return the model information that the harness stores with its results; the key `ulskip`
        contains the ulskip row.
        """
        return {
            "model_num_parameters": self.loaded.model.num_parameters(),
            "model_dtype": str(self.loaded.model.dtype),
            "ulskip": self.record().to_row(),
        }

    def record(self) -> Record:
        """Return the part of the record that all tasks share, without scores."""
        config = self.ulskip_config.replace(
            batch_size=self.batch_size if isinstance(self.batch_size, int) else 0
        )
        shared_id = digest(
            [config.identity, fingerprint(config.model), config.correction.fingerprint()]
        )
        warnings = list(self.plan.warnings)
        is_full = not self._is_one_model and self.scoring_plan.prompt_layers == "all"
        if self.first_token_only and is_full:
            warnings.append(
                f"{self.first_token_only} of {self.continuations} continuations {FIRST_TOKEN_ONLY}"
            )
        provenance = ScheduleProvenance(skip_adapter=self.skip_adapter)
        return Record.joined(
            Point.of(config, shared_id),
            describe_schedule(self.plan, provenance),
            LmEval(
                lm_eval_version=lm_eval_version,
                scored_prompt_layers=self.scoring_plan.prompt_layers,
            ),
            describe_provenance(config, self.plan, self.loaded, self.decoder, 0),
            warnings=tuple(warnings),
            task=None,
            pair=None,
            prompt_layers=self.plan.prompt_layers,
            correction=provenance.correction,
        )


def _override(argument: tuple[str, object]) -> str:
    """Format a value that the harness parsed in Hydra's override syntax.

    >>> [*map(_override, {"a": [0, 2], "b": True, "c": None, "d": 2.0, "e": "x"}.items())]
    ['a=[0, 2]', 'b=true', 'c=null', 'd=2.0', 'e=x']
    """
    key, value = argument
    text = value if isinstance(value, str) else json.dumps(value).replace('"', "")
    return f"{key}={text}"
