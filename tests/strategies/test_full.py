from ulskip_cli.strategies.full import Full


def test_keeps_every_layer_whatever_the_ratio():
    assert Full().num_kept(12, 7.0) == 12
    assert Full().kept_layers(4, 4) == (0, 1, 2, 3)
    assert not Full.follows_ratio
