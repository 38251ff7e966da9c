"""How fast a configuration trains on this machine, measured on real steps of a scratch copy of the model."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

from minigpt_cli.config import RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.parts import masked_after
from minigpt_cli.training import memory
from minigpt_cli.training.device_batches import DeviceBatches
from minigpt_cli.training.distributed import World
from minigpt_cli.training.evaluator import Evaluator, train_sample_tokens
from minigpt_cli.training.state import TrainingState, trial_teacher

_TRIAL_S, _TRIAL_SHARE = 1.2, 0.03  # of steps: at most so many seconds, and that share of a time budget
_LONGEST_SHARE = 0.2  # of a time budget; then one step or two are enough
_EVALUATION_TRIAL_TOKENS = 16_384


class Speed(NamedTuple):
    """Seconds and bytes of a configuration on this machine."""

    step_s: float  # median
    evaluation_s: float
    peak_bytes: int | None  # None where the system does not say


def measure_speed(config: RunConfig, dataset: Dataset, world: World) -> Speed:
    """Time real steps and a real evaluation on a scratch copy of the model; of a model too large for this machine a single step."""
    device = world.device(config.compute.device)
    limit_s = min(_TRIAL_S, _TRIAL_SHARE * config.optim.time_budget)
    longest_s = max(limit_s, _LONGEST_SHARE * config.optim.time_budget)
    scratch = config.changed(optim={"max_steps": config.optim.max_steps or 1_000_000}, eval={"eval_iters": config.eval.eval_iters or 2})
    with memory.explained_out_of_memory(config):
        end = masked_after(config.data, dataset.tokenizer)
        vocab_size = dataset.tokenizer.vocab_size
        state = TrainingState(scratch, vocab_size, device, world, end_of_text=end, teacher=trial_teacher(config, vocab_size))
        batches = DeviceBatches(scratch, dataset, device, world)
        times: list[float] = []
        begun = time.perf_counter()
        more = True
        while more:
            start = time.perf_counter()
            state.step(len(times), batches).loss.item()
            times.append(time.perf_counter() - start)
            taken_s = time.perf_counter() - begun
            more = taken_s < longest_s if len(times) < 3 else taken_s < limit_s and len(times) < 200
            more = bool(world.agree(int(more), device))  # every process must take the same number of steps
        step_s = statistics.median(times[1:] or times)
        is_slow = bool(world.agree(int(step_s > longest_s / 3), device))
        return Speed(step_s, _evaluation_s(config, dataset, state, 1 if is_slow else 2), memory.peak(device))


def _evaluation_s(config: RunConfig, dataset: Dataset, state: TrainingState, trials: int) -> float:
    """Seconds of one evaluation, extrapolated from a part of it; in one trial alone, from a batch."""
    window_tokens = config.optim.batch_size * config.model.block_size
    iters = -(-_EVALUATION_TRIAL_TOKENS // window_tokens) if trials > 1 else 1
    sample = Evaluator(config.changed(eval={"eval_iters": iters}), dataset, state)
    times = []
    for _ in range(trials):  # the first of two is the warm-up
        start = time.perf_counter()
        sample()
        times.append(time.perf_counter() - start)
    per_token = min(times) / (2 * iters * window_tokens)
    if config.eval.eval_iters:
        return per_token * 2 * config.eval.eval_iters * window_tokens
    val_tokens = len(dataset.val.tokens)
    return per_token * (val_tokens + train_sample_tokens(val_tokens))
