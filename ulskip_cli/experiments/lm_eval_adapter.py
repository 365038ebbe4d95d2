"""Run tasks of lm-evaluation-harness on a model that skips layers, and store a row for each task
(`ulskip lm-eval`).

Needs `pip install 'ulskip[lm-eval]'`.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path

import torch
from datasets.exceptions import DatasetsError
from lm_eval import __version__ as lm_eval_version
from lm_eval import simple_evaluate
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from ulskip_cli.core import environment
from ulskip_cli.core.capabilities import Need, check
from ulskip_cli.core.command_line import overrides_of
from ulskip_cli.core.config import group_choices, read_choice
from ulskip_cli.core.config_schema import Config
from ulskip_cli.core.errors import UsageError, reason
from ulskip_cli.core.files import digest
from ulskip_cli.engines.decoder import DecodeContext, Decoder
from ulskip_cli.engines.scoring import given_logits
from ulskip_cli.experiments.describe import describe_provenance, describe_schedule
from ulskip_cli.experiments.preflight import Resolver
from ulskip_cli.experiments.record import CorrectionUsed, LmEval, Point, Record, Row
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.inference.batching import BatchSize, in_batches, longest_first, padded
from ulskip_cli.inference.loading import load, load_tokenizer
from ulskip_cli.inference.skip_adapter import load_adapter
from ulskip_cli.inference.teacher_forcing import encode_prompt
from ulskip_cli.strategies.plan import make_plan

EXPERIMENT = "lm_eval"  # the default of name=
# Options of the harness that would have no effect or give rows without scores, and replacements.
_REFUSED_OPTIONS = {
    "model": "model= before `--`, e.g. model=tiny",
    "model_args": "keys of the configuration before `--`, e.g. model.path=DIR model.dtype=bfloat16",
    "batch_size": "batch_size= before `--`, e.g. batch_size=8",
    "max_batch_size": "batch_size= before `--`, e.g. batch_size=8",
    "device": "model.device= before `--`, e.g. model.device=cuda",
    "predict_only": "--log_samples",
    "show_config": "the JSON in the results folder",
    "wandb_args": "the JSON in the results folder",
    "wandb_config_args": "the JSON in the results folder",
    "trackio_args": "the JSON in the results folder",
    "hf_hub_log_args": "`hf upload` on the results folder",
}
# Options that change the answers and are recorded by no other key of a row.
_RECORDED = (
    *("apply_chat_template", "fewshot_as_multiturn", "system_instruction"),
    *("gen_kwargs", "samples", "seed", "metadata"),
)
_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
# texts of the request, token ids of its context and of its continuation
ScoringRequest = tuple[object, list[int], list[int]]
# log probability of a continuation, and True if greedy decoding would generate it
Score = tuple[float, bool]

_SAMPLING = ("temperature", "top_p", "top_k")
_DECODING = (*_SAMPLING, "num_beams", "repetition_penalty", "no_repeat_ngram_size")
FIRST_TOKEN = (
    "the full model predicts the first token of each continuation, so scores of single tokens show"
    " no effect of skipping; use tasks with longer continuations, or leave out prompt_layers=all"
)


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
        if config.decoding.do_sample or config.decoding.stop:
            raise UsageError(
                "expected decoding without do_sample and stop, which the tasks of the harness set;"
                " leave them out, or use --gen_kwargs"
            )
        strategy, limit = config.strategy, config.decoding.max_new_tokens
        # Only a limit that the user set is refused, not that of the task or of a preset; but some
        # strategies spread their layers over answers of this length.
        defaults: list[object] = [config.task.max_new_tokens]
        if (name := config.decoding.name) in group_choices("decoding"):
            defaults.append(read_choice("decoding", name).get("max_new_tokens"))
        if limit not in defaults and not (strategy.is_positional or strategy.exits_early):
            raise UsageError(
                f"decoding.max_new_tokens={limit} has no effect, because the tasks of the harness"
                f" limit answers; use --gen_kwargs max_gen_toks={limit}"
            )
        self.loaded = load(config.model, config.seed)
        tokenizer = load_tokenizer(config.model)
        assert tokenizer is not None  # only model=random has none
        plan = self.plan = self.scoring_plan = make_plan(config, self.loaded.metadata)
        is_explicit = "prompt_layers" in config.model_fields_set
        adapter, entry = load_adapter(config, plan)
        self.correction = CorrectionUsed(name="adapter", **entry) if entry else None
        parts = adapter, config.engine
        self.decoder = self.scorer = Decoder(self.loaded.model, plan, *parts)
        if config.decoding.drafts_with_layers:  # the full model decides the answers
            self.scoring_plan = plan.full
            self.scorer = Decoder(self.loaded.model, self.scoring_plan)
        elif not (is_explicit or plan.keeps_all or plan.exits):
            self.scoring_plan = replace(plan, prompt_layers="kept")
            self.scorer = Decoder(self.loaded.model, self.scoring_plan, *parts)
        self._batches = 0  # generated so far; each has its own seed
        super().__init__(
            pretrained=self.scorer.prompt_model,
            tokenizer=tokenizer,
            batch_size=config.batch_size,
            chat_template_args=config.model.chat_options,
        )

    @property
    def _is_one_model(self) -> bool:
        """True if the same layers read context and continuation, so that `HFLM` can score them in
        one pass.
        """
        scorer = self.scorer
        return scorer.prompt_model is scorer.view and len(scorer.stages) == 1 and not scorer.exits

    def _loglikelihood_tokens(
        self,
        requests: Sequence[ScoringRequest],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Score]:
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
            prompt = encode_prompt(self.scorer.prompt_model, prompt_ids, prompt_mask)
            logits = given_logits(self.scorer, prompt, response_ids, mask)[0]
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
        tokens].
        """
        mask = torch.ones_like(context) if attention_mask is None else attention_mask
        eos = self.loaded.model.generation_config.eos_token_id
        ends = self.tokenizer.batch_decode(
            [[end] for end in ([eos] if type(eos) is int else eos or [])]
        )
        known = {key: options.pop(key) for key in _DECODING if options.get(key) is not None}
        samples = bool(options.pop("do_sample", None)) and known.get("temperature") != 0
        if not samples:
            known = {key: value for key, value in known.items() if key not in _SAMPLING}
        if options:
            raise UsageError(
                f"expected generation options among do_sample, {', '.join(_DECODING)}, got"
                f" {', '.join(options)}; remove these from --gen_kwargs, or use another task"
            )
        decoding = self.ulskip_config.decoding.replace(
            max_new_tokens=max_length - context.shape[1],
            stop=tuple(text for text in stop if text not in ends),
            do_sample=samples,
            **known,
        )
        asked = self.ulskip_config.replace(decoding=decoding).needs()
        check(asked - {Need.STOP_STRINGS})  # which the harness applies too
        self._batches += 1
        seed = self.ulskip_config.seed * 1_000_003 + self._batches
        how = DecodeContext(decoding, self.tokenizer.pad_token_id, seed, self.tokenizer)
        output = self.decoder.generate(context, mask, how)
        new, _ = padded(output.token_ids, self.tokenizer.pad_token_id, left=False)
        return torch.cat([context, new.to(context.device)], dim=1)

    def get_model_info(self) -> Row:
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
        shared_id = digest(
            [
                config.identity("lm-eval"),
                self.loaded.files.fingerprint,
                config.correction.fingerprint(),
            ]
        )
        warnings = list(self.plan.warnings)
        if not self._is_one_model and self.scoring_plan.prompt_layers == "all":
            warnings.append(FIRST_TOKEN)
        return Record.joined(
            Point.of(config, shared_id, "lm-eval"),
            describe_schedule(self.plan),
            LmEval(
                lm_eval_version=lm_eval_version,
                scored_prompt_layers=self.scoring_plan.prompt_layers,
            ),
            describe_provenance(config, self.plan, self.loaded, self.decoder, 0),
            warnings=tuple(warnings),
            correction=self.correction,
        )


