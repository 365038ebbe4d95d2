"""Run tasks of lm-evaluation-harness on a model that skips layers, and store a row for each task
(`ulskip lm-eval`).

Needs `pip install 'ulskip[lm-eval]'`.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from lm_eval import __version__ as lm_eval_version
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.config.evaluate_config import DEFAULT_SEED
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from ulskip_cli.core import environment
from ulskip_cli.core.answer import Ends, Request
from ulskip_cli.core.config import compose
from ulskip_cli.core.config_schema import Config, DecodingConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import JsonObject
from ulskip_cli.core.fingerprint import digest
from ulskip_cli.core.options import parse
from ulskip_cli.core.schedule import Schedule
from ulskip_cli.engines.base import Prompts, Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.scoring import teacher_forced_logits
from ulskip_cli.experiments.describe import describe_provenance, describe_schedule
from ulskip_cli.experiments.point import point_key
from ulskip_cli.experiments.record import CorrectionUsed, LmEval, Outcome, Record, Settings, read
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.inference.batching import BatchSize, in_batches, longest_first, padded
from ulskip_cli.inference.loading import load, load_tokenizer
from ulskip_cli.inference.skip_adapter import load_adapter
from ulskip_cli.inference.teacher_forcing import encode_prompt
from ulskip_cli.strategies.plan import make_plan

EXPERIMENT = "lm_eval"  # the default of name=
RESULTS = "results_*.json"  # of the harness
# Options in this JSON that change the answers and are recorded by no other key of a row.
_RECORDED = ("gen_kwargs", "system_instruction", "chat_template_sha", "fewshot_as_multiturn")
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
# texts of the request, token ids of its context and of its continuation
ScoringRequest = tuple[object, list[int], list[int]]
# log probability of a continuation, and True if greedy decoding would generate it
Score = tuple[float, bool]

FIRST_TOKEN = (
    "the full model predicts the first token of each continuation, so scores of single tokens show"
    " no effect of skipping; use tasks with longer continuations, or leave out prompt_layers=all"
)


@register_model("ulskip")
class SkippingLM(HFLM):  # type: ignore[misc]
    """A causal LM with one schedule, as a model of lm-evaluation-harness. It generates text as
    `ulskip run` does.

    The kept layers score continuations and read their contexts. With an explicit
    `prompt_layers=all`, all layers read the context, so the full model scores the first token of
    every continuation.
    """

    def __init__(self, config: Config) -> None:
        """Load the model and make the schedule; raise UsageError if the harness does not support
        the model or the strategy.
        """
        self.ulskip_config = config
        self.loaded = load(config.model)
        tokenizer = load_tokenizer(config.model)
        plan = self.plan = make_plan(config, self.loaded.metadata, "lm-eval")
        self.scoring_plan: Schedule = plan
        is_explicit = "prompt_layers" in config.model_fields_set
        adapter, entry = load_adapter(config, plan)
        self.correction = CorrectionUsed(name="adapter", **entry) if entry else None
        model = self.loaded.model
        self.decoder = self.scorer = Decoder(Views.of(model, plan, adapter), config.engine)
        if not (is_explicit or plan.keeps_all or plan.exits):
            self.scoring_plan = replace(plan, prompt_layers="kept")
            views = Views.of(model, self.scoring_plan, adapter)
            self.scorer = Decoder(views, config.engine)
        self._batches = 0  # generated so far; each has its own seed
        super().__init__(
            pretrained=self.scorer.views.prompt_model,
            tokenizer=tokenizer,
            batch_size=config.batch_size,
            chat_template_args=config.model.chat_options,
        )

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, object] | None = None
    ) -> Self:
        """Make the model of the harness's `--model_args`, `--batch_size` and `--device`."""
        asked = additional_config or {}
        keys = {"batch_size": asked.get("batch_size"), "model.device": asked.get("device")}
        words = [f"{key}={value}" for key, value in keys.items() if value is not None]
        return cls(compose([*arg_dict["overrides"], *words], "lm-eval"))

    @property
    def _is_one_model(self) -> bool:
        """True if the same layers read context and continuation, so that `HFLM` can score them in
        one pass.
        """
        views = self.scorer.views
        is_same_model = views.prompt_model is views.stages[0].view
        return is_same_model and len(views.stages) == 1 and not views.exits

    def _loglikelihood_tokens(
        self,
        requests: Sequence[ScoringRequest],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Score]:
        """Return the scores of continuations in the order of the requests; `HFLM` calls it."""
        if self._is_one_model:
            harness_scores: list[Score] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            return harness_scores
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        order = longest_first(lengths)
        scores: dict[int, Score] = {}
        size = BatchSize(override_bs or self.batch_size)
        for positions, batch_scores in in_batches(order, size, partial(self._scored, requests)):
            for position, score in zip(positions, batch_scores, strict=True):
                scores[position] = score
                # The harness's cache stores scores by request; a piece of a long text has none.
                if requests[position][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[position][0], score)
        return [scores[i] for i in range(len(requests))]

    def _scored(self, requests: Sequence[ScoringRequest], positions: Sequence[int]) -> list[Score]:
        """Score one batch in two passes: encode the contexts, then score the continuations."""
        responses = [requests[i][2] for i in positions]
        # truncated on the left, as by `hf`
        wholes = [(requests[i][1] + requests[i][2])[-self.max_length - 1 :] for i in positions]
        prompts = [ids[: -len(tail)] for ids, tail in zip(wholes, responses, strict=True)]
        pad, device = self.tokenizer.pad_token_id, self.scorer.device
        prompt_ids, prompt_mask = padded(prompts, pad, left=True, device=device)
        response_ids, mask = padded(responses, pad, left=False, device=device)
        with torch.inference_mode():
            prompt = encode_prompt(self.scorer.views.prompt_model, prompt_ids, prompt_mask)
            logits = teacher_forced_logits(self.scorer.views, prompt, response_ids, mask)[0]
            chances = torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        chosen = chances.gather(2, response_ids[:, :, None])[:, :, 0]
        greedy = (chances.argmax(-1) == response_ids) | (mask == 0)
        totals = (chosen * mask).sum(1).tolist()
        return list(zip(totals, greedy.all(1).tolist(), strict=True))

    def _model_generate(
        self,
        context: Tensor,
        max_length: int,
        stop: list[str],
        attention_mask: Tensor | None = None,
        **options: object,
    ) -> Tensor:
        """Generate new tokens, and return context and new token ids, [batch, context + new
        tokens]. `HFLM` calls it with a task's generation arguments as `options`; `max_length`
        includes the context.
        """
        mask = torch.ones_like(context) if attention_mask is None else attention_mask
        pad = self.tokenizer.pad_token_id
        ends = Ends.of(self.loaded.model, pad, self.tokenizer)
        # The harness adds the text of EOS to the stop strings, but decoding ends at its id.
        eos = self.tokenizer.batch_decode([[end] for end in ends.eos_token_ids])
        decoding = self._decoding(options, [text for text in stop if text not in eos])
        self._batches += 1
        # More than the batches of a run, so that runs of two seeds have no seed in common.
        seed = self.ulskip_config.seed * 1_000_003 + self._batches
        request = Request(decoding, max_length - context.shape[1], seed=seed, ends=ends)
        output = self.decoder.generate(Prompts(context, mask), request)
        new, _ = padded(output.token_ids, pad, left=False)
        return torch.cat([context, new.to(context.device)], dim=1)

    def _decoding(self, options: dict[str, object], stop: Sequence[str]) -> DecodingConfig:
        """Return the settings of a task's generation arguments; raise UsageError for unknown ones,
        and for what the engine cannot do.
        """
        samples = bool(options.pop("do_sample", False)) and options.get("temperature") != 0
        if not samples:  # these have no effect on greedy choices
            options |= dict.fromkeys(("temperature", "top_p", "top_k"))
        given = {name: value for name, value in options.items() if value is not None}
        config = self.ulskip_config
        given |= {"stop": [*config.decoding.stop, *stop], "do_sample": samples}
        decoding = parse(DecodingConfig, config.decoding.plain() | given)
        make_plan(config.replace(decoding=decoding), self.loaded.metadata)  # refuses
        return decoding

    def get_model_info(self) -> JsonObject:
        """Return the model information that the harness stores with its results; the key `ulskip`
        contains the ulskip row.
        """
        return {
            "model_num_parameters": self.loaded.model.num_parameters(),
            "model_dtype": str(self.loaded.model.dtype),
            "ulskip": self.record().to_row(),
        }

    def record(self) -> Record:
        """Return the part of the record that all tasks share, without scores."""
        config = self.ulskip_config
        shared_id = point_key(config, "lm-eval", self.loaded.folder, self.plan)
        warnings = list(self.plan.warnings)
        if not self._is_one_model and self.scoring_plan.prompt_layers == "all":
            warnings.append(FIRST_TOKEN)
        return Record.joined(
            Settings.of(config, shared_id, "lm-eval").replace(correction=self.correction),
            describe_schedule(self.plan),
            LmEval(
                lm_eval_version=lm_eval_version,
                scored_prompt_layers=self.scoring_plan.prompt_layers,
            ),
            describe_provenance(config, self.plan, self.loaded, self.decoder, num_examples=0),
            Outcome(warnings=tuple(warnings)),
        )


