"""The frozen model's own answers to the training prompts, generated once and stored in the
training's folder.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from ulskip_cli.core.config_schema import DecodingConfig, OwnResponses
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import append_line, read_jsonl
from ulskip_cli.core.fingerprint import key
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.decoder import DecodeContext, Decoder, generate_all
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import BatchSize, longest_first
from ulskip_cli.strategies.plan import Schedule

OWN_RESPONSES = "own_responses.jsonl"  # name of the file that stores them
BATCH_SIZE = 32


def generate_own_responses(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    options: OwnResponses,
    context: DecodeContext,
    file: Path,
    progress: ProgressCallback,
) -> list[list[list[int]]]:
    """Return for each prompt `options.samples` answers as token ids, with EOS where the model
    generated it.

    The first answer is decoded with the settings of `context` and `options.num_beams` beams, the
    others with sampling. Stored answers of the same weights and settings are read from `file`; new
    ones are added to it.
    """
    decoding, seed = context.decoding, context.seed
    sampled = replace(context, decoding=decoding.replace(do_sample=True))
    contexts = [  # one for each answer to a prompt
        replace(context, decoding=decoding.replace(num_beams=options.num_beams)),
        *(replace(sampled, seed=seed + 7919 * sample) for sample in range(1, options.samples)),
    ]
    keys = [_key(model, settings) for settings in contexts]
    prompt_keys = [key(ids) for ids in prompts]
    stored = {  # token ids by the keys of prompt and settings
        (row["prompt"], row["key"]): row["token_ids"]
        for row in read_jsonl(file)
        if row.get("key") in keys
    }
    depth = shallow_view.num_layers(model)
    decoder = Decoder(model, Schedule.from_layers(depth, range(depth)))
    label = f"own answers to {len(prompts)} prompts"
    total = len(prompts) * options.samples
    report = progress.phase(label, total)
    order = longest_first(list(map(len, prompts)))
    for sample, (settings, settings_key) in enumerate(zip(contexts, keys, strict=True)):
        is_stored = [(prompt_keys[prompt], settings_key) in stored for prompt in order]
        finished = [*is_stored, False].index(False)  # the prompts before the first without answer
        # A batch that was stored in part is generated again, so that sampling repeats.
        if finished < len(order):
            finished -= finished % BATCH_SIZE

        def on_tokens(done: int, tokens: int, sample: int = sample) -> None:
            report(sample * len(prompts) + done, f"{tokens} tokens")

        for positions, output in generate_all(
            decoder, prompts, settings, BatchSize(BATCH_SIZE), on_tokens, skip=finished
        ):
            for position, ids in zip(positions, output.token_ids, strict=True):
                name = prompt_keys[position]
                stored[name, settings_key] = ids
                answer = {"prompt": name, "sample": sample, "token_ids": ids, "key": settings_key}
                append_line(file, json.dumps(answer))
    answers = [[stored[name, settings_key] for settings_key in keys] for name in prompt_keys]
    if not any(map(any, answers)):
        raise UsageError(
            "expected answers of the model to train on, got only empty ones; use"
            " train.responses=reference"
        )
    return answers


def greedy_context(pad_token_id: int, max_new_tokens: int, seed: int) -> DecodeContext:
    """Return the settings of greedy answers of at most `max_new_tokens` tokens."""
    return DecodeContext(DecodingConfig(name="own"), pad_token_id, max_new_tokens, seed)


def _key(model: PreTrainedModel, context: DecodeContext) -> str:
    """Return a hash of everything on which answers depend; of a tensor, about 64 values are
    hashed.
    """
    weights = [
        parameter.detach().flatten()[:: max(1, parameter.numel() // 64)].tolist()
        for parameter in model.parameters()
    ]
    seed = context.seed if context.decoding.do_sample else None
    settings = context.decoding, context.max_new_tokens, seed
    return key(settings, weights, model.generation_config.eos_token_id)
