"""The configuration of a run: frozen pydantic models, no torch.

A field is written once, here. Its name is its flag (`--n-layer`), its environment variable (`MINIGPT_N_LAYER`) and its
TOML key; its docstring is its help text; its bounds are in its type. `RunConfig` is what `config.json` holds.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import Field, model_validator

from minigpt_cli.bounds import COUNT_LIMIT, NATS_LIMIT, SECONDS_LIMIT, Duration, Line
from minigpt_cli.data_config import CLEANING as CLEANING
from minigpt_cli.data_config import READING as READING
from minigpt_cli.data_config import DataConfig as DataConfig
from minigpt_cli.data_config import Frozen
from minigpt_cli.registry import OPTIMIZERS, SCHEDULES
from minigpt_cli.resume_changes import CHANGES_LIMIT, parse_changes

if TYPE_CHECKING:  # names that the registry holds
    OptimizerName: TypeAlias = str
    ScheduleName: TypeAlias = str
else:
    OptimizerName, ScheduleName = Literal[tuple(OPTIMIZERS)], Literal[tuple(SCHEDULES)]


class _Architecture(Frozen):
    """What an architecture declares, so that other code does not depend on its name. Subclasses do not inherit these values."""

    hugging_face: ClassVar[Literal["gpt2", "llama"] | None] = None
    """gpt2 for what has the settings, tensors and formulas of classic, llama for those of modern; None: it cannot be exported."""
    decodes_as: ClassVar[str | None] = None
    """bigram, classic, modern or moe: what it is decoded as, without torch; None: its own forward pass generates."""
    is_sized: ClassVar[bool] = True
    """Whether settings change its size, so that a smaller one can be recommended; a table is as large as its vocabulary."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for name in ("hugging_face", "decodes_as", "is_sized"):
            if name not in vars(cls):
                setattr(cls, name, getattr(_Architecture, name))


class BigramConfig(_Architecture):
    """A table of next-token logits."""

    decodes_as = "bigram"
    is_sized = False

    arch: Literal["bigram"] = "bigram"
    block_size: int = Field(64, ge=1, le=1 << 20)
    """Tokens in one training window (the context that a model sees)."""


_MOST_HEADS, _HEAD_SIZE, _WIDE_HEAD_SIZE, _WIDE = 1024, 32, 64, 384


