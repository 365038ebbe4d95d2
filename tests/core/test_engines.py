import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.core import engines
from ulskip_cli.core.config import baseline_config, compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.core.weight_sizes import WeightSizes
from ulskip_cli.engines.llama_cpp import LlamaCpp
from ulskip_cli.experiments.point import resolve

pytestmark = pytest.mark.usefixtures("installed")
LLAMA = "engine=llama_cpp"


def test_weights_that_an_engine_does_not_have_are_refused_with_those_that_it_has():
    with pytest.raises(UsageError, match=r"engine\.weights.*q5.*q8_0"):
        compose([LLAMA, "engine.weights=q5"])


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"package llama_cpp.*\[llama-cpp\]"):
        resolve(compose([LLAMA]))


def test_presets_set_the_weights_and_the_baseline_has_the_same_engine():
    config = compose(["engine=llama_cpp_q4_0"])
    assert (config.engine.name, config.engine.weights) == ("llama_cpp", "q4_0")
    assert baseline_config(config).engine == config.engine


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=8), st.integers(1, 10**9))
def test_a_smaller_format_reads_fewer_bytes_and_gives_the_head_a_larger_share(layers, head):
    sizes = WeightSizes(64 * head, tuple(64 * layer for layer in layers))
    metadata = ModelMetadata(len(layers), None, sizes, bytes_per_weight=2)
    native, bf16, eight, four = (
        LlamaCpp(weights=name).sizes(metadata, "cpu", set())
        for name in (None, "bf16", "q8_0", "q4_0")
    )
    assert native == bf16 == sizes
    unknown = ModelMetadata(len(layers), None, None)
    assert LlamaCpp(weights="q4_0").sizes(unknown, "cpu", set()) is None
    assert eight.head_bytes == four.head_bytes and four.total < eight.total < sizes.total
    kept = range(len(layers) // 2)
    assert four.predicted_speedup(kept) <= eight.predicted_speedup(kept) + 1e-6
