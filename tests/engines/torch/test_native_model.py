"""Models are recognized by what they compute, and bounds choose the tokens of the whole head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    ARCHITECTURES,
    NATIVE_ARCHITECTURES,
    batch,
    build_model,
    decoder_for,
    generate,
    random_adapter,
)
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from ulskip_cli.core.config import compose
from ulskip_cli.core.model_metadata import ModelFolder
from ulskip_cli.engines.sampling import InvalidLogitsError
from ulskip_cli.engines.torch import kernels, native_model
from ulskip_cli.engines.torch.native_model import (
    UNLIMITED,
    NativeBackend,
    PanelBackend,
    backend_for,
)
from ulskip_cli.inference.shallow_view import shallow_view
from ulskip_cli.inference.teacher_forcing import encode_prompt

pytestmark = pytest.mark.usefixtures("needs_kernels")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recognized_architectures(dtype):
    models = {name: build_model(name).to(dtype) for name in ARCHITECTURES}
    recognized = [
        name for name, model in models.items() if isinstance(backend_for(model), NativeBackend)
    ]
    assert sorted(recognized) == NATIVE_ARCHITECTURES


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plan_counts_the_bytes_of_all_copies(dtype):
    config = compose([f"model.dtype={dtype}"])
    files = ModelFolder(config.model)
    model = LlamaForCausalLM.from_pretrained(files.file.parent, dtype=getattr(torch, dtype))
    held = {
        tensor.data_ptr(): tensor.nbytes
        for tensor in backend_for(model).step_model(model)._tensors
        if tensor.data_ptr() not in {weight.data_ptr() for weight in model.parameters()}
    }
    planned = config.engine.copied_bytes(files.metadata, "cpu", frozenset())
    assert planned == pytest.approx(sum(held.values()), rel=0.05)


def scaled_residual(model):
    layer = model.model.layers[3]
    plain = layer.mlp.forward
    layer.mlp.forward = lambda hidden: 0.9 * plain(hidden)


def larger_norm(model):
    class Larger(type(model.model.norm)):
        def forward(self, hidden):
            return 1.1 * super().forward(hidden)

    model.model.norm.__class__ = Larger


def scaled_embedding(model):
    class Scaled(type(model.model)):
        def forward(self, input_ids, inputs_embeds=None, **options):
            embeds = 2 * self.embed_tokens(input_ids)
            return super().forward(inputs_embeds=embeds, **options)

    model.model.__class__ = Scaled


def other_activation(model):
    model.model.layers[0].mlp.act_fn = nn.GELU()


def sinks(model):
    model.model.layers[0].self_attn.sinks = nn.Parameter(torch.zeros(4))


def another_part(model):
    model.model.layers[0].extra = nn.Identity()


@pytest.mark.parametrize(
    "change",
    [scaled_residual, larger_norm, scaled_embedding, other_activation, sinks, another_part],
)
def test_a_model_that_computes_something_else_is_not_recognized(llama, change):
    change(llama)
    assert isinstance(backend_for(llama), PanelBackend)


def test_an_unknown_model_decodes_by_its_own_forward_passes_and_the_row_says_why():
    decoder = decoder_for(build_model("bloom"), "ratio=2")
    output = generate(decoder, *batch(False), 4)
    assert output.linear_backend != "native"
    assert "Bloom" in decoder.views.backend.reason


@pytest.mark.parametrize(("kind", "own"), [(None, 0), ("full", 6), ("lora", 21)])
def test_views_share_the_copies_of_weights_that_they_have_in_common(llama, spy, kind, own):
    kept, native = (0, 2, 4), backend_for(llama)
    compare = spy(native_model, "_native_backend")

    def held(view):
        return {tensor.data_ptr() for tensor in backend_for(llama).step_model(view)._tensors}

    view = shallow_view(llama, kept)
    if kind:  # three patches with bias, or the seven linear layers of each layer
        view = random_adapter(llama, kept, kind)[0].view(llama, kept)
    whole, plain, corrected = held(llama), held(shallow_view(llama, kept)), held(view)
    assert plain < whole and len(corrected - whole) == own
    assert backend_for(llama) is native and not compare.called


# ---- The head ----


def model_with_head(rows):
    """Return the native model of a Llama with this head [vocab_size, hidden_size]."""
    vocab_size, hidden = rows.shape
    sizes = {"num_hidden_layers": 1, "vocab_size": vocab_size, "hidden_size": hidden}
    heads = {"intermediate_size": 8, "num_attention_heads": 1, "head_dim": 8}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval().to(rows.dtype)
    model.lm_head.weight = nn.Parameter(rows, requires_grad=False)
    norms = [layer.input_layernorm for layer in model.model.layers]
    native = NativeBackend(dict.fromkeys(norms, UNLIMITED), kernels.Copies(kernels.pack))
    return native.step_model(model)  # not compared, because the numbers may overflow


def chosen_and_logits(native, states, banned=()):
    """Return choices and logits of states [rows, hidden_size], and the number of exact rows."""
    logits = torch.empty(1, len(states), native.vocab_size)
    padding = torch.zeros(1, dtype=torch.int32)
    batch = kernels.Batch(1, len(states), 0, len(states), padding.data_ptr())
    native.run(None, batch, states=states[None].clone(), logits=logits)
    chosen, exact_rows = (
        torch.empty(1, len(states), dtype=torch.long),
        torch.zeros(1, dtype=torch.long),
    )
    ids = torch.tensor(banned, dtype=torch.long)
    choice = kernels.ChosenTokens(
        chosen.data_ptr(), ids.data_ptr(), len(ids), exact_rows.data_ptr()
    )
    native.run(None, batch, states=states[None].clone(), chosen=choice)
    logits[..., ids] = -torch.inf
    return chosen[0], logits[0], int(exact_rows)


NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, 3.0, -7.0, 127.0, 1 / 127])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@settings(max_examples=200)
@given(data=st.data(), dtype=DTYPES, seed=st.integers(0, 999))
def test_bounds_choose_the_tokens_of_the_whole_head(data, dtype, seed):
    torch.manual_seed(seed)
    vocab, hidden = data.draw(st.integers(1, 100)), data.draw(st.sampled_from([8, 30, 64]))
    rows = torch.randn(vocab, hidden) * data.draw(NUMBERS)
    states = torch.randn(data.draw(st.integers(1, 6)), hidden) * data.draw(NUMBERS)
    for _ in range(data.draw(st.integers(0, 5))):  # equal, opposite and nearly equal rows
        a, b = data.draw(st.integers(0, vocab - 1)), data.draw(st.integers(0, vocab - 1))
        rows[a] = rows[b] * data.draw(st.sampled_from([1.0, -1.0, 1 + 2**-7, 1 - 2**-20]))
    if data.draw(st.booleans()):  # one huge number among others
        rows[:, 0] = data.draw(NUMBERS)
        states[:, data.draw(st.integers(0, hidden - 1))] = data.draw(NUMBERS)
    banned = data.draw(st.lists(st.integers(0, vocab - 1), max_size=3))
    native = model_with_head(rows.to(dtype))
    chosen, logits, _ = chosen_and_logits(native, states.to(dtype), banned)
    best = logits.max(dim=-1)
    wanted = logits.argmax(-1).masked_fill(~best.values.isfinite(), -1)
    assert torch.equal(chosen, wanted)


def test_few_rows_of_a_large_head_are_computed_exactly():
    torch.manual_seed(0)
    native = model_with_head(torch.randn(20_000, 256))
    chosen, logits, exact_rows = chosen_and_logits(native, torch.randn(50, 256))
    assert torch.equal(chosen, logits.argmax(-1))
    assert exact_rows < 50 * 20


def test_a_head_that_was_written_is_copied_anew(llama):
    generate(decoder_for(llama, "strategy=full"), *batch(False), 12)
    with torch.no_grad():
        llama.lm_head.weight[:] = torch.randn_like(llama.lm_head.weight)
    output = generate(decoder_for(llama, "strategy=full"), *batch(False), 12)
    ids, _ = batch(False)
    wanted = llama.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert output.token_ids == wanted[:, ids.shape[1] :].tolist()


def test_bounds_that_leave_many_rows_are_given_up(llama):
    with torch.no_grad():
        llama.lm_head.weight[:] = llama.lm_head.weight[0]  # all logits are equal
    decoder = decoder_for(llama, "strategy=full")
    first, _, last = (generate(decoder, *batch(False), 12) for _ in range(3))
    assert {token for row in last.token_ids for token in row} == {0}
    assert first.head_rows == llama.config.vocab_size
    assert last.head_rows is None


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_states_that_are_not_finite_are_noticed(llama, wrong):
    with torch.no_grad():
        llama.model.layers[2].mlp.down_proj.weight[0, 0] = wrong
    decoder = decoder_for(llama, "strategy=full", "prompt_layers=all")
    with pytest.raises(InvalidLogitsError, match="finite"):
        generate(decoder, *batch(False), 12)


@pytest.mark.parametrize("name", sorted({*NATIVE_ARCHITECTURES} - {"mistral", "qwen2"}))
def test_prompts_that_the_kernels_read_are_those_of_a_forward_pass(name):
    model, (ids, mask) = build_model(name), batch(True)
    prompt, expected = (
        backend_for(model).step_model(model).encode(ids, mask),
        encode_prompt(model, ids, mask),
    )
    torch.testing.assert_close(prompt.first_logits, expected.first_logits, rtol=1e-4, atol=1e-4)
    seen = mask[:, None, :, None].bool()
    for layer, other in zip(prompt.cache.layers, expected.cache.layers, strict=True):
        for states, wanted in ((layer.keys, other.keys), (layer.values, other.values)):
            assert states.isfinite().all()
            torch.testing.assert_close(states * seen, wanted * seen, rtol=1e-4, atol=1e-4)