def evaluate_tasks(config: Config, given: Namespace) -> tuple[ResultsFolder, Row]:
    """Evaluate a model on tasks, write the harness's JSON and save a row for every task.

    `given` holds the options that the harness's own parser found. The returned dict is the output
    of `simple_evaluate` without samples.
    """
    if "name" not in config.model_fields_set:
        config = config.replace(name=EXPERIMENT)
    Resolver().schedule(config, "lm-eval")
    folder = ResultsFolder.of(config)
    try:
        options, recorded = _read_options(given, folder.path / EXPERIMENT)
        manager = options.process_tasks()
        if not options.tasks:
            raise ValueError("--tasks: expected a folder with YAML files, got one without")
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(
            f"lm-evaluation-harness: {str(error).rstrip('.')}; `ulskip lm-eval -- --help` lists "
            "its options, `lm-eval ls tasks` its tasks"
        ) from None

    model = SkippingLM(config)
    if options.apply_chat_template and not model.tokenizer.chat_template:
        raise UsageError(
            f"--apply_chat_template is not supported with {config.model.path}, whose tokenizer has "
            "no chat template; remove the option"
        )
    known = signature(simple_evaluate).parameters.keys() - _REFUSED_OPTIONS.keys()
    arguments = {name: getattr(options, name) for name in known if hasattr(options, name)}
    if options.use_cache:  # answers of another model or schedule must not be reused
        schedule = digest([model.record().id, model.scoring_plan.prompt_layers])
        arguments["use_cache"] = f"{options.use_cache}_{schedule}"
    folder.check_writable()
    overrides = overrides_of(config, "lm-eval")
    tracker = EvaluationTracker(output_path=options.output_path)
    arguments |= {
        **options.cache_requests,
        **dict(zip(_SEEDS, options.seed or [None] * len(_SEEDS), strict=True)),
        "model_args": {"pretrained": config.model.path, "overrides": overrides},
        "batch_size": config.batch_size,
        "device": str(model.device),
        "task_manager": manager,
        "evaluation_tracker": tracker,
    }
    try:
        with environment.offline_if_hub_unreachable():
            results: Row = simple_evaluate(model=model, **arguments)
    except (ConnectionError, DatasetsError, FileNotFoundError) as error:  # a hub or file is missing
        tasks = (task["task"] if isinstance(task, dict) else task for task in options.tasks)
        raise UsageError(
            f"cannot read the data of --tasks {','.join(tasks)} ({reason(error)}); check the"
            " connection and the task, or use --include_path with tasks of local files"
        ) from None
    results["config"]["model"] = "ulskip"
    samples = results.pop("samples", {})
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, answers in samples.items():
        tracker.save_results_samples(task_name=task, samples=answers)
    for record in make_records(results, model.record(), recorded):
        folder.save(config, record)
    return folder, results


