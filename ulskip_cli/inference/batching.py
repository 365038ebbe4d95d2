"""Make batches, and halve the batch size after an out-of-memory error."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ulskip_cli.core.errors import RunError, reason

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass
class BatchSize:
    """A batch size; once halved, it stays so for later batches."""

    used: int

    def lower(self, limit: int) -> None:
        """Lower the size to at most `limit`, which fitted into memory."""
        self.used = min(self.used, limit)


def in_batches(
    items: Sequence[ItemT],
    size: BatchSize,
    work: Callable[[Sequence[ItemT]], ResultT],
) -> Iterator[tuple[Sequence[ItemT], ResultT]]:
    """Yield batches of `items`, which are sorted longest first by the caller, with the results of
    `work`; a batch that runs out of memory is halved and done again, and `size` stays halved.
    """

    def result_of(count: int) -> ResultT:
        return work(items[start : start + count])

    start = 0
    while start < len(items):
        result = run_with_oom_retry(size, result_of)
        batch = items[start : start + size.used]  # `size` may have been halved
        yield batch, result
        start += len(batch)


def run_with_oom_retry(size: BatchSize, work: Callable[[int], ResultT]) -> ResultT:
    """Call `work` with the batch size; halve the size and retry while memory runs out, and raise
    RunError at size 1.
    """
    while True:
        try:
            return work(size.used)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size.used == 1:
                raise RunError(
                    f"out of memory at batch size 1 ({reason(error)}); use a smaller model,"
                    " model.dtype=bfloat16 or shorter prompts and answers"
                ) from None
            size.used //= 2
        free_unused_memory()  # outside the handler, because its traceback holds the tensors


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Return the indices of the lengths, longest first."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def padded(
    rows: Sequence[Sequence[int]],
    pad_token_id: int,
    *,
    left: bool,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Pad token ids on the left or right; return ids and attention mask on a device, each [batch,
    longest_row].
    """
    side = "left" if left else "right"
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_token_id, padding_side=side)
    ones = list(map(torch.ones_like, tensors))
    mask = pad_sequence(ones, batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Return the token ids of each row without padding, which has 0 in `mask` [batch, length]."""
    return [row[seen.bool()].tolist() for row, seen in zip(ids, mask, strict=True)]


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means out of memory, on any device."""
    return isinstance(error, MemoryError) or any(
        phrase in str(error) for phrase in ("can't allocate memory", "out of memory")
    )


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device, in bytes, with what PyTorch's allocator holds unused."""
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):  # its memory is the host's
        return int(psutil.virtual_memory().available)
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + unused)


def free_unused_memory() -> None:
    """Free objects that refer to one another, and the unused memory of PyTorch's allocator."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.get_device_module().empty_cache()
