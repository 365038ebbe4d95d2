"""The interface of engines, the request and the output of an engine, and the output of a decoder."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from torch import Tensor

from ulskip_cli.core.config_schema import DecodingConfig


@dataclass(frozen=True)
class DraftStats:
    """Counts of speculative decoding; the counts of several batches can be added."""

    passes: int = 0  # verification passes of the full model; a pass of a batch counts once
    gained: int = 0  # tokens by which the passes extended each sequence of the batch
    drafted: int = 0  # drafted tokens of all unfinished sequences
    accepted: int = 0  # accepted drafts of all sequences, also those beyond the tokens by which the batch advances

    def __add__(self, other: "DraftStats") -> "DraftStats":
        return DraftStats(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class ExitStats:
    """Exit depths of early exit; the counts of several batches can be added."""

    depths: Mapping[int, int] = field(default_factory=dict)  # number of tokens by number of layers, without the first token
    check_seconds: float = 0.0

    def __add__(self, other: "ExitStats") -> "ExitStats":
        counts = Counter(self.depths) + Counter(other.depths)
        return ExitStats(dict(sorted(counts.items())), self.check_seconds + other.check_seconds)

    @property
    def mean_depth(self) -> float | None:
        """The mean number of layers per token; None without tokens."""
        tokens = sum(self.depths.values())
        return sum(depth * count for depth, count in self.depths.items()) / tokens if tokens else None


@dataclass(frozen=True)
class BatchRequest:
    """One batch for an engine."""

    input_ids: Tensor  # [batch, prompt_len], padded on the left
    attention_mask: Tensor  # [batch, prompt_len]
    decoding: DecodingConfig
    pad_token_id: int
    eos_token_ids: Sequence[int]
    length: int  # the maximal number of new tokens
    forced: bool  # generate exactly `length` tokens with EOS suppressed
    on_step: Callable[[int], None] | None  # receives the number of tokens generated so far in the batch


@dataclass(frozen=True)
class EngineOutput:
    """The tokens of one batch and the times at which its phases ended."""

    token_ids: list[list[int]]  # one list per sequence without the prompt, padded after EOS
    prefilled_at: float  # seconds on the clock
    first_at: float  # after the choice of the first token
    end: float  # after the last token
    prompt_kv_bytes: int  # KV cache after the prompt
    kept_kv_bytes: int  # KV cache after the skipped layers were dropped
    drafts: DraftStats | None = None
    exits: ExitStats | None = None
    linear_backend: str = "torch"
    compiled: bool = False


class Engine(Protocol):
    """A decode loop for one model and schedule."""

    def prepare(self, request: BatchRequest) -> float:
        """Do the work that all batches of one shape share, e.g. compile; return the seconds of compilation."""

    def run(self, request: BatchRequest) -> EngineOutput:
        """Generate for one batch."""


class LibraryEngine(Engine, Protocol):
    """A decode loop in another library than torch, with a copy of the weights."""

    def losses(self, input_ids: Tensor, mask: Tensor, response_ids: Tensor) -> Tensor:
        """Return the teacher-forced cross-entropy [batch, response_len] of responses, padded on the right, after prompts.

        `input_ids` and `mask` are [batch, prompt_len], padded on the left.
        """

    @property
    def build(self) -> dict[str, Any] | None:
        """The version and build of the library, and the format of the weights; None before the first batch."""


@dataclass(frozen=True)
class BatchOutput:
    """The tokens of one batch and the seconds of every phase."""

    token_ids: list[list[int]]  # one list per sequence, including EOS, without padding
    hit_max_length: list[bool]  # the sequence ended at the length limit instead of EOS
    prompt_tokens: int  # without padding; a prompt counts once, also with several beams
    prefill_seconds: float
    first_token_seconds: float  # from the call to the choice of the first token
    decode_seconds: float  # from the choice of the first token to that of the last
    prompt_kv_bytes: int  # KV cache after the prompt
    kept_kv_bytes: int  # KV cache after the skipped layers were dropped
    engine: str = "transformers"
    compile_seconds: float = 0.0  # for batches of this shape; not part of the other durations
    drafts: DraftStats | None = None
    exits: ExitStats | None = None
    linear_backend: str = "torch"
    compiled: bool = False

    @property
    def generated_tokens(self) -> int:
        """The number of tokens of all sequences."""
        return sum(len(ids) for ids in self.token_ids)

    @property
    def decoded_tokens(self) -> int:
        """The number of tokens of all sequences, without the first token of each sequence."""
        return sum(max(0, len(ids) - 1) for ids in self.token_ids)

    @property
    def steps(self) -> int:
        """The number of decode steps of the longest sequence."""
        return max(len(ids) for ids in self.token_ids) - 1

    @property
    def step_seconds(self) -> float:
        """The mean seconds of a decode step."""
        return self.decode_seconds / max(1, self.steps)

    @property
    def total_seconds(self) -> float:
        """The seconds from the call to the last token."""
        return self.first_token_seconds + self.decode_seconds
