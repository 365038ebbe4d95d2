import mmap
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import GREEDY, build_model, decoder_for, generate, random_ids
from torch import nn
from transformers.pytorch_utils import Conv1D

from ulskip_cli.engines.torch import native_model
from ulskip_cli.engines.torch.kernels import HugePages, PackedLinear, packed
from ulskip_cli.engines.torch.native_model import PlainBackend, backend_for
from ulskip_cli.inference import shallow_view

CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.bfloat16: {"rtol": 0.02, "atol": 0.05}}
DRAFTED = GREEDY.replace(draft_tokens=2, draft="ngram")
EXITS = ["strategy=early_exit", "strategy.threshold=0.5", "strategy.horizon=4"]


def packing_of(model, view=None):
    """The model or a view over packed weights, also where the kernels have a step for it."""
    backend, view = backend_for(model), view or model
    return view if isinstance(backend, PlainBackend) else packed(view, backend.weights)


def set_free_memory(monkeypatch, count):
    """Set the free memory to `count` bytes."""
    memory = SimpleNamespace(available=count)
    monkeypatch.setattr(native_model.psutil, "virtual_memory", lambda: memory)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_packed_layers_compute_the_plain_product(name, dtype):
    model = build_model(name).to(dtype)
    view, ids = shallow_view.shallow_view(model, (0, 2, 5)), random_ids(3, 7)
    fast = packing_of(model, view)
    with torch.inference_mode():
        expected, got = (one(ids, use_cache=False).logits.float() for one in (view, fast))
    torch.testing.assert_close(got, expected, **CLOSE[dtype])
    kinds = (PackedLinear, nn.Linear, Conv1D)
    linears = [module for module in fast.modules() if type(module) in kinds]
    assert set(map(type, linears)) == {PackedLinear}


@pytest.mark.usefixtures("needs_kernels")
def test_views_of_one_model_share_the_copies(llama):
    deep, shallow = (
        {
            id(module.packed)
            for module in packing_of(llama, view).modules()
            if type(module) is PackedLinear
        }
        for view in (shallow_view.shallow_view(llama, kept) for kept in ((0, 2, 3, 5), (0, 5)))
    )
    assert shallow < deep


def test_changed_weights_are_packed_again(llama):
    ids = random_ids(1, 4)
    before = packing_of(llama)(ids, use_cache=False).logits
    with torch.no_grad():
        llama.lm_head.weight.mul_(2)
        torch.testing.assert_close(packing_of(llama)(ids, use_cache=False).logits, 2 * before)


def test_models_that_cannot_be_packed_keep_their_layers(llama, monkeypatch):
    set_free_memory(monkeypatch, 0)
    assert isinstance(backend_for(llama), PlainBackend)
    assert backend_for(llama).reason
    assert packing_of(llama) is llama
    monkeypatch.undo()
    assert packing_of(llama.to(torch.float16)) is llama


@pytest.mark.parametrize(("before", "after"), [(2**40, 0), (0, 2**40)], ids=["shrinks", "grows"])
def test_all_decoders_of_a_model_run_on_one_backend_when_free_memory_changes(
    llama, monkeypatch, before, after
):
    set_free_memory(monkeypatch, before)
    full = decoder_for(llama, "strategy=full")
    ids = random_ids(2, 5)
    mask = torch.ones_like(ids)
    expected = generate(full, ids, mask, 4).linear_backend
    assert (expected == "torch") == (before == 0)
    set_free_memory(monkeypatch, after)
    half = decoder_for(llama, "ratio=2")
    staged = decoder_for(llama, "strategy=skip_decode", "strategy.horizon=4")
    exiting = decoder_for(llama, *EXITS)
    decoders = [(one, GREEDY) for one in (full, half, staged, exiting)]
    for decoder, decoding in [*decoders, (half, DRAFTED)]:
        size = 1 if decoding is DRAFTED else len(ids)
        output = generate(decoder, ids[:size], mask[:size], 4, decoding)
        assert output.linear_backend == decoder.views.backend.name == expected


SIZES, DTYPES = st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16])


@given(st.lists(st.tuples(SIZES, SIZES, DTYPES), max_size=8))
def test_copies_are_equal_aligned_and_separate(shapes):
    memory = HugePages(chunk_bytes=4096)  # so that some shapes need a chunk of their own
    originals = [torch.randn(rows, columns).to(dtype) for rows, columns, dtype in shapes]
    copies = [memory.copy(tensor.t()) for tensor in originals]
    for original, copy in zip(originals, copies, strict=True):
        assert torch.equal(copy, original.t()) and copy.dtype == original.dtype
        assert copy.is_contiguous() and copy.data_ptr() % 64 == 0
    spans = sorted((copy.data_ptr(), copy.data_ptr() + copy.nbytes) for copy in copies)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize("missing", ["option", "kernel"])
def test_a_system_without_huge_pages_gets_ordinary_ones(monkeypatch, missing):
    if missing == "option":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:
        # an option that no kernel has
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1, raising=False)
    assert torch.equal(HugePages().copy(torch.ones(3)), torch.ones(3))
