"""Block influence: the mean angular change of the hidden state in each layer (ShortGPT, Men et al.
2024).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import padded
from ulskip_cli.inference.teacher_forcing import encode_prompt


def block_influence(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    batch_size: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Return `1 - mean_t cos(h_l, h_{l+1})` of every layer, with input h_l and output h_{l+1};
    `texts` are token ids.
    """
    layers = shallow_view.decoder_layers(model)
    sums, count = torch.zeros(len(layers), dtype=torch.float64), 0
    mask: Tensor = torch.empty(0)

    def read(
        index: int,
        module: nn.Module,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        output: shallow_view.LayerOutput,
    ) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        similar = functional.cosine_similarity(
            before.float(), after.float().to(before.device), dim=-1
        )
        sums[index] += float(similar[mask.to(similar.device)].double().sum())

    # Hooks are used because the last of a model's `hidden_states` is the output of the final norm,
    # not of the last layer.
    device, order = shallow_view.input_device(model), sorted(texts, key=len, reverse=True)
    with ExitStack() as hooks, torch.inference_mode():
        for i, layer in enumerate(layers):
            hook = layer.register_forward_hook(partial(read, i), with_kwargs=True)
            hooks.enter_context(hook)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, attention_mask = padded(batch, 0, True, device)
            mask = attention_mask.bool()
            encode_prompt(model, ids, attention_mask)
            count += int(mask.sum())
            on_batch(min(start + batch_size, len(order)))
    return [1 - float(total) / count for total in sums]
