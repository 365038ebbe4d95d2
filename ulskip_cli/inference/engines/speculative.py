"""The lossless engine: the kept layers draft some tokens, the full model checks them all in one pass."""

import functools

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import shallow_view, static_cache
from ulskip_cli.inference.engines import draft_verification, fast
from ulskip_cli.inference.engines.base import BatchRequest, DraftStats, EngineOutput
from ulskip_cli.inference.engines.draft_length import DraftLength
from ulskip_cli.inference.packed_linear import linear_backend_of, packed
from ulskip_cli.inference.positions import PositionsAndMasks
from ulskip_cli.inference.sampling import TokenSampler
from ulskip_cli.inference.timing import now


def check(model: PreTrainedModel, view: PreTrainedModel, decoding: DecodingConfig) -> None:
    """Refuse what this engine does not serve.

    Raises:
        UsageError: names it.
    """
    if view is model:
        raise UsageError("decoding.draft_tokens: every layer is kept, which leaves nothing to draft with; skip some, or set 0")
    if reason := fast.unsupported_reason(model, decoding):
        raise UsageError(f"decoding.draft_tokens does not go with {reason}; set it to 0")


class SpeculativeEngine:
    """Greedy decoding and sampling whose tokens are the full model's own.

    All sequences of a batch go on by as many tokens as the one with the fewest accepted drafts: what was accepted
    beyond is drafted again.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        view: PreTrainedModel,
        kept: tuple[int, ...],
        device: torch.device,
        draft_cost: float,
        linear_backend: str,
    ) -> None:
        """Nothing is made before the first run.

        Args:
            model: encodes prompts and checks drafts.
            view: drafts.
            kept: the layers of `model` that `view` runs.
            device: where ids go.
            draft_cost: a drafting step's share of a full step.
            linear_backend: of the model, for the view too.
        """
        self.model, self.view, self.kept, self.device, self.draft_cost = model, view, kept, device, draft_cost
        self.linear_backend = linear_backend

    @functools.cached_property
    def decode_models(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """The full model and the view as they decode: over one set of packed weights where these are faster."""
        full = packed(self.model, self.linear_backend)
        return full, self.view if full is self.model else shallow_view.shallow_view(full, self.kept)

    def prepare(self, request: BatchRequest) -> float:
        """Pack weights; nothing is compiled."""
        _ = self.decode_models
        return 0.0

    def run(self, request: BatchRequest) -> EngineOutput:
        """Generate for one batch."""
        batch, prompt_len = request.input_ids.shape
        cache = shallow_view.new_cache(self.model)
        logits = shallow_view.forward_with_cache(self.model, request.input_ids, request.attention_mask, cache, last_only=True)
        prefilled_at = now(self.device)
        cached = shallow_view.kv_bytes(cache)  # no layer's is dropped, since all of them check
        least = request.length if request.forced else 0
        choose = TokenSampler(request.decoding, prompt_len, request.ends, least, self.device)
        ids = torch.full((batch, prompt_len + request.length), request.pad, dtype=torch.long, device=self.device)
        ids[:, :prompt_len] = request.input_ids
        passes = DraftAndVerifyModels(*self.decode_models, self.kept, cache, request.attention_mask, request.length)
        ids[:, prompt_len] = choose(ids[:, :prompt_len], logits[:, -1])
        first_at = now(self.device)
        if request.on_step:
            request.on_step(batch)
        drafts = self._decode(ids, passes, choose, request)
        end, backend = now(self.device), linear_backend_of(self.decode_models[0])
        return EngineOutput(
            ids[:, prompt_len:].tolist(), prefilled_at, first_at, end, cached, cached, drafts, linear_backend=backend
        )

    def _decode(self, ids: Tensor, passes: "DraftAndVerifyModels", choose: TokenSampler, request: BatchRequest) -> DraftStats:
        """Fill `ids` from its second new token on."""
        at, total = request.input_ids.shape[1] + 1, ids.shape[1]
        ends = torch.tensor([] if request.forced else list(request.ends), dtype=torch.long, device=self.device)
        lengths, drafts = DraftLength(request.decoding.draft_tokens, self.draft_cost), DraftStats()
        rows, current = torch.arange(len(ids), device=self.device), ids.clone()  # those that are still decoded
        done = torch.isin(ids[:, at - 1], ends)
        while at < total:
            alive = (~done).nonzero()[:, 0]
            if not len(alive):
                break
            if 2 * len(alive) <= len(done):
                ids[rows] = current
                rows, done = rows[alive], done[alive]
                current = ids[rows]
                passes.keep(alive)
            count = min(lengths.next(), total - at - 1)
            verdict = _round(current, at, count, passes, choose)
            brought, ended = _brought(verdict, ends)
            live, going = ~done, ~done & ~ended  # a sequence that ends in this round holds nobody back
            gained = int(brought[going].min() if going.any() else brought[live].max())
            lengths.saw(gained - 1, count)
            drafted = torch.where(ended, brought.clamp(max=count), count)  # none behind an end token
            accepted = torch.minimum(verdict.accepted, drafted)
            drafts += DraftStats(1, gained, int(drafted[live].sum()), int(accepted[live].sum()))
            fresh = verdict.tokens[:, :gained]
            found = torch.isin(fresh, ends).long()
            after_end = done[:, None] | (found.cumsum(dim=1) > found)
            current[:, at : at + gained] = fresh.masked_fill(after_end, request.pad)
            done = done | found.bool().any(dim=1)
            at += gained
            current[:, at:] = request.pad
            passes.rewind(at - 1)
            if request.on_step:
                request.on_step(len(ids) * (at - request.input_ids.shape[1]))
        ids[rows] = current
        return drafts


def _round(
    ids: Tensor, at: int, count: int, passes: "DraftAndVerifyModels", choose: TokenSampler
) -> draft_verification.DraftVerification:
    """Draft `count` tokens and check them.

    Args:
        ids: [batch, len], filled up to `at`; the drafts are left in it.
        at: where the next token goes.
        count: tokens to draft; 0 to have the full model's next one alone.
        passes: over the cache of all tokens but the last.
        choose: from logits to tokens.
    """
    draft_scores = []
    for i in range(at, at + count):
        draft_scores.append(choose.scores(ids[:, :i], passes.draft(ids[:, i - 1 : i])))
        ids[:, i] = choose.pick(draft_scores[-1])
    passes.rewind(at - 1)
    logits = passes.check(ids[:, at - 1 : at + count])
    # Every position has its own prefix, drafts included, which is what penalties look at.
    scores = torch.stack([choose.scores(ids[:, : at + i], logits[:, i]) for i in range(count + 1)], dim=1)
    drafts = ids[:, at : at + count]
    if not choose.sample:
        return draft_verification.greedy(drafts, scores)
    return draft_verification.sampled(drafts, torch.stack(draft_scores, dim=1) if count else scores[:, :0], scores)


def _brought(verdict: draft_verification.DraftVerification, ends: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens a check brings to every sequence, none behind its end token, and whether it ends; [batch] each."""
    index = torch.arange(verdict.tokens.shape[1], device=ends.device)
    first_end = torch.where(torch.isin(verdict.tokens, ends), index, verdict.tokens.shape[1]).amin(dim=1)
    return torch.minimum(verdict.accepted, first_end) + 1, first_end <= verdict.accepted


