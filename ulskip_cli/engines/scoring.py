"""Teacher forcing of given texts by a decoder: the decode loss of references, and the agreement
with the full model on its answers.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ulskip_cli.core.schedule import ExitRule
from ulskip_cli.engines.base import ExitStats, Prompts, Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.sampling import confidence_of
from ulskip_cli.inference.batching import (
    BatchSize,
    free_bytes,
    in_batches,
    longest_first,
    padded,
)
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.teacher_forcing import (
    EncodedPrompt,
    divergence,
    encode_prompt,
    predict_response,
    response_losses,
)

PROMPTS_MEMORY_SHARE = 1 / 4  # of the free memory: encoded prompts, which are used again


@dataclass(frozen=True)
class AnswerScores:
    """Predictions of a schedule on one answer of the full model."""

    index: int  # of its prompt
    agrees: NDArray[np.bool_]  # for each token: the most likely prediction is the full model's
    divergence: float  # in nats, summed over the tokens


@dataclass(frozen=True)
class ForcedScores:
    """Predictions of a schedule on given texts; the scores of several batches can be added."""

    nats: float = 0.0  # cross-entropy of the references, summed over their tokens
    tokens: int = 0
    exits: ExitStats = field(default_factory=ExitStats)  # on the references
    answers: tuple[AnswerScores, ...] = ()  # longest prompt first, without empty answers

    def __add__(self, other: "ForcedScores") -> "ForcedScores":
        return ForcedScores(
            self.nats + other.nats,
            self.tokens + other.tokens,
            self.exits + other.exits,
            self.answers + other.answers,
        )

    @property
    def decode_loss(self) -> float:
        """The mean cross-entropy per reference token in nats."""
        return self.nats / self.tokens


@dataclass
class ForcedTexts:
    """Prompts of a task as token ids, with their references, and with the full model's answers if
    schedules are compared with it.

    The prompts that a schedule encoded, here or before its answers, are held for the next scores as
    far as they fit into PROMPTS_MEMORY_SHARE, until another model encodes.
    """

    prompts: Sequence[list[int]]
    references: Sequence[list[int]]  # each may be empty, as each answer
    size: BatchSize
    pad_token_id: int
    answers: Sequence[list[int]] = ()
    _held: dict[tuple[int, ...], EncodedPrompt] = field(default_factory=dict)  # by their indices
    _model: PreTrainedModel | None = None

    @property
    def held_bytes(self) -> int:
        """The size of the held prompts."""
        return sum(prompt.nbytes for prompt in self._held.values())

    def hold(self, model: PreTrainedModel, batch: Sequence[int], prompt: EncodedPrompt) -> None:
        """Hold the prompts with the indices `batch`, longest first, which `model` encoded as a
        batch, if there is anything to score, and drop those that another model encoded.
        """
        if not (self.references or self.answers):
            return
        self._drop_others(model)
        limit = PROMPTS_MEMORY_SHARE * free_bytes(model.device)
        # Larger batches are not asked for again, because the batch size has been halved.
        if len(batch) <= self.size.used and self.held_bytes + prompt.nbytes <= limit:
            self._held[tuple(batch)] = prompt

    def _drop_others(self, model: PreTrainedModel) -> None:
        """Drop the held prompts unless `model` encoded them."""
        if model is not self._model:
            self._model, self._held = model, {}

    def scores(
        self,
        decoder: Decoder,
        full: Decoder | None = None,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> ForcedScores:
        """Return the scores of a schedule. `full` is the decoder of the full model, with which the
        schedule is compared on `answers`; `on_batch` gets the number of done prompts.
        """
        self._drop_others(decoder.views.prompt_model)
        scores, done = ForcedScores(), 0
        order = longest_first(list(map(len, self.prompts)))
        score_batch = (
            self._score_by_library if decoder.decodes_outside_torch else self._score_by_views
        )
        work = partial(score_batch, decoder, full)
        for batch, batch_scores in in_batches(order, self.size, work):
            scores, done = scores + batch_scores, done + len(batch)
            on_batch(done)
        return scores

    def _score_by_library(
        self, decoder: Decoder, full: Decoder | None, batch: Sequence[int]
    ) -> ForcedScores:
        """Score the references by an engine of another library. It returns losses and no logits, so
        answers are not compared, and `full` is not used.
        """
        ids, mask = self._padded(self.references, batch, decoder.device)
        losses = decoder.losses(self._prompts(batch, decoder.device), ids)
        return ForcedScores(float((losses * mask).sum()), int(mask.sum()))

    @torch.inference_mode()
    def _score_by_views(
        self, decoder: Decoder, full: Decoder | None, batch: Sequence[int]
    ) -> ForcedScores:
        """Score references and answers by the logits of the schedule's views, after one pass over
        the prompts.
        """
        prompt = self._encoded(decoder.views.prompt_model, batch)
        scores = ForcedScores()
        if self.references:
            scores += self._reference_scores(decoder.views, prompt, batch)
        if full and self.answers and any(self.answers[i] for i in batch):
            scores += self._answer_scores(decoder.views, full.views, prompt, batch)
        return scores

    def _reference_scores(
        self, views: Views, prompt: EncodedPrompt, batch: Sequence[int]
    ) -> ForcedScores:
        """Return the cross-entropy and the exit depths on the references of a batch."""
        ids, mask = self._padded(self.references, batch, views.model.device)
        logits, depths = teacher_forced_logits(views, prompt, ids, mask)
        # The prompt predicts the first token, which has no depth.
        exits = [] if depths is None else depths[mask[:, 1:].bool()].tolist()
        nats = float((response_losses(logits, ids) * mask).sum())
        return ForcedScores(nats, int(mask.sum()), ExitStats(Counter(exits)))

    def _answer_scores(
        self, views: Views, full: Views, prompt: EncodedPrompt, batch: Sequence[int]
    ) -> ForcedScores:
        """Compare the schedule with the full model on the answers of a batch. `prompt` was encoded
        for the schedule; if not by the full model's layers, the full model encodes it again.
        """
        shares_prompt = full.prompt_model is views.prompt_model
        full_prompt = prompt if shares_prompt else self._encode(full.prompt_model, batch)
        ids, mask = self._padded(self.answers, batch, views.model.device)
        target, _ = teacher_forced_logits(full, full_prompt, ids, mask)
        logits, _ = teacher_forced_logits(views, prompt, ids, mask)
        answers = [
            answer_scores(i, target[row, : len(self.answers[i])], logits[row])
            for row, i in enumerate(batch)
            if self.answers[i]
        ]
        return ForcedScores(answers=tuple(answers))

    def _encoded(self, model: PreTrainedModel, batch: Sequence[int]) -> EncodedPrompt:
        """Return the held prompts with these indices, or encode and hold them."""
        prompt = self._held.get(tuple(batch)) or self._encode(model, batch)
        self.hold(model, batch, prompt)
        return prompt

    def _encode(self, model: PreTrainedModel, batch: Sequence[int]) -> EncodedPrompt:
        prompts = self._prompts(batch, model.device)
        return encode_prompt(model, prompts.input_ids, prompts.attention_mask)

    def _prompts(self, batch: Sequence[int], device: torch.device) -> Prompts:
        return Prompts.from_token_ids([self.prompts[i] for i in batch], self.pad_token_id).to(
            device
        )

    def _padded(
        self, texts: Sequence[list[int]], batch: Sequence[int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return the token ids and the mask [batch, longest] of the texts with the indices `batch`,
        padded on the right.
        """
        return padded([texts[i] for i in batch], self.pad_token_id, left=False, device=device)


