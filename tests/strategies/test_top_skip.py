from ulskip_cli.strategies.top_skip import TopSkip


def test_keeps_the_first_layers():
    assert TopSkip().kept_layers(6, TopSkip().num_kept(6, 2.0)) == (0, 1, 2)
