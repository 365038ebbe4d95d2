"""Verify an exported folder: load it with transformers, and compare logits and greedy tokens with
the view.
"""

from pathlib import Path

import psutil
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from ulskip_cli.core.errors import RunError
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.export.request import ResolvedExport
from ulskip_cli.inference import shallow_view

NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 3, 24, 16
DELETED = "the export was deleted; --no-check exports without this comparison"
_MAX_SHARE_OF_FREE_MEMORY = 0.7


def verify_checkpoint(
    point: ResolvedExport, view: PreTrainedModel, folder: Path, progress: ProgressCallback
) -> str:
    """Compare an exported folder with the view if request and memory allow it; describe the
    checks.
    """
    structure = "the config describes the modules, tensor shapes and settings of the kept layers"
    if point.check is False:
        return f"{structure}; logits were not compared (--no-check)"
    exported_bytes = sum(parameter.nbytes for parameter in view.parameters())
    if (
        point.check is None
        and exported_bytes >= _MAX_SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available
    ):
        return (
            f"{structure}; logits were not compared, because model and export do not fit into"
            " memory together"
        )
    progress.phase("compare with the model", 1)
    positions, tokens = compare_with_view(view, folder, point.config.model.trust_remote_code)
    return (
        f"{structure}; logits at {positions} positions of {NUM_PROMPTS} random prompts and {tokens}"
        " greedy tokens are bit-identical to those of the source with these"
        f" layers{' and the skip adapter' if point.skip_adapter else ''}"
    )


def compare_with_view(
    view: PreTrainedModel, folder: Path, trust_remote_code: bool = False
) -> tuple[int, int]:
    """Compare an export with the view; raise RunError if a logit or a token differs.

    Return the numbers of compared positions and tokens.
    """
    exported, loading = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, trust_remote_code=trust_remote_code
    )
    if loading["missing_keys"]:
        raise RunError(
            f"expected {sorted(loading['missing_keys'])[0]} in the export, got no such tensor;"
            f" {DELETED}"
        )
    models = (view, exported.eval().to(shallow_view.input_device(view)))
    input_ids, attention_mask = random_prompts(view)
    with torch.inference_mode():
        logits = [
            model(input_ids=input_ids, attention_mask=attention_mask).logits for model in models
        ]
        tokens = [_greedy_tokens(model, input_ids, attention_mask) for model in models]
    difference = float((logits[0] - logits[1])[attention_mask.bool()].abs().max())
    if not difference == 0 or not torch.equal(*tokens):  # NaN is unequal to 0
        raise RunError(
            "expected the export to give the logits of the kept layers, got a difference of"
            f" {difference:.3g}; {DELETED}"
        )
    return int(attention_mask.sum()), tokens[0].numel()


def random_prompts(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return random token ids and their mask, both [prompts, prompt_len]; the last prompt is padded
    on the left.
    """
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    input_ids = torch.randint(
        vocab_size, (NUM_PROMPTS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1)
    )
    attention_mask = torch.ones_like(input_ids)
    attention_mask[-1, : PROMPT_TOKENS // 3] = 0
    device = shallow_view.input_device(model)
    return input_ids.to(device), attention_mask.to(device)


def _greedy_tokens(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return greedy tokens [prompts, new_tokens]; generation continues after EOS."""
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None, top_k=50
    )
    output: Tensor = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=config
    )
    return output[:, input_ids.shape[1] :]
