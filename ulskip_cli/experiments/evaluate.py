"""Encode the examples of a point, decode their answers, score them, and average the scores of
teacher forcing.

`generate_answers` stores finished batches in `BatchCheckpoints`, so that a killed run resumes.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulskip_cli.core.answer import Answer, Ends, Request, cut_before_stop
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import RunError, UsageError
from ulskip_cli.core.files import JsonObject, append_line, read_jsonl, write_atomic
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.core.task import Example, Task
from ulskip_cli.engines.base import BatchOutput
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.loop import peak_bytes, reset_peak
from ulskip_cli.engines.sampling import InvalidLogitsError
from ulskip_cli.engines.scoring import ForcedTexts
from ulskip_cli.experiments.intervals import Interval
from ulskip_cli.experiments.point import Point, TaskExamples
from ulskip_cli.experiments.record import Quality
from ulskip_cli.inference.batching import BatchSize, longest_first
from ulskip_cli.tasks import metrics
from ulskip_cli.tasks.encoding import EncodedExample, PromptFormatter, pad_token_id
from ulskip_cli.tasks.metrics import ScoredTexts, resamples

Values = NDArray[np.float64]
# Signs of degenerate output, which a corpus score hides.
FLAGS = ("empty", "loop", "hit_limit")
MIN_REPEATS, MAX_PERIOD = 4, 8  # of the tokens at the end of an output that is a loop


@dataclass(frozen=True)
class Workload:
    """A task's examples as token ids of one model."""

    task: Task
    examples: Sequence[Example]
    encoded: list[EncodedExample]
    formatter: PromptFormatter  # that encoded them
    max_positions: int | None  # None without a limit; timed prompts leave room for the new tokens

    @property
    def pad_token_id(self) -> int:
        """The token that pads prompts and answers."""
        return pad_token_id(self.formatter.tokenizer)

    @property
    def prompts(self) -> list[list[int]]:
        """The token ids of every prompt."""
        return [example.prompt_ids for example in self.encoded]


def encode_examples(
    data: TaskExamples, point: Point, tokenizer: PreTrainedTokenizerBase
) -> Workload:
    """Encode the examples of a point, or its held-out ones, within the model's context, without
    weights; raise UsageError if the context is too short.
    """
    task, config, context = data.task, point.config, point.folder.metadata.context
    formatter = PromptFormatter.for_task(task, tokenizer, config.model.chat_options)
    encoded = formatter.encode_within(
        data.examples, context, config.answer_tokens, task.may_truncate_source
    )
    timed_tokens = point.plan.timed_tokens
    if config.speed.enabled and context is not None and timed_tokens >= context:
        raise UsageError(
            f"expected fewer timed tokens than the model's context of {context}, got"
            f" {timed_tokens}; lower speed.new_tokens or strategy.horizon"
        )
    return Workload(task, data.examples, encoded, formatter, context)


def answer_request(config: Config, workload: Workload | None, model: PreTrainedModel) -> Request:
    """Return how a run answers prompts; random prompts need no padding."""
    ends = Ends.of(model)
    if workload:
        ends = Ends.of(model, workload.pad_token_id, workload.formatter.tokenizer)
    return Request(config.decoding, config.answer_tokens, seed=config.seed, ends=ends)