def make_records(results: Row, shared: Record, options: Row | None = None) -> list[Record]:
    """Make one record for each task, with metrics in the harness's units; groups of tasks have no
    record.

    `shared` is the record of the model. `options` are further harness options that change the
    answers; a row stores them under `lm_eval_options`.
    """
    records = []
    for task in results["configs"]:
        num_examples = results.get("n-samples", {}).get(task, {}).get("effective")
        values = results["results"][task].items()
        section = LmEval(
            lm_eval_task=task,
            lm_eval_version=shared.lm_eval_version,
            scored_prompt_layers=shared.scored_prompt_layers,
            lm_eval={
                key.removesuffix(",none").replace(",", " "): value
                for key, value in values
                if isinstance(value, (int, float)) and key not in ("sample_len", "sample_count")
            },
            num_fewshot=results.get("n-shot", {}).get(task),
            task_version=results.get("versions", {}).get(task),
            lm_eval_options=options or None,
        )
        asked = [shared.id, num_examples, section.model_dump(exclude={"lm_eval"})]
        point = {"id": digest(asked), "num_examples": num_examples}
        records.append(shared.replace(**dict(section), **point))
    return records


def _read_options(given: Namespace, output: Path) -> tuple[EvaluatorConfig, Row]:
    """Return the harness's configuration, and the given options that a row stores.

    Options can come from the command line or from the harness's YAML file, `--config`.
    """
    file = getattr(given, "config", None)
    sources = EvaluatorConfig.load_yaml_config(file) if file else {}, vars(given)
    asked = {
        name: value for source in sources for name, value in source.items() if value is not None
    }
    for name, instead in _REFUSED_OPTIONS.items():
        if name in asked:
            raise UsageError(f"--{name} is not supported by `ulskip lm-eval`; use {instead}")
    if not asked.get("tasks"):
        raise ValueError("expected --tasks, got none; use e.g. --tasks arc_easy,hellaswag")
    if asked.get("limit", 1) <= 0:
        raise ValueError(f"--limit: expected a number > 0, got {asked['limit']:g}")
    options = EvaluatorConfig.from_cli(Namespace(**{"output_path": str(output), **asked}))
    if not isinstance(options.samples, dict | None):
        raise ValueError(f"--samples: expected JSON or a file of JSON, got {options.samples}")
    return options, {name: getattr(options, name) for name in _RECORDED if name in asked}
