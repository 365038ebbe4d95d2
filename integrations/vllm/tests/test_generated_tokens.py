"""Which tokens of a step are generated, and what a skipped layer does with them; without a
server.
"""

from types import SimpleNamespace

import pytest
import torch
from vllm.forward_context import ForwardContext, override_forward_context

from ulskip_vllm.kept_layers_model import _KeptLayers
from ulskip_vllm.pair_export import SetupError
from ulskip_vllm.prompt_lengths import (
    GeneratedTokens,
    PromptLengthsConnector,
    StepTokens,
    generated_tokens,
)

BLOCK = 4


def connector(**requests):
    """Return a connector with requests given by (tokens computed, prompt length, blocks)."""
    made = PromptLengthsConnector.__new__(PromptLengthsConnector)
    made._block_size, made._requests, made._kv_cache_config = (
        BLOCK,
        {},
        SimpleNamespace(num_blocks=16),
    )
    for name, (computed, length, _) in requests.items():
        request = SimpleNamespace(
            request_id=name, resumable=False, num_computed_tokens=computed, num_prompt_tokens=length
        )
        made.on_new_request(request)
    made.blocks = {name: blocks for name, (_, _, blocks) in requests.items()}
    return made


def schedule(made, **num_tokens):
    """Bind the metadata of a step, and return slots and positions of its tokens."""
    state = SimpleNamespace(resolve_block_ids=lambda name: (made.blocks[name],))
    made._connector_metadata = made.build_connector_meta(
        SimpleNamespace(num_scheduled_tokens=num_tokens, kv_connector_block_state=state)
    )
    starts = {name: made._requests[name].num_computed_tokens for name in num_tokens}
    positions = [
        i for name, count in num_tokens.items() for i in range(starts[name], starts[name] + count)
    ]
    names = [name for name, count in num_tokens.items() for _ in range(count)]
    slots = [
        made.blocks[name][i // BLOCK] * BLOCK + i % BLOCK
        for name, i in zip(names, positions, strict=True)
    ]
    return torch.tensor(slots), torch.tensor(positions)


def context(slots, attn_metadata=True):
    return ForwardContext(
        no_compile_layers={}, attn_metadata=attn_metadata, slot_mapping={"layer": slots}
    )


def found(made, slots, positions):
    tokens = made.generated_tokens(context(slots), positions)
    return tokens.are_all, None if tokens.rows is None else tokens.rows.tolist()


def test_steps_of_one_kind():
    made = connector(prompt=(0, 9, [3, 7, 1]), answer=(9, 9, [2, 4, 5]))
    assert found(made, *schedule(made, prompt=9)) == (False, None)
    assert found(made, *schedule(made, answer=1)) == (True, None)


def test_a_step_of_both_kinds():
    made = connector(
        chunk=(2, 9, [3, 7, 1]),
        answer=(9, 5, [2, 4, 5]),
        last=(8, 9, [8, 9, 10]),
        first=(4, 4, [11, 12]),
    )
    assert found(made, *schedule(made, chunk=3, answer=1, last=1, first=1)) == (False, [3, 5])


def test_a_preempted_request_that_starts_again():
    """It has prompt and generated tokens in one block."""
    made = connector(again=(0, 6, [3, 7, 1]), other=(3, 9, [2]))
    assert found(made, *schedule(made, other=1, again=9)) == (False, [7, 8, 9])
    made._requests["again"].num_computed_tokens = 7
    assert found(made, *schedule(made, again=2)) == (True, None)


def test_a_finished_request_is_forgotten():
    made = connector(one=(9, 9, [1, 2, 3]))
    assert made.request_finished(made._requests["one"], []) == (False, None)
    with pytest.raises(KeyError):
        schedule(made, one=1)


def test_padding_is_ignored():
    made = connector(prompt=(0, 4, [3]), answer=(4, 4, [2, 5]))
    slots, positions = schedule(made, prompt=2, answer=1)
    padded = torch.cat([positions, torch.tensor([9, 9])])
    assert found(made, slots, padded) == (False, [2])
    assert found(made, torch.cat([slots, torch.tensor([-1, -1])]), padded) == (False, [2])


@pytest.mark.parametrize(
    "change",
    [lambda slots: slots + 4 * BLOCK, lambda slots: slots[:2], lambda slots: slots.flip(0)],
)
def test_a_step_that_the_scheduler_did_not_describe_is_an_error(change):
    made = connector(prompt=(0, 9, [3]), answer=(4, 4, [2, 5]))
    slots, positions = schedule(made, prompt=2, answer=1)
    with pytest.raises(RuntimeError, match="not supported"):
        found(made, change(slots), positions)


def test_a_step_without_information_is_an_error():
    made = connector()
    made._connector_metadata = None
    with pytest.raises(RuntimeError, match="got none"):
        found(made, torch.tensor([0]), torch.tensor([0]))
    # A warm-up pass.
    assert found(made, torch.tensor([-1, -1]), torch.tensor([0, 0])) == (
        False,
        None,
    )


def test_a_pass_without_the_connector_is_an_error():
    with (
        override_forward_context(context(torch.tensor([0]))),
        pytest.raises(RuntimeError, match="PromptLengthsConnector"),
    ):
        generated_tokens(torch.tensor([0]))
    with override_forward_context(context({}, attn_metadata=None)):  # profiling
        assert generated_tokens(torch.tensor([0])) == GeneratedTokens()


def test_streaming_input_is_refused():
    with pytest.raises(SetupError, match="streaming"):
        connector().on_new_request(SimpleNamespace(request_id="a", resumable=True))


def test_an_empty_step():
    assert (
        connector().build_connector_meta(
            SimpleNamespace(num_scheduled_tokens={}, kv_connector_block_state=None)
        )
        == StepTokens()
    )


def layer(positions, hidden_states, residual):
    """Write into its inputs, as the layers of vLLM do, and return two sums."""
    if residual is None:
        return hidden_states * 2, hidden_states
    residual += hidden_states
    hidden_states.fill_(7.0)
    return hidden_states, residual


def run_skipped(generated, hidden_states, residual):
    model = _KeptLayers.__new__(_KeptLayers)
    model._generated = generated
    return model._run_for_prompt_tokens(layer, None, hidden_states, residual)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_skipped_layer_changes_prompt_tokens_only(is_first):
    hidden_states, residual = torch.randn(5, 3), None if is_first else torch.randn(5, 3)
    inputs = hidden_states.clone(), None if is_first else residual.clone()
    rows = torch.tensor([1, 4])
    after = run_skipped(GeneratedTokens(rows=rows), hidden_states, residual)
    wanted = layer(None, inputs[0].clone(), None if is_first else inputs[1].clone())
    prompt = [0, 2, 3]
    assert all(
        torch.equal(new[prompt], other[prompt]) for new, other in zip(after, wanted, strict=True)
    )
    before = inputs[0] if is_first else inputs[0] + inputs[1]
    assert torch.equal((after[0] + after[1])[rows], before[rows])


def test_a_skipped_layer_does_not_run_without_prompt_tokens():
    hidden_states, residual = torch.randn(2, 3), torch.randn(2, 3)
    after = run_skipped(GeneratedTokens(are_all=True), hidden_states, residual)
    assert after[0] is hidden_states and after[1] is residual
