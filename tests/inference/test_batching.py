import pytest
import torch

from ulskip_cli.core.errors import RunError
from ulskip_cli.inference.batching import BatchSize, in_batches, is_out_of_memory

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
)


def limited(most, error=CUDA):
    def work(batch):
        if len(batch) > most:
            raise error
        return sum(batch)

    return work


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()])
def test_an_out_of_memory_batch_is_halved_and_every_item_runs_once(error):
    size = BatchSize(8)
    found = list(in_batches(range(21), size, limited(3, error)))
    assert [len(batch) for batch, _ in found] == [2] * 10 + [1]
    assert [item for batch, _ in found for item in batch] == list(range(21))
    assert sum(result for _, result in found) == sum(range(21))
    assert size.used == 2


def test_a_single_sequence_that_does_not_fit_is_a_run_error():
    with pytest.raises(RunError, match="batch size 1"):
        list(in_batches([1, 2], BatchSize(2), limited(0)))


def test_other_errors_are_raised():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches([1, 2], BatchSize(2), limited(1, RuntimeError("shapes"))))
