"""The views of a plan's stages."""

from transformers import PreTrainedModel

from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.shallow_view import StageView
from ulskip_cli.strategies.plan import Plan


def stage_views(model: PreTrainedModel, plan: Plan) -> tuple[PreTrainedModel, tuple[StageView, ...]]:
    """What encodes the prompt, and what decodes, stage after stage.

    Args:
        model: the full model.
        plan: the layers of every stage, and whether the prompt goes through all of the model's.
    """
    everything = tuple(range(plan.num_layers))
    shallow = {
        stage.kept_layers: model if stage.kept_layers == everything else shallow_view.shallow_view(model, stage.kept_layers)
        for stage in plan.stages
    }
    encoding = plan.kept_layers if plan.prompt_layers == "kept" else everything
    stages = [
        StageView(stage.first_step, shallow[stage.kept_layers], tuple(encoding.index(layer) for layer in stage.kept_layers))
        for stage in plan.stages
    ]
    return (shallow[encoding] if plan.prompt_layers == "kept" else model), tuple(stages)
