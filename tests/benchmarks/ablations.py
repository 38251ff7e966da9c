"""What each idea for a better model is worth, beside the same training without it.

    python tests/benchmarks/ablations.py shakespeare --texts FOLDER --layers 4 --width 128 --steps 1747
    python tests/benchmarks/ablations.py moby150 --texts FOLDER --pairs 0 --steps 2000 --dropout 0.1     dropout by layer alone

Every row is trained on the same text by the same number of tokens; its processor time is shown, because some ideas cost more of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import planning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt_cli.accel.install import cross_entropy
from minigpt_cli.config import DataConfig, MoEConfig, RunConfig
from minigpt_cli.data.dataset import Dataset
from minigpt_cli.data.encoding import prepared
from minigpt_cli.models.layers import Dropout
from minigpt_cli.training.device_batches import DeviceBatches
from minigpt_cli.training.distributed import World
from minigpt_cli.training.evaluator import Evaluator
from minigpt_cli.training.law import learning_rates
from minigpt_cli.training.state import TrainingState

CPU = torch.device("cpu")
GROWING = ((0.25, 0.5), (0.5, 1.0), (0.25, 2.0))  # shares of the tokens, in batches of so many times the usual size
CACHED, CACHE_SHARES, CACHE_SHARPNESS = 2000, (0.0, 0.05, 0.1, 0.2), (0.1, 0.3)
Prepare = Callable[[nn.Module], None]
Loss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


def hidden(model: Any, ids: Tensor) -> Tensor:
    """What the head reads, (B, T, C)."""
    kept: list[Tensor] = []
    hook = model.final_norm.register_forward_hook(lambda module, args, output: kept.append(output))
    model(ids)
    hook.remove()
    return kept[0]


def distilled(teachers: list[nn.Module]) -> Loss:
    """Half of the loss by the text, half by the mean of what the teachers expect (Hinton et al. 2015)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        out = model(x)
        with torch.no_grad():
            expected = torch.stack([F.softmax(teacher(x).logits.float(), -1) for teacher in teachers]).mean(0)
        soft = -(expected * F.log_softmax(out.logits.float(), -1)).sum(-1).mean()
        return (cross_entropy(out.logits.flatten(0, 1), y.flatten()) + soft) / 2, out.aux_loss

    return loss


def two_tokens(width: int, vocab_size: int) -> tuple[Loss, nn.Linear]:
    """The token after the next one is predicted too, by a head of its own, which counts 0.3 (Gloeckle et al. 2024)."""
    second = nn.Linear(width, vocab_size, bias=False)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h: Any = hidden(model, x)
        logits = F.linear(h, model.output_weight.to(h.dtype))  # type: ignore[operator,union-attr,arg-type]
        further = F.linear(h[:, :-1], second.weight.to(h.dtype))
        nats = cross_entropy(logits.flatten(0, 1), y.flatten())
        return nats + 0.3 * cross_entropy(further.flatten(0, 1), y[:, 1:].flatten()), torch.zeros(())

    return loss, second