class DraftAndVerifyModels:
    """Forward passes of the full model and of its view over one set of buffers."""

    def __init__(
        self,
        full: PreTrainedModel,
        view: PreTrainedModel,
        kept: tuple[int, ...],
        cache: DynamicCache,
        mask: Tensor,
        length: int,
    ) -> None:
        """Take over a cache that holds the prompt in every layer.

        Args:
            full: checks.
            view: drafts.
            kept: the layers of `full` that `view` runs.
            cache: of the prompt; it is taken apart.
            mask: [batch, prompt_len], 1 for tokens, 0 for padding.
            length: the most tokens to generate, the prompt's own first one included.
        """
        self.full, self.view = full, view
        steps = length - 1  # the last token is never read
        self.cache, self.cursor = static_cache.fixed(cache, mask.shape[1] + steps)
        self.view_cache = DynamicCache()
        self.view_cache.layers = [self.cache.layers[i] for i in kept]  # a check overwrites what drafting left in them
        self.placing = PositionsAndMasks(full, self.cache, mask, steps)

    def draft(self, tokens: Tensor) -> Tensor:
        """The view's logits [batch, vocab_size] after `tokens` [batch, 1]."""
        return self._forward(self.view, self.view_cache, tokens)[:, -1]

    def check(self, tokens: Tensor) -> Tensor:
        """The full model's logits [batch, count, vocab_size] after each of `tokens` [batch, count]."""
        return self._forward(self.full, self.cache, tokens)

    def rewind(self, length: int) -> None:
        """Forget all tokens behind the first `length`, those of the prompt counted."""
        self.cursor.length = length

    def keep(self, alive: Tensor) -> None:
        """Go on with some of the sequences."""
        for layer in self.cache.layers:
            layer.keep_sequences(alive)
        self.placing.keep(alive)

    def _forward(self, model: PreTrainedModel, cache: DynamicCache, tokens: Tensor) -> Tensor:
        options = self.placing.options(self.cursor.length, tokens.shape[1])
        logits: Tensor = model(input_ids=tokens, cache=cache, use_cache=True, **options).logits
        self.cursor.length += tokens.shape[1]
        return logits
