"""The decode loop of all engines that decode step by step: the choice of tokens, EOS and progress;
speculative decoding; and the measurement of time and peak memory.

In speculative decoding a drafter guesses tokens, and the model of the steps, in any engine whose
session defines `remove`, checks them in one pass. Greedy answers stay the same.
"""

import contextlib
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ulskip_cli.core.answer import Request, common_prefix_length
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.engines.base import (
    UNWATCHED,
    BatchOutput,
    DraftStats,
    Generation,
    PhaseTimes,
    Prompts,
    Session,
    Watch,
)
from ulskip_cli.engines.sampling import TokenSampler, most_likely, require_finite

# A single token occurs again by chance, so that its continuation is rejected more often than its
# check gains time.
SHORTEST_MATCH = 2
STOP_EVERY = 8  # steps between two searches for stop strings, because a search decodes all tokens


def synchronized_time(device: torch.device) -> float:
    """Wait for all work of the device and return a monotonic clock in seconds."""
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).synchronize()
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Reset the peak of memory. On a CPU this works on Linux only; elsewhere the peak counts from
    the start of the process.
    """
    module = torch.get_device_module(device)
    if hasattr(module, "reset_peak_memory_stats"):
        module.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def peak_bytes(device: torch.device) -> int:
    """Return the peak of memory in bytes since the last reset."""
    module = torch.get_device_module(device)
    if hasattr(module, "max_memory_allocated"):
        return int(module.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # bytes; getrusage counts in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# Guesses how a text goes on: returns at most `max_drafts` drafts, [count], after `ids` [1, len].
Drafter = Callable[[Tensor, int], Tensor]


class LookUp:
    """Drafts what followed the longest match: the most tokens at the end of a text that occur in it
    earlier; nothing without a match.

    A match of m tokens allows m drafts, as in the suffix decoding of ArcticInference (MAX_SPEC,
    arXiv:2411.04975): the longer the match, the likelier its continuation.
    """

    def __init__(self) -> None:
        self._text = list[int]()
        # by two tokens that follow each other: the places in the text of the second one
        self._ends = defaultdict[tuple[int, ...], list[int]](list)

    def __call__(self, ids: Tensor, max_drafts: int) -> Tensor:
        """Return the drafts [count], at most `max_drafts`, after `ids` [1, len], which continue
        the ids of the call before.
        """
        text = self._text
        for token in ids[0, len(text) :].tolist():
            text.append(token)
            self._ends[tuple(text[-SHORTEST_MATCH:])].append(len(text) - 1)
        longest, draft_start = 0, 0
        last = len(text) - 1
        if max_drafts >= SHORTEST_MATCH:
            *earlier_ends, _ = self._ends[tuple(text[-SHORTEST_MATCH:])]  # the last one is `last`
            for end in earlier_ends:
                length = SHORTEST_MATCH  # of the match between the texts up to `end` and `last`
                while (
                    length < min(max_drafts, end + 1) and text[end - length] == text[last - length]
                ):
                    length += 1
                if length > longest:  # the earliest of the longest
                    longest, draft_start = length, end + 1
        return ids[0, draft_start : draft_start + longest]


class _DecodedRows:
    """The rows of a batch that are still decoded, `ids` [rows, prompt_len + length]: first the
    batch's own tensor, and after `keep` a copy of some rows, which must be written back.
    """

    def __init__(self, ids: Tensor) -> None:
        self.ids = self._batch = ids
        self._rows: Tensor | None = None  # their indices in the batch; None: all

    def keep(self, alive: Tensor) -> None:
        """Continue with the rows at the indices `alive` [sequences] of `ids`, and write all rows of
        `ids` back.
        """
        self.write_back()
        self._rows = alive if self._rows is None else self._rows[alive]
        self.ids = self._batch[self._rows]

    def write_back(self) -> None:
        """Write the copied rows into the batch."""
        if self._rows is not None:
            self._batch[self._rows] = self.ids


class SteppingSession(Session, ABC):
    """A session that gives logits; the loop chooses the tokens."""

    kv_bytes = (0, 0)  # of the last prompts: in the layers that encoded them, and that decode
    can_shrink = True  # False if `keep` is not supported

    def prepare(self, request: Request) -> None:
        """Do the work that all batches need once, such as packing weights. It is not timed."""

    @abstractmethod
    def encode(self, prompts: Prompts, request: Request, watch: Watch = UNWATCHED) -> Tensor:
        """Start a batch; return the logits [batch, vocab_size] after its prompts. If a forward pass
        on torch encodes them, `watch.on_prompt` gets the encoded prompts.
        """

    @abstractmethod
    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits [batch, count, vocab_size] after each of `tokens` [batch, count]. More
        than one token at once is checked only with drafts.
        """

    def choose(self, tokens: Tensor, banned: Tensor) -> Tensor:
        """Return the most likely token [batch, count] after each of `tokens` [batch, count], -1
        where no logit is finite; tokens in `banned` are not chosen.
        """
        return most_likely(self.logits(tokens), banned)

    def remove(self, count: int) -> None:
        """Forget the last `count` positions, which drafts require."""
        raise NotImplementedError("leave Need.LOOK_UPS out of `supports`, or define `remove`")

    def drafter(self, request: Request) -> Drafter:
        """Return what drafts for a request: here look-ups in its text. Engines that support
        COPY_DRAFTS define this method.
        """
        return LookUp()

    def keep(self, alive: Tensor) -> None:
        """Continue with the sequences at the indices `alive` [sequences] only."""
        raise NotImplementedError

    def switch(self, stage: int) -> None:
        """Continue with the view of a later stage, which takes over the keys and values of its
        layers.
        """
        raise NotImplementedError

    def details(self) -> dict[str, Any]:
        """Return further fields of the batch's `BatchOutput`."""
        return {}

    def finish(self) -> None:
        """Free what the batch needed."""

    def run(self, prompts: Prompts, request: Request, watch: Watch = UNWATCHED) -> Generation:
        """Generate for one batch; pause after every `watch.pause_every` decode steps, which are
        checks with drafts. The times do not contain the pauses.
        """
        input_ids, device = prompts.input_ids, prompts.input_ids.device
        batch, prompt_len = input_ids.shape
        self.prepare(request)
        start = synchronized_time(device)
        try:
            logits = self.encode(prompts, request, watch)
            prefilled = synchronized_time(device)
            banned = request.ends.eos_token_ids if request.fixed_length else ()
            sampler = TokenSampler(request.decoding, banned, device)
            ids = functional.pad(input_ids, (0, request.length), value=request.ends.pad_token_id)
            ids[:, prompt_len] = sampler(input_ids, logits)
            first = synchronized_time(device)
            watch.on_step(batch)  # each sequence has its first token
            drafting, steps = None, self.decode(ids, request, sampler)
            if request.decoding.draft_tokens:
                drafting = Drafting(self, prompt_len, request, sampler)
                steps = drafting.decode(ids)
            paused_seconds = 0.0
            for step, new_tokens in enumerate(steps, 1):
                watch.on_step(new_tokens)
                if watch.pause_every and step % watch.pause_every == 0:
                    began = synchronized_time(device)
                    yield ids[:, prompt_len : prompt_len + new_tokens // batch]
                    paused_seconds += synchronized_time(device) - began
            times = PhaseTimes(start, prefilled, first, synchronized_time(device) - paused_seconds)
            rows = ids[:, prompt_len:].tolist()
            drafts = drafting.stats if drafting else None
            return BatchOutput.of(
                prompts, request, rows, times, self.kv_bytes, drafts=drafts, **self.details()
            )
        finally:
            self.finish()

    def decode(self, ids: Tensor, request: Request, sampler: TokenSampler) -> Iterator[int]:
        """Fill `ids` [batch, prompt_len + length] from the second new token on, with padding behind
        EOS. After every step, yield the number of new tokens in the batch, in which ended sequences
        count on. Whenever half of the sequences have ended, only the others are decoded further.
        """
        batch, prompt_len = len(ids), ids.shape[1] - request.length
        # The random numbers of sampling depend on the batch size, so a sampled batch keeps it.
        can_shrink = self.can_shrink and not request.decoding.do_sample
        decoded = _DecodedRows(ids)
        eos = ids.new_tensor(list(request.stop_token_ids))
        may_end = bool(len(eos) or request.stop_strings)  # before `request.length` tokens
        has_ended = torch.isin(ids[:, prompt_len], eos)  # by decoded row
        for step in range(1, request.length):
            if may_end:
                # A GPU waits here in every step; otherwise, steps after the last EOS would be
                # timed.
                alive = (~has_ended).nonzero()[:, 0]
                if not len(alive):
                    break
                if 2 * len(alive) <= len(has_ended) and can_shrink:
                    decoded.keep(alive)
                    self.keep(alive)
                    has_ended = has_ended[alive]
            rows = decoded.ids
            new = prompt_len + step  # the place of the new token
            last_tokens = rows[:, new - 1 : new]
            self._switch_at(step - 1)  # stages count the first step of this loop as 0
            if sampler.do_sample:
                chosen = sampler(rows[:, :new], self.logits(last_tokens)[:, -1])
            else:
                chosen = require_finite(self.choose(last_tokens, sampler.banned)[:, 0])
            if may_end:
                chosen = chosen.masked_fill(has_ended, request.ends.pad_token_id)
                has_ended |= torch.isin(chosen, eos)
            rows[:, new] = chosen
            if request.stop_strings and step % STOP_EVERY == 0:
                answers = rows[:, prompt_len : new + 1].tolist()
                has_ended |= has_ended.new_tensor(list(map(request.is_stopped, answers)))
            yield batch * (step + 1)
        decoded.write_back()

    def losses(self, prompts: Prompts, response_ids: Tensor) -> Tensor:
        """Return the cross-entropy [batch, response_len] of given responses, padded on the right,
        after the prompts, in the engine's own decode steps.
        """
        try:
            logits = self.encode(prompts, Request(DecodingConfig(), response_ids.shape[1]))
            losses = list[Tensor]()
            for place, target in enumerate(response_ids.T):
                if place:  # the prompt predicts the first token
                    self._switch_at(place - 1)
                    logits = self.logits(response_ids[:, place - 1 : place])[:, -1]
                loss = functional.cross_entropy(logits.float(), target, reduction="none")
                losses.append(loss)
            return torch.stack(losses, 1)
        finally:
            self.finish()

    def _switch_at(self, step: int) -> None:
        """Switch to the view of the stage that begins with this decode step, if there is one."""
        for number, stage in enumerate(self.views.stages[1:], 1):
            if stage.first_step == step:
                self.switch(number)


class Drafting:
    """Greedy decoding of one sequence with drafts, which a session checks; it counts them."""

    def __init__(
        self, session: SteppingSession, prompt_len: int, request: Request, sampler: TokenSampler
    ) -> None:
        self.session, self.drafter = session, session.drafter(request)
        self.limit, self.prompt_len = request.decoding.draft_tokens, prompt_len
        self.request, self.eos, self.banned = request, set(request.stop_token_ids), sampler.banned
        self._counts = Counter[str]()  # by field of `DraftStats`

    @property
    def stats(self) -> DraftStats:
        """The counts of all checks so far."""
        return DraftStats(**self._counts)

    def decode(self, ids: Tensor) -> Iterator[int]:
        """Fill `ids` [1, prompt_len + length] from the second new token on, until EOS; yield the
        number of new tokens after every check.
        """
        end, total = self.prompt_len + 1, ids.shape[1]
        while end < total and not self._is_ended(ids[0, self.prompt_len : end]):
            tokens = self._check(ids[:, :end], total - end)
            ids[0, end : end + len(tokens)] = tokens
            end += len(tokens)
            yield end - self.prompt_len

    def _is_ended(self, answer: Tensor) -> bool:
        """Return True if the last token of an answer [count], or a stop string, ends it."""
        return int(answer[-1]) in self.eos or (
            bool(self.request.stop_strings) and self.request.is_stopped(answer.tolist())
        )

    def _check(self, ids: Tensor, room: int) -> Tensor:
        """Draft tokens after `ids` [1, len], and let the model read them in one pass; return the
        next tokens, [count], at most `room`, up to EOS, and count them.

        The model's choices behind accepted drafts are those of plain steps. So the first choice
        that differs from its draft counts, too, and only those after it are wrong.
        """
        max_drafts = min(self.limit, room - 1)  # a check gives one token more
        drafts = self.drafter(ids, max_drafts) if max_drafts else ids[0, :0]
        tokens = torch.cat([ids[:, -1:], drafts[None]], dim=1) if len(drafts) else ids[:, -1:]
        chosen = self.session.choose(tokens, self.banned)[0]
        accepted = common_prefix_length(chosen.tolist(), drafts.tolist())
        if rejected := len(drafts) - accepted:
            self.session.remove(rejected)
        chosen = require_finite(chosen[: accepted + 1])
        ends = (end for end, token in enumerate(chosen.tolist(), 1) if token in self.eos)
        gained = next(ends, accepted + 1)  # fewer behind EOS
        self._counts.update(
            checks=1, gained=gained, drafted=len(drafts), accepted=min(accepted, gained)
        )
        return chosen[:gained]
