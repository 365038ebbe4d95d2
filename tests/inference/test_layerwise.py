import torch
from reference import NUM_LAYERS, random_ids

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.training.two_pass_loss import add_dropout


def batch():
    ids = random_ids(2, 7)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return ids, mask


def test_layers_one_by_one_equal_the_models_forward(model):
    ids, mask = batch()
    expected = shallow_view.forward_with_cache(model, ids, mask, shallow_view.new_cache(model))
    parts, cache = LayerwiseModel(model), shallow_view.new_cache(model)
    entry = parts.enter(ids, cache, **shallow_view.placing(model, mask, 7))
    hidden = entry.hidden
    for index in range(NUM_LAYERS):
        hidden = parts.layer(index, hidden, entry)
    torch.testing.assert_close(parts.logits(hidden), expected)
    assert cache.get_seq_length() == 7


def test_logits_after_any_layer_are_those_of_a_shallower_view(model):
    ids, mask = batch()
    parts, cache = LayerwiseModel(model), shallow_view.new_cache(model)
    entry = parts.enter(ids, cache, **shallow_view.placing(model, mask, 7))
    hidden = parts.layer(1, parts.layer(0, entry.hidden, entry), entry)
    view = shallow_view.shallow_view(model, (0, 1))
    torch.testing.assert_close(
        parts.logits(hidden),
        shallow_view.forward_with_cache(view, ids, mask, shallow_view.new_cache(view)),
    )


def test_probing_draws_no_random_numbers(llama):
    llama.train()
    add_dropout(llama, 0.5)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    LayerwiseModel(llama)
    torch.testing.assert_close(torch.rand(3), expected)
