"""Decides everything before step 0: device, precision, attention path, batch, number of steps.

Every `auto`, every 0 that leaves a value open and every time budget becomes a plain value in the configuration that is saved, so that a
run can be repeated and resumed from it to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from minigpt_cli import registry
from minigpt_cli.accel import install
from minigpt_cli.config import RunConfig
from minigpt_cli.data import leak
from minigpt_cli.data.cleaning import cleaned_prompt
from minigpt_cli.data.dataset import Dataset, check_long_enough
from minigpt_cli.errors import UsageError
from minigpt_cli.generation.samples import prompt_ids
from minigpt_cli.models.attention import CausalAttention
from minigpt_cli.models.contract import meta_model
from minigpt_cli.storage.memory import check_threads
from minigpt_cli.training import choices, memory, precision
from minigpt_cli.training.clock import left_s, most_steps, spent_s
from minigpt_cli.training.distributed import World
from minigpt_cli.training.evaluator import train_sample_tokens
from minigpt_cli.training.keeping import check_kept, kept_notices
from minigpt_cli.training.optimizers import optimizer_class
from minigpt_cli.training.speed import Speed, measure_speed

_ATTENTION = {"plain": "minigpt's own function", "sdpa": "torch's fused function"}
_EVALUATIONS = 20  # over a run, unless --eval-every says otherwise
_FEWEST_EVALUATIONS = 4
_EVALUATION_SHARE = 0.05  # of a time budget
_SMALL_SPLIT_TOKENS = 2_000_000  # a validation split up to this size is measured whole
_SAMPLED_ITERS = 100
_LONG_RUN_S = 600  # from here on the minute that torch.compile takes may be worth it
_OVERFITTING = 150  # parameters for each character of the training text; more than any plan has
_LEAST_COPIES = 3  # of the weights while training: weights, gradients, and one optimizer state


class DryRun(NamedTuple):
    """What `--dry-run` reports."""

    config: RunConfig
    notices: list[str]
    n_params: int
    n_active_params: int
    step_ms: float
    tokens_per_s: float
    peak_bytes: int | None  # None where the system does not say
    largest_batch: int | None  # None where the free memory is unknown
    epochs: float
    estimated_s: float


def resolve(config: RunConfig, dataset: Dataset, world: World | None = None, begun: float | None = None) -> tuple[RunConfig, list[str]]:
    """The configuration with every choice made, and a line for each choice and warning.

    `begun`: when the time budget began, by time.perf_counter; None: it begins with the first step. Raises UsageError if the device is
    missing or the text is too short, and OutOfMemory if a step would not fit.
    """
    config, notices, _ = _resolved(config, dataset, world or World(), begun)
    return config, notices


def _resolved(config: RunConfig, dataset: Dataset, world: World, begun: float | None) -> tuple[RunConfig, list[str], Speed | None]:
    """The same, with the speed where it had to be measured."""
    asked = config
    config, notices = world.lead(lambda: _choose_compute(asked, dataset, world))
    world.each(lambda: _check_machine(config))
    torch.set_num_threads(config.compute.threads)
    free = [left for left in world.gather(memory.available(world.device(config.compute.device))) if left is not None]
    config, more = world.lead(lambda: _fit_memory(config, dataset, min(free, default=None)))
    notices += more
    config, more, speed = _choose_by_measuring(config, dataset, world, begun)
    return config, [*notices, *more, *_warnings(config, dataset)], speed


def check(config: RunConfig, dataset: Dataset) -> None:
    """Raise UsageError or OutOfMemory now for what `resolve` would refuse before it measures anything."""
    chosen, _ = _choose_compute(config, dataset, World())
    _check_machine(chosen)
    _fit_memory(chosen, dataset, memory.available(torch.device(chosen.compute.device)))
    if chosen.optim.max_steps:
        check_kept(chosen.eval.keep_every, chosen.optim.max_steps)


def dry_run(config: RunConfig, dataset: Dataset, world: World, begun: float | None = None) -> DryRun:
    """What the run would cost, from a few real steps; `begun` as in `resolve`. Every process calls this."""
    timed = config.optim.max_steps == 0
    started_s = spent_s(config, begun)
    config, notices, speed = _resolved(config, dataset, world, begun)
    device = world.device(config.compute.device)
    speed = speed or max(world.gather(measure_speed(config, dataset, world)))
    model = meta_model(config.model, dataset.tokenizer.vocab_size)
    free, need = memory.available(device), memory.measure(config, dataset.tokenizer.vocab_size)
    optim, n_params = config.optim, sum(p.numel() for p in model.parameters())
    if config.eval.keep_every and not config.lora.lora_rank:  # adapters are smaller
        notices += kept_notices(config.eval, optim.max_steps // config.eval.keep_every, 4 * n_params, timed=timed)
    tokens_per_step = config.step_tokens(world.size)
    evaluations = max(1, optim.max_steps // config.eval.eval_every)
    taught_s = config.distil.teacher_time * optim.time_budget if timed else config.distil.teachers * optim.max_steps * speed.step_s
    estimated_s = optim.max_steps * speed.step_s + evaluations * speed.evaluation_s + (taught_s if config.distil.teachers else 0.0)
    return DryRun(
        config=config,
        notices=notices,
        n_params=n_params,
        n_active_params=model.n_active_params(),  # type: ignore[operator]
        step_ms=speed.step_s * 1e3,
        tokens_per_s=tokens_per_step / speed.step_s,
        peak_bytes=speed.peak_bytes,
        largest_batch=None if free is None else need.largest_batch(free),
        epochs=optim.max_steps * tokens_per_step / len(dataset.train.tokens),
        estimated_s=min(started_s + estimated_s, optim.time_budget) if timed else estimated_s,  # a clock ends what has become slower
    )


def _warnings(config: RunConfig, dataset: Dataset) -> list[str]:
    """Warnings about a validation split that stands in the training text or is too small, and a model that is too large for the text."""
    n_params = _n_params(config, dataset)
    chars, windows = dataset.train.n_chars, len(dataset.val.tokens) / config.model.block_size
    warnings = leak.warnings(dataset.leak)
    if config.model.is_sized and n_params > _OVERFITTING * chars:
        warnings.append(f"Warning: {n_params:,} parameters for {chars:,} characters: expect overfitting; try more text or a smaller model")
    if windows < 8:
        warnings.append(
            f"Warning: the validation split holds only {windows:.1f} windows of {config.model.block_size} tokens: its loss will be noisy"
        )
    return warnings


def _n_params(config: RunConfig, dataset: Dataset) -> int:
    return sum(p.numel() for p in meta_model(config.model, dataset.tokenizer.vocab_size).parameters())


# ---- device, precision


def _choose_compute(config: RunConfig, dataset: Dataset, world: World) -> tuple[RunConfig, list[str]]:
    """Device, precision and threads, with notices. Raises UsageError for a configuration that cannot be trained."""
    notices: list[str] = []
    _check_sharding(config, world)
    _check_document_mask(config, dataset)
    _check_sample_prompt(config, dataset)
    check_long_enough(dataset, config.model.block_size)
    device, why = choose_device(config.compute.device)
    chosen, reason = precision.choose(config.compute.precision, device)
    if chosen == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
    if config.compute.precision == "auto":
        notices.append(f"precision {chosen}: {reason}")
    if config.compute.device == "auto":
        notices.append(f"device {device}: {why}")
    if device == "cpu" and (reason := install.why_not()):
        notices.append(f"kernels torch, slower: {reason}")
    threads = config.compute.threads or torch.get_num_threads()
    return config.changed(compute={"device": device, "precision": chosen, "threads": threads}), notices


def _check_machine(config: RunConfig) -> None:
    """Raise MiniGPTError where this machine lacks the device or the threads."""
    choose_device(config.compute.device)
    check_threads(config.compute.threads)


def _check_sharding(config: RunConfig, world: World) -> None:
    """Raise UsageError for settings that do not work with sharded weights."""
    if not config.compute.fsdp:
        return
    if world.size == 1:
        raise UsageError("--fsdp shards a model over several processes: start it with torchrun --nproc-per-node N -m minigpt_cli train …")
    if not optimizer_class(config.optim).shards:
        raise UsageError(f"--fsdp splits every matrix, and --optimizer {config.optim.optimizer} needs them whole: add --optimizer adamw")
    if config.optim.ema:
        raise UsageError("--fsdp keeps no average of the weights: add --ema 0")
    if config.distil.teachers:
        raise UsageError("--fsdp splits a model that is too large for one device, and a teacher stays whole: leave out --teachers")
    if config.eval.sample_prompt or config.eval.sample_every not in ("auto", 0):
        raise UsageError("--fsdp splits every matrix, and samples need them whole: leave out --sample-every and --sample-prompt")


def _check_document_mask(config: RunConfig, dataset: Dataset) -> None:
    """Raise UsageError for --document-mask where it would hide nothing."""
    if not config.data.document_mask:
        return
    if not hasattr(registry.load("architecture", config.model.arch), "end_of_text"):
        raise UsageError(f"--document-mask hides documents from attention, and --arch {config.model.arch} has none: leave it out")
    if dataset.chats:
        raise UsageError("--document-mask needs a token between documents, and conversations have none: leave it out")
    if not dataset.in_documents:
        raise UsageError(f"--document-mask: {dataset.label} is one document, so nothing would be hidden: leave it out, or see --documents")


def _check_sample_prompt(config: RunConfig, dataset: Dataset) -> None:
    """Raise UsageError for a prompt with characters that the tokenizer does not know."""
    try:
        prompt_ids(dataset.tokenizer, cleaned_prompt(config.data, config.eval.sample_prompt))
    except UsageError as error:
        raise UsageError(f"--sample-prompt: {error}") from None


def choose_device(requested: str) -> tuple[str, str]:
    """The device to train on and why. Raises UsageError if the requested one is missing."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if requested != "auto":
        if not available[requested]:
            names = ", ".join(name for name, yes in available.items() if yes)
            raise UsageError(f"--device {requested}: {_why_missing(requested)}; use --device auto or one of: {names}")
        return requested, "as asked"
    chosen = next(name for name, yes in available.items() if yes)
    return chosen, {"cuda": "an NVIDIA or AMD GPU is here", "mps": "an Apple GPU is here", "cpu": "no GPU is here"}[chosen]