def cached_nats_per_char(model: Any, dataset: Dataset, block: int) -> dict[str, float]:
    """The loss over the validation split when the tokens that followed similar states among the last CACHED are expected again (Grave et
    al. 2017), for several shares and sharpnesses of this cache, the best first."""
    ids = torch.from_numpy(dataset.val.tokens[: len(dataset.val.tokens) // block * block + 1].astype("int64"))
    with torch.inference_mode():
        states = torch.cat([hidden(model, x) for x in ids[:-1].view(-1, block).split(64)]).flatten(0, 1).float()
        plain = torch.cat([F.log_softmax(x @ model.output_weight.T, -1) for x in states.split(4096)])
        followed, lost = ids[1:], {}
        expected = plain.gather(1, followed[:, None])[:, 0].exp()
        for sharpness in CACHE_SHARPNESS:
            again = torch.zeros(len(states))
            for i in range(1, len(states)):
                near = torch.softmax(sharpness * (states[max(0, i - CACHED) : i] @ states[i]), 0)
                again[i] = near[followed[max(0, i - CACHED) : i] == followed[i]].sum()
            for share in CACHE_SHARES:
                mixed = (1 - share) * expected + share * again
                lost[f"{share} {sharpness}"] = -mixed.log().sum().item() / dataset.val.n_chars * len(dataset.val.tokens) / len(states)
    return dict(sorted(lost.items(), key=lambda item: item[1]))


def by_layer(p: float, rising: bool) -> Prepare:
    """Dropout that rises or falls from layer to layer, p on average (Huang et al. 2016 do so with whole layers)."""

    def prepare(model: nn.Module) -> None:
        blocks: Any = list(model.blocks if rising else reversed(model.blocks))  # type: ignore[arg-type,call-overload]
        for i, block in enumerate(blocks, 1):
            for module in block.modules():
                if isinstance(module, Dropout):
                    module.p = 2 * p * i / (len(blocks) + 1)

    return prepare


class Ablation:
    """Trainings of one text and shape."""

    def __init__(self, given: argparse.Namespace) -> None:
        source = planning.TEXTS[given.text]
        cut = {"tokenizer": "bpe", "vocab_size": given.pairs} if given.pairs else {}
        data = DataConfig(**{**source, "source": str(given.texts / source["source"]), **cut})
        self.dataset = prepared(data, None, lambda step: None)
        shape = (given.layers, given.width, given.width // 32)
        tokens = given.steps * given.batch * given.block
        rates = learning_rates(given.width)
        self._row = planning.row(given.text, shape, tokens, block=given.block, batch=given.batch, **rates)

    def config(self, seed: int, **model: Any) -> RunConfig:
        """The configuration with another seed and other settings of the model."""
        config = planning.config_of(self._row | {"seed": seed}, len(self.dataset.val.tokens))
        return config.model_copy(update={"model": config.model.model_copy(update=model)})

    def mixture(self, seed: int) -> RunConfig:
        """Four experts of which each token has one: as many weights at work as before."""
        config = self.config(seed)
        same = {name: getattr(config.model, name) for name in ("n_layer", "n_embd", "n_head", "block_size", "ffn_mult")}
        return config.model_copy(update={"model": MoEConfig(n_experts=4, moe_top_k=1, **same)})

    def train(
        self,
        name: str,
        config: RunConfig,
        loss: Loss | None = None,
        head: nn.Linear | None = None,
        growing: bool = False,
        prepare: Prepare | None = None,
    ) -> Any:
        """The trained state; its result is printed."""
        begun = time.process_time()
        state = TrainingState(config, self.dataset.tokenizer.vocab_size, CPU, World())
        if prepare is not None:
            prepare(state.model)
        if loss is not None:
            state._loss = loss
        adam = torch.optim.AdamW(head.parameters(), lr=config.optim.lr) if head is not None else None
        step, done = 0, 0.0
        for share, size in GROWING if growing else ((1.0, 1.0),):
            now = config.changed(optim={"batch_size": int(size * config.optim.batch_size)})
            batches = DeviceBatches(now, self.dataset, CPU, World())
            steps = round(share * config.optim.max_steps / size)
            for k in range(steps):
                state.step(int((done + share * k / steps) * config.optim.max_steps), lambda s, micro: batches(step, micro))  # noqa: B023
                step += 1
                if adam is not None:
                    adam.step()
                    adam.zero_grad()
            done += share
        seconds = time.process_time() - begun
        found = Evaluator(config, self.dataset, state)()
        row = {"idea": name, "seed": config.seed, "nats_per_char": round(found.nats_per_char or 0, 4), "cpu_s": round(seconds)}
        print(json.dumps(row), flush=True)
        return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", choices=planning.TEXTS)
    parser.add_argument("--texts", type=Path, required=True)
    for name, value in (("layers", 4), ("width", 128), ("batch", 8), ("block", 128), ("steps", 1747), ("pairs", 1024), ("seeds", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--dropout", type=float, default=0.0, help="compare only dropout of this share: none, the same in all layers, rising, falling"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    ablation, width = Ablation(given), given.width
    for seed in range(1, given.seeds + 1) if given.dropout else ():
        config = ablation.config(seed, dropout=given.dropout)
        ablation.train("no dropout", ablation.config(seed))
        ablation.train("dropout", config)
        for rising in (True, False):
            ablation.train(f"{'rising' if rising else 'falling'} dropout", config, prepare=by_layer(given.dropout, rising))
    if given.dropout:
        return
    teachers = []
    for seed in range(1, given.seeds + 1):
        plain = ablation.train("plain", ablation.config(seed))
        with plain.measured() as model:
            print(
                json.dumps(
                    {"idea": "cache, share and sharpness", "seed": seed} | cached_nats_per_char(model, ablation.dataset, given.block)
                )
            )
        teachers.append(plain.model.eval())
        ablation.train("tied embeddings", ablation.config(seed, tie_weights=True))
        ablation.train("growing batch", ablation.config(seed), growing=True)
        loss, head = two_tokens(width, ablation.dataset.tokenizer.vocab_size)
        ablation.train("two tokens at once", ablation.config(seed), loss, head)
        ablation.train("mixture of experts", ablation.mixture(seed))
    for seed in range(11, 11 + given.seeds):
        ablation.train("distilled from one", ablation.config(seed), distilled(teachers[:1]))
    ablation.train("distilled from all", ablation.config(11), distilled(teachers))


if __name__ == "__main__":
    main()
