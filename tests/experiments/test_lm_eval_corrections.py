"""Skip adapters and patches under lm-evaluation-harness."""

import pytest
import torch

from ulskip_cli.api import generate
from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import fingerprint
from ulskip_cli.core.weight_sizes import gaps
from ulskip_cli.experiments import lm_eval_adapter
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.skip_adapter import SkipAdapter

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("prompt_layers", ["kept", "all"])
def test_a_skip_adapter_corrects_scores_and_answers(tmp_path, prompt_layers):
    asked = {"model": "tiny", "ratio": 3, "prompt_layers": prompt_layers, "device": "cpu"}
    plain = lm_eval_adapter.SkippingLM(**asked)
    kept, base = (
        plain.plan.kept_layers,
        {
            "model": "tiny",
            "fingerprint": fingerprint(compose(["model=tiny"]).model),
        },
    )
    size, depth = plain.loaded.model.config.hidden_size, plain.plan.num_layers
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in gaps(kept, depth):
        tensors[f"patch.0.{layer}.linear.weight"] = torch.zeros(size, size)
        tensors[f"patch.0.{layer}.linear.bias"] = 20 * torch.randn(size, generator=generator)
    adapter = SkipAdapter(depth, (kept,), tensors, {"base": base, "kind": "full"})
    adapter.save(tmp_path)
    corrected = {"correction": "adapter", "correction.path": str(tmp_path)}
    model = lm_eval_adapter.SkippingLM(**asked, **corrected)
    prompt, response = (
        model.tok_encode("Der Hund schläft."),
        model.tok_encode(" The dog is sleeping."),
    )
    ids, view = torch.tensor([prompt + response]), adapter.view(plain.loaded.model, kept)
    with torch.inference_mode():
        if prompt_layers == "kept":
            logits = view(ids).logits
        else:
            cache = plain.loaded.model(ids[:, : len(prompt)], use_cache=True)
            first = cache.logits[:, -1:]
            pruned = cache.cache if hasattr(cache, "cache") else cache.past_key_values
            shallow_view.prune_cache(pruned, kept)
            rest = shallow_view.forward_with_cache(
                view, ids[:, len(prompt) :], torch.ones_like(ids), pruned
            )
            logits = torch.cat([torch.zeros(1, len(prompt) - 1, first.shape[-1]), first, rest], 1)
    chances = torch.log_softmax(logits[0, len(prompt) - 1 : -1], -1)
    expected = float(chances.gather(1, torch.tensor(response)[:, None]).sum())
    ((score, _),) = model._loglikelihood_tokens([(None, prompt, response)], disable_tqdm=True)
    ((other, _),) = plain._loglikelihood_tokens([(None, prompt, response)], disable_tqdm=True)
    assert score == pytest.approx(expected, abs=1e-3)
    assert abs(score - other) > 1e-2
    mine = model._model_generate(torch.tensor([prompt]), len(prompt) + 8, [])
    (answer,) = generate(
        plain.loaded.model,
        model.tokenizer,
        ["Der Hund schläft."],
        kept,
        prompt_layers=prompt_layers,
        skip_adapter=adapter,
        max_new_tokens=8,
    )
    assert mine[0, len(prompt) :].tolist() == answer.token_ids
    assert model.record().to_row()["correction"]["path"] == str(tmp_path)
    with pytest.raises(UsageError, match=r"correction\.path"):
        lm_eval_adapter.SkippingLM(**{**asked, "ratio": 2}, **corrected)


def test_patches_that_only_a_run_computes_are_refused():
    with pytest.raises(UsageError, match="patches"):
        lm_eval_adapter.SkippingLM(model="tiny", ratio=3, correction="patch")