def answers_of(output: BatchOutput, request: Request) -> list[Answer]:
    """Return the answers of a batch as texts, which end before the first stop string. Each has the
    seconds of the whole batch.
    """
    tokenizer = request.ends.tokenizer
    assert tokenizer is not None
    answers, seconds = list[Answer](), (output.prefill_seconds, output.decode_seconds)
    for ids, hit in zip(output.token_ids, output.hit_max_length, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        text, stopped = cut_before_stop(text, request.decoding.stop)
        answers.append(Answer(text, ids, hit and not stopped, *seconds))
    return answers


@dataclass(frozen=True)
class FinishedBatch:
    """The stored output of one finished batch, and the run's state after the batch."""

    positions: list[int]  # indices of its prompts in the task
    output: BatchOutput
    batch_size: int  # the size for the next batch, which fits into memory
    peak_memory_bytes: int
    elapsed_seconds: float  # of the run until the end of this batch, over all attempts


_FINISHED_BATCH = TypeAdapter(FinishedBatch)


class BatchCheckpoints:
    """The finished batches of one run, which are stored until the run is finished."""

    def __init__(self, path: Path, origin: Mapping[str, object], began: float) -> None:
        """Store batches in `path`, with their `origin` (code and machine). `began` is the start of
        this attempt in seconds of `time.monotonic`.
        """
        self._path, self._origin, self._began = path, json.dumps({"origin": origin}), began
        self.finished: list[FinishedBatch] = []

    def resume(self, order: Sequence[int]) -> None:
        """Read the batches that an earlier attempt stored. Batches of another origin are dropped,
        because a row has one provenance, and those that do not match `order` (prompt indices).
        """
        lines = read_jsonl(self._path)
        if lines and lines[0] == json.loads(self._origin):
            self.finished = list(_in_order(lines[1:], order))
        if self.finished:  # as if this attempt had begun earlier
            self._began -= self.finished[-1].elapsed_seconds
        # Later batches follow the valid ones.
        write_atomic(self._path, "\n".join([self._origin, *map(_line, self.finished), ""]))

    @property
    def elapsed_seconds(self) -> float:
        """The seconds that the run has taken so far, over all attempts."""
        return time.monotonic() - self._began

    def add(
        self, positions: Sequence[int], output: BatchOutput, batch_size: int, peak_memory_bytes: int
    ) -> None:
        """Store a finished batch; raise StorageError if the file cannot be written."""
        batch = FinishedBatch(
            list(positions), output, batch_size, peak_memory_bytes, self.elapsed_seconds
        )
        self.finished.append(batch)
        append_line(self._path, _line(batch))

    def remove(self) -> None:
        """Delete the stored batches, because the run finished or starts over."""
        self._path.unlink(missing_ok=True)


def _line(batch: FinishedBatch) -> str:
    return _FINISHED_BATCH.dump_json(batch).decode()


def _in_order(lines: Sequence[JsonObject], order: Sequence[int]) -> Iterator[FinishedBatch]:
    """Yield the stored batches, and stop before the first that another version wrote or whose
    prompts are not the next ones in `order`.
    """
    start = 0
    for line in lines:
        try:
            batch = _FINISHED_BATCH.validate_python(line)
        except ValidationError:
            return
        end = start + len(batch.positions)
        if batch.positions != list(order[start:end]):
            return
        yield batch
        start = end


@dataclass(frozen=True)
class TaskAnswers:
    """The generated answers of a point, with decoder outputs and peak memory."""

    strategy: str
    generations: list[JsonObject]  # one JSON object per example, in the task's order
    outputs: list[BatchOutput]  # one per batch, with its timings
    batch_size: BatchSize  # the size that fitted into memory
    peak_memory_bytes: int


def generate_answers(
    decoder: Decoder,
    workload: Workload,
    config: Config,
    progress: ProgressCallback,
    checkpoints: BatchCheckpoints,
    texts: ForcedTexts | None = None,
) -> TaskAnswers:
    """Generate an answer to every example, longest prompts first. Batches stored in `checkpoints`
    are not decoded again; `texts` that are scored afterwards hold the encoded prompts of the
    others, which the peak of memory leaves out.
    """
    name, size = config.strategy.name, BatchSize(config.batch_size)
    request = answer_request(config, workload, decoder.views.model)
    checkpoints.resume(longest_first(list(map(len, workload.prompts))))
    finished = checkpoints.finished  # the list to which `checkpoints.add` appends
    if finished:
        size.used = finished[-1].batch_size
    num_finished = sum(len(batch.positions) for batch in finished)
    resumed = f", {num_finished} resumed" if num_finished else ""
    report = progress.phase(f"{name}: generate{resumed}", len(workload.examples))
    report(num_finished, "encode prompts")
    began = time.monotonic()

    def on_tokens(done: int, tokens: int) -> None:
        rate = tokens / max(1e-9, time.monotonic() - began)
        report(done, f"{tokens:,} tokens, {rate:,.1f} tok/s")

    texts = texts or ForcedTexts(workload.prompts, [], size, workload.pad_token_id)
    hold = partial(texts.hold, decoder.views.prompt_model)
    held = 0  # bytes of the prompts of earlier batches, which `texts` keeps for the scores
    reset_peak(decoder.device)
    for positions, output in decoder.answer_all(
        workload.prompts, request, size, on_tokens, num_finished, hold
    ):
        checkpoints.add(positions, output, size.used, peak_bytes(decoder.device) - held)
        held = texts.held_bytes
        reset_peak(decoder.device)
    return TaskAnswers(
        name,
        _generations(finished, workload, request),
        [batch.output for batch in finished],
        size,
        max(batch.peak_memory_bytes for batch in finished),
    )


def _generations(
    batches: Sequence[FinishedBatch], workload: Workload, request: Request
) -> list[JsonObject]:
    """Return the answers in batches as JSON objects, in the order of the examples."""
    generations: dict[int, JsonObject] = {}
    for batch in batches:
        answers = answers_of(batch.output, request)
        for position, answer in zip(batch.positions, answers, strict=True):
            generations[position] = {
                **workload.examples[position].plain(),
                "hypothesis": workload.task.hypothesis(answer.text),
                "output": answer.text,
                "token_ids": answer.token_ids,
                "flags": degenerate_flags(answer),
            }
    return [generations[position] for position in range(len(generations))]


def degenerate_flags(answer: Answer) -> list[str]:
    """Return the signs of degenerate output, in the order of FLAGS, that an answer shows.

    >>> degenerate_flags(Answer("a b a b a b a b", [5, 6] * 4, True))
    ['loop', 'hit_limit']
    """
    signs = not answer.text.strip(), ends_in_loop(answer.token_ids), answer.hit_limit
    return list(compress(FLAGS, signs))


def ends_in_loop(token_ids: Sequence[int]) -> bool:
    """Return True if the output ends in a block of up to `MAX_PERIOD` tokens that is repeated at
    least `MIN_REPEATS` times.
    """
    for period in range(1, MAX_PERIOD + 1):
        tail = list(token_ids[-period * MIN_REPEATS :])
        if len(tail) == period * MIN_REPEATS and tail == tail[:period] * MIN_REPEATS:
            return True
    return False


def length_ratio(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Return the number of words in all hypotheses divided by the number of words in all
    references.
    """
    hypothesis_words, reference_words = (
        sum(len(text.split()) for text in texts) for texts in (hypotheses, references)
    )
    return hypothesis_words / max(1, reference_words)


def score_answers(
    answers: TaskAnswers,
    workload: Workload,
    baseline_hypotheses: list[str] | None,
    progress: ProgressCallback,
) -> Quality:
    """Score answers by the task's metrics; prompts without references have only the counts that
    need none. `baseline_hypotheses` are None for a run without a baseline to compare with.

    Raises RunError if the baseline has another number of answers.
    """
    examples, generations = workload.examples, answers.generations
    if baseline_hypotheses is not None and len(baseline_hypotheses) != len(examples):
        raise RunError(
            f"expected {len(examples)} stored answers of the baseline, got"
            f" {len(baseline_hypotheses)}; set another name=NAME to run the baseline again"
        )
    flags = Counter(flag for generation in generations for flag in generation["flags"])
    quality = Quality(
        degenerate={flag: flags[flag] for flag in FLAGS},
        num_truncated_sources=sum(example.truncated for example in workload.encoded),
        evaluated_batch_size=answers.batch_size.used,
        peak_memory_bytes=answers.peak_memory_bytes,
    )
    if not all(example.reference for example in examples):
        return quality
    progress.phase(f"{answers.strategy}: metrics")
    texts = ScoredTexts(
        [generation["hypothesis"] for generation in generations],
        [example.reference for example in examples],
        [example.source for example in examples],
        baseline_hypotheses,
        [example.test for example in examples],
    )
    scores = metrics.compute_scores(workload.task.scoring(), texts)
    shown = metrics.ROW_KEYS[metrics.METRIC_OF[next(iter(scores.values))].primary]
    score = f"{scores.values[shown.key]:{shown.number_format}}"
    progress.note(f"{answers.strategy}: {shown.title} {score}")
    scored: Quality = quality.replace(
        **scores.values,
        signatures=scores.signatures,
        vs_baseline=scores.against_full,
        length_ratio=length_ratio(texts.hypotheses, texts.references),
    )
    return scored


def measure_by_teacher_forcing(
    texts: ForcedTexts, decoder: Decoder, full: Decoder, strategy: str, progress: ProgressCallback
) -> JsonObject:
    """Return what a row stores of the decode loss of references and of the agreement with the full
    model's answers, as far as `texts` has them; raise InvalidLogitsError if the loss is not finite.
    """
    given = {"decode loss": texts.references, "agreement": texts.answers}
    label = " and ".join(name for name, responses in given.items() if any(responses))
    if not label:
        return {}
    report = progress.phase(f"{strategy}: {label}", len(texts.prompts))
    scores, values = texts.scores(decoder, full, report), JsonObject()
    if scores.tokens:
        if not math.isfinite(scores.decode_loss):
            raise InvalidLogitsError(f"a decode loss of {scores.decode_loss}")
        values["decode_loss"] = scores.decode_loss
        values["decode_loss_mean_kept_layers"] = scores.exits.mean_depth
    # Of each answer: tokens that agree, sum of the KL divergences, tokens; then tokens that agree,
    # and all, of those that do not copy the prompt ("new").
    sums: list[list[float]] = []
    for answer in scores.answers:
        is_new = ~is_copy(texts.prompts[answer.index], texts.answers[answer.index])
        same, same_new = answer.agrees.sum(), answer.agrees[is_new].sum()
        sums.append([same, answer.divergence, len(is_new), same_new, is_new.sum()])
    if sums:
        same, divergences, tokens, same_new, new = np.array(sums).T
        values |= {
            **_mean_interval("agreement", same, tokens),
            **_mean_interval("kl_divergence", divergences, tokens),
            **_mean_interval("new_agreement", same_new[new > 0], new[new > 0]),
            "copied_share": float(1 - new.sum() / tokens.sum()),
        }
    return values


def is_copy(prompt: Sequence[int], answer: Sequence[int]) -> NDArray[np.bool_]:
    """Tell for each token of an answer whether it and the two tokens before it, which can be the
    prompt's last, stand in the prompt in this order.

    >>> is_copy([1, 2, 3, 9], [1, 2, 3, 4]).tolist()
    [False, False, True, False]
    """
    # -1 is no token: even a prompt of one token has two places before the answer.
    known, text = set(zip(prompt, prompt[1:], prompt[2:], strict=False)), [-1, *prompt, *answer]
    ends = text[-len(answer) - 2 :]
    return np.array([words in known for words in zip(ends, ends[1:], ends[2:], strict=False)])


def _mean_interval(key: str, sums: Values, counts: Values) -> JsonObject:
    """Return the mean over all positions, and its 95% bootstrap interval over answers.

    `sums` and `counts` have the sum over the positions of each answer and their number. Without
    answers, return {}; else the fields `key`, `key_low` and `key_high` of a row.
    """
    if not len(sums):
        return {}
    drawn = resamples(len(sums))  # indices of answers, [resample, answer]
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    mean = sums.sum() / counts.sum()
    return Interval(float(mean), float(low), float(high)).row(key)
