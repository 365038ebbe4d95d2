import pytest
import tiny_configs

from ulskip_cli.inference.shallow_config import shallow_config

KEPT = (1, 2, 5)


@pytest.mark.parametrize(
    ("model_type", "key"),
    [
        ("qwen2", "layer_types"),
        ("smollm3", "no_rope_layers"),
        ("jamba", "layers_block_type"),  # computed from a period
        ("bamba", "layers_block_type"),  # computed from indices
    ],
)
def test_per_layer_lists_are_reduced_to_the_kept_layers(model_type, key):
    source = tiny_configs.build_config(model_type)
    before = list(getattr(source, key))
    config = shallow_config(source, 6, KEPT)
    assert getattr(config, key) == [before[i] for i in KEPT]
    assert len(config.layer_types) == config.num_hidden_layers == 3
    assert getattr(source, key) == before
    assert type(config).__name__ == type(source).__name__