def _why_missing(device: str) -> str:
    if device == "mps":
        return "this torch has no MPS support" if not torch.backends.mps.is_built() else "no Apple GPU is here"
    return "this torch is built without CUDA" if torch.version.cuda is None and torch.version.hip is None else "no GPU is here"


# ---- memory


def _fit_memory(config: RunConfig, dataset: Dataset, free: int | None) -> tuple[RunConfig, list[str]]:
    """Refuse a batch that does not fit into `free` bytes, or with --auto-batch halve it and accumulate twice as often until it does; with
    notices."""
    if free is None or not config.model.is_sized:
        return config, []
    if _n_params(config, dataset) * 4 * _LEAST_COPIES > free:  # before anything of that size is allocated
        raise memory.too_large(config, 0)
    with memory.explained_out_of_memory(config):
        need = memory.measure(config, dataset.tokenizer.vocab_size)
    # Measured again: the first model that is built loads a hundred megabytes of torch's modules and of kernels.
    fits = need.largest_batch(min(free, memory.available(torch.device(config.compute.device)) or free))
    batch, accum = config.optim.batch_size, config.optim.grad_accum
    if batch <= fits:
        return config, []
    if not config.optim.auto_batch:
        raise memory.too_large(config, fits)
    while batch > fits and batch % 2 == 0:
        batch, accum = batch // 2, accum * 2
    if batch > fits:
        raise memory.too_large(config, fits)
    notice = f"batch {config.optim.batch_size} does not fit in memory: {batch} windows, accumulated {accum} times, at the same total"
    return config.changed(optim={"batch_size": batch, "grad_accum": accum}), [notice]


