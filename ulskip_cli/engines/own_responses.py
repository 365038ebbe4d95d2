"""A model's own responses to prompts, for training and for fitting patches. They are
generated once and stored in a file.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from ulskip_cli.core.answer import Ends, Request
from ulskip_cli.core.config_schema import DecodingConfig, OwnResponses
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import append_line, read_jsonl
from ulskip_cli.core.fingerprint import digest
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.schedule import Schedule
from ulskip_cli.engines.base import Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.inference import shallow_view
from ulskip_cli.inference.batching import BatchSize, longest_first

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
    depth = shallow_view.num_layers(model)
    decoder = Decoder(Views.of(model, Schedule.from_layers(depth, range(depth))))
    total = len(prompts) * options.samples
    report = progress.phase(f"own answers to {len(prompts)} prompts", total)
    columns = []  # the answers to all prompts, of each sample
    for sample, sample_request in enumerate(_sample_requests(request, options)):

        def on_tokens(done: int, tokens: int, sample: int = sample) -> None:
            report(sample * len(prompts) + done, f"{tokens} tokens")

        stored = _StoredAnswers(file, sample, _key(model, sample_request))
        _answer_missing(decoder, prompts, sample_request, stored, on_tokens)
        columns.append([stored[ids] for ids in prompts])
    answers = [list(samples) for samples in zip(*columns, strict=True)]
    if not any(map(any, answers)):
        raise UsageError(
            "expected answers of the model to train on, got only empty ones; use"
            " train.responses=reference"
        )
    return answers


def _sample_requests(request: Request, options: OwnResponses) -> Iterator[Request]:
    """Yield the request of each answer to a prompt."""
    decoding, seed = request.decoding, request.seed
    yield replace(request, decoding=decoding.replace(num_beams=options.num_beams))
    sampled = replace(request, decoding=decoding.replace(do_sample=True))
    for sample in range(1, options.samples):
        yield replace(sampled, seed=seed + 7919 * sample)


class _StoredAnswers:
    """The stored answers of one sample number, made with settings that have one key."""

    def __init__(self, file: Path, sample: int, key: str) -> None:
        """Read the answers in `file` whose key is `key`."""
        self.file, self.sample, self.key = file, sample, key
        rows = (row for row in read_jsonl(file) if row.get("key") == key)
        self.by_prompt: dict[str, list[int]] = {row["prompt"]: row["token_ids"] for row in rows}

    def __contains__(self, prompt: list[int]) -> bool:
        """Return True if the prompt with these token ids has an answer."""
        return digest(prompt) in self.by_prompt

    def __getitem__(self, prompt: list[int]) -> list[int]:
        """Return the token ids of the answer to a prompt."""
        return self.by_prompt[digest(prompt)]

    def add(self, prompt: list[int], token_ids: list[int]) -> None:
        """Append an answer to the file."""
        self.by_prompt[digest(prompt)] = token_ids
        row = {"prompt": digest(prompt), "sample": self.sample}
        append_line(self.file, json.dumps(row | {"token_ids": token_ids, "key": self.key}))


def _answer_missing(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    request: Request,
    stored: _StoredAnswers,
    on_tokens: Callable[[int, int], None],
) -> None:
    """Generate and store the answers that are missing. A batch that was stored in part is generated
    again, so that sampling repeats.
    """
    order = longest_first(list(map(len, prompts)))
    is_stored = [prompts[position] in stored for position in order]
    if all(is_stored):
        return
    finished = is_stored.index(False)  # the prompts before the first without answer
    batches = decoder.answer_all(
        prompts,
        request,
        BatchSize(BATCH_SIZE),
        on_tokens,
        skip=finished - finished % BATCH_SIZE,
    )
    for positions, output in batches:
        for position, ids in zip(positions, output.token_ids, strict=True):
            stored.add(prompts[position], ids)


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
    return digest(settings, weights, model.generation_config.eos_token_id)
