"""What can be chosen by name, as "module:attribute" strings, so that a lookup of names imports nothing.

A new architecture, tokenizer, optimizer, schedule, export format or corpus is a new file and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from minigpt_cli.errors import UsageError, unknown_name

ARCHITECTURES = {
    "bigram": "minigpt_cli.models.bigram:Bigram",
    "classic": "minigpt_cli.models.classic:Classic",
    "modern": "minigpt_cli.models.modern:Modern",
    "moe": "minigpt_cli.models.moe:MixtureOfExperts",
    "plain": "minigpt_cli.models.plain:Plain",
}

TOKENIZERS = {
    "char": "minigpt_cli.tokenization.char:CharTokenizer",
    "byte": "minigpt_cli.tokenization.bpe:ByteTokenizer",
    "bpe": "minigpt_cli.tokenization.bpe:BPETokenizer",
    "gpt2": "minigpt_cli.tokenization.pretrained:GPT2Tokenizer",
}

OPTIMIZERS = {
    "adamw": "minigpt_cli.training.optimizers:AdamW",
    "muon": "minigpt_cli.training.optimizers:Muon",
}

SCHEDULES = {
    "constant": "minigpt_cli.training.schedules:constant",
    "linear": "minigpt_cli.training.schedules:linear",
    "cosine": "minigpt_cli.training.schedules:cosine",
    "wsd": "minigpt_cli.training.schedules:warmup_stable_decay",
    "cosine-plateau": "minigpt_cli.training.schedules:cosine_plateau",
}

EXPORT_FORMATS = {
    "hf": "minigpt_cli.interchange.huggingface:export",
    "gguf": "minigpt_cli.interchange.gguf:export",
    "html": "minigpt_cli.commands.export_page:export",
    "onnx": "minigpt_cli.interchange.onnx:export",
    "notebook": "minigpt_cli.interchange.notebook:export",
}

CORPORA = {
    "python-docs": "minigpt_cli.data.sources.corpora:PythonDocs",
    "tinyshakespeare": "minigpt_cli.data.sources.corpora:tinyshakespeare",
    "wikitext-2": "minigpt_cli.data.sources.corpora:wikitext_2",
}

KINDS = {  # of file; the first whose content fits is taken, then the one with the suffix
    "pdf": "minigpt_cli.data.sources.pdf:PDF",
    "epub": "minigpt_cli.data.sources.epub:EPUB",
    "docx": "minigpt_cli.data.sources.docx:DOCX",
    "parquet": "minigpt_cli.data.sources.parquet:PARQUET",
    "jsonl": "minigpt_cli.data.sources.jsonl:JSONL",
    "json": "minigpt_cli.data.sources.json_array:JSON",
    "csv": "minigpt_cli.data.sources.delimited:DELIMITED",
    "html": "minigpt_cli.data.sources.html:HTML",
    "text": "minigpt_cli.data.sources.text:TEXT",
}

_TABLES = {
    "architecture": ARCHITECTURES,
    "tokenizer": TOKENIZERS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "export format": EXPORT_FORMATS,
    "corpus": CORPORA,
    "kind of file": KINDS,
}


def load(kind: str, name: str) -> Any:
    """The object registered as `name` in the table of `kind`. Raises UsageError, with a suggestion, for an unknown name."""
    table = _TABLES[kind]
    if name not in table:
        raise unknown_name(kind, name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)


def check_declared(config: Any, field: str, needs: Mapping[str, type]) -> None:
    """Raise UsageError unless `config` has the settings that the value of its declaration `field` needs."""
    value = getattr(config, field)
    says = f"--arch {type(config).model_fields['arch'].default} declares {field} = {value!r} in config.py"
    if value not in needs:
        raise UsageError(f"{says}: the known values are {', '.join(needs)}")
    if not isinstance(config, needs[value]):
        base = needs[value].__name__
        raise UsageError(f"{says} but lacks the settings of {base}: derive {type(config).__name__} from {base}, or remove {field}")
