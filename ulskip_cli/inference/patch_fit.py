"""Compute gap patches in closed form: least squares from the states of a view to those of the full
model, gap by gap.

A gap patch is the ridge regression of the difference between the full model's states and the view's
on the view's states, at the positions of a response. A folded patch regresses on the output of the
last linear layer in front of the gap instead (ReplaceMe, arXiv:2505.02819). Both need no training.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.weight_sizes import gaps
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import padded
from ulskip_cli.inference.layerwise import LayerInputs, LayerwiseModel
from ulskip_cli.inference.ridge_regression import PatchOptions, RidgeRegression
from ulskip_cli.inference.skip_adapter import SkipAdapter
from ulskip_cli.inference.teacher_forcing import EncodedPrompt, encode_prompt
from ulskip_cli.tasks.encoding import EncodedExample

_KEPT_PATCH_BYTES = 2**30  # limit of the joint patches that are kept
_ROUNDINGS = 4  # rounding errors that a layer may add to a sum


@dataclass
class _Batch:
    """The inputs of one batch's regression; a student pass appends to a fork of `cache`."""

    input_ids: Tensor  # [batch, count]
    mask: Tensor  # [batch, cached_len + count]
    counted: Tensor  # [batch, count], True at the positions of the regression
    prompt: EncodedPrompt | None  # None if the kept layers encode the prompts
    teacher: dict[int, Tensor] = field(default_factory=dict)  # by depth: [positions, hidden_size]