def run_harness(overrides: Sequence[str], config: Config, words: Sequence[str]) -> ResultsFolder:
    """Run the command line of lm-evaluation-harness on the model of a configuration, and save a row
    for every task.

    `words` are options of the harness, which win over ours: the model with the `overrides` of its
    configuration, batch size, device, and the folder of the harness's JSON. Raises UsageError for
    unknown tasks.
    """
    if "name" not in config.model_fields_set:
        config = config.replace(name=EXPERIMENT)
    folder = ResultsFolder.of(config)
    folder.check_writable()
    output = folder.path / EXPERIMENT
    before, arguments = set(output.rglob(RESULTS)), sys.argv
    model = json.dumps({"pretrained": config.model.path, "overrides": list(overrides)})
    ours = ["--model", "ulskip", "--model_args", model, "--output_path", str(output)]
    ours += ["--batch_size", str(config.batch_size), "--device", config.model.device]
    sys.argv = ["lm-eval", "run", *ours, *words]
    try:
        with environment.offline_if_hub_unreachable():
            cli_evaluate()
    except ValueError as error:
        if str(error).startswith("Tasks not found"):
            raise UsageError(f"{error}; `lm-eval ls tasks` lists all") from None
        raise
    finally:
        sys.argv = arguments
    for file in set(output.rglob(RESULTS)) - before:
        results = json.loads(file.read_text("utf-8"))
        if "ulskip" not in results["config"]:  # --model names another one
            continue
        shared = read(json.dumps(results["config"]["ulskip"]))
        for record in make_records(results, shared):
            folder.save(record)
    return folder


