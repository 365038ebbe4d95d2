"""The llama.cpp engine against the torch engine."""

import os
import subprocess
import sys

import pytest
import torch
from reference import NUM_LAYERS, batch, build_model, is_near_tie, random_corrections

from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.engines import engine_named
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines import export
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.engines.scoring import ReferenceLoss
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.skip_adapter import SkipAdapter
from ulskip_cli.strategies.plan import make_plan
from ulskip_cli.tasks.encoding import EncodedExample

llama_cpp = pytest.importorskip("llama_cpp")

LENGTH = 14
GREEDY = DecodingConfig(name="g", max_new_tokens=LENGTH)
ENDS = [7, 20, 33, 40, 50, 60, 70, 80]
FRACTION = ("ratio=2", "ratio_basis=latency", f"speed.new_tokens={LENGTH}")  # runs 3.5 of 6 layers
SCHEDULES = [
    ("strategy=full",),
    ("ratio=2",),
    ("ratio=2", "prompt_layers=kept"),
    ("ratio=2", "strategy=skip_decode", "strategy.horizon=8"),
    FRACTION,
    (*FRACTION, "prompt_layers=kept"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "cache_dir", lambda: tmp_path)


def decoders(model, *overrides, weights=None):
    """Return decoders of the torch engine and of llama.cpp with one plan."""
    plan = make_plan(compose(list(overrides)), ModelMetadata(NUM_LAYERS, None, None), 3.5)
    return Decoder(model, plan), Decoder(
        model, plan, engine=engine_named("llama_cpp").replace(weights=weights)
    )


@pytest.mark.parametrize("overrides", SCHEDULES, ids=" ".join)
def test_tokens_equal_those_of_the_torch_engine(overrides):
    model, near_ties = build_model("llama"), 0
    torch_decoder, decoder = decoders(model, *overrides)
    kept = {stage.first_step: stage.kept for stage in torch_decoder.stages}
    for ends in (None, ENDS):
        model.generation_config.eos_token_id = ends
        for padded in (True, False):
            ids, mask = batch(padded)
            expected = torch_decoder.generate(ids, mask, DecodeContext(GREEDY, 0))
            got = decoder.generate(ids, mask, DecodeContext(GREEDY, 0))
            assert (got.engine, got.linear_backend) == ("llama_cpp", "llama_cpp")
            for i, (one, other) in enumerate(zip(got.token_ids, expected.token_ids, strict=True)):
                if one != other:
                    near_ties += 1
                    assert is_near_tie(
                        torch_decoder.prompt_model, ids[i][mask[i].bool()], one, other, kept
                    )
    assert near_ties <= 1  # of 20 sequences


def test_a_moved_switch_uses_the_loaded_views():
    ids, mask = batch(True)
    torch_decoder, decoder = decoders(build_model("llama"), *FRACTION)
    for first_step in (2, 5):
        moved = [one.with_stage_switch(first_step) for one in (torch_decoder, decoder)]
        expected, got = (
            one.generate(ids, mask, DecodeContext(GREEDY, 0)).token_ids for one in moved
        )
        assert got == expected
        assert moved[1].build == decoder.build is not None


def test_sampling_uses_the_same_random_numbers():
    torch_decoder, decoder = decoders(build_model("llama"), "ratio=2")
    sampled = DecodeContext(GREEDY.replace(do_sample=True, temperature=0.8, top_p=0.9), 0, 5)
    ids, mask = batch(True)
    assert (
        decoder.generate(ids, mask, sampled).token_ids
        == torch_decoder.generate(ids, mask, sampled).token_ids
    )


@pytest.mark.parametrize("overrides", SCHEDULES, ids=" ".join)
def test_the_decode_loss_equals_that_of_torch(overrides):
    examples = [
        EncodedExample([5, 6, 7, 8][:n], [9, 10, 11, 12, 13][:m])
        for n, m in ((4, 5), (2, 3), (3, 1))
    ]
    torch_loss, loss = (
        ReferenceLoss(examples, BatchSize(2), 0).of(one)
        for one in decoders(build_model("llama"), *overrides)
    )
    assert loss == pytest.approx(torch_loss, rel=1e-4)


@pytest.mark.parametrize("kind", ["folded", "lora"])
def test_a_skip_adapter_is_merged(kind):
    model, kept = build_model("llama"), (0, 2, 4)
    tensors, _ = random_corrections(model, kept, kind)
    plan = make_plan(
        compose(["strategy=custom", "strategy.layers=[0,2,4]"]),
        ModelMetadata(NUM_LAYERS, None, None),
    )
    ids, mask = batch(True)
    adapter = SkipAdapter(NUM_LAYERS, (kept,), tensors)
    plain, corrected, got = (
        Decoder(model, plan, adapter=one, engine=engine_named(engine))
        .generate(ids, mask, DecodeContext(GREEDY, 0))
        .token_ids
        for one, engine in ((None, "torch"), (adapter, "torch"), (adapter, "llama_cpp"))
    )
    assert got == corrected != plain


def test_patches_that_do_not_fold_are_refused():
    model, (ids, mask) = build_model("llama"), batch(True)
    plan = make_plan(
        compose(["strategy=custom", "strategy.layers=[0,2,4]"]),
        ModelMetadata(NUM_LAYERS, None, None),
    )
    adapter = SkipAdapter(NUM_LAYERS, ((0, 2, 4),), random_corrections(model, (0, 2, 4), "full")[0])
    with pytest.raises(UsageError, match=r"folded.*full.*engine=torch"):
        Decoder(model, plan, adapter=adapter, engine=engine_named("llama_cpp")).generate(
            ids, mask, DecodeContext(GREEDY, 0)
        )


@pytest.mark.parametrize("weights", ["f16", "bf16", "q8_0", "q4_0"])
def test_other_formats_change_the_loss_little(weights):
    examples = [EncodedExample(list(range(5, 20)), list(range(20, 40)))]
    torch_decoder, decoder = decoders(build_model("llama"), "strategy=full", weights=weights)
    expected, loss = (
        ReferenceLoss(examples, BatchSize(1), 0).of(one) for one in (torch_decoder, decoder)
    )
    assert loss == pytest.approx(expected, rel=0.02 if weights != "q4_0" else 0.1)
    assert decoder.build["weights"] == weights


def test_a_file_is_written_once_and_a_failed_one_leaves_nothing(tmp_path, monkeypatch):
    ids, mask = batch(False)
    model = build_model("llama")
    for _ in range(2):
        decoders(model, "ratio=2")[1].generate(ids, mask, DecodeContext(GREEDY, 0))
    assert (
        len(list((tmp_path / "engines" / "llama_cpp").iterdir())) == 2
    )  # the full model and the view
    with pytest.raises(ZeroDivisionError):
        export.cached_export(
            "x", {"a": torch.zeros(2)}, [], ".gguf", lambda file: file.write_text("half") / 0
        )
    assert not list((tmp_path / "engines" / "x").iterdir())


@pytest.mark.parametrize("name", ["gpt2", "bloom", "qwen2"])
def test_other_architectures_are_refused(name):
    ids, mask = batch(False)
    with pytest.raises(UsageError, match=rf"engine=llama_cpp.*{name}.*engine=torch"):
        decoders(build_model(name), "ratio=2")[1].generate(ids, mask, DecodeContext(GREEDY, 0))


def test_a_folder_without_the_library_is_named(tmp_path):
    code = "from ulskip_cli.engines.llama_cpp import session"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LLAMA_CPP_LIB_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    last = result.stderr.splitlines()[-1]
    assert "UsageError" in last and "unset LLAMA_CPP_LIB_PATH" in last


def test_another_version_of_the_library_is_refused(monkeypatch):
    options = llama_cpp.llama_context_default_params()
    options.type_k = 0  # as if the field were elsewhere
    monkeypatch.setattr(llama_cpp, "llama_context_default_params", lambda: options)
    ids, mask = batch(False)
    with pytest.raises(UsageError, match=r"0\.3.*another version.*LLAMA_CPP_LIB_PATH"):
        decoders(build_model("llama"), "ratio=2")[1].generate(ids, mask, DecodeContext(GREEDY, 0))
