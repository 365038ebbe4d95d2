"""The engine llama.cpp against the torch engine."""

import struct
from itertools import product

import numpy as np
import pytest
import reference
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    NEW_STYLE,
    batch,
    build_model,
    count_near_ties,
    generate,
    random_adapter,
    request_for,
)

from ulskip_cli.core.capabilities import Need
from ulskip_cli.core.engines import engine_named
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.engines.base import DraftStats, Prompts, Room, Views, Watch, take_turns
from ulskip_cli.engines.loop import SteppingSession
from ulskip_cli.engines.scoring import ForcedTexts
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.shallow_view import StageView
from ulskip_cli.inference.teacher_forcing import encode_prompt

llama_cpp = pytest.importorskip("llama_cpp", reason="the library is not installed")
LENGTH = 14
GREEDY = reference.GREEDY
SCHEDULES = [
    ("strategy=full",),
    ("ratio=2", "prompt_layers=kept"),
    ("ratio=2", "strategy=skip_decode", "strategy.horizon=8"),
]


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory):
    """Keep the exports of this module in one folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULSKIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def decoder_for(model, overrides, engine="torch", **options):
    used = engine_named(engine)
    return reference.decoder_for(model, *overrides, engine=used, **options)


def opened_for(model, weights="f32"):
    view = shallow_view.shallow_view(model, (0, 3, 5))
    views = Views(model, view, (StageView(0, view, (0, 1, 2)),))
    return engine_named("llama_cpp").replace(weights=weights).open(views, Room(5, 64))


@pytest.mark.parametrize("overrides", SCHEDULES)
def test_tokens_equal_those_of_torch(overrides):
    model, near_ties, seconds = build_model("llama"), 0, []
    torchs, ours = decoder_for(model, overrides), decoder_for(model, overrides, "llama_cpp")
    kept = {stage.first_step: stage.places for stage in torchs.views.stages}
    for ends, padded in product((None, reference.MANY_ENDS), (True, False)):
        model.generation_config.eos_token_id, (ids, mask) = ends, batch(padded)
        wanted, got = (generate(decoder, ids, mask, LENGTH) for decoder in (torchs, ours))
        assert (got.engine, wanted.engine) == ("llama_cpp", "torch")
        seconds.append(got.compile_seconds)
        texts = ids, mask, got.token_ids, wanted.token_ids
        near_ties += count_near_ties(torchs.views.prompt_model, *texts, kept)
    assert near_ties <= 1  # of 20 sequences
    assert seconds[0] > 0 and not any(seconds[1:])  # the views are loaded once
    texts = ForcedTexts([[5, 6, 7, 8], [5, 6]], [[9, 10, 11], [9]], BatchSize(2), 0)
    torch_loss, loss = (texts.scores(decoder).decode_loss for decoder in (torchs, ours))
    assert loss == pytest.approx(torch_loss, rel=1e-4)


@pytest.mark.parametrize("draft_tokens", [3, 70])
def test_look_ups_change_no_answer(draft_tokens):
    model, near_ties, drafts = build_model("llama"), 0, DraftStats()
    decoder = decoder_for(model, ("strategy=full",), "llama_cpp")
    looked_up = GREEDY.replace(draft_tokens=draft_tokens, draft="ngram")
    for ids, mask in zip(*(part.split(1) for part in batch(True)), strict=True):
        ids = torch.cat([ids, ids], 1)  # so that the prompt has repetitions
        mask = torch.cat([mask, mask], 1)
        wanted, got = (
            generate(decoder, ids, mask, 40, decoding) for decoding in (GREEDY, looked_up)
        )
        assert (got.engine, got.prompt_tokens) == ("llama_cpp", wanted.prompt_tokens)
        drafts += got.drafts
        near_ties += count_near_ties(model, ids, mask, got.token_ids, wanted.token_ids)
    assert near_ties <= 1  # of 5 sequences
    assert drafts.drafted > 0 and drafts.accepted < drafts.drafted


@pytest.mark.parametrize("kind", ["folded", "lora", "full"])
def test_a_skip_adapter_is_merged_or_refused(kind):
    model, kept = build_model("llama"), (0, 2, 4)
    adapter, _ = random_adapter(model, kept, kind)

    def tokens(name, adapter):
        schedule = ("strategy=custom", "strategy.layers=[0,2,4]")
        decoder = decoder_for(model, schedule, name, adapter=adapter)
        return generate(decoder, *batch(True), LENGTH).token_ids

    if kind == "full":
        with pytest.raises(UsageError, match=r"engine=llama_cpp.*full.*correction\.kind=folded"):
            tokens("llama_cpp", adapter)
    else:
        assert tokens("llama_cpp", adapter) == tokens("torch", adapter) != tokens("torch", None)


def qwen(family, **options):
    """Make a random Qwen model whose biases and norms are no constants."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**NEW_STYLE, **options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("family", "options"), [("Qwen2", {}), ("Qwen3", {"head_dim": 16})])