# ---- speed


def _choose_by_measuring(
    config: RunConfig, dataset: Dataset, world: World, begun: float | None
) -> tuple[RunConfig, list[str], Speed | None]:
    """The choices that need real steps, with notices, and the speed; with --auto-batch in smaller batches where memory runs out."""
    try:
        shaped, notices = world.lead(lambda: _choose_shape(config, dataset))
        speed = None if config.optim.max_steps else max(world.gather(measure_speed(shaped, dataset, world)))  # the slowest process decides
        chosen, more, speed = world.lead(lambda: _choose_steps(shaped, dataset, world, speed, begun))
        return chosen, [*notices, *more], speed
    except memory.OutOfMemory:
        if (smaller := memory.smaller(config, world.size)) is None:
            raise
    memory.release_memory()
    chosen, notices, speed = _choose_by_measuring(smaller, dataset, world, begun)
    return chosen, [memory.smaller_notice(smaller), *notices], speed


def _choose_shape(config: RunConfig, dataset: Dataset) -> tuple[RunConfig, list[str]]:
    """Attention, compilation and the size of an evaluation, with notices."""
    config, notices = _choose_attention(config, dataset)
    if config.eval.eval_iters == 0 and len(dataset.val.tokens) > _SMALL_SPLIT_TOKENS:
        config = config.changed(eval={"eval_iters": _SAMPLED_ITERS})
        notices.append(_sampled_notice(_SAMPLED_ITERS))
    return config, notices


