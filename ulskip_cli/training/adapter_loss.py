"""The loss of a skip adapter: patches and LoRA in the views of a frozen model, trained towards the
model's own distribution.

The prompt's keys and values and the full model's states come from the frozen model, so they are
computed once and kept. A step costs the response tokens alone.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ulskip_cli.core.config_schema import LoraOptions, TrainOptions
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import Layers, Stage
from ulskip_cli.core.weight_sizes import gaps
from ulskip_cli.inference import kv_cache, shallow_view
from ulskip_cli.inference.layerwise import LayerwiseModel
from ulskip_cli.inference.skip_adapter import SkipAdapter, lora_name, patched_view
from ulskip_cli.inference.teacher_forcing import EncodedPrompt
from ulskip_cli.training.data import LossBatch
from ulskip_cli.training.frozen_outputs import FrozenBatch, FrozenOutputs
from ulskip_cli.training.two_pass_loss import TwoPassLoss, divergence

_ADAPTER = "default"  # peft's name of the adapter


class AdapterLoss(TwoPassLoss):
    """The loss of a skip adapter as a module; its trained parameters are the patches and the LoRA
    matrices.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        start: SkipAdapter,
        train: TrainOptions,
        max_bytes: int,
    ) -> None:
        """Prepare LoRA and patches for training, with the values of `start`, which has a patch at
        every gap. The weights of `model` are frozen, but not changed.

        `max_bytes` bounds the stored outputs of the full model. With `train.draft_length`, the
        views draft that many tokens at once.
        """
        layers = sorted(set().union(*start.kept_sets))
        lora_model, self.lora_paths = _with_lora(start.folded(model), layers, train.lora)
        super().__init__(lora_model, "all", train)
        self._layerwise_views = dict[Layers, LayerwiseModel]()
        self.start, self.draft_length = start, train.draft_length
        depths = {depth for kept in start.kept_sets for span in self._spans(kept) for depth in span}
        self.outputs = FrozenOutputs(
            model, max_bytes, layers, train.draft_length > 0, depths if train.gap_weight else ()
        )
        if train.draft_length and not self.outputs.has_free_masks:
            raise UsageError(
                f"train.draft_length is not supported with {type(model).__name__}, whose attention"
                " depends on more than a mask and positions; use train.draft_length=0"
            )
        # Their names begin with the set and the layer, as in an adapter.
        self.patches = nn.ModuleList(
            nn.ModuleDict({str(layer): patch for layer, patch in patches.items()})
            for patches in (start.patches(index, model) for index in range(len(start.kept_sets)))
        )
        for place, down, up, scale in self._lora():
            if lora_name(*place, "A") in start.tensors:  # of an adapter that is trained further
                down.data.copy_(start.tensors[lora_name(*place, "A")])
                up.data.copy_(start.tensors[lora_name(*place, "B")] / scale)

    def _lora(self) -> Iterator[tuple[tuple[int, str], nn.Parameter, nn.Parameter, float]]:
        """Yield the place of every adapted module, its matrices A and B, and the scale of `B A`."""
        for path, place in self.lora_paths.items():
            module: Any = self.model.get_submodule(path)
            down, up = module.lora_A[_ADAPTER].weight, module.lora_B[_ADAPTER].weight
            yield place, down, up, module.scaling[_ADAPTER]

    def schedule_loss(self, batch: LossBatch, stages: tuple[Stage, ...]) -> Tensor:
        """Compute the loss of a batch under a schedule, summed over the labelled positions."""
        weights = self.weights
        distills = weights.distill_weight + weights.tv_weight > 0
        with_states = distills or weights.gap_weight > 0 or self.draft_length > 0
        frozen = self.outputs.of(batch, with_states)
        loss = frozen.prompt.first_logits.new_zeros((), dtype=torch.float32)
        if weights.gap_weight and frozen.states is not None:
            sets = [stage.kept_layers for stage in stages]
            losses = [self._gap_loss(batch, kept, frozen.prompt, frozen.states) for kept in sets]
            loss = loss + weights.gap_weight * torch.stack(losses).mean()
        if not distills and not weights.ce_weight:
            return loss
        skips = stages[-1].kept_layers != self.all_layers
        if skips and self.draft_length and frozen.states is not None:
            logits = self._draft_logits(batch, stages[0].kept_layers, frozen)
        else:  # the frozen prompt lacks layers that no view keeps
            logits = self._student_logits(batch, stages, frozen.prompt if skips else None)
        if weights.ce_weight:
            loss = loss + weights.ce_weight * self._cross_entropy(logits, batch.labels)
        if distills and frozen.states is not None:
            with torch.no_grad():
                target = self.outputs.layerwise.logits(frozen.states[None, :, -1])[0]
            student = logits[:, 1:][batch.is_labelled[:, 1:]]
            loss = loss + divergence(target, student, weights.distill_weight, weights.tv_weight)
        return loss

    def _spans(self, kept: Layers) -> list[tuple[int, int]]:
        """Return, for each gap of a view, the depths in front of the layer before it and behind the
        layer after it. A layer before it that is behind a gap itself is left out; gaps on both
        sides of the last kept layer are one.
        """
        num_layers = len(self.all_layers)
        behind_gaps = gaps(kept, num_layers)
        return [
            (
                before + (before < 0 or before in behind_gaps),
                num_layers if after >= kept[-1] and num_layers in behind_gaps else after + 1,
            )
            for before, after in pairwise([-1, *kept, num_layers])
            if after in behind_gaps and not (after == num_layers and before in behind_gaps)
        ]

    def _gap_loss(
        self, batch: LossBatch, kept: Layers, prompt: EncodedPrompt, states: Tensor
    ) -> Tensor:
        """Compute the mean over the gaps of |y - h|^2 / |h|^2, summed over the positions: h is the
        full model's state behind the layer after a gap, y that of the layers around the gap, which
        run on the full model's state in front of them.
        """
        depths = self.outputs.depths
        if kept not in self._layerwise_views:
            self._layerwise_views[kept] = LayerwiseModel(self._view(kept))
        layerwise = self._layerwise_views[kept]
        ids, labelled = batch.response_ids[:, :-1], batch.is_labelled
        chosen = labelled[:, 1:]
        losses = [states.new_zeros((), dtype=torch.float32)]
        for first, last in self._spans(kept):
            inputs = layerwise.after(prompt, ids, labelled, kept)
            hidden = torch.zeros_like(inputs.hidden)
            hidden[chosen] = states[:, depths.index(first)]
            for place, layer in enumerate(kept):
                if first <= layer < last:
                    hidden = layerwise.layer(place, hidden, inputs)
            target = states[:, depths.index(last)].float()
            error = (hidden[chosen].float() - target).pow(2).sum(-1)
            losses.append((error / target.pow(2).sum(-1)).sum())
        return torch.stack(losses).sum() / max(1, len(losses) - 1)

    def _draft_logits(self, batch: LossBatch, kept: Layers, frozen: FrozenBatch) -> Tensor:
        """Return the logits [batch, response_len, vocab_size] of drafts.

        As in decoding, a view reads the full model's keys and values of the tokens before its
        drafts, and its own keys and values only for the drafts.
        """
        prompt, known = frozen.prompt, frozen.response
        cache = kv_cache.fork_cache(prompt.cache, kept)
        for layer, cached in zip(kept, cache.layers, strict=True):
            place = 2 * self.outputs.layers.index(layer)
            cached.update(known[place], known[place + 1])
        inputs = batch.response_ids[:, :-1]
        count = inputs.shape[1]
        positions = torch.arange(count, device=inputs.device)
        # of the drafts to which a token belongs
        start = (positions - positions % self.draft_length)[:, None]
        drafted = (positions >= start) & (positions <= positions[:, None])
        response = torch.cat([positions < start, drafted], dim=1).expand(len(inputs), -1, -1)
        seen = torch.cat([prompt.mask.bool()[:, None].expand(-1, count, -1), response], dim=2)
        mask = prompt.first_logits.new_zeros(seen.shape)
        mask = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
        logits = self._view(kept)(
            input_ids=inputs,
            attention_mask=mask[:, None],  # [batch, 1, count, prompt_len + 2 count]
            position_ids=prompt.mask.sum(1, keepdim=True) + positions,
            cache=cache,
            use_cache=True,
        ).logits
        return torch.cat([prompt.first_logits, logits], dim=1)

    def adapter(self, record: dict[str, object]) -> SkipAdapter:
        """Return the trained tensors as an adapter."""
        tensors = {
            name: tensor for name, tensor in self.start.tensors.items() if name.startswith("fold.")
        }
        tensors |= {f"patch.{name}": part for name, part in self.patches.state_dict().items()}
        for place, down, up, scale in self._lora():
            tensors[lora_name(*place, "A")] = down
            tensors[lora_name(*place, "B")] = scale * up
        return replace(self.start, tensors=tensors, record=record)

    def _view(self, kept: Layers) -> PreTrainedModel:
        """Return the frozen model for all layers, else a view with the patches of this set."""
        if kept == self.all_layers:
            return self.outputs.model
        if kept not in self._views:
            patches: Any = self.patches[self.start.kept_sets.index(kept)]
            by_layer = {int(layer): patch for layer, patch in patches.items()}
            self._views[kept] = patched_view(self.base, kept, by_layer)
        return self._views[kept]


def _with_lora(
    model: PreTrainedModel, layers: Sequence[int], lora: LoraOptions
) -> tuple[PreTrainedModel, dict[str, tuple[int, str]]]:
    """Return a copy of a model that shares its weights, with LoRA on `layers`, and the paths of the
    adapted modules.
    """
    from peft import LoraConfig, inject_adapter_in_model

    copied = shallow_view.detached(model)
    paths: dict[str, tuple[int, str]] = {}
    prefix, stack = shallow_view.layer_stack(copied)
    for layer in layers:
        for name, module in stack[layer].named_modules():
            if type(module) in (nn.Linear, Conv1D):
                paths[f"{prefix}.{layer}.{name}"] = (layer, name)
    if not lora.rank:
        return copied.requires_grad_(False), {}
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(paths))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft corrects it for Conv1D
        inject_adapter_in_model(config, copied, _ADAPTER)
    for parameter in copied.parameters():
        if parameter.requires_grad:  # bfloat16 would round small updates to zero
            parameter.data = parameter.data.float()
    return copied, paths
