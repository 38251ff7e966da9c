"""A whole GPT in one file. Seven short functions are left for you to write, in any order.

    minigpt --learn, then /goto build       checks what you wrote, and gives hints
    python my_gpt.py runs/NAME "Once upon"  writes with a run that minigpt trained

It is the model that `minigpt train` makes: arch "modern", as Llama and Qwen are. A GPT is two things: a dictionary of matrices (its
weights), and a function from token ids to logits, one number for each token that could come next.
Shapes: B texts, T tokens, C channels, H heads, K key and value heads, D = C / H channels of a head, V tokens of the vocabulary.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]
Config = dict[str, Any]  # the settings of the model, by the names that minigpt's flags have


def future_mask(T: int) -> Tensor:
    """Blank 1, the mask: (T, T) of True and False, for T tokens. True: this token must not look there.

    Row t is the token that looks, column n is the token that it looks at. A token may look at itself and at every token before it.
    It must not look at a token after it, because it has to guess that one. For T = 3:
        [[False,  True,  True],
         [False, False,  True],
         [False, False, False]]
    """
    return torch.ones(T, T, dtype=torch.bool).triu(1)


def attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Blank 2, attention: (B, H, T, D), for queries q, keys k and values v, each (B, H, T, D), and the mask hidden (T, T).

    The score of query t and key n is the sum of the products of their D numbers, divided by the square root of D.
    Where hidden is True, the score is minus infinity. Softmax over the keys n turns the scores of each query into weights,
    which are positive and sum to 1. The result for query t is the sum of all values, each times its weight.
    """
    scores = q @ k.mT / math.sqrt(q.size(-1))  # (B, H, T, T)
    weights = scores.masked_fill(hidden, -math.inf).softmax(dim=-1)
    return weights @ v


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Blank 3, RMSNorm: x (..., C), each token divided by the root mean square of its C numbers, times gain (C,).

    Root mean square: square the numbers, take the mean over the last dimension, add eps (a tiny number, so that nothing is divided by
    zero), take the square root.
    """
    mean_square = x.square().mean(dim=-1, keepdim=True)  # (..., 1)
    return x / (mean_square + eps).sqrt() * gain


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Blank 4, the rotation: x (B, H, T, D), each pair of channels turned by the angle of its position; angles is (T, D / 2).

    This is how a token knows where it stands. Channel d of the first half, a, and channel d of the second half, b, are a pair.
    A pair (a, b) that is turned by an angle becomes (a cos - b sin, b cos + a sin). The new halves stand as the old ones did.
    """
    a, b = x.chunk(2, dim=-1)  # (B, H, T, D / 2) each
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Blank 5, the loss: one number, nats per guessed token, for logits (B, T, V) and the token ids (B, T).

    The logits at place t guess the token at place t + 1. So the last logits have no answer, and the first token was not guessed:
    B * (T - 1) guesses are left. Softmax over the vocabulary turns the logits of a guess into probabilities p. A guess costs -ln p of the
    token that really came. The loss is the mean of these costs.
    """
    log_p = logits[:, :-1].log_softmax(dim=-1)  # (B, T - 1, V)
    return -log_p.gather(2, ids[:, 1:, None]).mean()


def probabilities(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """Blank 6, sampling: (V,), the probability to write each token next, for logits (V,). They sum to 1.

    Divide the logits by the temperature. If top_k is not 0, only the top_k largest logits stay, and every other token gets probability
    0. Softmax of what stays. At temperature 0 the token with the largest logit gets probability 1.
    """
    if temperature == 0:
        return torch.zeros_like(logits).index_fill(0, logits.argmax(), 1.0)
    logits = logits / temperature
    if top_k:
        smallest = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    return logits.softmax(dim=-1)


def merge(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    """Blank 7, one merge of byte pair encoding: tokens, with the pair joined to one token wherever its two tokens are neighbours.

    Go from left to right. A token belongs to one pair at most: of three "a" the pair ("a", "a") joins the first two.
    The pair ("t", "h") turns ["t", "h", "e"] into ["th", "e"].
    """
    merged: list[str] = []
    i = 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == pair:
            merged.append(tokens[i] + tokens[i + 1])
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged


# ---- Below this line nothing is missing. It is worth reading: it shows what your functions are for.


def gpt(weights: Weights, config: Config, ids: Tensor) -> Tensor:
    """Logits (B, T, V) for token ids (B, T): what is guessed after each token."""
    T = ids.size(1)
    place = torch.arange(T)
    too_far = place[:, None] - place >= config["block_size"]  # a model looks back as far as it did in training
    hidden = future_mask(T) | too_far
    D = config["n_embd"] // config["n_head"]
    speeds = config["rope_theta"] ** (-torch.arange(0, D, 2) / D)  # (D / 2,)
    angles = torch.outer(place.float(), speeds)  # (T, D / 2)
    x = weights["token_embedding.weight"][ids]  # (B, T, C), the residual stream: every layer reads it and adds to it
    for layer in range(config["n_layer"]):
        w = {name.removeprefix(f"blocks.{layer}."): value for name, value in weights.items()}
        x = x + attention_layer(w, config, rms_norm(x, w["norm1.weight"], config["rms_norm_eps"]), hidden, angles)
        x = x + feed_forward(w, rms_norm(x, w["norm2.weight"], config["rms_norm_eps"]))
    x = rms_norm(x, weights["final_norm.weight"], config["rms_norm_eps"])
    return x @ weights.get("head.weight", weights["token_embedding.weight"]).mT


def attention_layer(w: Weights, config: Config, x: Tensor, hidden: Tensor, angles: Tensor) -> Tensor:
    """(B, T, C): what each token takes from the tokens that it looks at."""
    (B, T, C), H, K = x.shape, config["n_head"], config["n_kv_head"] or config["n_head"]
    heads = (x @ w["attention.qkv.weight"].mT).view(B, T, H + 2 * K, C // H).transpose(1, 2)
    q, k, v = heads[:, :H], heads[:, H : H + K], heads[:, H + K :]  # (B, H, T, D), (B, K, T, D), (B, K, T, D)
    if config["qk_norm"]:
        q = rms_norm(q, w["attention.q_norm.weight"], config["rms_norm_eps"])
        k = rms_norm(k, w["attention.k_norm.weight"], config["rms_norm_eps"])
    q, k = rotate(q, angles), rotate(k, angles)
    k, v = k.repeat_interleave(H // K, dim=1), v.repeat_interleave(H // K, dim=1)  # several queries may share a key
    y = attention(q, k, v, hidden).transpose(1, 2).reshape(B, T, C)  # the heads side by side
    return y @ w["attention.out.weight"].mT


def feed_forward(w: Weights, x: Tensor) -> Tensor:
    """(B, T, C): what is computed on each token alone (SwiGLU)."""
    gate, up = (x @ w["mlp.gate_up.weight"].mT).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up) @ w["mlp.down.weight"].mT


@torch.no_grad()
def write(weights: Weights, config: Config, ids: list[int], n: int, temperature: float = 0.0, top_k: int = 0) -> list[int]:
    """The ids of n tokens that follow `ids`; at temperature 0 always the most probable one."""
    written = list(ids)
    for _ in range(n):
        logits = gpt(weights, config, torch.tensor([written]))[0, -1]
        written.append(int(torch.multinomial(probabilities(logits, temperature, top_k), 1)))
    return written[len(ids) :]


def load(run: str) -> tuple[Weights, Config, Tokenizer]:
    """The weights, the settings of the model and the tokenizer of a run of minigpt, from its folder."""
    config = json.loads(Path(run, "config.json").read_text(encoding="utf-8"))["model"]
    if config["arch"] != "modern":
        sys.exit(f"{run} is of arch {config['arch']}, and this file is modern: train one with minigpt train --arch modern")
    tokenizer = Tokenizer(json.loads(Path(run, "tokenizer.json").read_text(encoding="utf-8")))
    return load_file(Path(run, "best.safetensors")), config, tokenizer


class Tokenizer:
    """Text to ids and back, for the tokenizers char, byte and bpe. (minigpt first cuts a text into words; this one merges across them.)"""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.vocab: dict[str, int] = spec["model"]["vocab"] | {token["content"]: token["id"] for token in spec["added_tokens"]}
        self.merges: list[tuple[str, str]] = [(a, b) for a, b in spec["model"].get("merges", [])]
        # Byte pairs are pairs of bytes. A byte that is no printable character is written as one from U+0100 on.
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        self.bytes = {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}
        self.is_char = spec["model"]["type"] == "WordLevel"

    def encode(self, text: str) -> list[int]:
        letter = {byte: character for character, byte in self.bytes.items()}
        tokens = list(text) if self.is_char else [letter[byte] for byte in text.encode("utf-8")]
        for pair in self.merges:
            tokens = merge(tokens, pair)
        if unknown := set(tokens) - set(self.vocab):
            sys.exit(f"this run's tokenizer does not know {' '.join(map(repr, sorted(unknown)))}: leave it out of the prompt")
        return [self.vocab[token] for token in tokens]

    def decode(self, ids: list[int]) -> str:
        token_of = {i: token for token, i in self.vocab.items()}
        text = "".join(token_of[i] for i in ids)
        return text if self.is_char else bytes(self.bytes[character] for character in text).decode("utf-8", "replace")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    weights, config, tokenizer = load(sys.argv[1])
    ids = tokenizer.encode(sys.argv[2] if len(sys.argv) > 2 else "\n")
    if len(ids) > 1:
        print(f"your prompt costs {loss(gpt(weights, config, torch.tensor([ids])), torch.tensor([ids])):.3f} nats per token")
    print(tokenizer.decode(ids + write(weights, config, ids, 300, temperature=0.8, top_k=40)))
