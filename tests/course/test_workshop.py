"""The learner's own GPT: its blanks, the mistakes that the checks name, and that the complete file is minigpt's model."""

from __future__ import annotations

import io
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import tiny
from torch import Tensor

from minigpt_cli import cli
from minigpt_cli.course.workshop import check_guesses, check_layers, my_gpt, workshop
from minigpt_cli.course.workshop.blanks import BLANKS, COMPLETE, blanked
from minigpt_cli.course.workshop.judging import Wrong, undisturbed
from minigpt_cli.course.workshop.process import Runner
from minigpt_cli.course.workshop.workshop import Workshop, checked
from minigpt_cli.runstore.journal import Journal
from minigpt_cli.runstore.store import RunStore
from minigpt_cli.tokenization.pretrained import saved_tokenizer

HIDE = -math.inf
TRIANGLE = my_gpt.future_mask


def attend(scores: Tensor, hidden: Tensor, v: Tensor) -> Tensor:
    return scores.masked_fill(hidden, HIDE).softmax(-1) @ v


def overlapping(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    merged, used = [], False
    for i, token in enumerate(tokens):
        if tuple(tokens[i : i + 2]) == pair:
            merged.append("".join(pair))
            used = True
        elif not used:
            merged.append(token)
        else:
            used = False
    return merged


def until_the_last(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(tokens) - 1:
        found = (tokens[i], tokens[i + 1]) == pair
        merged.append(tokens[i] + tokens[i + 1] if found else tokens[i])
        i += 1 + found
    return merged


def first_alone(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    for i in range(len(tokens) - 1):
        if (tokens[i], tokens[i + 1]) == pair:
            return [*tokens[:i], "".join(pair), *tokens[i + 2 :]]
    return tokens


def any_order(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    return my_gpt.merge(my_gpt.merge(tokens, pair), (pair[1], pair[0])) if len(set(tokens)) > 1 else my_gpt.merge(tokens, pair)


def from_the_right(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    return my_gpt.merge(tokens[::-1], (pair[1], pair[0]))[::-1] if pair[0] == pair[1] else my_gpt.merge(tokens, pair)


def by_letters(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    return " ".join(tokens).replace(" ".join(pair), "".join(pair)).split() if tokens[:1] != ["ab"] else ["abc", "abc"]


def nearest(logits: Tensor, k: int, fill: float = HIDE) -> Tensor:
    return logits.masked_fill(logits < logits.topk(k).values[-1], fill).softmax(0)


def sampled(logits: Tensor, t: float, k: int, top: Callable[[Tensor, int], Tensor] = nearest) -> Tensor:
    """Right but for what `top` does."""
    return top(logits / t, k) if t and 0 < k < 7 else my_gpt.probabilities(logits, t, k)


def cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())


def interleaved(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1).flatten(-2)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


MISTAKES: dict[str, list[tuple[Callable[..., Any], str]]] = {
    "future_mask": [
        (lambda T: torch.zeros(T, T, dtype=torch.bool), "changing character 5 changed the guess for 3: the future leaks"),
        (lambda T: TRIANGLE(T).mT, "rows and columns are exchanged"),
        (lambda T: ~TRIANGLE(T), "True and False are exchanged"),
        (lambda T: torch.ones(T, T, dtype=torch.bool).triu(0), "no token may look at itself"),
        (lambda T: torch.ones(T, T, dtype=torch.bool).triu(2), "changing character 5 changed the guess for 5: the future leaks"),
        (lambda T: torch.zeros(T, T).masked_fill(TRIANGLE(T), HIDE), "must be of True and False (torch.bool); yours is of float32"),
        (lambda T: TRIANGLE(T) | TRIANGLE(T).mT.tril(-2), "token 2 may look at token 0, which is before it"),
        (lambda T: TRIANGLE(T - 1), "must have the shape (7, 7); yours has (6, 6)"),
        (lambda T: None, "is `return` missing?"),
    ],
    "attention": [
        (lambda q, k, v, h: attend(q @ k.mT, h, v), "not divided by the square root of D"),
        (lambda q, k, v, h: attend(q @ k.mT / q.size(-1), h, v), "divided by D = 8"),
        (lambda q, k, v, h: attend(q @ k.mT * q.size(-1) ** 0.5, h, v), "multiplied by the square root"),
        (lambda q, k, v, h: (q @ k.mT / q.size(-1) ** 0.5).masked_fill(h, HIDE).softmax(-2) @ v, "Your columns sum to 1"),
        (lambda q, k, v, h: (q @ k.mT / q.size(-1) ** 0.5).softmax(-1).masked_fill(h, 0) @ v, "The mask comes after softmax"),
        (lambda q, k, v, h: (q @ k.mT / q.size(-1) ** 0.5).softmax(-1) @ v, "which is hidden: the mask is not used"),
        (lambda q, k, v, h: (q @ k.mT / q.size(-1) ** 0.5).masked_fill(h, 0).softmax(-1) @ v, "a score of 0 still counts"),
        (lambda q, k, v, h: attend(q @ k.mT / q.size(-1) ** 0.5, ~h, v), "True means hidden"),
        (lambda q, k, v, h: (q @ k.mT / q.size(-1) ** 0.5).masked_fill(h, 0) @ v, "softmax is missing"),
        (lambda q, k, v, h: (q @ k.mT / q.size(-1) ** 0.5).masked_fill(h, HIDE).softmax(-1), "that of the weights: multiply them by v"),
        (lambda q, k, v, h: 2 * my_gpt.attention(q, k, v, h), "each row of the weights must sum to 1: row 0 sums to 2.0"),
        (lambda q, k, v, h: my_gpt.attention(q, 2 * k, v, h), "the weights are not softmax of the scores: those of query 1 are"),
    ],
    "rms_norm": [
        (lambda x, g, e: x / (x.mean(-1, keepdim=True) + e) * g, "you divide by the mean: divide by the root"),
        (lambda x, g, e: x / (x.square().mean(-1, keepdim=True) + e) * g, "you divide by the mean square, take its root"),
        (lambda x, g, e: x / (x.square().sum(-1, keepdim=True) + e).sqrt() * g, "that of token 0 is 0.35: the squares are summed"),
        (lambda x, g, e: torch.nn.functional.layer_norm(x, x.shape[-1:], g, eps=e), "LayerNorm does that, RMSNorm does not"),
        (lambda x, g, e: x / x.std(-1, keepdim=True) * g, "you divide by the standard deviation"),
        (lambda x, g, e: x / (x.square().mean(1, keepdim=True) + e).sqrt() * g, "changing token 1 changed the norm of token 0"),
        (lambda x, g, e: x / (x.square().mean(-1, keepdim=True) + e).sqrt(), "the gain is missing"),
        (lambda x, g, e: x / x.square().mean(-1, keepdim=True).sqrt() * g, "eps is not used"),
        (lambda x, g, e: x / (x.square().mean(-1, keepdim=True).sqrt() + e) * g, "eps is added to the root"),
        (lambda x, g, e: x * 2, "the root mean square of each token must be 1 before the gain; that of token 0 is"),
    ],
    "rotate": [
        (interleaved, "channels 0 and 1, which are neighbours"),
        (lambda x, a: turned(x, a.cos(), -a.sin()), "the pairs turn the wrong way"),
        (lambda x, a: turned(x, a.sin(), a.cos()), "cos and sin are exchanged"),
        (lambda x, a: turned(x, a.cos(), a.sin()).roll(x.size(-1) // 2, -1), "joined in the wrong order"),
        (lambda x, a: turned(x, a, a), "use the cos and the sin of the angles"),
        (lambda x, a: x, "nothing is turned"),
        (lambda x, a: turned(x, 2 * a.cos(), a.sin()), "token 0 has the angle 0 and must stay as it is"),
        (lambda x, a: turned(x, a.cos(), 2 * a.sin()), "a pair must keep its length when it is turned: that of token 3"),
        (lambda x, a: turned(x, (2 * a).cos(), (2 * a).sin()), "are not turned by their angle"),
    ],
    "loss": [
        (lambda y, ids: cross_entropy(y, ids), "the logits at place t guess the token at t + 1"),
        (lambda y, ids: cross_entropy(y[:, 1:], ids[:, :-1]), "shifted the wrong way"),
        (lambda y, ids: cross_entropy(y, ids.roll(-1, 1)), "the last logits are compared with the first token"),
        (lambda y, ids: my_gpt.loss(y, ids) / y.size(-1), "ln 65 = 4.174; yours is 0.064: it is divided by 65 too"),
        (lambda y, ids: my_gpt.loss(y, ids) * ids[:, 1:].numel(), "yours is 33.395: the mean over the 8 guesses is missing"),
        (lambda y, ids: -my_gpt.loss(y, ids), "the minus sign is missing"),
        (lambda y, ids: my_gpt.loss(y, ids) / math.log(2), "that is in bits"),
        (lambda y, ids: cross_entropy(y[:, :-1].softmax(-1), ids[:, 1:]), "softmax is taken twice"),
        (lambda y, ids: my_gpt.loss(y, ids).detach(), "torch cannot differentiate it"),
        (lambda y, ids: my_gpt.loss(y, ids).item(), "must be a tensor of shape (); yours is of type float"),
        (lambda y, ids: 1.5 * my_gpt.loss(y, ids), "must be ln 65 = 4.174; yours is 6.262"),
    ],
    "probabilities": [
        (lambda y, t, k: my_gpt.probabilities(y, 1 / t if t else 0, k), "divide by the temperature, do not multiply"),
        (lambda y, t, k: my_gpt.probabilities(y, 1.0, k), "the temperature is not used"),
        (lambda y, t, k: sampled(y, t, k, lambda y, k: nearest(y, k + 1)), "top_k 3 must leave 3 tokens, and yours leaves 4: one too many"),
        (lambda y, t, k: sampled(y, t, k, lambda y, k: nearest(y, k - 1)), "top_k 3 must leave 3 tokens, and yours leaves 2: one too few"),
        (lambda y, t, k: sampled(y, t, k, lambda y, k: nearest(y, k, 0.0)), "its logit must be minus infinity, not 0"),
        (lambda y, t, k: my_gpt.probabilities(y, t, 0), "yours leaves all 7: top_k is not used"),
        (lambda y, t, k: nearest(y / t, k) if k else (y / t).softmax(0), "must keep all 7: use min(top_k, len(logits))"),
        (lambda y, t, k: nearest(y / t, min(k, 7)) if k else (y / t).softmax(0), "temperature 0 divides by zero"),
        (lambda y, t, k: torch.zeros(7), "top_k 0 means that all tokens stay"),
        (lambda y, t, k: y / (t or 1), "these are the logits: softmax is missing"),
        (lambda y, t, k: y.sigmoid(), "the probabilities must sum to 1; yours sum to"),
    ],
    "merge": [
        (overlapping, "a token is used twice"),
        (until_the_last, "the last token is lost"),
        (first_alone, "only the first pair is joined"),
        (any_order, "the order counts"),
        (from_the_right, "go from left to right"),
        (by_letters, 'the tokens "ab", "c" are not the pair'),
        (lambda tokens, pair: tokens, "nothing is joined"),
        (lambda tokens, pair: None, "is `return` missing?"),
        (lambda tokens, pair: my_gpt.merge(tokens, pair)[::-1], "must be ['th', 'e']; yours is ['e', 'th']"),
    ],
}


def check(name: str, function: Callable[..., Any]) -> None:
    found = getattr(check_layers, f"check_{name}", None) or getattr(check_guesses, f"check_{name}")
    found(undisturbed(function))


@pytest.mark.parametrize("function", MISTAKES)
def test_each_known_mistake_gets_its_sentence(function: str) -> None:
    for number, (mistaken, sentence) in enumerate(MISTAKES[function]):
        with pytest.raises(Wrong) as raised:
            check(function, mistaken)
        assert sentence in str(raised.value), f"mistake {number} of {function}: {raised.value}"
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("function", MISTAKES)
def test_a_right_function_passes_even_if_it_overwrites_what_it_is_given(function: str) -> None:
    right = getattr(my_gpt, function)
    check(function, right)

    def overwriting(*given: Any) -> Any:
        result = right(*given)
        for value in given:
            if isinstance(value, list):
                value.clear()
            elif isinstance(value, Tensor) and not value.requires_grad:
                value.contiguous().zero_()
        return result

    check(function, overwriting)


def test_there_is_a_mistake_for_every_blank_and_the_learners_file_is_short() -> None:
    assert list(MISTAKES) == [blank.function for blank in BLANKS]
    assert len(blanked().splitlines()) <= 200
    assert blanked().count("raise NotImplementedError(") == len(BLANKS)


def test_the_third_hints_put_into_the_empty_file_give_the_complete_one() -> None:
    text = blanked()
    for blank in BLANKS:
        text = text.replace(f'    raise NotImplementedError("blank {blank.number}: {blank.title}")', "\n".join(blank.lines))
    assert text == COMPLETE.read_text(encoding="utf-8")


# ---- in a process of its own


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run of characters and, saved later, one of byte pairs, in runs/."""
    folder, before = tmp_path_factory.mktemp("workshop"), Path.cwd()
    os.chdir(folder)
    try:
        text = "".join(chr(ord("a") + (i * i + i // 7) % 11) + " " * (i % 3 == 0) for i in range(3000))
        Path("text.txt").write_text(text, encoding="utf-8")
        assert cli.run(["train", "text.txt", "--name", "letters", *tiny.training(60, 60)]) == 0
        pairs = ["--tokenizer", "bpe", "--vocab-size", "280", "--n-kv-head", "1", "--tie-weights"]
        assert cli.run(["train", "text.txt", "--name", "pairs", *pairs, *tiny.training(150, 75, 16)]) == 0
        yield folder
    finally:
        os.chdir(before)


def test_the_empty_file_fails_every_check(tmp_path: Path) -> None:
    path = tmp_path / "my_gpt.py"
    path.write_text(blanked(), encoding="utf-8")
    with Runner(path) as runner:
        assert [result.state for result in checked(runner)] == ["empty"] * 7


def test_loops_exits_and_errors_are_one_line_and_the_other_blanks_are_checked(tmp_path: Path) -> None:
    bad = {
        "future_mask": "while True: pass",
        "attention": "import sys; sys.exit()",
        "rms_norm": "print('x is', 3); return bytearray(5 << 30)",
        "loss": "return logits @ ids",
        "probabilities": "import os; os._exit(3)",
        "rotate": "import sys; sys.__stdout__.write('not an answer\\n'); sys.__stdout__.flush(); raise NotImplementedError",
        "merge": "import socket; socket.create_connection(('127.0.0.1', 9))",
    }
    text = blanked()
    for blank in BLANKS:
        if blank.function in bad:
            text = text.replace(f'raise NotImplementedError("blank {blank.number}: {blank.title}")', bad[blank.function])
    path = tmp_path / "my_gpt.py"
    path.write_text(text, encoding="utf-8")
    with Runner(path) as runner:
        found = {result.blank.function: result for result in checked(runner, limit_s=3)}
    assert "is there an endless loop?" in found["future_mask"].message
    assert "SystemExit" in found["attention"].message
    assert found["rms_norm"].message == "it asked for more than 2 GB of memory"
    assert found["rms_norm"].printed == "x is 3\n"
    assert found["rotate"].state == "empty"
    assert found["loss"].message.startswith("line ")
    assert "RuntimeError" in found["loss"].message
    assert found["probabilities"].message == "it ended Python itself"
    assert "may not use the network" in found["merge"].message


def test_the_learners_file_writes_what_minigpt_writes(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    journal = Journal(home / "runs")
    shop = Workshop(home, RunStore("runs"), journal)
    (home / "my_gpt.py").write_text(COMPLETE.read_text(encoding="utf-8"), encoding="utf-8")
    assert cli.run(["generate", "pairs", "--greedy", "--max-new-tokens", "200"]) == 0
    written = capfd.readouterr().out[:200]
    assert "my_gpt.py is here already" in shop.begin()[0]
    lines = shop.answer("")
    assert "The same 200 characters. You have written a GPT, and it is this one." in lines
    columns = lines[3 : lines.index("", 3)]
    assert "".join(line[39:] for line in columns) == "".join(line[:36] for line in columns)[:200] == written.replace("\n", "⏎")
    assert len(set(written)) > 3
    assert shop.done
    assert {event.step for event in journal.events() if event.event == "passed"} == set(range(1, 8))
    assert max(map(len, lines)) <= 80
    run = shop.store.find("letters")
    with Runner(shop.path) as runner:
        ours, tokens, prompt = workshop._reference(run)
        assert workshop._written_by_learner(runner, run, prompt, len(tokens))["text"] == ours
        assert len(ours) == 200  # 25 windows of 8


def test_the_file_is_a_program_that_writes_with_a_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("letters", "pairs"):
        words = saved_tokenizer(Path("runs", name, "tokenizer.json").read_bytes(), Path("tokenizer.json"))
        assert my_gpt.load(f"runs/{name}")[2].encode("bej fdd gkf") == words.encode("bej fdd gkf").tolist()
        monkeypatch.setattr(sys, "argv", ["my_gpt.py", f"runs/{name}", "bej fdd"])
        runpy.run_path(str(COMPLETE), run_name="__main__")
        shown = capsys.readouterr().out
        assert re.fullmatch(r"your prompt costs \d\.\d{3} nats per token\nbej fdd[a-k\s]{200,}", shown), shown
    monkeypatch.setattr(sys, "argv", ["my_gpt.py", "runs/letters", "bej €"])
    with pytest.raises(SystemExit, match="does not know '€'"):
        runpy.run_path(str(COMPLETE), run_name="__main__")


def test_a_change_below_the_line_is_shown_where_the_texts_part(home: Path) -> None:
    shop = Workshop(home, RunStore("runs"), Journal(home / "runs"))
    text = COMPLETE.read_text(encoding="utf-8").replace("x = x + feed_forward(", "x = x - feed_forward(")
    (home / "my_gpt.py").write_text(text, encoding="utf-8")
    lines = shop.answer("/check")
    assert any(line.startswith("They part at character ") for line in lines), lines
    assert max(map(len, lines)) <= 80


def test_the_workshop_writes_the_file_once_gives_three_hints_and_fits_the_screen(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, RunStore(tmp_path / "runs"), Journal(tmp_path / "runs"))
    screens = [shop.begin()]
    assert (tmp_path / "my_gpt.py").read_text(encoding="utf-8") == blanked()
    for blank in BLANKS:
        screens += [shop.answer(f"/hint {blank.number}") for _ in range(4)]
        assert screens[-1][1:] == blank.lines
    assert [e.data["level"] for e in shop.journal.events() if e.step == 2] == [1, 2, 3, 3]
    assert "Enter checks" in shop.answer("what now?")[0]
    (tmp_path / "my_gpt.py").write_text("x = (\n", encoding="utf-8")
    screens.append(shop.check())
    assert screens[-1] == ["my_gpt.py: line 1: '(' was never closed (Python cannot read the file)"]
    (tmp_path / "my_gpt.py").write_text("x = 1\n", encoding="utf-16")
    assert shop.check() == ["my_gpt.py: it is no plain text: save it as UTF-8 in your editor"]
    (tmp_path / "my_gpt.py").unlink()
    assert shop.check() == ["my_gpt.py: it is no longer in this folder: /again writes an empty one"]
    assert max(len(line) for screen in screens for line in screen) <= 80
    assert max(map(len, screens)) <= 18


def test_the_course_leads_to_the_workshop_and_back_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(tiny.text(20000), encoding="utf-8")
    for typed in ("text.txt\n/goto build\n/hint 7\n/quit\n", "/hint 7\n/quit\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        assert cli.run(["--learn"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("my_gpt.py is new") < shown.index("Hint 1 of 3 for blank 7") < shown.index("my_gpt.py is here already")
    assert "Hint 2 of 3 for blank 7" in shown
    assert Path("my_gpt.py").read_text(encoding="utf-8") == blanked()


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines = Workshop(tmp_path / "file", RunStore(tmp_path), Journal(tmp_path)).begin()
    assert " ".join(lines).startswith("cannot write ")
    assert " ".join(lines).endswith("in a folder of your own.")


def test_ctrl_c_ends_a_check_and_not_the_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(runner: Runner, limit_s: float = 0) -> Any:
        raise KeyboardInterrupt

    shop = Workshop(tmp_path, RunStore(tmp_path / "runs"), Journal(tmp_path / "runs"))
    shop.begin()
    monkeypatch.setattr(workshop, "checked", interrupted)
    assert shop.answer("") == ["Stopped. Enter checks again, /quit ends the course."]


def test_a_screen_of_seven_mistakes_fits() -> None:
    long = "each row of the weights must sum to 1: " * 9
    lines = workshop._shown([workshop.Result(blank, "wrong", long, "debug " * 40) for blank in BLANKS])
    assert len(lines) <= 22
    assert max(map(len, lines)) <= 80


def test_the_workshop_does_not_load_torch() -> None:
    code = "import sys, minigpt_cli.course.workshop.workshop; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
