"""Early exit: each decode step runs layers until the prediction of the next token is confident
enough.

A token that exits early has no keys and values in the layers above. When a later token reaches such
a layer, the layer also processes the stored hidden states of the earlier tokens. All keys therefore
equal those of the full model, and one forward pass over given tokens has the logits of all steps.
The confidence is that of CALM (arXiv:2207.07061).
"""

import functools
from collections import Counter

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.files import Table
from ulskip_cli.core.schedule import ExitRule
from ulskip_cli.engines.base import BatchRequest, ExitStats
from ulskip_cli.engines.loop import now
from ulskip_cli.engines.torch.decode_steps import EagerSteps
from ulskip_cli.engines.torch.packed_linear import packed
from ulskip_cli.engines.torch.session import TorchSession
from ulskip_cli.inference.layerwise import LayerInputs, LayerwiseModel
from ulskip_cli.inference.teacher_forcing import EncodedPrompt


class EarlyExitSession(TorchSession):
    """Greedy decoding and sampling with early exit, by the rule in each request."""

    steps: "ExitSteps"

    @functools.cached_property
    def layerwise(self) -> LayerwiseModel:
        """The model of the decode steps, split into its layers, with weights in the format of
        `linear_backend`.
        """
        return LayerwiseModel(packed(self.views.model, self.views.linear_backend))

    def prepare(self, request: BatchRequest) -> float:
        """Pack the weights; the steps are never compiled."""
        _ = self.layerwise
        return 0.0

    def make_steps(self, request: BatchRequest, cache: DynamicCache) -> "ExitSteps":
        """Return the steps of a batch."""
        assert request.exits is not None
        return ExitSteps(self.views.model, self.layerwise, cache, request, request.exits)

    def details(self) -> Table:
        """Return the linear backend and the exit depths."""
        return {**super().details(), "exits": self.steps.exits}


class ExitSteps(EagerSteps):
    """Eager decode steps; the exit rule chooses the depth at which a step ends."""

    def __init__(
        self,
        model: PreTrainedModel,
        layerwise: LayerwiseModel,
        cache: DynamicCache,
        request: BatchRequest,
        rule: ExitRule,
    ) -> None:
        """Take over a cache with the prompt in every layer; `layerwise` is the split model or its
        packed copy.
        """
        mask = request.attention_mask
        super().__init__(model, cache, mask, request.length, several=True)
        self.layerwise, self.rule = layerwise, rule
        self.ids = request.input_ids
        self.eos_token_ids = torch.tensor(
            request.stop_token_ids, dtype=torch.long, device=mask.device
        )
        self.done = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        self._checks = frozenset(rule.checks)
        # By depth: the hidden states [batch, tokens, hidden_size] of the tokens that exited there.
        # These tokens directly precede the next token that reaches this depth, because they have no
        # keys in the layers above.
        self._pending: list[list[Tensor]] = [[] for _ in range(rule.num_layers)]
        self._check_seconds = 0.0
        self._counts = Counter[int]()

    @property
    def exits(self) -> ExitStats:
        """The exit depths so far."""
        return ExitStats(+self._counts, self._check_seconds)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Run layers until a check is confident enough; return the logits [batch, vocab_size] after
        `tokens` [batch, 1]. Where earlier tokens exited, they join the tokens for deeper layers.
        """
        self.ids = torch.cat([self.ids, tokens], dim=1)
        self.done = self.done | torch.isin(tokens[:, 0], self.eos_token_ids)
        length = self.ids.shape[1]
        threshold = self.rule.threshold_at(length - 1 - self.positions.prompt_len)
        inputs = self._enter(length - 1)
        hidden = inputs.hidden
        for index in range(self.rule.num_layers):
            if self._pending[index]:
                hidden = torch.cat([*self._pending[index], hidden], dim=1)
                self._pending[index] = []
                inputs = self._enter(length - hidden.shape[1])
            hidden = self.layerwise.layer(index, hidden, inputs)
            if index + 1 in self._checks:
                logits = self._confident_logits(hidden[:, -1:], threshold)
                if logits is not None:
                    self._pending[index + 1].append(hidden)
                    return self._finish(index + 1, length, logits)
        return self._finish(self.rule.num_layers, length, self.layerwise.logits(hidden[:, -1:]))

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences `alive`."""
        super().drop_finished(alive)
        self.ids, self.done = self.ids[alive], self.done[alive]
        self._pending = [[hidden[alive] for hidden in states] for states in self._pending]

    def _enter(self, start: int) -> LayerInputs:
        self.cursor.length = start
        count = self.ids.shape[1] - start
        return self.layerwise.enter(
            self.ids[:, start:], self.cache, **self.positions.options(start, count)
        )

    def _confident_logits(self, hidden: Tensor, threshold: float) -> Tensor | None:
        """Return the logits [batch, 1, vocab_size] if the lowest confidence of unfinished sequences
        reaches the threshold.
        """
        began = now(hidden.device)
        logits = self.layerwise.logits(hidden)
        confidence = confidence_of(logits)[:, 0]
        exits = float(confidence.masked_fill(self.done, torch.inf).min()) >= threshold
        self._check_seconds += now(hidden.device) - began
        return logits if exits else None

    def _finish(self, depth: int, length: int, logits: Tensor) -> Tensor:
        self.cursor.length = length
        self._counts[depth] += len(self.done) - int(self.done.sum())
        return logits[:, -1]


def confidence_of(logits: Tensor) -> Tensor:
    """Return the confidence [batch, tokens] at a check, the gap of the two largest probabilities of
    the `logits` [batch, tokens, vocab_size].
    """
    best = torch.softmax(logits.float(), dim=-1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def exit_logits(
    layerwise: LayerwiseModel,
    rule: ExitRule,
    prompt: EncodedPrompt,
    response_ids: Tensor,
    response_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the logits [batch, response_len, vocab_size] and exit depths [batch, response_len - 1]
    of a response.

    `response_ids` and `response_mask` are [batch, response_len], padded on the right; `prompt` is
    not changed. A batch exits together, so the lowest confidence of all unfinished sequences
    counts.
    """
    steps = response_ids.shape[1] - 1  # the forward pass of the prompt predicts the first token
    if not steps:
        return prompt.first_logits, response_ids[:, :0]
    thresholds = [rule.threshold_at(step) for step in range(steps)]
    threshold = torch.tensor(thresholds, dtype=torch.float64)  # which MPS lacks
    depths, ended = torch.zeros_like(response_ids[:, 1:]), ~response_mask[:, 1:].bool()
    chosen = None
    # One pass gives the states of all decode steps, because early exit reads only keys of the full
    # model.
    inputs = layerwise.after(prompt, response_ids[:, :-1], response_mask)
    for depth, hidden in enumerate(layerwise.states(inputs)):
        if depth not in rule.checks and depth != rule.num_layers:
            continue
        logits, exits = layerwise.logits(hidden), depths == 0
        if depth != rule.num_layers:
            lowest = confidence_of(logits).masked_fill(ended, torch.inf).amin(dim=0)
            exits = exits & (lowest.cpu().double() >= threshold).to(exits.device)
        depths = depths.masked_fill(exits, depth)
        chosen = logits if chosen is None else torch.where(exits[..., None], logits, chosen)
    assert chosen is not None
    return torch.cat([prompt.first_logits, chosen], dim=1), depths
