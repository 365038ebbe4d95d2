"""The engine with a stand-in for vLLM; `benchmarks/engine_tokens.py` compares the tokens of vLLM
itself.
"""

import sys
from pathlib import Path

import pytest
import torch
from reference import NUM_LAYERS, batch, build_model, generate, is_near_tie, random_ids
from torch.nn import functional
from ulskip_cli.core.config import compose
from ulskip_cli.core.engines import engine_named
from ulskip_cli.core.errors import NotApplicable, RunError, UsageError
from ulskip_cli.core.model_metadata import ModelMetadata
from ulskip_cli.engines.base import Prompts, Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.strategies.plan import make_plan

from ulskip_engine_vllm import Vllm
from ulskip_engine_vllm.session import DTYPES

STAND_IN = Path(__file__).parent / "stand_in"
KEPT = ("ratio=2", "prompt_layers=kept")
LENGTH = 12


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Let the engine use a Python whose package vllm is the stand-in."""
    monkeypatch.setenv("ULSKIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ULSKIP_VLLM_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))


def decoder_for(model, overrides, engine):
    plan = make_plan(compose(list(overrides)), ModelMetadata(NUM_LAYERS, None, None))
    return Decoder(Views.of(model, plan), engine_named(engine))


def worker_of(decoder):
    """Return the process of the open session."""
    (session,) = decoder._sessions.values()
    return session._worker._process


@pytest.mark.parametrize(
    "name, overrides", [("llama", KEPT), ("llama", ("strategy=full",)), ("qwen2", KEPT)]
)
def test_tokens_equal_those_of_torch(stand_in, name, overrides):
    model = build_model(name)
    model.generation_config.eos_token_id = 7
    ours, torchs = decoder_for(model, overrides, "vllm"), decoder_for(model, overrides, "torch")
    near_ties = 0
    for fixed_length in (False, True):
        ids, mask = batch(padded=True)
        answers = [
            generate(decoder, ids, mask, LENGTH, fixed_length=fixed_length)
            for decoder in (ours, torchs)
        ]
        assert (
            answers[0].engine == "vllm"
            and answers[0].kept_kv_bytes == answers[0].prompt_kv_bytes > 0
        )
        assert answers[0].prefill_seconds > 0 and answers[0].decode_seconds > 0
        for row, (one, other) in enumerate(
            zip(answers[0].token_ids, answers[1].token_ids, strict=True)
        ):
            if one != other:
                assert is_near_tie(
                    torchs.views.stages[0].view,
                    ids[row][mask[row].bool()],
                    one,
                    other,
                    range(len(torchs.views.stages[0].places)),
                )
                near_ties += 1
    assert near_ties <= 1


def test_losses_are_those_of_the_layers_that_decode(stand_in):
    model = build_model("llama")
    ours = decoder_for(model, KEPT, "vllm")
    view = ours.views.stages[0].view
    (ids, mask), responses = batch(padded=True), random_ids(5, 4, seed=1)
    found = ours.losses(Prompts(ids, mask), responses)
    for row in range(5):
        prompt = ids[row][mask[row].bool()]
        logits = view(torch.cat([prompt, responses[row]])[None]).logits[0, len(prompt) - 1 : -1]
        assert torch.allclose(
            found[row],
            functional.cross_entropy(logits, responses[row], reduction="none"),
            atol=1e-4,
        )


def test_a_larger_batch_starts_a_worker_with_more_room_and_ends_the_old_one(stand_in):
    decoder = decoder_for(build_model("llama"), KEPT, "vllm")
    workers, seconds = [], []
    for count, length in ((1, 5), (1, 3), (2, 9), (1, 5)):
        ids = random_ids(count, length)
        seconds.append(generate(decoder, ids, torch.ones_like(ids), LENGTH).compile_seconds)
        workers.append(worker_of(decoder))
    assert [spent > 0 for spent in seconds] == [True, False, True, False]
    assert workers[0] is workers[1] is not workers[2] is workers[3]
    assert workers[0].poll() == 0 and workers[2].poll() is None
    assert decoder.build == {
        "package": "vllm",
        "version": "stand-in",
        "build": ["cpu", "compilation=none"],
    } | {
        "weights": "f32",
        "threads": torch.get_num_threads(),
    }
    del decoder
    assert workers[2].wait(20) == 0


def test_a_worker_that_fails_is_one_line(stand_in, monkeypatch, tmp_path):
    decoder = decoder_for(build_model("llama"), KEPT, "vllm")
    monkeypatch.delenv("PYTHONPATH")
    for python, reason in (
        (sys.executable, "No module named 'vllm'"),
        (str(tmp_path / "none"), "No such file"),
    ):
        monkeypatch.setenv("ULSKIP_VLLM_PYTHON", python)
        with pytest.raises(RunError, match=reason) as caught:
            generate(decoder, *batch(padded=False), LENGTH)
        assert "\n" not in str(caught.value)


def test_a_worker_that_ends_while_it_answers_is_an_error(stand_in):
    decoder = decoder_for(build_model("llama"), KEPT, "vllm")
    generate(decoder, *batch(padded=False), LENGTH)
    worker_of(decoder).kill()
    with pytest.raises(RunError, match="engine=vllm failed"):
        generate(decoder, *batch(padded=False), LENGTH)


def test_layers_that_no_config_describes_are_refused(stand_in):
    # Scales the attention by the index of the layer.
    decoder = decoder_for(build_model("gpt2"), KEPT, "vllm")
    with pytest.raises(UsageError, match="engine=torch"):
        generate(decoder, *batch(padded=False), LENGTH)


@pytest.mark.parametrize(
    "overrides, advice",
    [
        (["ratio=2"], "prompt_layers=kept"),
        ([*KEPT, "strategy=skip_decode"], "strategy=unified"),
        ([*KEPT, "decoding.do_sample=true"], "do_sample=false"),
    ],
)
def test_what_vllm_cannot_do_is_refused(stand_in, overrides, advice):
    with pytest.raises(NotApplicable, match=advice):
        make_plan(compose([*overrides, "engine=vllm"]), ModelMetadata(NUM_LAYERS, None, None))


def test_the_formats_are_those_of_the_class():
    assert set(DTYPES) == set(Vllm.formats)
