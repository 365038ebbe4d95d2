from dataclasses import replace

import pytest
import torch
from reference import (
    NUM_LAYERS,
    layer_states,
    one_stage,
    random_adapter,
    reference_divergence,
    reference_loss,
    response_logits,
    through,
    unchanged,
    with_each,
)
from reference import training_batch as batch
from torch.nn import functional

from ulskip_cli.core.config_schema import LoraOptions, TrainOptions
from ulskip_cli.core.correction import KINDS
from ulskip_cli.core.schedule import Stage
from ulskip_cli.inference.skip_adapter import SkipAdapter, zero_adapter
from ulskip_cli.training import adapter_loss
from ulskip_cli.training.adapter_loss import AdapterLoss
from ulskip_cli.training.data import IGNORED_LABEL

EVERY, KEPT = tuple(range(NUM_LAYERS)), (1, 2, 4)
KEPT_SETS = [KEPT, (0, 2, 5), (0, 2, 3)]
PLENTY = 10**9  # bytes
CROSS_ENTROPY, DISTILL = TrainOptions(), TrainOptions(ce_weight=0.0, distill_weight=1.0)


def made(model, adapter, weights=CROSS_ENTROPY, rank=2, max_bytes=PLENTY):
    model.requires_grad_(False)
    torch.manual_seed(0)
    weights = weights.replace(lora=LoraOptions(rank=rank, alpha=4))
    return AdapterLoss(model, adapter, weights, max_bytes)


@pytest.mark.parametrize(
    ("kind", "weights", "reference", "max_bytes"),
    [
        ("full", CROSS_ENTROPY, reference_loss, PLENTY),
        ("full", CROSS_ENTROPY, reference_loss, 0),
        ("folded", CROSS_ENTROPY, reference_loss, 0),
        ("full", DISTILL, reference_divergence, PLENTY),
    ],
)
def test_the_loss_is_that_of_an_uncached_reference(model, kind, weights, reference, max_bytes):
    adapter, corrections = random_adapter(model, KEPT, kind)
    inputs = batch()
    module = made(model, adapter, weights, max_bytes=max_bytes)
    expected = reference(model, inputs, KEPT, **corrections)
    for _ in range(2):  # the second time with stored outputs of the frozen model
        loss = module(**inputs, stages=through(KEPT))["loss"]
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_a_schedule_that_begins_with_every_layer_is_corrected_in_later_stages(llama):
    stages = (Stage(0, EVERY), Stage(2, (0, 2, 5)))
    adapter, corrections = random_adapter(llama, (0, 2, 5), "full")
    adapter = replace(adapter, patches={EVERY: {}, **adapter.patches})
    inputs, patches = batch(), {2: corrections["patches"]}
    expected = reference_loss(llama, inputs, {0: EVERY, 2: (0, 2, 5)}, patches=patches)
    loss = made(llama, adapter)(**inputs, stages=stages)["loss"]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def trained(module, inputs, steps=8):
    optimizer = torch.optim.AdamW([one for one in module.parameters() if one.requires_grad], 3e-3)
    losses = []
    for _ in range(steps):
        loss = module(**inputs, stages=through(KEPT))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("weights", [CROSS_ENTROPY, DISTILL], ids=["references", "distillation"])
@pytest.mark.parametrize(("model", "kind"), with_each(KINDS), indirect=["model"])
def test_training_lowers_the_loss_and_leaves_the_model_bit_identical(model, kind, weights):
    with unchanged(model):
        module = made(model, zero_adapter(model, [KEPT], KINDS[kind]), weights)
        losses = trained(module, batch())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("model", "options"),
    with_each([("full", 2), ("full", 0), ("none", 2), ("folded", 2)]),
    indirect=["model"],
)
def test_the_saved_adapter_computes_what_was_trained(model, options, tmp_path):
    kind, rank = options
    adapter = zero_adapter(model, [KEPT], KINDS[kind])
    if kind == "folded":
        adapter, _ = random_adapter(model, KEPT, kind)
    module, inputs = made(model, adapter, rank=rank), batch()
    trained(module, inputs, steps=3)
    module.adapter({}).save(tmp_path)
    view = SkipAdapter.load(tmp_path).view(model, KEPT)
    with torch.no_grad():
        texts = [inputs[key] for key in ("prompt_ids", "prompt_mask", "response_ids")]
        mask = inputs["labels"] != -100
        logits = response_logits(model, one_stage(view, KEPT), *texts, mask)
        loss = functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())
        expected = module.eval()(**inputs, stages=through(KEPT))["loss"]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("model", "kept"), with_each(KEPT_SETS), indirect=["model"])
