"""Early exit: every step runs as many layers as it takes for the model to be sure of its next token.

A token that left early has no keys and values in the layers above. They are made when a later token goes there: the
hidden states that wait at a layer are run through it in one pass with the later token's. So every key that is read is the
full model's own.
"""

import functools
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import confidence, static_cache
from ulskip_cli.inference.engines import fast
from ulskip_cli.inference.engines.base import BatchRequest, EngineOutput, ExitStats
from ulskip_cli.inference.layerwise import LayerInputs, LayerwiseModel
from ulskip_cli.inference.packed_linear import linear_backend_of, packed
from ulskip_cli.inference.positions import PositionsAndMasks
from ulskip_cli.inference.timing import AccumulatingTimer
from ulskip_cli.strategies.exit_rule import ExitRule


def check(model: PreTrainedModel, rule: ExitRule, decoding: DecodingConfig) -> None:
    """Refuse what this engine does not serve.

    Raises:
        UsageError: names it.
    """
    if rule.threshold is None:
        raise UsageError("early_exit: expected a threshold; it is found by calibration, or set strategy.threshold")
    if reason := fast.unsupported_reason(model, decoding):
        raise UsageError(f"early_exit does not go with {reason}")


class EarlyExitEngine:
    """Greedy decoding and sampling under a rule for exits."""

    def __init__(self, model: PreTrainedModel, rule: ExitRule, device: torch.device, linear_backend: str) -> None:
        """Nothing is made before the first run.

        Args:
            model: encodes prompts with all of its layers, and decodes with as many as it takes.
            rule: where a step may end.
            device: where ids go.
            linear_backend: of the model.
        """
        self.model, self.rule, self.device, self.linear_backend = model, rule, device, linear_backend

    @functools.cached_property
    def parts(self) -> LayerwiseModel:
        """The model as it decodes, taken apart: over packed weights where these are faster."""
        return LayerwiseModel(packed(self.model, self.linear_backend))

    def with_exit_rule(self, rule: ExitRule) -> "EarlyExitEngine":
        """The same under another rule; what was made serves both."""
        loop = EarlyExitEngine(self.model, rule, self.device, self.linear_backend)
        loop.__dict__["parts"] = self.parts
        return loop

    def prepare(self, request: BatchRequest) -> float:
        """Pack weights; nothing is compiled."""
        _ = self.parts
        return 0.0

    def run(self, request: BatchRequest) -> EngineOutput:
        """Generate for one batch."""
        made: list[ExitSteps] = []

        def steps(cache: DynamicCache) -> ExitSteps:
            made.append(ExitSteps(self.model, self.parts, cache, request, self.rule))
            return made[-1]

        run = fast.run(request, self.model, range(self.rule.num_layers), steps, self.device)
        return replace(run, exits=made[-1].exits, linear_backend=linear_backend_of(self.parts.layers[0]))


class ExitSteps:
    """Steps through as many layers as each takes.

    At every depth wait the hidden states of the tokens that went no deeper, those of a pass together; the deeper, the
    more tokens lack keys, so that what waits at a depth and what arrives there are neighbours in the sequence.
    """

    can_shrink = True

    def __init__(
        self, model: PreTrainedModel, parts: LayerwiseModel, cache: DynamicCache, request: BatchRequest, rule: ExitRule
    ) -> None:
        """Take over a cache that holds the prompt in every layer.

        Args:
            model: whose parts decode.
            parts: of it, or of its packed copy.
            cache: of the prompt; it is taken apart.
            request: the batch.
            rule: where a step may end.
        """
        mask, steps = request.attention_mask, request.length - 1
        self.parts, self.rule = parts, rule
        self.cache, self.cursor = static_cache.fixed(cache, mask.shape[1] + steps)
        self.placing = PositionsAndMasks(model, self.cache, mask, steps)
        self.ids = request.input_ids
        self.ends = torch.tensor([] if request.forced else list(request.ends), dtype=torch.long, device=mask.device)
        self.done = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        self._first = mask.shape[1]
        self._checks = frozenset(rule.checks)
        self._waiting: list[list[Tensor]] = [[] for _ in range(rule.num_layers)]  # by depth, [batch, tokens, hidden_size]
        self._laps = AccumulatingTimer(mask.device)
        self._counts = dict.fromkeys(range(1, rule.num_layers + 1), 0)

    @property
    def exits(self) -> ExitStats:
        """Where tokens left the layers so far."""
        return ExitStats({depth: count for depth, count in self._counts.items() if count}, self._laps.seconds)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits [batch, vocab_size] after `tokens` [batch, 1]."""
        self.ids = torch.cat([self.ids, tokens], dim=1)
        self.done = self.done | torch.isin(tokens[:, 0], self.ends)
        at = self.ids.shape[1]
        threshold = self.rule.threshold_at(at - 1 - self._first)
        entry = self._enter(at - 1)
        hidden, before = entry.hidden, None
        for index in range(self.rule.num_layers):
            if self._waiting[index]:
                hidden = torch.cat([*self._waiting[index], hidden], dim=1)
                self._waiting[index] = []
                entry = self._enter(at - hidden.shape[1])
            hidden = self.parts.layer(index, hidden, entry)
            if index + 1 in self._checks:
                last = hidden[:, -1:]
                logits = self._sure(last, before, threshold)
                if logits is not None:
                    self._waiting[index + 1].append(hidden)
                    return self._end(index + 1, at, logits)
                before = last
        return self._end(self.rule.num_layers, at, self.parts.logits(hidden[:, -1:]))

    def keep(self, alive: Tensor) -> None:
        """Go on with some of the sequences."""
        for layer in self.cache.layers:
            layer.keep_sequences(alive)
        self.placing.keep(alive)
        self.ids, self.done = self.ids[alive], self.done[alive]
        self._waiting = [[hidden[alive] for hidden in held] for held in self._waiting]

    def _enter(self, start: int) -> LayerInputs:
        """Enter the layers with the tokens from `start` on."""
        self.cursor.length = start
        count = self.ids.shape[1] - start
        return self.parts.enter(self.ids[:, start:], self.cache, **self.placing.options(start, count))

    def _sure(self, hidden: Tensor, before: Tensor | None, threshold: float) -> Tensor | None:
        """The logits [batch, 1, vocab_size] if the least confident sequence passes, of those that are not done."""
        self._laps.begin()
        logits: Tensor | None = None
        if self.rule.confidence == "cosine":
            sure = hidden.new_full(hidden.shape[:1], -torch.inf) if before is None else confidence.cosine(hidden, before)[:, 0]
        else:
            logits = self.parts.logits(hidden)
            sure = confidence.OF_LOGITS[self.rule.confidence](logits)[:, 0]
        passes = float(sure.masked_fill(self.done, torch.inf).min()) >= threshold
        if passes and logits is None:
            logits = self.parts.logits(hidden)
        self._laps.end()
        return logits if passes else None

    def _end(self, depth: int, at: int, logits: Tensor) -> Tensor:
        self.cursor.length = at
        self._counts[depth] += len(self.done) - int(self.done.sum())
        return logits[:, -1]
