"""How prompts are answered, and the answers of the full model and of the kept layers."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from operator import eq
from typing import TYPE_CHECKING, NamedTuple, Self

from ulskip_cli.core.files import JsonObject, printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ulskip_cli.core.config_schema import DecodingConfig

QUOTED_CHARACTERS = 30  # characters before the first difference that a summary quotes
MIN_TIMED_TOKENS = 16  # tokens of the shorter answer from which speeds are named


@dataclass(frozen=True)
class Ends:
    """The tokens that end and pad answers, and the tokenizer that finds stop strings."""

    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0  # of shorter prompts and finished sequences
    tokenizer: "PreTrainedTokenizerBase | None" = None  # only stop strings require it

    @classmethod
    def of(
        cls,
        model: "PreTrainedModel",
        pad_token_id: int = 0,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
    ) -> Self:
        """Return the ends of a model, which has one EOS token, several or none."""
        eos: int | list[int] | None = model.generation_config.eos_token_id
        ids = [eos] if isinstance(eos, int) else eos or []
        return cls(tuple(ids), pad_token_id, tokenizer)


@dataclass(frozen=True)
class Request:
    """How all batches of a point are decoded."""

    decoding: "DecodingConfig"
    length: int  # the maximal number of new tokens of an answer
    fixed_length: bool = False  # generate exactly `length` tokens with EOS suppressed
    seed: int = 0  # of sampling
    ends: Ends = Ends()

    @property
    def stop_token_ids(self) -> Sequence[int]:
        """The tokens that end a sequence; none with a fixed length."""
        return () if self.fixed_length else self.ends.eos_token_ids

    @property
    def stop_strings(self) -> Sequence[str]:
        """The texts that end a sequence; none with a fixed length."""
        return () if self.fixed_length else self.decoding.stop

    def is_stopped(self, token_ids: Sequence[int]) -> bool:
        """Return True if the text of these tokens has a stop string."""
        if not self.stop_strings:
            return False
        assert self.ends.tokenizer is not None
        text = self.ends.tokenizer.decode(token_ids)
        return any(stop in text for stop in self.stop_strings)

    def cut_after_end(self, token_ids: Sequence[int]) -> list[int]:
        """Return the tokens up to the first EOS, and up to the token that completes the first stop
        string.
        """
        tokens, eos = list(token_ids), self.stop_token_ids
        first_eos = next((i for i, token in enumerate(tokens) if token in eos), len(tokens))
        tokens = tokens[: first_eos + 1]
        if not self.stop_strings:
            return tokens
        # All longer beginnings contain the stop string too, so bisection finds the shortest.
        lengths = range(len(tokens))
        end = bisect_left(lengths, True, key=lambda length: self.is_stopped(tokens[:length]))
        return tokens[:end]


def cut_before_stop(text: str, stop_strings: Sequence[str]) -> tuple[str, bool]:
    """Truncate a text before its first stop string; return it, and True if one was found.

    >>> cut_before_stop("a b. END c", ["END"])
    ('a b. ', True)
    """
    starts = [text.find(stop) for stop in stop_strings if stop in text]
    return (text[: min(starts)], True) if starts else (text, False)


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt. Equal answers may have taken different times."""

    text: str
    """The decoded answer without special tokens."""
    token_ids: list[int]
    """Token ids up to and including the first EOS token."""
    hit_limit: bool
    """True if `max_new_tokens` ended the answer."""
    prefill_seconds: float = field(default=0.0, compare=False)
    """Seconds of encoding the prompts of the answer's batch."""
    decode_seconds: float = field(default=0.0, compare=False)
    """Seconds of decoding the answer's batch, after the first token."""

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first per second of decoding; None if there is only one."""
        count = len(self.token_ids) - 1
        return count / self.decode_seconds if count > 0 and self.decode_seconds else None


class Difference(NamedTuple):
    """Positions of the first token and of the first character in which two answers differ."""

    token: int
    character: int


@dataclass(frozen=True)
class AnswerPair:
    """The answers of the full model and of the kept layers to one prompt."""

    prompt: str
    """The prompt without a template."""
    model: str
    """The label of the model."""
    strategy: str
    """The strategy, with its correction or drafts."""
    layers: str
    """The layers of a decode step, e.g. `6 of 12 layers`."""
    kept_layers: tuple[int, ...]
    """The layers of the first decode steps."""
    full: Answer
    """The answer of the full model."""
    kept: Answer
    """The answer of the kept layers, or with drafts."""

    @property
    def first_difference(self) -> Difference | None:
        """The first difference, counted from 0; None if the answers are equal."""
        full, kept = self.full, self.kept
        if full.token_ids == kept.token_ids:
            return None
        return Difference(
            common_prefix_length(full.token_ids, kept.token_ids),
            common_prefix_length(full.text, kept.text),
        )

    def summary(self) -> str:
        """Return speeds and the first difference in one line. It names lengths instead of speeds if
        an answer is too short to be timed, and no speedup, because one pair of answers has no
        interval.
        """
        answers = {"full model": self.full, f"{self.strategy}, {self.layers}": self.kept}
        if min(len(answer.token_ids) for answer in answers.values()) < MIN_TIMED_TOKENS:
            facts = [f"{name} {len(answer.token_ids)} tokens" for name, answer in answers.items()]
            facts.append(f"speeds are shown from {MIN_TIMED_TOKENS} tokens on")
        else:
            facts = [f"{name} {_speed_text(answer)}" for name, answer in answers.items()]
        difference = self.first_difference
        if difference is None:
            return "; ".join([*facts, "the answers are equal"])
        before = printable(self.full.text[: difference.character][-QUOTED_CHARACTERS:].strip())
        after = f", after '{before}'" if before else ""
        return "; ".join(
            [*facts, f"the answers differ from token {difference.token + 1} on{after}"]
        )

    def as_dict(self) -> JsonObject:
        """Return all values, JSON-ready."""
        values = asdict(self)
        for name, answer in (("full", self.full), ("kept", self.kept)):
            values[name]["num_tokens"] = len(answer.token_ids)
            values[name]["tokens_per_second"] = answer.tokens_per_second
        difference = self.first_difference
        values["first_difference"] = None if difference is None else difference._asdict()
        return values


def _speed_text(answer: Answer) -> str:
    rate = answer.tokens_per_second or 0.0
    return f"{rate:.1f} tok/s" if rate < 10 else f"{rate:,.0f} tok/s"


def common_prefix_length(first: Sequence[object], second: Sequence[object]) -> int:
    """Return the length of the common beginning."""
    return sum(takewhile(bool, map(eq, first, second)))
