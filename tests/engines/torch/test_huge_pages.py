import mmap
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.engines.torch.huge_pages import HugePages

SIZES, DTYPES = st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16])


@given(st.lists(st.tuples(SIZES, SIZES, DTYPES), max_size=8))
def test_copies_are_equal_aligned_and_separate(shapes):
    memory = HugePages(chunk_bytes=4096)  # so that some shapes need a chunk of their own
    originals = [torch.randn(rows, columns).to(dtype) for rows, columns, dtype in shapes]
    copies = [memory.copy(tensor.t()) for tensor in originals]
    for original, copy in zip(originals, copies, strict=True):
        assert (
            torch.equal(copy, original.t())
            and copy.is_contiguous()
            and copy.dtype == original.dtype
        )
        assert copy.data_ptr() % 64 == 0
    spans = sorted((copy.data_ptr(), copy.data_ptr() + copy.nbytes) for copy in copies)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize("missing", ["option", "kernel"])
def test_a_system_without_huge_pages_gets_ordinary_ones(monkeypatch, missing):
    if missing == "option":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:
        monkeypatch.setattr(
            mmap, "MADV_HUGEPAGE", -1, raising=False
        )  # an option that no kernel has
    assert torch.equal(HugePages().copy(torch.ones(3)), torch.ones(3))