def test_llama_cpp_decodes_qwen_as_torch_does(family, options, tied):
    model, (ids, mask) = qwen(family, **options, tie_word_embeddings=tied), batch(True)
    view = shallow_view.shallow_view(model, (0, 3, 5))
    opened = opened_for(model)
    with torch.no_grad():
        wanted = encode_prompt(view, ids, mask).first_logits[:, -1]
    got = opened.encode(Prompts(ids, mask), request_for(model, LENGTH))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    for schedule in (("strategy=full",), ("strategy=custom", "strategy.layers=[0,3,5]")):
        decoders = [decoder_for(model, schedule, name) for name in ("torch", "llama_cpp")]
        tokens = [generate(decoder, ids, mask, LENGTH).token_ids for decoder in decoders]
        assert tokens[0] == tokens[1]


@pytest.mark.parametrize("name", ["torch", "llama_cpp"])
def test_an_engine_supports_drafts_if_its_session_defines_remove(name):
    engine = engine_named(name)
    defines = engine.session().remove is not SteppingSession.remove
    assert defines == (Need.LOOK_UPS in engine.supports)


def test_two_decoders_take_turns():
    model, (ids, mask) = build_model("llama"), batch(True)
    schedules = (("strategy=full",), ("strategy=custom", "strategy.layers=[0,2,4]"))
    decoders = [decoder_for(model, schedule, "llama_cpp") for schedule in schedules]
    alone = [generate(decoder, ids, mask, LENGTH).token_ids for decoder in decoders]
    prompts, request = Prompts(ids, mask), request_for(model, LENGTH)
    turns = [decoder.run(prompts, request, Watch(pause_every=2)) for decoder in decoders]
    outputs = take_turns(turns)
    assert [output.token_ids for output in outputs] == alone


def test_fewer_bits_add_rounding_errors():
    # rows of a multiple of 32 weights
    model, (ids, mask) = build_model("llama"), batch(True)
    view, errors = shallow_view.shallow_view(model, (0, 3, 5)), []
    with torch.no_grad():
        wanted = encode_prompt(view, ids, mask).first_logits[:, -1]
    for weights in ("f32", "bf16", "q8_0", "q4_0"):
        opened = opened_for(model, weights)
        got = opened.encode(Prompts(ids, mask), request_for(model, LENGTH))
        errors.append(float((got - wanted).norm() / wanted.norm()))
        assert opened.describe()["weights"] == weights
    assert errors == sorted(errors)
    assert errors[0] < 1e-5 and errors[1] < 0.05 and errors[3] < 0.5


def test_an_export_is_used_again_unless_a_weight_differs(tmp_path, monkeypatch):
    monkeypatch.setattr("ulskip_cli.engines.base.cache_dir", lambda: tmp_path)
    model, counts = build_model("llama"), []
    for change in (0, 0, 1):
        with torch.no_grad():
            model.model.layers[3].mlp.up_proj.weight[0, 0] += change
        opened_for(model)
        counts.append(len(list((tmp_path / "engines" / "llama_cpp").iterdir())))
    assert counts == [1, 1, 2]


def test_a_model_with_a_sliding_window_is_refused():
    with pytest.raises(UsageError, match=r"engine=llama_cpp .*sliding_window=null.*engine=torch"):
        opened_for(build_model("qwen2"))


def test_a_model_on_another_device_is_refused_with_the_key():
    with pytest.raises(UsageError, match=r"engine=llama_cpp .*meta.*model\.device=cpu"):
        opened_for(build_model("llama").to("meta"))


def test_another_version_of_llama_cpp_is_refused(monkeypatch):
    options = llama_cpp.llama_context_default_params()
    options.type_k = 0  # as if the field were elsewhere
    monkeypatch.setattr(llama_cpp, "llama_context_default_params", lambda: options)
    with pytest.raises(UsageError, match=r"0\.3.*another version.*LLAMA_CPP_LIB_PATH"):
        opened_for(build_model("llama"))


def serialized(layers, cells, transposed, streams=2, row=8):
    """Build a state of llama.cpp with distinct bytes a layer and all cells in the last stream."""
    parts = [struct.pack("<III", 0xAF143CD8, 0, streams)] + [struct.pack("<I", 0)] * (streams - 1)
    positions = (struct.pack("<IIi", position, 1, 0) for position in range(cells))
    parts += [struct.pack("<I", cells), *positions]
    parts.append(struct.pack("<II", transposed, len(layers)))
    for layer in layers:
        parts += [struct.pack("<iQ", 0, row), bytes([layer]) * row * cells]
    for layer in layers:
        head = struct.pack("<iII", 0, 4, row // 4) if transposed else struct.pack("<iQ", 0, row)
        parts += [head, bytes([100 + layer]) * row * cells]
    return np.frombuffer(b"".join(parts), np.uint8)


@given(st.integers(1, 6), st.integers(1, 5), st.booleans(), st.integers(1, 3), st.data())
def test_kept_layers_of_a_state_are_the_state_of_a_model_of_these_layers(
    num_layers, cells, transposed, streams, data
):
    from ulskip_cli.engines.llama_cpp.llama_session import with_layers

    kept = sorted(data.draw(st.sets(st.integers(0, num_layers - 1), min_size=1)))
    state = serialized(range(num_layers), cells, transposed, streams)
    got = with_layers(state, kept)
    assert got.tobytes() == serialized(kept, cells, transposed, streams).tobytes()
    cut = data.draw(st.integers(0, len(state) - 1))
    for broken in (state[:cut], np.append(state, state[:1])):
        with pytest.raises(RunError, match=r"serializes.*prompt_layers=kept"):
            with_layers(broken, kept)
