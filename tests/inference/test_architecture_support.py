import pytest
import tiny_configs
import torch

from ulskip_cli.core.errors import UsageError
from ulskip_cli.inference import shallow_view


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("roberta", "RobertaForCausalLM .*padding id"),
        ("recurrent_gemma", "RecurrentGemmaForCausalLM .*recurrent state"),
        ("dory", r"DoryForCausalLM .*n_recurrent_loops"),
        ("zaya", "ZayaForCausalLM .*prev_router_hidden_states"),
        ("hy_v4", "HYV4ForCausalLM .*indexer_types"),
        ("rwkv", "RwkvForCausalLM .*no cache"),
    ],
)
def test_architectures_with_dependent_layers_are_refused_with_a_reason(model_type, reason):
    with pytest.raises(UsageError, match=reason):
        shallow_view.shallow_view(tiny_configs.build(model_type), (0, 5))


def test_recurrent_layers_alone_do_not_count_positions():
    model = tiny_configs.build("bamba")
    with pytest.raises(UsageError, match=r"BambaForCausalLM.*\[0, 1\].*\[2, 5\]"):
        shallow_view.shallow_view(model, (0, 1))


def test_a_recurrent_model_reads_given_text_token_by_token():
    model = tiny_configs.build("mamba")
    ids = torch.randint(2, 100, (1, 9), generator=torch.Generator().manual_seed(0))
    cache = shallow_view.new_cache(model)
    assert shallow_view.is_all_recurrent(cache)
    with torch.no_grad():
        expected = model(ids).logits
        shallow_view.forward_with_cache(model, ids[:, :4], torch.ones(1, 4), cache)
        fork = shallow_view.fork_cache(cache, range(6))
        got = [
            shallow_view.forward_with_cache(model, ids[:, 4:], torch.ones(1, 9), one)
            for one in (fork, cache)
        ]
    assert torch.allclose(got[0], expected[:, 4:], atol=1e-4)
    assert torch.equal(got[0], got[1])  # a fork does not change the first cache