class PatchFitter:
    """Fits patches of several schedules on the same examples; the prompts and the full model's
    states are computed once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        examples: Sequence[EncodedExample],
        pad_token_id: int,
        prompt_layers: str = "all",
        batch_size: int = 16,
    ) -> None:
        """Encode the prompts; `examples` need responses of at least two tokens, because the prompt
        predicts the first.
        """
        self.model, self.prompt_layers = model, prompt_layers
        self.device = shallow_view.input_device(model)
        self.full = LayerwiseModel(model)
        self.num_layers = len(self.full.layers)
        usable = [example for example in examples if len(example.response_ids) > 1]
        if not usable:
            raise UsageError(
                "expected responses of at least two tokens to fit patches, got none; use other"
                " held-out examples"
            )
        usable.sort(key=lambda example: -len(example.prompt_ids) - len(example.response_ids))
        chunks = [usable[i : i + batch_size] for i in range(0, len(usable), batch_size)]
        self._fitted: dict[
            tuple[int, int, PatchOptions], dict[str, Tensor]
        ] = {}  # joint patches by the gap's ends
        with torch.inference_mode():
            self.batches = [self._batch(chunk, pad_token_id) for chunk in chunks]

    def joined(self, other: "PatchFitter") -> "PatchFitter":
        """Return a fitter on the examples of both; they share the encoded prompts."""
        return self.with_batches(self.batches + other.batches)

    def with_batches(self, batches: Sequence[_Batch]) -> "PatchFitter":
        """Return a fitter on other batches of the same model."""
        fitter = copy.copy(self)
        fitter.batches, fitter._fitted = list(batches), {}
        return fitter

    @property
    def num_positions(self) -> int:
        """The number of positions in the regression."""
        return sum(int(batch.counted.sum()) for batch in self.batches)

    def _batch(self, examples: Sequence[EncodedExample], pad_token_id: int) -> _Batch:
        prompts = padded([example.prompt_ids for example in examples], pad_token_id, left=True)
        responses = padded(
            [example.response_ids[:-1] for example in examples], pad_token_id, left=False
        )
        (prompt_ids, prompt_mask), (ids, mask) = (
            (tensor.to(self.device) for tensor in pair) for pair in (prompts, responses)
        )
        if self.prompt_layers == "all":
            prompt = encode_prompt(self.model, prompt_ids, prompt_mask)
            return _Batch(ids, torch.cat([prompt_mask, mask], 1), mask.bool(), prompt)
        whole = torch.cat([prompt_mask, mask], 1)
        return _Batch(torch.cat([prompt_ids, ids], 1), whole, whole.bool(), None)

    def _enter(
        self, layerwise: LayerwiseModel, model: PreTrainedModel, batch: _Batch, kept: Sequence[int]
    ) -> LayerInputs:
        if batch.prompt is None:
            cache: DynamicCache = shallow_view.new_cache(model)
        else:
            cache = shallow_view.fork_cache(batch.prompt.cache, kept)
        return layerwise.enter(
            batch.input_ids,
            cache,
            **shallow_view.placing(model, batch.mask, batch.input_ids.shape[1]),
        )

    def _teach(self, depths: Collection[int]) -> None:
        """Compute the full model's states at `depths` where they are missing."""
        for batch in self.batches:
            missing = set(depths) - batch.teacher.keys()
            if not missing:
                continue
            entry = self._enter(self.full, self.model, batch, range(self.num_layers))
            hidden = entry.hidden
            for index in range(max(missing) + 1):
                if index in missing:
                    batch.teacher[index] = hidden[batch.counted]
                if index < max(missing):
                    hidden = self.full.layer(index, hidden, entry)

    @torch.inference_mode()
    def fit(self, kept: Sequence[int], options: PatchOptions) -> SkipAdapter:
        """Return an adapter with a patch at every gap of `kept`; raise UsageError if a patch cannot
        be folded.
        """
        ends = gaps(kept, self.num_layers)
        tensors = (
            self._fit_folded(kept, ends, options)
            if options.kind == "folded"
            else self._fit_joint(kept, ends, options)
        )
        return SkipAdapter(
            self.num_layers,
            (tuple(kept),),
            {name: tensor.float() for name, tensor in tensors.items()},
        )

    def _fit_joint(
        self, kept: Sequence[int], ends: Collection[int], options: PatchOptions
    ) -> dict[str, Tensor]:
        """Return patches that map the full model's states before a gap to those behind it.

        The patch of a gap does not depend on other gaps, so it is kept for other schedules.
        """
        before = {
            layer: max((kept_layer for kept_layer in kept if kept_layer < layer), default=-1)
            for layer in ends
        }
        self._teach([*ends, *(layer + 1 for layer in before.values())])
        tensors: dict[str, Tensor] = {}
        for layer in ends:
            key = (before[layer], layer, options)
            parts = self._fitted.get(key)
            if parts is None:
                inputs = [batch.teacher[before[layer] + 1] for batch in self.batches]
                parts = self._regress(inputs, inputs, layer, options)
                if (
                    len(self._fitted) * sum(part.nbytes for part in parts.values())
                    < _KEPT_PATCH_BYTES
                ):
                    self._fitted[key] = parts
            tensors |= _named(parts, layer, before[layer], "")
        return tensors

    def _fit_folded(
        self, kept: Sequence[int], ends: Collection[int], options: PatchOptions
    ) -> dict[str, Tensor]:
        """Return folded patches, in order: each maps the view's states, corrected by the earlier
        patches, to the full model's.
        """
        self._teach(ends)
        view = shallow_view.shallow_view(self.model, kept)
        layerwise = LayerwiseModel(view)
        entries = [self._enter(layerwise, view, batch, kept) for batch in self.batches]
        states = [entry.hidden for entry in entries]
        tensors: dict[str, Tensor] = {}
        outputs: list[Tensor] = []
        for place, layer in enumerate([*kept, self.num_layers]):
            if layer in ends:
                before = kept[place - 1] if place else -1
                if not place:
                    raise UsageError(
                        "correction.kind=folded requires layer 0 to be kept, because the patch"
                        " changes the layer before a gap; use correction.kind=full"
                    )
                path, module = foldable_module(layerwise.layers[place - 1])
                has_bias = module.bias is not None
                parts = self._regress(
                    self._counted(outputs), self._counted(states), layer, options, has_bias
                )
                states = [
                    state + _apply(parts, x) for state, x in zip(states, outputs, strict=True)
                ]
                tensors |= _named(parts, layer, before, path)
            if layer == self.num_layers:
                break
            folds = [*kept, self.num_layers][place + 1] in ends
            first = states[0]
            ran = [
                self._run(layerwise, place, state, entry, folds)
                for state, entry in zip(states, entries, strict=True)
            ]
            states, outputs = [state for state, _ in ran], [output for _, output in ran]
            if folds:
                fresh = self._enter(
                    layerwise, view, self.batches[0], kept
                )  # the cache in `entries` has these positions
                self._check_added(layerwise, place, first, fresh, states[0], outputs[0])
        return tensors

    def _run(
        self,
        layerwise: LayerwiseModel,
        place: int,
        state: Tensor,
        entry: LayerInputs,
        records: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run one layer; return its output and, if `records`, that of the linear layer into which a
        patch folds.
        """
        if not records:
            return layerwise.layer(place, state, entry), state
        path, module = foldable_module(layerwise.layers[place])
        seen: list[Tensor] = []
        hook = module.register_forward_hook(lambda _, args, output: seen.append(output))
        try:
            after = layerwise.layer(place, state, entry)
        finally:
            hook.remove()
        if len(seen) != 1 or seen[0].numel() != after.numel():
            raise _not_foldable(layerwise.layers[place], path)
        return after, seen[0].view(after.shape)

    def _check_added(
        self,
        layerwise: LayerwiseModel,
        place: int,
        state: Tensor,
        entry: LayerInputs,
        after: Tensor,
        output: Tensor,
    ) -> None:
        """Raise UsageError unless `after`, a layer's output, moves by exactly the vector that is
        added to `output`.
        """
        path, module = foldable_module(layerwise.layers[place])
        counted = self.batches[0].counted
        size = (
            output[counted].float().pow(2).mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        )
        direction = torch.randn(output.shape[-1], generator=torch.Generator().manual_seed(0)).to(
            output.device
        )
        added = (size * direction).to(output.dtype)
        hook = module.register_forward_hook(lambda _, args, result: result + added)
        try:
            moved = layerwise.layer(place, state, entry)
        finally:
            hook.remove()
        before, moved, output = (tensor[counted].double() for tensor in (after, moved, output))
        rounding = torch.finfo(after.dtype).eps * (
            before.abs() + moved.abs() + output.abs() + added.double().abs()
        )
        error = (moved - before - added.double()).abs()
        if not bool((error <= _ROUNDINGS * rounding).all()):  # NaN is refused too
            raise _not_foldable(layerwise.layers[place], path)

    def _counted(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Return the states [positions, width] at the positions of the regression, for each
        batch.
        """
        return [state[batch.counted] for state, batch in zip(states, self.batches, strict=True)]

    def _regress(
        self,
        inputs: Sequence[Tensor],
        states: Sequence[Tensor],
        layer: int,
        options: PatchOptions,
        has_bias: bool = True,
    ) -> dict[str, Tensor]:
        """Regress the full model's states before `layer` minus `states` on `inputs`, both
        [positions, width] for each batch.
        """
        sums: RidgeRegression | None = None
        for batch, x, state in zip(self.batches, inputs, states, strict=True):
            target = batch.teacher[layer]
            sums = sums or RidgeRegression.empty(x.shape[1], target.shape[1])
            sums.add(x, target.double() - state.double())
        assert sums is not None
        return sums.solve(options, has_bias)


def foldable_module(layer: nn.Module) -> tuple[str, nn.Module]:
    """Return the path and module of the last linear layer of a decoder layer; `PatchFitter` checks
    how its output is used.
    """
    linears = [
        (name, module)
        for name, module in layer.named_modules()
        if type(module) in (nn.Linear, Conv1D)
    ]
    if not linears:
        raise UsageError(
            "correction.kind=folded requires linear layers without quantization; use"
            " correction.kind=full"
        )
    return linears[-1]


def _not_foldable(layer: nn.Module, path: str) -> UsageError:
    return UsageError(
        f"correction.kind=folded is not supported with {type(layer).__name__}, which does not add"
        f" the output of its last linear layer ({path}) to the hidden state as it is; use"
        " correction.kind=full"
    )


def _apply(parts: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Apply a solved map to `x` [..., inputs] in its dtype."""
    product = x @ parts["weight"].to(x)
    return product + parts["bias"].to(x) if "bias" in parts else product


def _named(
    parts: Mapping[str, Tensor], layer: int, before: int, folded_into: str
) -> dict[str, Tensor]:
    """Return the tensors of a patch by their names in a `SkipAdapter` with one set."""
    if folded_into:
        return {f"fold.0.{before}.{folded_into}.{name}": tensor for name, tensor in parts.items()}
    prefix = f"patch.0.{layer}."
    if "down" in parts:
        names = {"down.weight": parts["down"].T, "linear.weight": parts["up"].T}
    else:
        names = {"linear.weight": parts["weight"].T}
    return {
        prefix + name: tensor for name, tensor in {**names, "linear.bias": parts["bias"]}.items()
    }