def make_records(results: JsonObject, shared: Record) -> list[Record]:
    """Make one record for each task, with metrics in the harness's units; groups of tasks have no
    record. `shared` is the record of the model.
    """
    harness = results["config"] | results
    options = {name: harness[name] for name in _RECORDED if harness.get(name)}
    seeds = [harness.get(name) for name in _SEEDS]
    if seeds != DEFAULT_SEED:
        options["seed"] = seeds
    records = []
    for task in results["configs"]:  # of the tasks alone; "results" has groups too
        num_examples = results.get("n-samples", {}).get(task, {}).get("effective")
        values = results["results"][task].items()
        record = shared.replace(
            num_examples=num_examples,
            lm_eval_task=task,
            lm_eval={
                # the harness's keys are "metric,filter", e.g. "acc,none"
                metric.removesuffix(",none").replace(",", " "): value
                for metric, value in values
                if isinstance(value, (int, float)) and metric not in ("sample_len", "sample_count")
            },
            num_fewshot=results.get("n-shot", {}).get(task),
            task_version=results.get("versions", {}).get(task),
            lm_eval_options=options or None,
        )
        # without the scores
        settings = record.model_dump(include=LmEval.model_fields.keys() - {"lm_eval"})
        records.append(record.replace(id=digest([shared.id, num_examples, settings])))
    return records
