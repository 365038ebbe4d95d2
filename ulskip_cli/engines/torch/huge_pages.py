"""Memory in huge pages for weights that every decode step reads as a whole."""

import mmap

import torch
from torch import Tensor

CHUNK_BYTES = 32 * 2**20
_ALIGNMENT = 64  # bytes; our kernels and those of torch.compile read whole vectors


class HugePages:
    """Copies of tensors, one behind the other in chunks of memory that the kernel may map with huge
    pages.

    With pages of 4 kB, a processor's prefetching stops at every page, and a decode step spends its
    time on address translation. A chunk is freed with the last tensor in it.
    """

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a contiguous copy of a CPU tensor in this memory."""
        if tensor.nbytes > self._chunk_bytes:
            return _typed(_allocate(tensor.nbytes), tensor)
        if self._used + tensor.nbytes > len(self._chunk):
            self._chunk, self._used = _allocate(self._chunk_bytes), 0
        held = _typed(self._chunk[self._used : self._used + tensor.nbytes], tensor)
        self._used += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return held


def _typed(held: Tensor, tensor: Tensor) -> Tensor:
    return held.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _allocate(size: int) -> Tensor:
    try:
        memory = mmap.mmap(
            -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )  # by default it would be shared
        memory.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):  # another system than Linux, or a kernel without huge pages
        return torch.empty(size, dtype=torch.uint8)
    return torch.frombuffer(memory, dtype=torch.uint8)
