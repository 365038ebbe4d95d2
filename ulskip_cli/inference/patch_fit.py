"""Compute patches without training, gap by gap, at the positions that the kept layers read: those
of responses, and those of prompts if the kept layers read prompts too.

A patch at a gap is fitted to the change that the skipped layers make to the full model's states. A
folded patch is fitted to the difference between the full model's states and the view's, with the
output of the last linear layer in front of the gap as its input (ReplaceMe, arXiv:2505.02819).
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ulskip_cli.core.correction import GapPatch
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import Layers
from ulskip_cli.core.weight_sizes import gaps
from ulskip_cli.inference import kv_cache, shallow_view
from ulskip_cli.inference.batching import padded
from ulskip_cli.inference.layerwise import LayerInputs, LayerwiseModel, prompt_model_of
from ulskip_cli.inference.skip_adapter import SkipAdapter
from ulskip_cli.inference.teacher_forcing import EncodedPrompt, encode_prompt
from ulskip_cli.tasks.encoding import EncodedExample

DEFAULT_RIDGE = 0.1  # lambda, as a multiple of the mean variance of the inputs
_KEPT_PATCH_BYTES = 2**30  # limit of the patches at gaps that are kept
_ROUNDINGS = 4  # rounding errors that a layer may add to a sum


@dataclass
class _Batch:
    """The inputs of one batch's regression."""

    input_ids: Tensor  # [batch, count]
    mask: Tensor  # [batch, count], True at the positions of the regression, False at padding
    prompt: EncodedPrompt  # empty if the kept layers encode the prompts, as part of `input_ids`
    # of the full model, by depth: [positions, hidden_size]
    full_states: dict[int, Tensor] = field(default_factory=dict)

    def residual(self, depth: int, states: Tensor) -> Tensor:
        """Return the full model's states at a depth minus `states`, in float64 on the CPU."""
        return _double(self.full_states[depth]) - _double(states)


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
        """Encode the prompts, the longest first. If `prompt_layers` is "kept", views encode them
        later, together with the responses. Examples whose response has fewer than two tokens are
        left out: the prompt predicts the first, so no decode step would run.
        """
        self.model, self.prompt_layers = model, prompt_layers
        self.prompt_model = prompt_model_of(model, prompt_layers)
        self.device = model.device
        self.full = LayerwiseModel(model)
        self.num_layers = len(self.full.layers)
        usable = [example for example in examples if len(example.response_ids) > 1]
        if not usable:
            raise UsageError(
                "expected responses of at least two tokens to fit patches, got none; use other"
                " held-out examples"
            )
        usable.sort(key=lambda example: -example.num_tokens)
        chunks = [usable[i : i + batch_size] for i in range(0, len(usable), batch_size)]
        # by kind, first skipped layer of the gap, layer behind the gap, and ridge
        self._fitted: dict[tuple[str, int, int, float], GapPatch] = {}
        with torch.inference_mode():
            self.batches = [self._batch(chunk, pad_token_id) for chunk in chunks]

    def with_batches(self, batches: list[_Batch]) -> "PatchFitter":
        """Return a fitter on other batches of the same model."""
        fitter = copy.copy(self)
        fitter.batches, fitter._fitted = batches, {}
        return fitter

    @property
    def num_positions(self) -> int:
        """The number of positions in the regression."""
        return sum(int(batch.mask.sum()) for batch in self.batches)

    def _batch(self, examples: Sequence[EncodedExample], pad_token_id: int) -> _Batch:
        """Return the inputs of examples: their responses without the last token, which no step
        reads, after encoded prompts; if the kept layers read prompts too, both as one text.
        """
        prompts = [example.prompt_ids for example in examples]
        responses = [example.response_ids[:-1] for example in examples]
        prompt_ids, prompt_mask = padded(prompts, pad_token_id, left=True, device=self.device)
        ids, mask = padded(responses, pad_token_id, left=False, device=self.device)
        if self.prompt_layers != "kept":
            prompt = encode_prompt(self.prompt_model, prompt_ids, prompt_mask)
            return _Batch(ids, mask.bool(), prompt)
        cache = kv_cache.new_cache(self.prompt_model)
        empty = EncodedPrompt(torch.empty(0), cache, prompt_mask[:, :0])
        whole = torch.cat([prompt_mask, mask], 1)
        return _Batch(torch.cat([prompt_ids, ids], 1), whole.bool(), empty)

    def _add_full_states(self, depths: Collection[int]) -> None:
        """Add to `_Batch.full_states` the full model's states in front of the layers `depths`.
        Those that are there are not computed again.
        """
        for batch in self.batches:
            missing = set(depths) - batch.full_states.keys()
            if not missing:
                continue
            inputs = self.full.layer_inputs_after(batch.prompt, batch.input_ids, batch.mask)
            states = islice(self.full.states(inputs), max(missing) + 1)  # no layer above it runs
            batch.full_states |= {
                depth: hidden[batch.mask] for depth, hidden in enumerate(states) if depth in missing
            }

    @torch.inference_mode()
    def fit(
        self,
        kept_sets: Sequence[Sequence[int]],
        kind: type[GapPatch],
        ridge: float = DEFAULT_RIDGE,
        report: Callable[[int], None] = lambda done: None,
    ) -> SkipAdapter:
        """Return an adapter with a patch at every gap of each set of kept layers; raise UsageError
        if a patch cannot be folded. `report` gets the number of finished sets.
        """
        fit = self._fit_folded if kind.is_folded else self._fit_at_gaps
        patches = dict[Layers, Mapping[int, GapPatch]]()
        for kept in map(tuple, kept_sets):
            patches[kept] = fit(kept, kind, ridge)
            report(len(patches))
        return SkipAdapter(self.num_layers, kind, patches)

    def _fit_at_gaps(self, kept: Layers, kind: type[GapPatch], ridge: float) -> dict[int, GapPatch]:
        """Return patches that add to the full model's states before a gap what they lack of those
        behind it, by the layer behind the gap.

        The patch of a gap does not depend on other gaps, so it is kept for other schedules.
        """
        # the first skipped layer of each gap, by the layer behind the gap
        starts = {
            end: max((layer + 1 for layer in kept if layer < end), default=0)
            for end in gaps(kept, self.num_layers)
        }
        self._add_full_states([*starts, *starts.values()])
        patches: dict[int, GapPatch] = {}
        for end, start in starts.items():
            key = (kind.name, start, end, ridge)
            patch = self._fitted.get(key)
            if patch is None:
                pairs = (
                    (batch.full_states[start], batch.residual(end, batch.full_states[start]))
                    for batch in self.batches
                )
                patch = kind.solve(pairs, ridge)
                size = sum(part.nbytes for part in patch.parts.values())
                if len(self._fitted) * size < _KEPT_PATCH_BYTES:
                    self._fitted[key] = patch
            patches[end] = patch
        return patches

    def _fit_folded(self, kept: Layers, kind: type[GapPatch], ridge: float) -> dict[int, GapPatch]:
        """Return folded patches by the layer behind the gap. The view runs layer by layer: each
        patch maps its states, corrected by the earlier patches, to the full model's.
        """
        if kept[0]:
            raise UsageError(
                f"correction.kind={kind.name} requires layer 0 to be kept, because the patch"
                " changes the layer before a gap; use correction.kind=full"
            )
        ends = gaps(kept, self.num_layers)
        self._add_full_states(ends)
        layerwise = LayerwiseModel(shallow_view.shallow_view(self.model, kept))

        def enter(batch: _Batch) -> LayerInputs:
            return layerwise.layer_inputs_after(batch.prompt, batch.input_ids, batch.mask, kept)

        entries = list(map(enter, self.batches))
        states = [entry.hidden for entry in entries]
        patches: dict[int, GapPatch] = {}
        for place, (layer, following) in enumerate(pairwise([*kept, self.num_layers])):
            if following not in ends:  # no gap behind this layer
                states = [
                    layerwise.layer(place, state, entry)
                    for state, entry in zip(states, entries, strict=True)
                ]
                continue
            folding, first = _FoldingLayer(layerwise, place, kind), states[0]
            outputs = [
                folding.run(state, entry) for state, entry in zip(states, entries, strict=True)
            ]
            # New inputs, because the cache in `entries` has these positions already.
            folding.check(first, enter(self.batches[0]), outputs[0], self.batches[0].mask)
            patch = kind.solve(self._regression_pairs(outputs, following), ridge, folding.has_bias)
            states = [state + patch.added(output) for state, output in outputs]
            patches[following] = replace(patch, address=(layer, folding.path))
        return patches

    def _regression_pairs(
        self, outputs: Sequence[tuple[Tensor, Tensor]], depth: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the input and output of a folded patch's regression for each batch: what its linear
        layer returned, and what the layer's output lacks of the full model's states at `depth`.
        """
        for batch, (state, output) in zip(self.batches, outputs, strict=True):
            yield output[batch.mask], batch.residual(depth, state[batch.mask])


class _FoldingLayer:
    """A layer whose last linear layer a patch is merged into. The layer must add the output of that
    linear layer to the hidden state unchanged.
    """

    def __init__(self, layerwise: LayerwiseModel, place: int, kind: type[GapPatch]) -> None:
        """Find the last linear layer inside layer number `place`, into which a patch is folded."""
        self._layerwise, self._place, self.kind = layerwise, place, kind
        self._layer = layerwise.layers[place]
        linears = [
            (name, module)
            for name, module in self._layer.named_modules()
            if type(module) in shallow_view.LINEARS
        ]
        if not linears:
            raise UsageError(
                f"correction.kind={kind.name} requires linear layers without quantization; use"
                " correction.kind=full"
            )
        self.path, self._linear = linears[-1]
        self.has_bias = self._linear.bias is not None

    def run(self, state: Tensor, entry: LayerInputs, scale: int = 1) -> tuple[Tensor, Tensor]:
        """Run the layer, with the output of the linear layer times `scale`; return the output of
        the layer and that of the linear layer, both [batch, count, hidden_size]. A linear layer
        that runs several times, or on other shapes, as an expert does, is refused.
        """
        outputs: list[Tensor] = []

        def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
            outputs.append(output)
            return output * scale

        with self._linear.register_forward_hook(hook):
            after = self._layerwise.layer(self._place, state, entry)
        if len(outputs) != 1 or outputs[0].numel() != after.numel():
            raise self._refusal()
        return after, outputs[0].view(after.shape)

    def check(
        self, state: Tensor, entry: LayerInputs, outputs: tuple[Tensor, Tensor], mask: Tensor
    ) -> None:
        """Raise UsageError unless the layer adds the output of its linear layer unchanged: its
        result is the result with that output set to zero, plus the output. `outputs` are what `run`
        returned for the same `state`; only `mask` positions, which are no padding, are compared.
        """
        zeroed, _ = self.run(state, entry, scale=0)
        without, after, output = (_double(tensor[mask]) for tensor in (zeroed, *outputs))
        rounding = torch.finfo(outputs[1].dtype).eps * (without.abs() + after.abs() + output.abs())
        error = (after - without - output).abs()
        if not bool((error <= _ROUNDINGS * rounding).all()):  # NaN is refused too
            raise self._refusal()

    def _refusal(self) -> UsageError:
        return UsageError(
            f"correction.kind={self.kind.name} is not supported with {type(self._layer).__name__},"
            f" which does not add the output of its last linear layer ({self.path}) to the hidden"
            " state unchanged; use correction.kind=full"
        )


def _double(tensor: Tensor) -> Tensor:
    """Return a tensor in float64 on the CPU; MPS has no float64."""
    return tensor.cpu().double()
