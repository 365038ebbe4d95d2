"""Answer prompts with the full model and with the kept layers, and compare both answers
(`ulskip generate`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from ulskip_cli.core.answer import Answer, Comparison
from ulskip_cli.engines.base import BatchOutput, take_turns
from ulskip_cli.engines.decoder import until_stop
from ulskip_cli.experiments.describe import describe_schedule, measure_throughput
from ulskip_cli.experiments.paired_timing import turn_steps
from ulskip_cli.experiments.preflight import ResolvedPoint
from ulskip_cli.experiments.record import Record
from ulskip_cli.experiments.runner import Session, prepare_run
from ulskip_cli.experiments.workload import answers_of, decode_context
from ulskip_cli.inference.batching import BatchSize, padded, run_with_oom_retry
from ulskip_cli.strategies.plan import is_trained_for

WARM_UP_TOKENS = 5
MIN_SECONDS = 1.0  # of both answers; shorter answers are decoded again, because one time is noisy

OnText = Callable[[int, str], None]  # gets a side, 0 for the full model, and its text so far


class PromptComparer:
    """The full model and the schedule of a point, ready to answer the point's prompts."""

    def __init__(self, point: ResolvedPoint, session: Session) -> None:
        """Load the weights, and calibrate the strategy and the correction."""
        self.run = prepare_run(point, session)
        assert self.run.workload is not None  # preflight refuses random weights
        self.workload, self.decoding = self.run.workload, point.config.decoding
        self.context = decode_context(point.config, self.workload)
        self.sides = session.decoders(self.run)

    @property
    def prompt_note(self) -> str:
        """The model, and how the first prompt is given to it."""
        model, task = self.run.point.config.model.label, self.workload.task
        example = self.workload.examples[0]
        text = task.template_for(self.workload.chat).prompt(example)
        note = (
            "prompt as given" if text == example.source else f"prompt of task={task.name}: {text}"
        )
        if self.workload.chat:
            note = "prompt in the model's chat template"
        return f"{model}, {note}"

    @property
    def caution(self) -> str:
        """A warning if the layers are neither trained for nor corrected; otherwise empty."""
        plan, run = self.run.plan, self.run
        is_trained = is_trained_for(run.loaded.notes["trained_for"], plan)
        if plan.keeps_all or plan.drafts or run.adapter or is_trained:
            return ""
        return (
            "warning: as far as known, the weights were not trained for skipping, and nothing"
            " corrects them, so the answers can be much worse; `ulskip tune` finds layers and"
            " corrections"
        )

    @property
    def heads(self) -> tuple[str, str]:
        """The names of both sides, without the depth of early exit, which the answers decide."""
        record = self._described()
        layers = "" if self.run.plan.exits else f", {record.summary}"
        return f"full model, {record.num_layers} layers", f"{record.label}{layers}"

    def _described(self, outputs: Sequence[BatchOutput] = ()) -> Record:
        rates = [measure_throughput(outputs, "evaluation")] if outputs else []
        schedule = describe_schedule(self.run.plan, outputs)
        return Record.joined(self.run.point.identity, schedule, *rates)

    def compare(self, index: int, on_text: OnText = lambda side, text: None) -> Comparison:
        """Answer a prompt with both sides and time them; their first answers are reported while
        they are generated, outside the measured times.
        """
        prompt = self.workload.prompts[index]
        rounds = run_with_oom_retry(BatchSize(1), lambda _: self._rounds(prompt, on_text))
        full, kept = zip(*rounds, strict=True)
        record = self._described(kept)
        return Comparison(
            prompt=self.workload.examples[index].source,
            model=str(record.model),
            strategy=record.label,
            layers=record.summary,
            kept_layers=self.run.plan.kept_layers,
            full=self._answer(full),
            kept=self._answer(kept),
        )

    def _rounds(self, prompt: list[int], on_text: OnText) -> list[list[BatchOutput]]:
        """Answer a prompt with both sides until `MIN_SECONDS` are spent; return the outputs of both
        for each round. `on_text` gets the text of the first round as it grows.
        """
        batch = padded([prompt], self.context.pad_token_id, left=True)
        plain = replace(self.context, decoding=self.decoding.without_drafts())
        sides = list(zip(self.sides, (plain, self.context), strict=True))
        few = min(WARM_UP_TOKENS, self.decoding.max_new_tokens)
        for _ in range(2):  # the first call prepares the engine
            warm = [side.generate(*batch, context, forced_length=few) for side, context in sides]
        steps = turn_steps(warm)

        def decode(on_tokens: Callable[[int, list[int]], None]) -> list[BatchOutput]:
            runs = [side.run(*batch, context, pause_every=steps) for side, context in sides]
            if self._in_turns:
                return take_turns(runs, on_tokens)
            first = take_turns(runs[:1], on_tokens)
            return [*first, *take_turns(runs[1:], lambda _, token_ids: on_tokens(1, token_ids))]

        def show(side: int, token_ids: list[int]) -> None:
            text = self.workload.tokenizer.decode(token_ids, skip_special_tokens=True)
            on_text(side, until_stop(text, self.decoding.stop)[0])

        rounds = [decode(show)]
        while sum(output.total_seconds for pair in rounds for output in pair) < MIN_SECONDS:
            rounds.append(decode(lambda side, token_ids: None))
        return rounds

    @property
    def _in_turns(self) -> bool:
        """True if both sides hold a batch at once: on a CPU, whose speed changes within seconds,
        unless they share one stream of random numbers or one session.
        """
        full, kept = self.sides
        return full.device.type == "cpu" and not self.decoding.do_sample and full is not kept

    def _answer(self, outputs: Sequence[BatchOutput]) -> Answer:
        """Return the first of several equal answers, with the mean of their times."""
        (answer,) = answers_of(outputs[0], self.context)
        return replace(
            answer,
            prefill_seconds=fmean(output.prefill_seconds for output in outputs),
            decode_seconds=fmean(output.decode_seconds for output in outputs),
        )
