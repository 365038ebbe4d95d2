"""Run work in batches whose size is halved when memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ulskip_cli.core.errors import RunError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class BatchSize:
    """The number of sequences in a batch, configured and used; it stays halved after a batch that did not fit into memory."""

    asked: int
    used: int = 0

    def __post_init__(self) -> None:
        self.used = self.used or self.asked

    def halve(self, error: BaseException) -> None:
        """Halve the number after a batch that did not fit; raise RunError if it was a single sequence."""
        if self.used == 1:
            raise RunError(
                f"not even one sequence fits into memory ({(str(error) or type(error).__name__).splitlines()[0][:120]}); "
                "use a smaller model or dtype, or fewer tokens"
            ) from None
        self.used = max(1, self.used // 2)


def in_batches(
    items: Sequence[Item], size: BatchSize, work: Callable[[Sequence[Item]], Result]
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Yield batches of items, sorted longest first, with the results of `work`; one that does not fit into memory is halved."""

    def run(start: int, count: int) -> tuple[Sequence[Item], Result]:
        batch = items[start : start + count]
        return batch, work(batch)

    start = 0
    while start < len(items):
        batch, result = run_with_oom_retry(size, partial(run, start))
        yield batch, result
        start += len(batch)


def run_with_oom_retry(size: BatchSize, work: Callable[[int], Result]) -> Result:
    """Call `work` with the number of sequences; if memory runs out, halve it and call again, or raise RunError at 1."""
    while True:
        try:
            return work(size.used)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size.halve(error)
        release()  # outside the handler, because its traceback holds the tensors


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, left: bool) -> tuple[Tensor, Tensor]:
    """Pad token ids on the left or right; returns ids and attention mask, each [len(rows), longest row]."""
    side, tensors = "left" if left else "right", [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_token_id, padding_side=side)
    return ids, pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True, padding_side=side)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error reports that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(one in str(error) for one in ("can't allocate memory", "out of memory"))


def release() -> None:
    """Return the allocator's unused blocks to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