def _choose_attention(config: RunConfig, dataset: Dataset) -> tuple[RunConfig, list[str]]:
    """The faster attention path on this machine and whether to compile, with notices."""
    compute, notices = config.compute, []
    if not any(isinstance(module, CausalAttention) for module in meta_model(config.model, dataset.tokenizer.vocab_size).modules()):
        return config.changed(compute={"attention": "plain", "compile": "off"}), []
    if compute.attention == "auto":
        with memory.explained_out_of_memory(config):
            dtype, device = precision.DTYPES[compute.precision], torch.device(compute.device)
            seconds = choices.attention_paths(config.model, config.optim.batch_size, dtype, device, config.data.document_mask)
        faster, slower = sorted(seconds, key=lambda path: seconds[path])
        ratio = seconds[slower] / seconds[faster]
        notices.append(f"attention by {_ATTENTION[faster]}: a layer is {ratio:.1f}x as fast as by {_ATTENTION[slower]} here")
        config = config.changed(compute={"attention": faster})
    if compute.compile == "auto":
        # It takes about a minute: on a GPU a long run gains more than that; on CPUs and Apple GPUs eager was faster when measured.
        long_run = config.optim.max_steps > 2000 or (config.optim.max_steps == 0 and config.optim.time_budget >= _LONG_RUN_S)
        config = config.changed(compute={"compile": "on" if compute.device == "cuda" and long_run else "off"})
    return config, notices


def _sampled_evaluations(config: RunConfig, dataset: Dataset, speed: Speed, budget: float) -> tuple[RunConfig, Speed, list[str]]:
    """Evaluations of some batches where the whole validation split would take too much of a budget, with the speed and a notice."""
    allowed = _EVALUATION_SHARE * budget / _FEWEST_EVALUATIONS
    if config.eval.eval_iters or speed.evaluation_s <= allowed:
        return config, speed, []
    val_tokens, batch_tokens = len(dataset.val.tokens), config.optim.batch_size * config.model.block_size
    per_batch = 2 * batch_tokens * speed.evaluation_s / (val_tokens + train_sample_tokens(val_tokens))  # of training and of validation text
    iters = min(_SAMPLED_ITERS, max(1, int(allowed / per_batch)))
    if iters * batch_tokens >= val_tokens:
        return config, speed, []  # as many tokens, and not each once
    return config.changed(eval={"eval_iters": iters}), speed._replace(evaluation_s=iters * per_batch), [_sampled_notice(iters)]


def _sampled_notice(iters: int) -> str:
    batches = f"{iters} batch{'es' * (iters > 1)}"
    return f"evaluations draw {batches} of each split, to be quick; the best is scored on the whole validation split at the end"


def _choose_steps(
    config: RunConfig, dataset: Dataset, world: World, speed: Speed | None, begun: float | None
) -> tuple[RunConfig, list[str], Speed | None]:
    """The number of steps that fit the time budget at this speed and the steps between evaluations, with notices, and the speed with the
    chosen evaluations."""
    notices: list[str] = []
    evaluations = _EVALUATIONS
    if speed is not None:
        budget = left_s(config, begun)
        config, speed, notices = _sampled_evaluations(config, dataset, speed, budget)
        evaluations = int(min(_EVALUATIONS, max(_FEWEST_EVALUATIONS, budget * _EVALUATION_SHARE / max(1e-6, speed.evaluation_s))))
        if config.eval.eval_every:
            fitting = budget / (speed.step_s + speed.evaluation_s / config.eval.eval_every)
        else:
            fitting = max(0.0, budget - evaluations * speed.evaluation_s) / speed.step_s
        # More steps over a small text would only memorise it.
        steps, most = max(1, int(fitting)), most_steps(config, dataset, world)
        if steps > most:
            steps = most
            epochs = most * config.step_tokens(world.size) / len(dataset.train.tokens)
            notices.append(f"{most:,} steps read this text {epochs:.0f} times: the run ends before its time budget (--max-steps overrides)")
        checks = steps / config.eval.eval_every if config.eval.eval_every else evaluations
        taken_s = steps * speed.step_s + checks * speed.evaluation_s
        notices.append(
            f"{steps:,} steps in about {taken_s:,.1f} of {config.optim.time_budget:,g} s: "
            f"{speed.step_s * 1e3:.1f} ms each, {speed.evaluation_s:.2f} s an evaluation"
        )
        config = config.changed(optim={"max_steps": steps})
    if config.eval.eval_every == 0:
        config = config.changed(eval={"eval_every": max(1, -(-config.optim.max_steps // evaluations))})
    return config, notices, speed
