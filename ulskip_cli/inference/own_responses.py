"""The frozen model's own answers to the training prompts, generated once and stored beside the training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli.core.config_schema import DecodingConfig, OwnResponses
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import append_line, read_jsonl
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import BatchSize
from ulskip_cli.inference.decoder import DecodeContext, Decoder, generate_all
from ulskip_cli.strategies.plan import Plan

BATCH_SIZE = 16


def generate_own_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    options: OwnResponses,
    context: tuple[int, int, int],
    file: Path,
    progress: ProgressCallback,
) -> list[list[list[int]]]:
    """Return for each prompt `options.samples` answers as token ids, with EOS where the model generated it.

    `context` has the padding id, the maximal length and the seed. Finished answers are read from `file`, which gets the rest.
    """
    pad_token_id, max_new_tokens, seed = context
    found = {(row["prompt"], row["sample"]): row["token_ids"] for row in read_jsonl(file)}
    depth = shallow_view.num_layers(model)
    decoder = Decoder(model, Plan.from_layers(depth, range(depth)), tokenizer)
    report = progress.phase("own answers", len(prompts) * options.samples)
    for sample in range(options.samples):
        sampling: dict[str, Any] = {"do_sample": True, "temperature": options.temperature} if sample else {}
        decoding = DecodingConfig(name="own", max_new_tokens=max_new_tokens, **sampling)
        finished = sum(one == sample for _, one in found)
        if finished < len(prompts):
            finished -= finished % BATCH_SIZE  # a batch that was stored in part is generated again, so that sampling repeats
        how = DecodeContext(decoding, pad_token_id, seed + 7919 * sample)
        for positions, output in generate_all(decoder, prompts, how, BatchSize(BATCH_SIZE), skip=finished):
            for position, ids in zip(positions, output.token_ids, strict=True):
                found[position, sample] = ids
                append_line(file, json.dumps({"prompt": position, "sample": sample, "token_ids": ids}))
            report(len(found))
    if not any(found.values()):
        raise UsageError("expected answers of the model to train on, got only empty ones; use train.responses=reference")
    return [[found[i, sample] for sample in range(options.samples)] for i in range(len(prompts))]