def fitting_heads(width: int, kv_heads: int = 1) -> int:
    """Heads for a model of this width, of an even size that divides it and is near to 32, in wide models to 64; 0 where none fit."""
    wanted = _WIDE_HEAD_SIZE if width >= _WIDE else _HEAD_SIZE
    numbers = (width // size for size in range(2, width + 1, 2) if width % size == 0)
    fitting = [n for n in numbers if n <= _MOST_HEADS and n % kv_heads == 0]
    return min(fitting, key=lambda n: abs(math.log(width / n / wanted)), default=0)


def fitting_width(width: int, heads: int) -> int:
    """The multiple of 16 nearest to `width` of which each head gets an even part."""
    step = math.lcm(16, 2 * heads)
    return max(1, round(width / step)) * step


class _Transformer(_Architecture):
    block_size: int = Field(128, ge=1, le=1 << 20)
    """Tokens in one training window (the context that a model sees)."""
    n_layer: int = Field(4, ge=1, le=1024)
    """Transformer blocks."""
    n_head: int = Field(4, ge=1, le=_MOST_HEADS)
    """Attention heads; must divide --n-embd."""
    n_embd: int = Field(128, ge=1, le=1 << 16)
    """Width of the residual stream."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an activation while training."""
    init_std: float = Field(0.02, gt=0, le=10)
    """Standard deviation of the initial weights; output projections of blocks get it divided by sqrt(2 n_layer)."""
    tie_weights: bool = False
    """Use the token embedding as the output head too."""

    @property
    def kv_heads(self) -> int:
        """Heads that keys and values have."""
        return self.n_head

    @model_validator(mode="after")
    def _heads_divide_width(self) -> _Transformer:
        if self.n_embd % self.n_head:
            raise ValueError(
                f"--n-head {self.n_head} does not divide --n-embd {self.n_embd}: choose a width that is a multiple of the heads"
            )
        return self


class ClassicConfig(_Transformer):
    """GPT-2's architecture."""

    hugging_face = "gpt2"
    decodes_as = "classic"

    arch: Literal["classic"] = "classic"
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    """Feed-forward non-linearity; gelu_tanh is the approximation that the published GPT-2 uses."""
    ffn_mult: float = Field(4.0, gt=0, le=64)
    """Hidden width of the feed-forward as a multiple of --n-embd."""
    bias: bool = False
    """Give linear layers and layer norms a bias."""

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward."""
        return round(self.ffn_mult * self.n_embd)


class ModernConfig(_Transformer):
    """RMSNorm, rotary positions, SwiGLU: Llama's architecture, or Qwen3's with QK-norm."""

    hugging_face = "llama"
    decodes_as = "modern"

    arch: Literal["modern"] = "modern"
    n_kv_head: int = Field(0, ge=0, le=1024)
    """Heads that keys and values have (grouped-query attention); 0: as many as --n-head."""
    ffn_mult: float = Field(8 / 3, gt=0, le=64)
    """Hidden width of the feed-forward as a multiple of --n-embd (rounded to a multiple of 16)."""
    rope_theta: float = Field(10_000.0, gt=1, le=1e9)
    """Base of the rotary position frequencies."""
    rms_norm_eps: float = Field(1e-6, gt=0, le=0.1)
    """Added to the mean square in RMSNorm."""
    qk_norm: bool = True
    """Normalise queries and keys of each head."""
    zero_init: bool = True
    """Start output projections and head at zero and embeddings at unit variance, instead of --init-std."""

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def hidden(self) -> int:
        """Hidden width of the feed-forward, of one expert in a mixture; a multiple of 16 for the matrix units."""
        return max(16, round(self.n_embd * self.ffn_mult / 16) * 16)

    @model_validator(mode="after")
    def _kv_heads_divide_heads(self) -> ModernConfig:
        if self.n_kv_head and self.n_head % self.n_kv_head:
            raise ValueError(f"--n-kv-head {self.n_kv_head} does not divide --n-head {self.n_head}: choose heads that are a multiple of it")
        if (self.n_embd // self.n_head) % 2:
            raise ValueError(
                f"rotary positions need an even head size: --n-embd {self.n_embd} / --n-head {self.n_head} is "
                f"{self.n_embd // self.n_head}: choose another --n-head or --n-embd"
            )
        return self


class MoEConfig(ModernConfig):
    """The modern block with several SwiGLU experts, of which each token uses a few."""

    hugging_face = "llama"
    decodes_as = "moe"

    arch: Literal["moe"] = "moe"  # type: ignore[assignment]
    ffn_mult: float = Field(4 / 3, gt=0, le=64)
    """Hidden width of one expert as a multiple of --n-embd (rounded to a multiple of 16)."""
    n_experts: int = Field(4, ge=1, le=1024)
    """Experts in each block."""
    moe_top_k: int = Field(2, ge=1, le=1024)
    """Experts that each token uses."""
    moe_aux_loss_coef: float = Field(0.01, ge=0, le=10)
    """Weight of the load-balancing loss; used with --moe-balance aux."""
    moe_balance: Literal["aux", "bias", "none"] = "aux"
    """How experts are kept evenly loaded: an auxiliary loss, or a bias on the router's choice."""
    moe_norm_topk: bool = False
    """Renormalise the router's weights over the chosen experts (Mixtral); at top 1 this starves the router of gradient."""

    @model_validator(mode="after")
    def _top_k_within_experts(self) -> MoEConfig:
        if self.moe_top_k > self.n_experts:
            raise ValueError(f"--moe-top-k {self.moe_top_k} is more than --n-experts {self.n_experts}")
        if self.moe_norm_topk and self.moe_top_k == 1:
            raise ValueError("--moe-norm-topk with --moe-top-k 1 makes every weight 1 and gives the router no gradient: leave it off")
        return self


REMOVABLE = ("mask", "positions", "attention", "mlp", "residual", "norm", "scale")
"""What can be left out of every layer of a transformer."""


class PlainConfig(ModernConfig):
    """modern without the parts that --without names, to see what each is for; never ranked."""

    arch: Literal["plain"] = "plain"  # type: ignore[assignment]
    without: str = Field("", max_length=100)
    """Parts to leave out, joined by +: mask, positions, attention, mlp, residual, norm, scale."""

    @model_validator(mode="before")
    @classmethod
    def _branches_carry_something(cls, values: Any) -> Any:
        """Without the residual, blocks that begin at zero pass nothing on and learn nothing: unless it is set, zero_init is off."""
        if isinstance(values, dict) and "residual" in str(values.get("without")).split("+"):
            return {"zero_init": False} | values
        return values

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that are left out."""
        return tuple(self.without.split("+")) if self.without else ()

    @model_validator(mode="after")
    def _parts_are_known(self) -> PlainConfig:
        if unknown := [part for part in self.parts if part not in REMOVABLE]:
            raise ValueError(f"--without {self.without}: {unknown[0]!r} is no part: join some of {', '.join(REMOVABLE)} by +")
        return self


ModelConfig = Annotated[BigramConfig | ClassicConfig | ModernConfig | MoEConfig | PlainConfig, Field(discriminator="arch")]

ARCHITECTURES: dict[str, type[_Architecture]] = {c.model_fields["arch"].default: c for c in get_args(get_args(ModelConfig)[0])}
"""The configuration class of each architecture by its name: the union, as a table."""


class OptimConfig(Frozen):
    """How weights are changed."""

    optimizer: OptimizerName = "muon"
    """muon: orthogonalised momentum on matrices and AdamW on the rest; adamw: AdamW throughout."""
    lr: float = Field(6e-3, gt=0, le=10)
    """Peak learning rate of AdamW."""
    muon_lr: float = Field(0.03, gt=0, le=10)
    """Peak learning rate of Muon."""
    weight_decay: float = Field(0.1, ge=0, le=100)
    """Decoupled weight decay, on matrices only."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's decay of the gradient average."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """AdamW's decay of the squared-gradient average."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """Muon's momentum (Nesterov)."""
    grad_clip: float = Field(0.0, ge=0, le=1e9)
    """Clip the gradient's norm to this; 0: no clipping."""
    schedule: ScheduleName = "wsd"
    """Shape of the learning rate over the run, after the warm-up."""
    warmup_steps: int = Field(10, ge=0, le=COUNT_LIMIT)
    """Steps over which the learning rate rises linearly from zero."""
    min_lr: float = Field(0.0, ge=0, le=10)
    """Learning rate at the end of the schedule (of AdamW; Muon keeps the same ratio)."""
    cooldown_frac: float = Field(0.6, ge=0, le=1)
    """Share of the run over which the learning rate falls; used with --schedule wsd."""
    batch_size: int = Field(16, ge=1, le=1 << 20)
    """Windows in one forward pass of one process."""
    grad_accum: int = Field(1, ge=1, le=1 << 16)
    """Forward passes added up before each step."""
    auto_batch: bool = False
    """When memory runs out, halve the batch and accumulate twice as often, at the same total."""
    max_steps: int = Field(0, ge=0, le=COUNT_LIMIT)
    """Steps to train; 0: as many as fit --time-budget."""
    time_budget: Duration = Field(180.0, gt=0, le=SECONDS_LIMIT)
    """Time from the start to the last step when --max-steps is 0, as 90s, 3m or 1.5h."""
    ema: float = Field(0.99, ge=0, lt=1)
    """Decay of an average of the weights, which is then what is evaluated and saved as best; 0: none."""

    @property
    def windows(self) -> int:
        """Windows in a step of one process."""
        return self.batch_size * self.grad_accum

    @model_validator(mode="after")
    def _ends_below_peak(self) -> OptimConfig:
        if self.min_lr > self.lr:
            raise ValueError(f"--min-lr {self.min_lr:g} is above --lr {self.lr:g}")
        return self


class EvalConfig(Frozen):
    """When to measure and when to stop."""

    eval_every: int = Field(0, ge=0, le=COUNT_LIMIT)
    """Steps between evaluations; 0: about twenty over the run."""
    eval_iters: int = Field(0, ge=0, le=COUNT_LIMIT)
    """Batches drawn at random for each evaluation; 0: the whole validation split where it is small, else 100."""
    patience: int = Field(0, ge=0, le=COUNT_LIMIT)
    """Stop after this many evaluations without improvement; 0: never."""
    min_delta: float | Literal["auto"] = 0.0
    """How much lower a validation loss must be to count as improvement (nats per token); auto: the measured noise of one evaluation."""
    target_loss: float = Field(0.0, ge=0, le=NATS_LIMIT)
    """Stop when the validation loss reaches this (nats per token); 0: no target."""
    time_limit: Duration = Field(0.0, ge=0, le=SECONDS_LIMIT)
    """Stop and save after this much training time, as 90s, 3m or 1.5h; 0: no limit."""
    save_every: int = Field(0, ge=0, le=COUNT_LIMIT)
    """Steps between saves besides those at evaluations; 0: none."""
    keep_every: int = Field(0, ge=0, le=COUNT_LIMIT)
    """Steps between checkpoints that stay, for --checkpoint STEP: the weights as they are evaluated; 0: none."""
    sample_every: Annotated[int, Field(ge=0, le=COUNT_LIMIT)] | Literal["auto"] = "auto"
    """Steps between samples of what the model writes, kept in samples.jsonl; auto: at evaluations, if the live view shows them or
    --sample-prompt is given; 0: none."""
    sample_prompt: Line = ""
    """What those samples continue; of conversations, a question. Empty: the beginning of a document."""

    @model_validator(mode="after")
    def _improvement_is_not_negative(self) -> EvalConfig:
        if isinstance(self.min_delta, float) and not 0 <= self.min_delta <= NATS_LIMIT:
            raise ValueError(f"--min-delta {self.min_delta:g} is not between 0 and {NATS_LIMIT:g}")
        return self


class ComputeConfig(Frozen):
    """On what, and how, it is computed."""

    device: Literal["auto", "cpu", "mps", "cuda"] = "auto"
    """Where to train; auto: cuda, else mps, else cpu."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the matrix products; auto: bf16 where the hardware multiplies it fast."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: where it pays within the run."""
    attention: Literal["auto", "plain", "sdpa"] = "auto"
    """How attention is computed; auto: the faster on this device and shape, measured."""
    grad_checkpoint: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    fsdp: bool = False
    """Shard weights and optimizer over the processes of torchrun (FSDP2) instead of copying them."""
    threads: int = Field(0, ge=0, le=4096)
    """CPU threads; 0: torch's choice."""


class LoraConfig(Frozen):
    """How a run from other weights (--init-from) learns: small adapters instead of the weights themselves."""

    lora_rank: int = Field(0, ge=0, le=1024)
    """Train adapters of this rank and leave the weights of --init-from as they are; 0: train all weights."""
    lora_alpha: float = Field(16.0, gt=0, le=1e6)
    """The adapters' difference is scaled by this over the rank."""
    lora_targets: str = Field("all", max_length=200)
    """Linear maps to adapt, by name (qkv,out,up,down,gate_up,router), or all: every one but the router."""
    quantize_base: Literal["off", "8", "4"] = "off"
    """Hold the frozen weights in so many bits while adapters train (needs the extra 'quantize')."""

    @model_validator(mode="after")
    def _quantizes_only_what_is_frozen(self) -> LoraConfig:
        if self.quantize_base != "off" and not self.lora_rank:
            raise ValueError("--quantize-base holds frozen weights in fewer bits: give --lora-rank too")
        return self


def _check_order(changes: str) -> None:
    """Raise ValueError for changes that cannot be read or are not in the order of their steps."""
    steps = [change.step for change in parse_changes(changes)]
    if steps != sorted(steps):
        raise ValueError(f"resume_changes {changes!r} is not in the order of its steps")


_TEACHER = re.compile(r"[1-9][0-9]{0,14}:[1-9][0-9]{0,14}:[0-9]{1,15}(?: (.*))?")


class DistilConfig(Frozen):
    """What a run learns from models that are trained before it (distillation)."""

    teachers: int = Field(0, ge=0, le=8)
    """Models trained first, one after another with the same settings; each learns from the text and from the one before, and the run from
    the last of them."""
    teacher_share: float = Field(0.7, ge=0, le=1)
    """Share of the loss that is what the teacher expects; the rest is what the text says. Used with --teachers."""
    teacher_time: float = Field(0.45, gt=0, lt=1)
    """Share of --time-budget and --time-limit that the teachers may take; what they leave is the run's. Used with --teachers."""
    taught_by: str = Field("", max_length=8 * CHANGES_LIMIT, json_schema_extra={"flag": False})
    """Of each teacher, the first one first, with ; between: its steps, the steps between its evaluations and their batches, as
    STEPS:EVERY:BATCHES, and its resume_changes; written by minigpt, so that the run can be repeated."""

    @model_validator(mode="after")
    def _teachers_can_be_read(self) -> DistilConfig:
        parts = self.taught_by.split(";") if self.taught_by else []
        matches = [_TEACHER.fullmatch(part) for part in parts]
        if not all(matches):
            raise ValueError(f"taught_by {self.taught_by!r} does not have STEPS:EVERY:BATCHES for each teacher")
        for match in matches:
            _check_order(match[1] or "" if match else "")
        return self


class RunConfig(Frozen):
    """Everything that a run depends on; `config.json` holds it, resolved."""

    schema_version: Literal[1] = 1
    model: ModelConfig = Field(default_factory=ModernConfig)
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    compute: ComputeConfig = ComputeConfig()
    lora: LoraConfig = LoraConfig()
    distil: DistilConfig = DistilConfig()
    seed: int = Field(1337, ge=0, lt=1 << 63)
    """Seed of initial weights, batches and dropout."""
    resume_changes: str = Field("", max_length=CHANGES_LIMIT, json_schema_extra={"flag": False})
    """What was changed when the run was resumed, or to keep its time budget, in order, as STEP:setting=VALUE_BEFORE with spaces between;
    written by minigpt."""

    def step_tokens(self, processes: int = 1) -> int:
        """Tokens of a step of so many processes together."""
        return self.optim.windows * processes * self.model.block_size

    def changed(self, **sections: dict[str, Any]) -> RunConfig:
        """This configuration with some settings of some sections changed, as in `changed(optim={"lr": 1e-3})`; not validated again."""
        return self.model_copy(update={name: getattr(self, name).model_copy(update=values) for name, values in sections.items()})

    @model_validator(mode="after")
    def _changes_can_be_read(self) -> RunConfig:
        _check_order(self.resume_changes)
        return self


def leaves(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted name, as JSON holds it."""
    flat: dict[str, Any] = {}
    for section, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat |= {f"{section}.{name}": leaf for name, leaf in value.items()}
        else:
            flat[section] = value
    return flat


def changed(before: RunConfig, after: RunConfig) -> dict[str, Any]:
    """The settings that differ, by dotted name, with their values before."""
    now = leaves(after)
    return {name: value for name, value in leaves(before).items() if value != now[name]}
