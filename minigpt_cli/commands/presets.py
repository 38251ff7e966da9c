"""The list of presets: what each is for, its size, and how long it takes."""

from __future__ import annotations

from minigpt_cli.commands.config_sources import resolve
from minigpt_cli.config import BigramConfig, MoEConfig, RunConfig
from minigpt_cli.display import console, format
from minigpt_cli.presets.catalog import preset_names, preset_summary

_OPERATIONS_PER_S = 1.5e11  # of training on two CPU cores, in bfloat16 where they have it: a third of that, or ten times
_STEP_S, _START_S = 0.003, 4.0  # of every step, beside its products; of every run, the final score included
_LONGEST_S = 2 * 86_400  # that anybody would wait for


def show_presets() -> None:
    """Print every preset: name, parameters of its blocks, length, and its purpose below."""
    for name in preset_names():
        config = resolve({}, preset=name, environment={}).config
        blocks, _ = _block_parameters(config)
        size = f"{format.count(blocks)} parameters" if blocks else "a table of pairs"
        console.write(f"{name:<20} {size:<20} {_length(config)}")
        console.write_wrapped(f"    {preset_summary(name)}", "    ")
    console.write("")
    console.write_wrapped(
        "Parameters without embeddings; times are rough, for two CPU cores: minigpt train --preset NAME --dry-run measures yours."
    )


def rough_seconds(config: RunConfig) -> float:
    """About how long two CPU cores take to train a configuration."""
    optim = config.optim
    return optim.max_steps * (_STEP_S + _operations(config) / _OPERATIONS_PER_S) + _START_S if optim.max_steps else optim.time_budget


def _operations(config: RunConfig) -> float:
    """Of a training step, about: those in the matrices of its blocks."""
    _, active = _block_parameters(config)
    return 6.0 * active * config.step_tokens()


def _block_parameters(config: RunConfig) -> tuple[int, int]:
    """Weights of the matrices of all blocks, about: all of them, and those that one token uses."""
    model = config.model
    if isinstance(model, BigramConfig):
        return 0, 0
    attention, mlp = 4 * model.n_embd**2, 8 * model.n_embd**2
    experts, used = (model.n_experts, model.moe_top_k) if isinstance(model, MoEConfig) else (1, 1)
    return model.n_layer * (attention + experts * mlp), model.n_layer * (attention + used * mlp)


def _length(config: RunConfig) -> str:
    optim = config.optim
    if not optim.max_steps:
        return format.duration(optim.time_budget)
    seconds = optim.max_steps * _operations(config) / _OPERATIONS_PER_S
    if seconds > _LONGEST_S:
        return f"{optim.max_steps:,} steps, for GPUs"
    for least, divisor, unit in ((5400, 3600, "h"), (60, 60, "min")):
        if seconds >= least:
            return f"{optim.max_steps:,} steps, about {seconds / divisor:,.0f} {unit}"
    return f"{optim.max_steps:,} steps, less than a minute"
