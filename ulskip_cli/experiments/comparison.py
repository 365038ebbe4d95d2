"""Answer prompts with the full model and with the kept layers, and compare both answers
(`ulskip generate`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from ulskip_cli.core.answer import AnswerPair, cut_before_stop
from ulskip_cli.engines.base import BatchOutput, Prompts, Room, Watch
from ulskip_cli.experiments.describe import describe_schedule, measure_throughput
from ulskip_cli.experiments.evaluate import answer_request, answers_of
from ulskip_cli.experiments.point import Point
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.runner import Models, prepare_run
from ulskip_cli.inference.batching import BatchSize, run_with_oom_retry
from ulskip_cli.strategies.plan import is_trained_for

WARM_UP_PROMPT, WARM_UP_TOKENS = 64, 5

# Gets a side, 0 for the full model, and a further piece of its text, which is empty at first.
OnText = Callable[[int, str], None]


class PromptComparer:
    """The full model and the schedule of a point, ready to answer the point's prompts."""

    def __init__(self, point: Point, models: Models) -> None:
        """Load the weights, and calibrate the strategy and the correction."""
        self.run = prepare_run(point, models)
        self.progress = models.progress
        assert self.run.workload is not None  # `resolve_prompts` refuses random weights
        self.workload = self.run.workload
        self.sides = models.decoders(self.run)
        model = self.run.loaded.model
        self.request = answer_request(point.config, self.workload, model)

    @property
    def prompt_note(self) -> str:
        """The model, and how the first prompt is given to it."""
        template, example = self.workload.formatter.template, self.workload.examples[0]
        text, note = template.prompt(example), "prompt as given"
        if template.chat:
            note = "prompt in the model's chat template"
        elif text != example.source:
            note = f"prompt of task={self.workload.task.name}: {text}"
        return f"{self.run.point.config.model.label}, {note}"

    @property
    def caution(self) -> str:
        """A warning if the layers are neither trained for nor corrected; otherwise empty."""
        plan, run = self.run.plan, self.run
        is_trained = is_trained_for(run.loaded.notes["trained_for"], plan)
        if plan.keeps_all or run.adapter or is_trained:
            return ""
        return (
            "warning: as far as known, the weights were not trained for skipping, and nothing"
            " corrects them, so the answers can be much worse; `ulskip tune` finds layers and"
            " corrections"
        )

    @property
    def heads(self) -> tuple[str, str]:
        """The names of both sides, without the depth of early exit, which the answers decide."""
        record = self._training_text()
        layers = "" if self.run.plan.exits else f", {record.summary}"
        return f"full model, {record.num_layers} layers", f"{record.label}{layers}"

    def _training_text(self, outputs: Sequence[BatchOutput] = ()) -> Record:
        rates = [measure_throughput(outputs, "evaluation")] if outputs else []
        schedule = describe_schedule(self.run.plan, outputs)
        return Record.joined(self.run.point.settings, schedule, *rates)

    def compare(self, index: int, on_text: OnText = lambda side, piece: None) -> AnswerPair:
        """Answer a prompt with the full model, then with the kept layers. `on_text` gets the texts
        while they are generated, outside the measured times.
        """
        full, kept = run_with_oom_retry(
            BatchSize(1), lambda _: [self._answer(side, index, on_text) for side in range(2)]
        )
        record = self._training_text([kept])
        return AnswerPair(
            prompt=self.workload.examples[index].source,
            model=str(record.model),
            strategy=record.label,
            layers=record.summary,
            kept_layers=self.run.plan.kept_layers,
            full=answers_of(full, self.request)[0],
            kept=answers_of(kept, self.request)[0],
        )

    def _answer(self, side: int, index: int, on_text: OnText) -> BatchOutput:
        """Answer a prompt with one side after a warm-up."""
        decoder, request = self.sides[side], self.request
        if side == 0:  # the full model decodes without drafts
            request = replace(request, decoding=request.decoding.without_drafts())
        prompt, pad = self.workload.prompts[index], request.ends.pad_token_id
        on_text(side, "")
        self.progress.phase(f"reads {len(prompt):,} tokens")
        few = replace(request, length=min(WARM_UP_TOKENS, request.length), fixed_length=True)
        start = Prompts.from_token_ids([prompt[:WARM_UP_PROMPT]], pad)
        decoder.generate(start, few, room=Room(1, len(prompt) + request.length))
        text = GrowingText(self.workload.formatter.tokenizer, request.decoding.stop)
        generation = decoder.run(
            Prompts.from_token_ids([prompt], pad), request, Watch(pause_every=1)
        )
        while True:
            try:
                on_text(side, text.piece(next(generation)[0].tolist()))
            except StopIteration as finished:  # its value is what the generator returns
                output: BatchOutput = finished.value
                on_text(side, text.piece(output.token_ids[0], is_last=True))
                return output


class GrowingText:
    """The text of an answer, in pieces, without white space around it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str]) -> None:
        self.tokenizer, self.stop_strings, self.length = tokenizer, stop_strings, 0

    def piece(self, token_ids: list[int], is_last: bool = False) -> str:
        """Return what the tokens so far add to the text. A character of several tokens is added
        with its last token, before which it is decoded as U+FFFD.
        """
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        text = cut_before_stop(text, self.stop_strings)[0].strip()
        if not is_last:
            text = text.rstrip("\ufffd").rstrip()
        piece = text[self.length :]
        self.length += len(piece)
        return piece