def test_the_gap_loss_is_that_of_an_uncached_reference(model, kept):
    adapter, corrections = random_adapter(model, kept, "full")
    inputs, losses, patches = batch(), [], corrections["patches"]
    weights = TrainOptions(method="adapter", ce_weight=0.0, gap_weight=1.0)
    module = made(model, adapter, weights)
    last_patch = patches.get(NUM_LAYERS, lambda hidden: hidden)  # behind the last kept layer
    if kept[-1] in patches:  # it is part of the gap in front of that layer
        patches.pop(NUM_LAYERS, None)
    labelled = inputs["labels"] != IGNORED_LABEL
    for row, mask in enumerate(inputs["prompt_mask"].bool()):
        prompt, response = inputs["prompt_ids"][row, mask], inputs["response_ids"][row]
        ids = torch.cat([prompt, response[: labelled[row].sum() - 1]])[None]
        full, begin = layer_states(model, ids), len(prompt)
        for behind, patch in patches.items():
            first = max((layer + 1 for layer in kept if layer < behind), default=0)
            got, end = patch(full[first][:, begin:]), behind
            if behind < NUM_LAYERS:
                got, end = layer_states(model, ids, (behind, begin, got))[behind + 1], behind + 1
                got = got[:, begin:]
            if behind == kept[-1]:
                got, end = last_patch(got), NUM_LAYERS
            target = full[end][:, begin:]
            losses.append(((got - target).pow(2).sum(-1) / target.pow(2).sum(-1)).sum())
    expected = sum(losses) / len(patches) / labelled.sum()
    loss = module(**inputs, stages=through(kept))["loss"]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_several_sets_have_patches_of_their_own_and_share_lora(llama):
    sets = [(0, 2, 5), (0, 5)]
    module = made(llama, zero_adapter(llama, sets, KINDS["full"]))
    before = module(**batch(), stages=through(sets[1]))["loss"]
    optimizer = torch.optim.SGD(module.patches.parameters(), lr=1.0)
    module(**batch(), stages=through(sets[0]))["loss"].backward()
    optimizer.step()
    assert torch.equal(module(**batch(), stages=through(sets[1]))["loss"], before)
    names = {".".join(name.split(".")[:2]) for name in module.adapter({}).tensors()}
    assert {"patch.0", "patch.1", "lora.0", "lora.2", "lora.5"} == names


@pytest.mark.parametrize("share", [1, 2], ids=["enough memory", "half the memory"])
def test_stored_outputs_are_those_of_any_other_batch(model, spy, share):
    """Of some models (sliding windows), nothing is stored."""
    adapter, _ = random_adapter(model, KEPT, "full")
    module, inputs = made(model, adapter, DISTILL), batch(rows=4)
    first, second = (
        {key: part[rows] for key, part in inputs.items()} for rows in (slice(2), slice(2, 4))
    )
    expected = made(model, adapter, DISTILL)(**first, stages=through(KEPT))["loss"]
    module(**inputs, stages=through(KEPT))
    used = PLENTY - module.outputs.bytes_left
    other = made(model, adapter, DISTILL, max_bytes=used // share)
    encode = spy(adapter_loss, "encode_prompt")
    for part in (second, inputs):
        other(**part, stages=through(KEPT))
    encoded = encode.call_count
    torch.testing.assert_close(other(**first, stages=through(KEPT))["loss"], expected)
    assert other.outputs.bytes_left >= 0
    if module.outputs.bytes_left and share == 1:
        assert encode.call_count == encoded == 3  # two rows have one prompt


def test_responses_that_end_alike_have_their_own_outputs(llama):
    """Two examples with the same text, but another end of the prompt."""
    adapter, corrections = random_adapter(llama, KEPT, "full")
    module = made(llama, adapter, DISTILL)
    ids = torch.arange(3, 12)[None]
    for length in (4, 6):
        prompt, response = ids[:, :length], ids[:, length:]
        inputs = {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt)}
        inputs |= {"response_ids": response, "labels": response}
        expected = reference_divergence(llama, inputs, KEPT, **corrections)
        loss = module(**inputs, stages=through(KEPT))["loss"]
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
