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
from transformers import DynamicCache

from ulskip_cli.core.files import Table
from ulskip_cli.core.schedule import ExitRule
from ulskip_cli.engines.base import BatchRequest, ExitStats
from ulskip_cli.engines.loop import now
from ulskip_cli.engines.torch.decode_steps import DecodeSteps, EagerSteps, NativeSteps
from ulskip_cli.engines.torch.native_model import NativeModel, one_layer
from ulskip_cli.engines.torch.session import TorchSession
from ulskip_cli.inference.layerwise import LayerInputs, LayerwiseModel
from ulskip_cli.inference.teacher_forcing import EncodedPrompt


class EarlyExitSession(TorchSession):
    """Greedy decoding and sampling with early exit, by the rule in each request."""

    steps: "ExitSteps"

    @functools.cached_property
    def full(self) -> "NativeModel | LayerwiseModel":
        """The full model, whose layers run one by one, in the kernels or with packed weights."""
        model = self.step_model(self.views.model)
        return model if isinstance(model, NativeModel) else LayerwiseModel(model)

    def prepare(self) -> None:
        """Pack the weights."""
        _ = self.prompt_model, self.full

    def make_steps(self, request: BatchRequest, cache: DynamicCache) -> "ExitSteps":
        """Return the steps of a batch."""
        mask, length = request.attention_mask, request.length
        if isinstance(self.full, NativeModel):
            return ExitSteps(NativeParts(self.full, cache, mask, length), request)
        eager = EagerParts(self.views.model, cache, mask, length)
        eager.layerwise = self.full
        return ExitSteps(eager, request)

    def details(self) -> Table:
        """Return the exit depths."""
        return {"exits": self.steps.exits}


class EagerParts(EagerSteps):
    """Steps whose parts run one by one, in the model's own modules."""

    layerwise: LayerwiseModel
    inputs: LayerInputs

    def enter(self, tokens: Tensor) -> Tensor:
        """Return the states [batch, count, hidden_size] of `tokens` [batch, count], which follow
        the filled positions, in front of the first layer.
        """
        options = self.positions.options(self.cursor.length, tokens.shape[1])
        self.inputs = self.layerwise.enter(tokens, self.cache, **options)
        return self.inputs.hidden

    def layer(self, index: int, states: Tensor) -> Tensor:
        """Run a layer on states [batch, count, hidden_size] of the tokens entered last."""
        return self.layerwise.layer(index, states, self.inputs)

    def head(self, states: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] of states."""
        return self.layerwise.logits(states)


class NativeParts(NativeSteps):
    """Steps whose parts run one by one, in the kernels."""

    def enter(self, tokens: Tensor) -> Tensor:
        """Return the states [batch, count, hidden_size] of `tokens` [batch, count], which follow
        the filled positions, in front of the first layer.
        """
        states = self.model.empty_states(*tokens.shape)
        self.model.run(None, self.batch(tokens), tokens.contiguous(), states)
        return states

    def layer(self, index: int, states: Tensor) -> Tensor:
        """Run a layer on states [batch, count, hidden_size], which it overwrites."""
        self.model.run(one_layer(self.layers, index), self.batch(states), states=states)
        return states

    def head(self, states: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] of states [batch, count, hidden_size]."""
        states = states.contiguous()
        logits = torch.empty(*states.shape[:2], self.model.vocab_size)
        self.model.run(None, self.batch(states), states=states, logits=logits)
        return logits


class ExitSteps(DecodeSteps):
    """Decode steps; the exit rule chooses the depth at which a step ends."""

    def __init__(self, parts: EagerParts | NativeParts, request: BatchRequest) -> None:
        """Take over the steps of the full model, whose cache has the prompt in every layer; they
        run its first part, its layers and its head one by one.
        """
        assert request.exits is not None
        self.parts, self.cursor, self.rule = parts, parts.cursor, request.exits
        self.ids = request.input_ids  # [batch, len], of all tokens so far
        self.prompt_len = self.ids.shape[1]
        self.eos_token_ids = self.ids.new_tensor(request.stop_token_ids)
        self.done = torch.zeros_like(self.ids[:, 0], dtype=torch.bool)  # [batch], after EOS
        self._checks = frozenset(self.rule.checks)
        # By depth: the hidden states [batch, tokens, hidden_size] of the tokens that exited there.
        # These tokens directly precede the next token that reaches this depth, because they have no
        # keys in the layers above.
        self._pending: list[list[Tensor]] = [[] for _ in range(self.rule.num_layers)]
        self._check_seconds = 0.0
        self._counts = Counter[int]()

    @property
    def exits(self) -> ExitStats:
        """The exit depths so far."""
        return ExitStats(+self._counts, self._check_seconds)

    def logits(self, tokens: Tensor) -> Tensor:
        """Run layers until a check is confident enough; return the logits [batch, 1, vocab_size]
        after `tokens` [batch, 1]. At a depth at which earlier tokens exited, these join the new
        ones, so that deeper layers have keys of all tokens.
        """
        self.ids = torch.cat([self.ids, tokens], dim=1)
        self.done = self.done | torch.isin(tokens[:, 0], self.eos_token_ids)
        length = self.ids.shape[1]
        threshold = self.rule.threshold_at(length - 1 - self.prompt_len)
        states = self._enter(length - 1)
        for index in range(self.rule.num_layers):
            if self._pending[index]:
                states = torch.cat([*self._pending[index], states], dim=1)
                self._pending[index] = []
                self._enter(length - states.shape[1])  # places the joined tokens, too
            states = self.parts.layer(index, states)
            if index + 1 in self._checks:
                logits = self._confident_logits(states[:, -1:], threshold)
                if logits is not None:
                    self._pending[index + 1].append(states)
                    return self._finish(index + 1, length, logits)
        return self._finish(self.rule.num_layers, length, self.parts.head(states[:, -1:]))

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences `alive`."""
        self.parts.drop_finished(alive)
        self.ids, self.done = self.ids[alive], self.done[alive]
        self._pending = [[states[alive] for states in behind] for behind in self._pending]

    def _enter(self, start: int) -> Tensor:
        """Set the cursor to `start`, so that layers write keys from there on; return the inputs of
        the first layer for the tokens from `start` on.
        """
        self.cursor.length = start
        return self.parts.enter(self.ids[:, start:])

    def _confident_logits(self, states: Tensor, threshold: float) -> Tensor | None:
        """Return the logits [batch, 1, vocab_size] after states [batch, 1, hidden_size] if the
        lowest confidence of unfinished sequences reaches the threshold, else None. The time counts
        as that of checks.
        """
        began = now(states.device)
        logits = self.parts.head(states)
        confidence = confidence_of(logits)[:, 0]
        exits = float(confidence.masked_fill(self.done, torch.inf).min()) >= threshold
        self._check_seconds += now(states.device) - began
        return logits if exits else None

    def _finish(self, depth: int, length: int, logits: Tensor) -> Tensor:
        """Set the cursor behind the step's token, count the depth of unfinished sequences, and
        return the logits.
        """
        self.cursor.length = length
        self._counts[depth] += len(self.done) - int(self.done.sum())
        return logits


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
    inputs = layerwise.after(prompt, response_ids[:, :-1], response_mask)
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
