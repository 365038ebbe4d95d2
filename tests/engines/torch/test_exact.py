"""Checks of several tokens and batches give the logits of plain steps bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import NATIVE_ARCHITECTURES, build_model, random_ids
from transformers import LlamaConfig, LlamaForCausalLM

from ulskip_cli.engines.torch.decode_steps import NativeSteps
from ulskip_cli.engines.torch.native_model import NativeBackend, backend_for
from ulskip_cli.inference.teacher_forcing import encode_prompt

pytestmark = pytest.mark.usefixtures("needs_kernels")
PROMPT_LEN = 11
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


def steps_after(model, ids, mask, rows=slice(None), first=0):
    """Return the decode steps of some rows after a prompt that is encoded as one batch, of which
    the positions before `first` are left out.
    """
    cache = encode_prompt(model, ids, mask).cache
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[rows, :, first:], layer.values[rows, :, first:]
    native = backend_for(model)
    assert isinstance(native, NativeBackend)
    return NativeSteps(native.step_model(model), cache, mask[rows, first:], 64)


def one_by_one(steps, tokens):
    return torch.cat([steps.logits(token) for token in tokens.split(1, dim=1)], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NATIVE_ARCHITECTURES)
@torch.inference_mode()
def test_a_check_gives_the_logits_of_steps(name, dtype):
    model, mask = build_model(name).to(dtype), torch.ones(1, PROMPT_LEN, dtype=torch.long)
    ids, tokens = random_ids(1, PROMPT_LEN), random_ids(1, 16, seed=1)
    expected = one_by_one(steps_after(model, ids, mask), tokens)
    for count in range(2, 17):
        got = steps_after(model, ids, mask).logits(tokens[:, :count])
        assert torch.equal(got, expected[:, :count]), count


@settings(max_examples=20, deadline=None)
@given(data=st.data(), seed=st.integers(0, 999), batch=st.integers(1, 4), dtype=DTYPES)
@torch.inference_mode()
def test_logits_after_any_accepted_lengths(data, seed, batch, dtype):
    model = random_llama(data, seed).to(dtype)
    ids, mask = padded_prompts(data, batch)
    known = random_ids(batch, 24, seed)
    expected = one_by_one(steps_after(model, ids, mask), known)
    steps, done = steps_after(model, ids, mask), 0
    while done < known.shape[1]:
        count = data.draw(st.integers(1, min(10, known.shape[1] - done)))
        accepted = data.draw(st.integers(1, count))
        tokens = random_ids(batch, count, seed + done)  # wrong drafts behind the accepted ones
        tokens[:, :accepted] = known[:, done : done + accepted]
        steps.cursor.length = PROMPT_LEN + done
        got = steps.logits(tokens)[:, :accepted]
        assert torch.equal(got, expected[:, done : done + accepted])
        done += accepted


@settings(max_examples=20, deadline=None)
@given(data=st.data(), seed=st.integers(0, 999), dtype=DTYPES)
@torch.inference_mode()
def test_a_sequence_decodes_alike_alone_and_in_a_batch(data, seed, dtype):
    model = random_llama(data, seed).to(dtype)
    ids, mask = padded_prompts(data, 8)
    tokens = random_ids(8, 12, seed)
    together = one_by_one(steps_after(model, ids, mask), tokens)
    index = data.draw(st.integers(0, 7))
    row = slice(index, index + 1)
    # Without the padding, the first key is at another place.
    for first in (0, int((1 - mask[index]).sum())):
        alone = steps_after(model, ids, mask, row, first)
        assert torch.equal(one_by_one(alone, tokens[row]), together[row])


def random_llama(data, seed):
    """Make a random model, also with sizes that fill no vector."""
    torch.manual_seed(seed)
    kv_heads = data.draw(st.integers(1, 3))
    config = LlamaConfig(
        num_hidden_layers=2,
        vocab_size=101,
        hidden_size=data.draw(st.sampled_from([36, 144])),
        intermediate_size=data.draw(st.sampled_from([20, 64, 70, 300])),
        num_key_value_heads=kv_heads,
        num_attention_heads=kv_heads * data.draw(st.integers(1, 3)),
        head_dim=data.draw(st.sampled_from([8, 16, 20, 64])),
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def padded_prompts(data, batch):
    """Draw prompts [batch, PROMPT_LEN] with random padding on the left, and their mask."""
    mask = torch.ones(batch, PROMPT_LEN, dtype=torch.long)
    for row in range(batch):
        mask[row, : data.draw(st.integers(0, PROMPT_LEN - 1))] = 0
    return random_ids(batch, PROMPT_LEN, seed=batch) * mask, mask
