import re
from dataclasses import replace
from itertools import starmap

import pytest
import torch
import transformers
from reference import (
    NEW_STYLE,
    NUM_LAYERS,
    batch,
    count_near_ties,
    generate,
    in_engine,
    one_stage,
    random_adapter,
    random_ids,
    reference_greedy,
    reference_response,
    response_logits,
    training_batch,
    with_each,
)
from safetensors.torch import save_file

from ulskip_cli.core.correction import PATCHES
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import Schedule, Stage
from ulskip_cli.engines.base import Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.skip_adapter import SkipAdapter, zero_adapter

KINDS = ("full", "folded", "lora")
KEPT = (1, 2, 4)  # with gaps in front of the first kept layer, between two, and behind the last
KEPT_SETS = [KEPT, (0, 3, 5), (0, 1)]
LENGTH = 10
NEAR = {"rtol": 2e-4, "atol": 2e-4}


def decoder_for(model, adapter, kept=KEPT):
    return Decoder(Views.of(model, Schedule.from_layers(NUM_LAYERS, kept), adapter))


def tokens(decoder, ids, mask):
    return generate(decoder, ids, mask, LENGTH).token_ids


def checked_tokens(decoder, kept, corrections):
    """Compare the tokens of both engines with those of the uncached reference; return these."""
    model, (ids, mask) = decoder.views.model, batch(True)
    expected = reference_greedy(model, ids, mask, kept, LENGTH, **corrections).tolist()
    for engine in ("torch", "transformers"):
        got = tokens(in_engine(decoder, engine), ids, mask)
        assert count_near_ties(model, ids, mask, got, expected, kept, **corrections) <= 1
    return expected


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize(("model", "kept"), with_each(KEPT_SETS), indirect=["model"])
@pytest.mark.parametrize("kind", KINDS)
def test_teacher_forced_logits_equal_the_uncached_reference(model, kind, kept):
    adapter, corrections = random_adapter(model, kept, kind)
    inputs = training_batch()
    texts = [inputs[key] for key in ("prompt_ids", "prompt_mask", "response_ids")]
    with torch.no_grad():
        got = response_logits(model, one_stage(adapter.view(model, kept), kept), *texts)
    expected = reference_response(model, inputs, kept, **corrections)
    torch.testing.assert_close(got, expected, **NEAR)
    plain = reference_response(model, inputs, kept)
    assert torch.equal(plain[:, 0], expected[:, 0])  # the full model predicts the first token
    assert not torch.allclose(plain[:, 1:], expected[:, 1:], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_both_engines_equal_the_uncached_reference(model, kind):
    adapter, corrections = random_adapter(model, KEPT, kind)
    decoder = decoder_for(model, adapter)
    expected = checked_tokens(decoder, KEPT, corrections)
    assert tokens(decoder_for(model, None), *batch(True)) != expected


def test_each_stage_has_patches_of_its_own(model):
    stages = {0: (0, 2, 3, 5), 3: (0, 2, 5), 7: (0, 5)}
    sets = tuple(stages.values())
    parts = [random_adapter(model, kept, "full", seed) for seed, kept in enumerate(sets)]
    stored = {kept: one.patches[kept] for kept, (one, _) in zip(sets, parts, strict=True)}
    adapter = SkipAdapter(NUM_LAYERS, PATCHES["full"], stored)
    patches = {step: found["patches"] for step, (_, found) in zip(stages, parts, strict=True)}
    plan = Schedule(NUM_LAYERS, tuple(starmap(Stage, stages.items())))
    decoder = Decoder(Views.of(model, plan, adapter))
    checked_tokens(decoder, stages, {"patches": patches})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("model", "kind"), with_each(PATCHES), indirect=["model"])
def test_a_zero_adapter_changes_nothing(model, kind, dtype):
    model, ids = model.to(dtype), random_ids(2, 5)
    adapter = zero_adapter(model, [KEPT, (0, 5)], PATCHES[kind])
    assert bool(adapter.tensors()) == PATCHES[kind].has_module
    for kept in (KEPT, (0, 5)):
        views = adapter.view(model, kept), shallow_view.shallow_view(model, kept)
        with torch.no_grad():
            assert torch.equal(*(view(ids).logits for view in views))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_adapter_is_equal_and_readable_by_others(llama, kind, tmp_path):
    adapter = replace(random_adapter(llama, KEPT, kind)[0], record={"task": "wmt"})
    adapter.save(tmp_path)
    loaded = SkipAdapter.load(tmp_path)
    assert (loaded.num_layers, loaded.kept_sets) == (NUM_LAYERS, (KEPT,))
    assert (loaded.kind, loaded.record) == (adapter.kind, {"task": "wmt"})
    tensors = loaded.tensors()
    assert tensors.keys() == adapter.tensors().keys()
    assert all(torch.equal(tensors[name], part) for name, part in adapter.tensors().items())
    assert len({file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}) == 1


def edited(name, change):
    """A function that changes the bytes of one file of a folder."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def of_whole_numbers(folder):
    """Store whole numbers, by a record that knows no digest."""
    edited("adapter.json", lambda text: re.sub(rb'"sha256": "\w+"', b'"sha256": ""', text))(folder)
    save_file({"patch.0.5.linear.bias": torch.ones(4).long()}, folder / "adapter.safetensors")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "adapter.json").unlink(), "adapter.json"),
        (edited("adapter.safetensors", lambda data: data[:100]), "adapter.safetensors"),
        (edited("adapter.safetensors", lambda data: data + b"x"), "is not the file"),
        (
            edited("adapter.json", lambda text: text.replace(b'"format": 1', b'"format": 9')),
            "format",
        ),
        (of_whole_numbers, r"patch\.0\.5\.linear\.bias has the type torch\.int64"),
    ],
    ids=["no record", "cut", "changed", "later format", "whole numbers"],
)
def test_a_folder_that_is_no_adapter_is_refused(llama, tmp_path, damage, reason):
    random_adapter(llama, KEPT, "full")[0].save(tmp_path / "cut")
    damage(tmp_path / "cut")
    with pytest.raises(UsageError, match=rf"cut.*{reason}"):
        SkipAdapter.load(tmp_path / "cut")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_another_shape_is_refused(llama, kind):
    shape = {**NEW_STYLE, "hidden_size": 16, "intermediate_size": 24}
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    adapter, _ = random_adapter(llama, KEPT, kind)
    patch = adapter.kind({"bias": torch.zeros(1)}, (0, "mlp.down_proj"))
    unnamed = replace(adapter, patches={KEPT: {5: patch}})
    for model, misfit in ((other, adapter), (llama, unnamed)):
        with pytest.raises(UsageError, match="does not fit"):
            misfit.view(model, KEPT)
