"""Run work in batches whose size is halved when memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

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
    """Yield batches of items and the results of `work`; a batch that does not fit into memory is halved and run again.

    The items have to be sorted, the longest first, so that a batch that is too large fails at once.
    """

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
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        columns = slice(length - len(row), None) if left else slice(0, len(row))
        ids[i, columns] = torch.tensor(row, dtype=torch.long)
        mask[i, columns] = 1
    return ids, mask


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error reports that memory ran out, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def release() -> None:
    """Return the allocator's unused blocks to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
