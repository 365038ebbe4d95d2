"""Whether what was written, loaded by transformers alone, is the view: the same logits and the same greedy tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from ulskip_cli import views
from ulskip_cli.errors import RunError

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 3, 24, 16
_SHARE_OF_FREE_MEMORY = 0.7


@dataclass(frozen=True)
class Compared:
    """A comparison that found no difference.

    Attributes:
        prompts: random ids, one padded on the left.
        positions: whose logits are equal, bit for bit.
        tokens: generated greedily by both, the same.
    """

    prompts: int
    positions: int
    tokens: int


def fits(model_bytes: int, exported_bytes: int) -> bool:
    """Whether both models fit into the memory that is free now."""
    return bool(model_bytes + exported_bytes < _SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available)


def compare(model: PreTrainedModel, kept: Sequence[int], folder: Path, trust_remote_code: bool = False) -> Compared:
    """Load an export and hold it against the view of the model that it was made of.

    Args:
        model: the full model.
        kept: layers of the view.
        folder: of the export.
        trust_remote_code: whether code beside the weights may run.

    Raises:
        RunError: a logit or a token differs, or a tensor is missing; the export is worth nothing.
    """
    view = views.shallow_view(model, kept)
    exported, loading = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, trust_remote_code=trust_remote_code
    )
    if loading["missing_keys"]:
        raise RunError(f"the export lacks {sorted(loading['missing_keys'])[0]}, so it was not kept")
    exported = exported.eval().to(views.input_device(model))
    if exported.dtype != view.dtype:
        raise RunError(f"the export loads in {exported.dtype} and the model in {view.dtype}, so it was not kept")
    ids, mask = prompts(view)
    with torch.inference_mode():
        logits = [one(input_ids=ids, attention_mask=mask).logits for one in (view, exported)]
        tokens = [_greedy(one, ids, mask) for one in (view, exported)]
    real = mask.bool()
    gap = float((logits[0] - logits[1])[real].abs().max())
    if not gap == 0 or not torch.equal(*tokens):  # a gap that is no number is none of 0
        raise RunError(f"the export's logits differ from the view's by up to {gap:.3g}, so it was not kept")
    return Compared(PROMPTS, int(real.sum()), tokens[0].numel())


def prompts(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Random ids and their mask, each [prompts, prompt_len], the last padded on the left."""
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocab_size, (PROMPTS, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, : PROMPT_TOKENS // 3] = 0
    device = views.input_device(model)
    return ids.to(device), mask.to(device)


def _greedy(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """[prompts, new tokens], past any end token."""
    chosen = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None, top_k=50)
    tokens: Tensor = model.generate(input_ids=ids, attention_mask=mask, generation_config=chosen)
    return tokens[:, ids.shape[1] :]
