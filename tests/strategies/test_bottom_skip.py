from ulskip_cli.strategies.bottom_skip import BottomSkip


def test_keeps_the_last_layers():
    assert BottomSkip().kept_layers(6, BottomSkip().num_kept(6, 2.0)) == (3, 4, 5)
