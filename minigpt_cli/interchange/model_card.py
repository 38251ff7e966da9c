"""README.md of an exported model, from the run's record: its text, its score and how to open it. No torch."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from minigpt_cli.config import RunConfig
from minigpt_cli.data.leak import warnings
from minigpt_cli.escaping import json_text, markdown, markdown_code, one_line
from minigpt_cli.runstore.records import RunRecord
from minigpt_cli.tokenization.contract import END_OF_TEXT

if TYPE_CHECKING:
    from minigpt_cli.checkpoints import Loaded

_HF_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({folder})
tokenizer = AutoTokenizer.from_pretrained({folder})
ids = tokenizer({prompt}, return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=200, do_sample=True, temperature=0.9, top_k=50)[0]))
```
"""
_GGUF_USE = """```
llama-cli -m {file} -no-cnv -p {prompt} -n 200 --temp 0.9 --top-k 50
ollama create {name} -f Modelfile && ollama run {name} {prompt}
```
"""


def hf_card(loaded: Loaded, family: str, folder: str, prompt: str) -> str:
    """The card of a Hugging Face directory."""
    front = f"---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- minigpt\n- {family}\n---\n\n"
    use = _HF_USE.format(folder=_string(folder), prompt=_string(prompt))
    return front + _card(loaded, f"a `{family}` model", use)


def gguf_card(loaded: Loaded, family: str, file: str, name: str, prompt: str) -> str:
    """The card of a folder with a GGUF file."""
    front = "---\npipeline_tag: text-generation\ntags:\n- minigpt\n- gguf\n---\n\n"
    use = _GGUF_USE.format(file=file, name=name, prompt=shlex.quote(one_line(prompt)))
    return front + _card(loaded, f"a GGUF file of architecture `{family}`", use)


def _string(text: str) -> str:
    """`text` as a string of Python."""
    return json_text(json.dumps(text, ensure_ascii=False))


def modelfile(file: str, context: int) -> str:
    """What `ollama create` needs: the bare prompt, since the model knows no chat format, and the context it was trained with."""
    settings = f"PARAMETER num_ctx {context}\nPARAMETER temperature 0.9\nPARAMETER top_k 50\nPARAMETER repeat_penalty 1.0\n"
    return f'FROM ./{file}\nTEMPLATE "{{{{ .Prompt }}}}"\n{settings}'


def _card(loaded: Loaded, what: str, use: str) -> str:
    record, config = loaded.record, loaded.config
    intro = f"Trained with minigpt: `{config.model.arch}`, {record.n_params:,} parameters, as {what}.\n"
    parts = [f"# {markdown(record.name)}\n", intro, "## Use\n", use, "## Score\n", _score(record, loaded.step)]
    if record.corpus:
        parts += ["## Text\n", _text(record)]
    if record.corpus and record.corpus.n_documents > 1:
        parts.append(f"Documents were learned after `{END_OF_TEXT}`: put it before a prompt that begins one, as minigpt does.\n")
    if config.data.document_mask:
        parts.append("Attention stayed inside one document: give it one document at a time.\n")
    parts += ["## Configuration\n", _configuration(config)]
    return "\n".join(parts)


def _score(record: RunRecord, step: int) -> str:
    if record.best is None:
        return f"Not scored on a validation text. Weights of step {step:,}.\n"
    best = record.best
    interval = f" (95 % interval {best.ci95[0]:.4f} to {best.ci95[1]:.4f})" if best.ci95 else ""
    scope = "the whole validation split" if best.whole_split else "samples of the validation split"
    leak = record.corpus.leak if record.corpus else None
    known = f"{leak.in_words}.\n" if warnings(leak) and leak else ""
    return (
        f"Validation: **{best.nats_per_char:.4f} nats per character**{interval}, {best.nats_per_token:.4f} nats per token, on {scope}.\n"
        f"Weights of step {step:,} of {record.stop_step:,}; "
        f"{record.tokens_seen:,} tokens in {record.elapsed_s:.0f} s on {markdown(record.device)}.\n{known}"
    )


def _text(record: RunRecord) -> str:
    corpus = record.corpus
    assert corpus is not None
    rows = [
        f"{markdown_code(corpus.label)}, sha256 {markdown_code(corpus.sha256)}, "
        f"tokenizer {markdown_code(record.tokenizer)} with {record.vocab_size:,} tokens.\n"
    ]
    rows += ["| split | characters | tokens | sha256 |", "|---|---|---|---|"]
    rows += [
        f"| {markdown(name)} | {split.n_chars:,} | {split.n_tokens:,} | {markdown(split.sha256[:16])} |"
        for name, split in corpus.splits.items()
    ]
    return "\n".join(rows) + "\n"


def _configuration(config: RunConfig) -> str:
    """A table of all settings that are not empty."""
    rows = ["| setting | value |", "|---|---|"]
    for section in ("model", "data", "optim"):
        values: dict[str, Any] = getattr(config, section).model_dump()
        rows += [f"| {name} | {markdown(str(value))} |" for name, value in values.items() if value not in ("", None)]
    return "\n".join([*rows, f"| seed | {config.seed} |"]) + "\n"