def answer_scores(index: int, target: Tensor, logits: Tensor) -> AnswerScores:
    """Compare the logits of an answer [response_len or more, vocab_size] with those of the full
    model [response_len, vocab_size].
    """
    logits = logits[: len(target)]
    agrees = (target.argmax(-1) == logits.argmax(-1)).cpu().numpy()
    return AnswerScores(index, agrees, float(divergence(target, logits)))


def teacher_forced_logits(
    views: Views, prompt: EncodedPrompt, ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the teacher-forced logits [batch, response_len, vocab_size] of a response and its exit
    depths.

    `ids` and `mask` are [batch, response_len]; the depths are [batch, response_len - 1], or None
    without early exit.
    """
    if views.exits:
        return exit_logits(views.layerwise, views.exits, prompt, ids, mask)
    return predict_response(views.stages, prompt, ids, mask), None


def exit_logits(
    layerwise: LayerwiseModel,
    rule: ExitRule,
    prompt: EncodedPrompt,
    response_ids: Tensor,
    response_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the logits [batch, response_len, vocab_size] and exit depths [batch, response_len - 1]
    of a response in teacher forcing, as decode steps with early exit would give them.

    `response_ids` and `response_mask` are [batch, response_len], padded on the right; `prompt` is
    not changed. A step ends at the first depth at which all unfinished sequences are confident.
    """
    steps = response_ids.shape[1] - 1  # the forward pass of the prompt predicts the first token
    if not steps:
        return prompt.first_logits, response_ids[:, :0]
    thresholds = [rule.threshold_at(step) for step in range(steps)]
    threshold = torch.tensor(thresholds, dtype=torch.float64)  # on the CPU; MPS has no float64
    depths = torch.zeros_like(response_ids[:, 1:])  # 0: the step has not ended yet
    ended = ~response_mask[:, 1:].bool()
    chosen = prompt.first_logits  # a placeholder: each step's are chosen at some depth
    # One pass gives the states of all decode steps, because early exit reads only keys of the full
    # model.
    inputs = layerwise.layer_inputs_after(prompt, response_ids[:, :-1], response_mask)
    for depth, hidden in enumerate(layerwise.states(inputs)):
        if depth not in rule.checks and depth != rule.num_layers:
            continue
        logits = layerwise.logits(hidden)
        exits = depths == 0
        if depth != rule.num_layers:
            lowest = confidence_of(logits).masked_fill(ended, torch.inf).amin(dim=0)  # [steps]
            exits = exits & (lowest.cpu().double() >= threshold).to(exits.device)
        depths = depths.masked_fill(exits, depth)
        chosen = torch.where(exits[..., None], logits, chosen)
    return torch.cat([prompt.first_logits, chosen], dim=1), depths
