"""What the number formats of GGUF cost in nats per character on a run's validation text, as JSON lines.

    python tests/benchmarks/gguf_rounding.py RUN...

The run is written as GGUF in each format, read back by the gguf library, dequantised, and scored by the textbook. For runs of
architecture modern with QK-norm, whose tensors llama.cpp keeps as they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from gguf import GGUFReader, dequantize

from minigpt_cli import checkpoints
from minigpt_cli.evaluation.evaluate_run import dataset_of
from minigpt_cli.evaluation.scoring import Reader, score_split
from minigpt_cli.interchange import gguf
from minigpt_cli.interchange.gguf_vocabulary import vocabulary
from minigpt_cli.interchange.hf_weights import from_hf, to_hf
from minigpt_cli.runstore.store import RunStore


def rounded(loaded: checkpoints.Loaded, dtype: str, path: Path) -> dict[str, torch.Tensor]:
    """The run's weights after GGUF in `dtype`, under our names."""
    config, tensors = to_hf(loaded.config.model, loaded.model.state_dict())
    tokenizer = loaded.tokenizer.to_json()
    gguf.write(path, "run", config, tensors, tokenizer, dtype)
    read = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(path).tensors}
    written = [name for name, _ in gguf.renamed("qwen3", config, tensors, vocabulary(tokenizer, config["vocab_size"]))]
    names = [name for name in tensors if name != "lm_head.weight" or not config["tie_word_embeddings"]]
    for theirs, ours in zip(written, names, strict=True):
        tensors[ours] = torch.from_numpy(np.array(read[theirs][: len(tensors[ours])], np.float32))  # without the row of the end token
    return dict(from_hf(config, tensors)[1])


def main() -> None:
    for name in sys.argv[1:]:
        loaded = checkpoints.load(RunStore().find(name))
        dataset, nats = dataset_of(loaded), {}
        with TemporaryDirectory() as folder:
            for dtype in gguf.DTYPES:
                path = Path(folder, f"{dtype}.gguf")
                loaded.model.load_state_dict(rounded(checkpoints.load(RunStore().find(name)), dtype, path))
                reader = Reader(loaded.model, loaded.tokenizer, loaded.config.model.block_size)
                nats[dtype] = score_split(reader, dataset, "val").nats_per_char
                facts = {"run": name, "dtype": dtype, "bytes": path.stat().st_size, "nats_per_char": nats[dtype]}
                print(json.dumps(facts | {"cost": nats[dtype] - nats["f32"]}), flush=True)


if __name__ == "__main__":
    main()
