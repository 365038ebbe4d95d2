"""Run tasks of lm-evaluation-harness on a model that skips layers, and store a row for each task
(`ulskip lm-eval`).
"""

import hashlib
import json
from argparse import Namespace
from collections.abc import Sequence
from inspect import signature
from pathlib import Path

from lm_eval.config.evaluate_config import EvaluatorConfig

from ulskip_cli.core import environment
from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.experiments.preflight import Resolver
from ulskip_cli.experiments.record import LmEval, Record, Row, read
from ulskip_cli.experiments.results import ResultsFolder

EXPERIMENT = "lm_eval"  # the default of name=
# Configuration keys without effect here, and the options of the harness that replace them.
_REFUSED_KEYS = {"limit": "--limit", "task": "--tasks"}
# Options of the harness that would have no effect or give rows without scores, and replacements.
_REFUSED_OPTIONS = {
    "model": "model= before `--`, e.g. model=tiny",
    "model_args": "keys of the configuration before `--`, e.g. model.path=DIR model.dtype=bfloat16",
    "batch_size": "batch_size= before `--`, e.g. batch_size=8",
    "max_batch_size": "batch_size= before `--`, e.g. batch_size=8",
    "device": "model.device= before `--`, e.g. model.device=cuda",
    "predict_only": "--log_samples",
    "show_config": "the JSON in the results folder",
    "wandb_args": "tracker=wandb before `--`",
    "wandb_config_args": "tracker=wandb before `--`",
    "trackio_args": "tracker=trackio before `--`",
    "hf_hub_log_args": "`hf upload` on the results folder",
}
# Options that change the answers and are recorded by no other key of a row.
_RECORDED = (
    *("apply_chat_template", "fewshot_as_multiturn", "system_instruction"),
    *("gen_kwargs", "samples", "seed", "metadata"),
)
_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


def evaluate(overrides: Sequence[str], given: Namespace) -> tuple[ResultsFolder, Row]:
    """Evaluate a model on tasks, write the harness's JSON and save a row for every task.

    `given` holds the options that the harness's own parser found. The returned dict is the output
    of `simple_evaluate` without samples.
    """
    for key, option in _REFUSED_KEYS.items():
        if any(text.startswith(f"{key}=") for text in overrides):
            raise UsageError(f"{key}= is not supported by `ulskip lm-eval`; use -- {option}")
    overrides = [f"name={EXPERIMENT}", *overrides]  # later overrides win
    config = compose(overrides, command="lm-eval")
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

    from datasets.exceptions import DatasetsError
    from lm_eval import simple_evaluate  # imports torch, so only after all checks
    from lm_eval.loggers import EvaluationTracker

    from ulskip_cli.experiments.lm_eval_adapter import SkippingLM

    model = SkippingLM(overrides, config.batch_size)
    if options.apply_chat_template and not model.tokenizer.chat_template:
        raise UsageError(
            f"--apply_chat_template is not supported with {config.model.path}, whose tokenizer has "
            "no chat template; remove the option"
        )
    known = signature(simple_evaluate).parameters.keys() - _REFUSED_OPTIONS.keys()
    arguments = {name: getattr(options, name) for name in known if hasattr(options, name)}
    if options.use_cache:  # answers of another model or schedule must not be reused
        schedule = _digest([model.record().id, model.scoring_plan.prompt_layers])
        arguments["use_cache"] = f"{options.use_cache}_{schedule}"
    folder.check_writable()
    tracker = EvaluationTracker(output_path=options.output_path)
    plain = [text for text in overrides if not text.lstrip("+").startswith("tracker")]
    arguments |= {
        **options.cache_requests,
        **dict(zip(_SEEDS, options.seed or [None] * len(_SEEDS), strict=True)),
        "model_args": {"pretrained": config.model.path, "overrides": plain},
        "batch_size": config.batch_size,
        "device": str(model.device),
        "task_manager": manager,
        "evaluation_tracker": tracker,
    }
    try:
        with environment.offline_if_hub_unreachable():
            results: Row = simple_evaluate(model=model, **arguments)
    except (ConnectionError, DatasetsError, FileNotFoundError) as error:  # a hub or file is missing
        reason = " ".join(str(error).split())[:160]
        tasks = (task["task"] if isinstance(task, dict) else task for task in options.tasks)
        raise UsageError(
            f"cannot read the data of --tasks {','.join(tasks)} ({reason}); check the connection"
            " and the task, or use --include_path with tasks of local files"
        ) from None
    results["config"]["model"] = "ulskip"
    samples = results.pop("samples", {})
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, answers in samples.items():
        tracker.save_results_samples(task_name=task, samples=answers)
    for record in make_records(results, recorded):
        folder.save(config, record)
    return folder, results


def make_records(results: Row, options: Row | None = None) -> list[Record]:
    """Make one record for each task, with metrics in the harness's units; groups of tasks have no
    record.

    `options` are further harness options that change the answers; a row stores them under
    `lm_eval_options`.
    """
    shared = read(json.dumps(results["config"]["ulskip"]))
    records = []
    for task in results["configs"]:
        num_examples = results.get("n-samples", {}).get(task, {}).get("effective")
        values = results["results"][task].items()
        section = LmEval(
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
        asked = [shared.id, task, num_examples, section.model_dump(exclude={"lm_eval"})]
        point = {"id": _digest(asked), "task": f"lm_eval:{task}", "num_examples": num_examples}
        records.append(shared.join(section, **point))
    return records


def _read_options(given: Namespace, output: Path) -> tuple[EvaluatorConfig, Row]:
    """Return the harness's configuration, and the given options that a row stores.

    Options can come from the command line or from the harness's YAML file, `--config`.
    """
    file = getattr(given, "config", None)
    asked = EvaluatorConfig.load_yaml_config(file) if file else {}
    asked |= {name: value for name, value in vars(given).items() if value is not None}
    for name, instead in _REFUSED_OPTIONS.items():
        if name in asked:
            raise UsageError(f"--{name} is not supported by `ulskip lm-eval`; use {instead}")
    if not asked.get("tasks"):
        raise ValueError("expected --tasks, got none; use e.g. --tasks arc_easy,hellaswag")
    if asked.get("limit", 1) <= 0:
        raise ValueError(f"--limit: expected a number > 0, got {asked['limit']:g}")
    if asked.get("num_fewshot", 0) < 0:
        raise ValueError(f"--num_fewshot: expected a number >= 0, got {asked['num_fewshot']}")
    options = EvaluatorConfig.from_cli(Namespace(**{"output_path": str(output), **asked}))
    if not isinstance(options.samples, dict | None):
        raise ValueError(f"--samples: expected JSON or a file of JSON, got {options.samples}")
    return options, {name: getattr(options, name) for name in _RECORDED if name in asked}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
