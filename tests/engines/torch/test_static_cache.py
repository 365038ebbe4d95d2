import torch
from reference import random_ids

from ulskip_cli.engines.torch.decode_steps import EagerSteps
from ulskip_cli.inference import shallow_view


def prompt_cache(model, ids, mask):
    cache = shallow_view.new_cache(model)
    with torch.no_grad():
        shallow_view.forward_with_cache(model, ids, mask, cache)
    return cache


def test_fixed_buffers_contain_the_prompt_and_keep_their_addresses(llama):
    ids = random_ids(2, 5)
    cache = prompt_cache(llama, ids, torch.ones_like(ids))
    keys = [layer.keys.clone() for layer in cache.layers]
    steps = EagerSteps(llama, cache, torch.ones_like(ids), 5)
    cursor = steps.cursor
    assert (cursor.length, cache.get_seq_length(), cache.layers[0].keys.shape[2]) == (5, 5, 9)
    addresses = [layer.keys.data_ptr() for layer in cache.layers]
    with torch.no_grad():
        for step in range(4):
            llama(input_ids=ids[:, :1], cache=cache, use_cache=True)
            cursor.length = 6 + step
    assert [layer.keys.data_ptr() for layer in cache.layers] == addresses
    assert all(
        torch.equal(layer.keys[:, :, :5], before)
        for layer, before in zip(cache.layers, keys, strict=True)
    )
