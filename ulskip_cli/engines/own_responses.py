"""The frozen model's own answers to the training prompts, generated once and stored in the
training's folder.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from ulskip_cli.core.answer import Ends, Request
from ulskip_cli.core.config_schema import DecodingConfig, OwnResponses
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import append_line, read_jsonl
from ulskip_cli.core.fingerprint import key
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines.base import Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import BatchSize, longest_first
from ulskip_cli.strategies.plan import Schedule

OWN_RESPONSES = "own_responses.jsonl"  # name of the file that stores them
BATCH_SIZE = 32


def generate_own_responses(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    options: OwnResponses,
    request: Request,
    file: Path,
    progress: ProgressCallback,
) -> list[list[list[int]]]:
    """Return for each prompt `options.samples` answers as token ids, with EOS where the model
    generated it.

    The first answer is decoded with the settings of `request` and `options.num_beams` beams, the
    others with sampling. Stored answers of the same weights and settings are read from `file`; new
    ones are added to it.
    """
    decoding, seed = request.decoding, request.seed
    sampled = replace(request, decoding=decoding.replace(do_sample=True))
    requests = [  # one for each answer to a prompt
        replace(request, decoding=decoding.replace(num_beams=options.num_beams)),
        *(replace(sampled, seed=seed + 7919 * sample) for sample in range(1, options.samples)),
    ]
    keys = [_key(model, each) for each in requests]
    prompt_keys = [key(ids) for ids in prompts]
    stored = {  # token ids by the keys of prompt and settings
        (row["prompt"], row["key"]): row["token_ids"]
        for row in read_jsonl(file)
        if row.get("key") in keys
    }
    depth = shallow_view.num_layers(model)
    decoder = Decoder(Views.of(model, Schedule.from_layers(depth, range(depth))))
    label = f"own answers to {len(prompts)} prompts"
    total = len(prompts) * options.samples
    report = progress.phase(label, total)
    order = longest_first(list(map(len, prompts)))
    for sample, (sample_request, settings_key) in enumerate(zip(requests, keys, strict=True)):
        is_stored = [(prompt_keys[prompt], settings_key) in stored for prompt in order]
        finished = [*is_stored, False].index(False)  # the prompts before the first without answer
        # A batch that was stored in part is generated again, so that sampling repeats.
        if finished < len(order):
            finished -= finished % BATCH_SIZE

        def on_tokens(done: int, tokens: int, sample: int = sample) -> None:
            report(sample * len(prompts) + done, f"{tokens} tokens")

        for positions, output in decoder.answer_all(
            prompts, sample_request, BatchSize(BATCH_SIZE), on_tokens, skip=finished
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


def greedy_request(model: PreTrainedModel, pad_token_id: int, length: int, seed: int) -> Request:
    """Return the request of greedy answers of at most `length` tokens."""
    ends = Ends.of(model, pad_token_id)
    return Request(DecodingConfig(name="own"), length, seed=seed, ends=ends)


def _key(model: PreTrainedModel, request: Request) -> str:
    """Return a hash of everything on which answers depend; of a tensor, about 64 values are
    hashed.
    """
    weights = [
        parameter.detach().flatten()[:: max(1, parameter.numel() // 64)].tolist()
        for parameter in model.parameters()
    ]
    seed = request.seed if request.decoding.do_sample else None
    settings = request.decoding, request.length, seed
    return key(settings, weights, model.generation_config.eos_token_id)
