"""What engines and decoders return: tokens, and the clock at the end of every phase."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Protocol

from torch import Tensor

from ulskip_cli.core.config_schema import DecodingConfig


@dataclass(frozen=True)
class DraftStats:
    """How drafting went; sums over batches are sums of these.

    Attributes:
        passes: checks by the full model, a batch's counting once.
        gained: tokens that they brought to each sequence of the batch.
        drafted: tokens drafted, of every sequence that was not done.
        accepted: of these, each sequence's own, before the batch went on with the fewest.
    """

    passes: int = 0
    gained: int = 0
    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: "DraftStats") -> "DraftStats":
        """Both together."""
        return DraftStats(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class ExitStats:
    """Where tokens left the layers; sums over batches are sums of these.

    Attributes:
        depths: how many tokens ran so many layers, each sequence's after its first.
        check_seconds: that went into asking how sure the model is.
    """

    depths: Mapping[int, int] = field(default_factory=dict)
    check_seconds: float = 0.0

    def __add__(self, other: "ExitStats") -> "ExitStats":
        """Both together."""
        counts = Counter(self.depths) + Counter(other.depths)
        return ExitStats(dict(sorted(counts.items())), self.check_seconds + other.check_seconds)

    @property
    def mean_depth(self) -> float | None:
        """Layers that a token ran, on average; None where there was none."""
        tokens = sum(self.depths.values())
        return sum(depth * count for depth, count in self.depths.items()) / tokens if tokens else None


@dataclass(frozen=True)
class EngineOutput:
    """One batch, as an engine saw it.

    Attributes:
        token_ids: a row a sequence, prompt left out, filled up behind its end token.
        prefilled_at: seconds on the clock when the prompt's forward passes were done.
        first_at: when the first token was chosen.
        end: when the last was.
        prompt_kv_bytes: the cache when the prompt was encoded.
        kept_kv_bytes: what remained of it when the skipped layers were dropped.
        drafts: how drafting went, where there was any.
        exits: where tokens left the layers, where they might.
        linear_backend: that the decode steps ran on.
        compiled: whether the decode steps were compiled.
    """

    token_ids: list[list[int]]
    prefilled_at: float
    first_at: float
    end: float
    prompt_kv_bytes: int
    kept_kv_bytes: int
    drafts: DraftStats | None = None
    exits: ExitStats | None = None
    linear_backend: str = "torch"
    compiled: bool = False


@dataclass(frozen=True)
class BatchRequest:
    """One batch for an engine.

    Attributes:
        input_ids: [batch, prompt_len], padded on the left.
        attention_mask: [batch, prompt_len].
        decoding: how tokens are chosen.
        pad: the id behind a sequence's end.
        ends: end tokens.
        length: the most tokens to generate.
        forced: go to that length whatever the model says.
        on_step: called after every step with the tokens generated so far in the batch.
    """

    input_ids: Tensor
    attention_mask: Tensor
    decoding: DecodingConfig
    pad: int
    ends: Sequence[int]
    length: int
    forced: bool
    on_step: Callable[[int], None] | None


class Engine(Protocol):
    """A way to generate for one model and schedule."""

    def prepare(self, request: BatchRequest) -> float:
        """Do what is done once for all batches of a shape, outside of any timing; seconds that it took."""

    def run(self, request: BatchRequest) -> EngineOutput:
        """Generate for one batch."""


@dataclass(frozen=True)
class BatchOutput:
    """What one batch generated and how long each phase took.

    Attributes:
        token_ids: a list a sequence, up to and with its end token; padding is gone.
        hit_limit: a flag a sequence: it stopped for its length and not for its end token.
        prompt_tokens: ids of all prompts, padding not counted, a prompt once whatever the beams.
        prefill_seconds: the prompt's forward passes.
        first_token_seconds: from the call to the first token's choice.
        decode_seconds: from the first token's choice to the last's.
        prompt_kv_bytes: the cache when the prompt is encoded.
        kept_kv_bytes: the cache after the skipped layers are dropped.
        engine: that generated it.
        compile_seconds: that were spent on batches of this shape before the clock was started.
        drafts: how drafting went, where there was any.
        exits: where tokens left the layers, where they might.
        linear_backend: that the decode steps ran on.
        compiled: whether the decode steps were compiled.
    """

    token_ids: list[list[int]]
    hit_limit: list[bool]
    prompt_tokens: int
    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float
    prompt_kv_bytes: int
    kept_kv_bytes: int
    engine: str = "transformers"
    compile_seconds: float = 0.0
    drafts: DraftStats | None = None
    exits: ExitStats | None = None
    linear_backend: str = "torch"
    compiled: bool = False

    @property
    def generated_tokens(self) -> int:
        """Ids generated by all sequences."""
        return sum(len(ids) for ids in self.token_ids)

    @property
    def decoded_tokens(self) -> int:
        """Ids generated after each sequence's first."""
        return sum(max(0, len(ids) - 1) for ids in self.token_ids)

    @property
    def steps(self) -> int:
        """Tokens of the longest sequence after its first."""
        return max(len(ids) for ids in self.token_ids) - 1

    @property
    def step_seconds(self) -> float:
        """Of one decode step."""
        return self.decode_seconds / max(1, self.steps)

    @property
    def total_seconds(self) -> float:
        """From the call to the last token."""
        return self.first_token_seconds + self.decode_seconds
