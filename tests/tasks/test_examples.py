import dataclasses

import pytest

from ulskip_cli.tasks.examples import Example


def test_examples_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example("0", "a", "b").source = "c"
