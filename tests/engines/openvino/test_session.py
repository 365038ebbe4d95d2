import random

import pytest
import torch
from reference import NUM_LAYERS, batch, build_model, is_near_tie, random_ids

pytest.importorskip("openvino")

from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.engines import engine_named
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines.base import BatchRequest, Views
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.engines.openvino import export as openvino_export
from ulskip_cli.engines.openvino import session
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.shallow_view import StageView, new_cache
from ulskip_cli.strategies.plan import make_plan

LENGTH = 20
ENDS = [7, 20, 33, 40, 50, 60, 70, 80]
SKIP_DECODE = ("ratio=2", "strategy=skip_decode", "strategy.horizon=8")
FRACTION = ("ratio=2", "ratio_basis=latency", f"speed.new_tokens={LENGTH}")  # runs 3.5 of 6 layers


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory):
    """Keep the exports of this module in one folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULSKIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def decoder_for(model, overrides, engine):
    plan = make_plan(compose(list(overrides)), ModelMetadata(NUM_LAYERS, None, None), 3.5)
    return Decoder(model, plan, engine=engine_named(engine))


def opened_for(model, weights="f32", kept=(0, 3, 5)):
    view = shallow_view.shallow_view(model, kept)
    stages = (StageView(0, view, tuple(range(len(kept)))),)
    return session.OpenVinoSession(Views(model, view, stages), weights), view


def encode(opened, ids, mask):
    return opened.encode(BatchRequest(ids, mask, DecodingConfig(), 0, (), LENGTH))


@pytest.mark.parametrize(
    "name, overrides",
    [
        ("llama", ("strategy=full",)),
        ("llama", ("ratio=2",)),
        ("qwen2", ("ratio=2",)),
        ("gpt2", ("ratio=2",)),
        ("gpt2", ("ratio=2", "prompt_layers=kept")),
        ("llama", SKIP_DECODE),
        (
            "qwen2",
            (*FRACTION, "strategy=top_skip"),
        ),  # the second stage has no sliding layer, so other masks
        ("llama", FRACTION),
        ("llama", (*FRACTION, "prompt_layers=kept")),
    ],
)
def test_tokens_equal_those_of_torch(name, overrides, monkeypatch):
    monkeypatch.setattr(session, "MASKED_STEPS", 8)
    model, near_ties = build_model(name), 0
    ours, torchs = decoder_for(model, overrides, "openvino"), decoder_for(model, overrides, "torch")
    for ends in (None, ENDS):  # sequences that end are dropped from the batch
        model.generation_config.eos_token_id = ends
        for padded in (True, False):
            ids, mask = batch(padded)
            context = DecodeContext(DecodingConfig(max_new_tokens=LENGTH), 0)
            got, wanted = ours.generate(ids, mask, context), torchs.generate(ids, mask, context)
            assert (got.engine, wanted.engine) == ("openvino", "torch")
            if name != "qwen2":  # torch keeps only the sliding window of a prompt
                assert (got.prompt_kv_bytes, got.kept_kv_bytes) == (
                    wanted.prompt_kv_bytes,
                    wanted.kept_kv_bytes,
                )
            for i, (one, other) in enumerate(zip(got.token_ids, wanted.token_ids, strict=True)):
                if one != other:
                    near_ties += 1
                    kept = {stage.first_step: stage.kept for stage in torchs.stages}
                    assert is_near_tie(
                        torchs.prompt_model, ids[i][mask[i].bool()], one, other, kept
                    )
    assert near_ties <= 1  # of 20 sequences


def test_a_moved_switch_uses_the_loaded_views():
    model, (ids, mask) = build_model("llama"), batch(True)
    ours, torchs = (decoder_for(model, FRACTION, engine) for engine in ("openvino", "torch"))
    for first_step in (2, 5):
        moved = [one.with_stage_switch(first_step) for one in (torchs, ours)]
        context = DecodeContext(DecodingConfig(max_new_tokens=LENGTH), 0)
        expected, got = (one.generate(ids, mask, context).token_ids for one in moved)
        assert got == expected
        assert moved[1].build == ours.build is not None


def test_a_sequence_continues_after_others_are_dropped():
    (ids, mask), following = batch(True), random_ids(5, 2, seed=1)
    opened, _ = opened_for(build_model("llama"))
    encode(opened, ids, mask)
    opened.step(following[:, :1])
    wanted = opened.step(following[:, 1:])
    alive = torch.tensor([1, 3, 4])
    encode(opened, ids, mask)
    opened.step(following[:, :1])
    opened.keep(alive)
    assert torch.allclose(opened.step(following[alive, 1:]), wanted[alive], atol=1e-4)


def test_a_batch_after_dropped_sequences_has_the_logits_of_a_new_request():
    model = build_model("llama")
    used, _ = opened_for(model, "f16", range(NUM_LAYERS))  # keys and values are rounded to 8 bits
    generator = random.Random(0)
    for i in range(48):
        ids, alive = random_ids(5, generator.randrange(4, 40), seed=i), [0, 1, 2, 3, 4]
        assert torch.isfinite(encode(used, ids, torch.ones_like(ids))).all()
        for step in range(generator.randrange(8, 30)):
            assert torch.isfinite(used.step(random_ids(len(alive), 1, seed=step))).all()
            if step in (2, 5):
                rest = [1, 3] if step == 2 else [0]
                alive = [alive[row] for row in rest]
                used.keep(torch.tensor(rest))


def test_only_a_batch_that_loads_the_views_tells_seconds_of_preparation():
    decoder, (ids, mask) = decoder_for(build_model("llama"), ("ratio=2",), "openvino"), batch(True)
    context = DecodeContext(DecodingConfig(max_new_tokens=LENGTH), 0)
    seconds = [decoder.generate(ids, mask, context).compile_seconds for _ in range(3)]
    assert seconds[0] > 0 and seconds[1:] == [0, 0]


def test_losses_are_those_of_the_view():
    model = build_model("llama")
    ours, torchs = (
        decoder_for(model, ("ratio=2", "prompt_layers=kept"), engine)
        for engine in ("openvino", "torch")
    )
    (ids, mask), response = batch(True), random_ids(5, 4, seed=1)
    with torch.inference_mode():
        got = ours.losses(ids, mask, response)
        whole, seen = torch.cat([ids, response], 1), torch.cat([mask, torch.ones_like(response)], 1)
        logits = shallow_view.forward_with_cache(torchs.view, whole, seen, new_cache(torchs.view))
    wanted = torch.nn.functional.cross_entropy(
        logits[:, 8:-1].transpose(1, 2), response, reduction="none"
    )
    assert torch.allclose(got, wanted, atol=1e-4)


def test_fewer_bits_add_rounding_errors_and_make_files_smaller():
    pytest.importorskip("nncf")
    model, (ids, mask) = build_model("llama"), batch(True)
    errors, sizes = {}, {}
    for weights in ("f32", "f16", "int8", "int4"):
        opened, view = opened_for(model, weights)
        got = encode(opened, ids, mask)
        with torch.no_grad():
            wanted = shallow_view.forward_with_cache(
                view, ids, mask, new_cache(view), last_only=True
            )[:, -1]
        errors[weights] = float((got - wanted).norm() / wanted.norm())
        sizes[weights] = openvino_export.export(view, weights).with_suffix(".bin").stat().st_size
        assert opened.describe()["weights"] == weights
    assert errors["f32"] < 1e-5
    assert errors["f32"] < errors["f16"] < 0.05
    assert errors["int8"] < errors["int4"] < 0.5
    assert sizes["f32"] > sizes["f16"] > sizes["int8"] > sizes["int4"]


def test_an_export_is_used_again_unless_a_layer_differs(monkeypatch):
    class Converted(Exception):
        pass

    def converted(model):
        raise Converted

    model = build_model("llama")
    opened_for(model)
    monkeypatch.setattr(openvino_export, "_converted", converted)
    opened_for(build_model("llama"))
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(Converted):
        opened_for(model)


def test_bfloat16_weights_are_stored_as_f16():
    model = build_model("llama").bfloat16()
    opened, _ = opened_for(model, None)
    assert opened.weights == "f16"
    assert torch.isfinite(encode(opened, *batch(True))).all()
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("name, reason", [("bloom", "position"), ("mixtral", "histc")])
def test_unsupported_models_are_refused(name, reason):
    with pytest.raises(UsageError, match=rf"engine=openvino .*{reason}.*engine=torch"):
        opened_for(build_model(name))


def test_a_conversion_with_other_logits_is_refused(monkeypatch):
    monkeypatch.setattr(openvino_export, "_LARGEST_ERROR", 0.0)
    model = build_model("llama")
    with pytest.raises(UsageError, match="logits"):
        openvino_export._converted(model)
