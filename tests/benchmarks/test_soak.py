"""A small run of benchmarks/soak.py, and its comparison of what runs wrote."""

import random
import signal

import pytest
import soak


@pytest.mark.slow
@pytest.mark.long
def test_an_export_that_is_killed_ends_with_the_same_files(model_folder, tmp_path):
    place = soak.Place("export", model_folder)
    assert list(soak.soak(place, tmp_path, [signal.SIGKILL], random.Random(1))) == []
