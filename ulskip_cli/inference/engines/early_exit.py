"""Early exit: each decode step runs layers until the prediction of the next token is confident enough.

A token that exits early has no keys and values in the layers above. When a later token reaches such a layer, the layer also
processes the pending hidden states of the earlier tokens. All keys therefore equal those of the full model.
"""

import functools
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.exit_rule import ExitRule
from ulskip_cli.inference import exit_scoring, static_cache
from ulskip_cli.inference.engines import fast
from ulskip_cli.inference.engines.base import BatchRequest, EngineOutput, ExitStats
from ulskip_cli.inference.layerwise import LayerInputs, LayerwiseModel
from ulskip_cli.inference.packed_linear import linear_backend_of, packed
from ulskip_cli.inference.positions import PositionsAndMasks
from ulskip_cli.inference.timing import AccumulatingTimer


def check(model: PreTrainedModel, rule: ExitRule, decoding: DecodingConfig) -> None:
    """Raise UsageError if this engine does not support a model, rule or option."""
    if rule.threshold is None:
        raise UsageError("expected strategy.threshold for strategy=early_exit, got none; calibrate with: ulskip run")
    if reason := fast.unsupported_reason(model, decoding):
        raise UsageError(f"strategy=early_exit is not supported with {reason}; use another model, option or strategy")


class EarlyExitEngine:
    """Greedy decoding and sampling with early exit."""

    def __init__(self, model: PreTrainedModel, rule: ExitRule, device: torch.device, linear_backend: str) -> None:
        self.model, self.rule, self.device, self.linear_backend = model, rule, device, linear_backend

    @functools.cached_property
    def layerwise(self) -> LayerwiseModel:
        """The model of the decode steps, split into its layers, with the weights of the linear backend."""
        return LayerwiseModel(packed(self.model, self.linear_backend))

    def with_exit_rule(self, rule: ExitRule) -> "EarlyExitEngine":
        """Return an engine with another exit rule; both engines share the packed weights."""
        engine = EarlyExitEngine(self.model, rule, self.device, self.linear_backend)
        engine.__dict__["layerwise"] = self.layerwise
        return engine

    def prepare(self, request: BatchRequest) -> float:
        """Pack the weights; the steps are never compiled."""
        _ = self.layerwise
        return 0.0

    def run(self, request: BatchRequest) -> EngineOutput:
        """Generate for one batch."""
        made: list[ExitSteps] = []

        def make_steps(cache: DynamicCache) -> ExitSteps:
            made.append(ExitSteps(self.model, self.layerwise, cache, request, self.rule))
            return made[-1]

        output = fast.run(request, self.model, range(self.rule.num_layers), make_steps, self.device, fast.decode_steps)
        return replace(output, exits=made[-1].exits, linear_backend=linear_backend_of(self.layerwise.layers[0]))


class ExitSteps:
    """Decode steps; the exit rule chooses the depth at which a step ends."""

    can_shrink = True

    def __init__(
        self, model: PreTrainedModel, layerwise: LayerwiseModel, cache: DynamicCache, request: BatchRequest, rule: ExitRule
    ) -> None:
        """Take over a cache with the prompt in every layer; `layerwise` is the split model or its packed copy."""
        mask, steps = request.attention_mask, request.length - 1
        self.layerwise, self.rule = layerwise, rule
        self.cache, self.cursor = static_cache.fixed(cache, mask.shape[1] + steps)
        self.positions = PositionsAndMasks(model, self.cache, mask, steps)
        self.ids = request.input_ids
        eos_token_ids = [] if request.forced else list(request.eos_token_ids)
        self.eos_token_ids = torch.tensor(eos_token_ids, dtype=torch.long, device=mask.device)
        self.done = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        self._first = mask.shape[1]
        self._checks = frozenset(rule.checks)
        # By depth: the hidden states [batch, tokens, hidden_size] of the tokens that exited there. These tokens directly
        # precede the next token that reaches this depth, because they have no keys in the layers above.
        self._pending: list[list[Tensor]] = [[] for _ in range(rule.num_layers)]
        self._check_timer = AccumulatingTimer(mask.device)
        self._counts = dict.fromkeys(range(1, rule.num_layers + 1), 0)

    @property
    def exits(self) -> ExitStats:
        """The exit depths so far."""
        return ExitStats({depth: count for depth, count in self._counts.items() if count}, self._check_timer.seconds)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, vocab_size] after `tokens` [batch, 1]."""
        self.ids = torch.cat([self.ids, tokens], dim=1)
        self.done = self.done | torch.isin(tokens[:, 0], self.eos_token_ids)
        at = self.ids.shape[1]
        threshold = self.rule.threshold_at(at - 1 - self._first)
        inputs = self._enter(at - 1)
        hidden, before = inputs.hidden, None
        for index in range(self.rule.num_layers):
            if self._pending[index]:
                hidden = torch.cat([*self._pending[index], hidden], dim=1)
                self._pending[index] = []
                inputs = self._enter(at - hidden.shape[1])
            hidden = self.layerwise.layer(index, hidden, inputs)
            if index + 1 in self._checks:
                last = hidden[:, -1:]
                logits = self._confident_logits(last, before, threshold)
                if logits is not None:
                    self._pending[index + 1].append(hidden)
                    return self._finish(index + 1, at, logits)
                before = last
        return self._finish(self.rule.num_layers, at, self.layerwise.logits(hidden[:, -1:]))

    def drop_finished(self, alive: Tensor) -> None:
        """Keep only the sequences `alive`."""
        for layer in self.cache.layers:
            layer.keep_sequences(alive)
        self.positions.drop_finished(alive)
        self.ids, self.done = self.ids[alive], self.done[alive]
        self._pending = [[hidden[alive] for hidden in states] for states in self._pending]

    def _enter(self, start: int) -> LayerInputs:
        self.cursor.length = start
        count = self.ids.shape[1] - start
        return self.layerwise.enter(self.ids[:, start:], self.cache, **self.positions.options(start, count))

    def _confident_logits(self, hidden: Tensor, before: Tensor | None, threshold: float) -> Tensor | None:
        """Return the logits [batch, 1, vocab_size] if the lowest confidence of unfinished sequences reaches the threshold."""
        self._check_timer.begin()
        logits: Tensor | None = None
        if self.rule.confidence == "cosine":
            first = hidden.new_full(hidden.shape[:1], -torch.inf)
            confidence = first if before is None else exit_scoring.cosine(hidden, before)[:, 0]
        else:
            logits = self.layerwise.logits(hidden)
            confidence = exit_scoring.LOGIT_CONFIDENCES[self.rule.confidence](logits)[:, 0]
        exits = float(confidence.masked_fill(self.done, torch.inf).min()) >= threshold
        if exits and logits is None:
            logits = self.layerwise.logits(hidden)
        self._check_timer.end()
        return logits if exits else None

    def _finish(self, depth: int, at: int, logits: Tensor) -> Tensor:
        self.cursor.length = at
        self._counts[depth] += len(self.done) - int(self.done.sum())
        return logits[:, -1]
