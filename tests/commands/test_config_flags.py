"""The bridge from config to flags, and the presets."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from minigpt_cli.commands.config_fields import settings
from minigpt_cli.commands.config_sources import flatten, resolve
from minigpt_cli.errors import UsageError
from minigpt_cli.presets.catalog import preset_names, preset_summary, read_preset

from .conftest import Cli

# name: lr, layers, heads, width, block, batch, dropout, weight decay, eval_iters, patience, min_delta
TABLE = {
    "p2_refine": (2e-4, 4, 4, 128, 128, 64, 0.20, 0.05, 80, 20, 0.0002),
    "p2_do20_wd05": (2e-4, 4, 4, 128, 128, 64, 0.20, 0.05, 50, 10, 0.001),
    "p1_base": (2e-4, 4, 4, 128, 128, 64, 0.10, 0.01, 50, 8, 0.001),
    "p2_lr1p5e4_refine": (1.5e-4, 4, 4, 128, 128, 64, 0.20, 0.05, 80, 25, 0.0002),
    "p3_lr1e4": (1e-4, 4, 4, 128, 128, 64, 0.10, 0.01, 50, 12, 0.001),
    "p4_med192": (2e-4, 6, 6, 192, 128, 32, 0.15, 0.03, 50, 10, 0.001),
    "modern_moe_char_02": (9e-5, 4, 4, 128, 192, 48, 0.24, 0.08, 100, 8, 0.0002),
    "modern_dense_char": (9e-5, 4, 4, 128, 192, 48, 0.24, 0.08, 100, 8, 0.0002),
}


def values(preset: str, **flags: Any) -> dict[str, Any]:
    """Every setting of `preset`, by name."""
    config = resolve(flags, preset=preset, environment={}).config
    return {name: getattr(getattr(config, s.section) if s.section else config, name, None) for name, s in settings().items()}


@pytest.mark.parametrize("preset", TABLE)
def test_recipe_is_the_table(preset: str) -> None:
    v = values(preset)
    names = "lr n_layer n_head n_embd block_size batch_size dropout weight_decay eval_iters patience min_delta"
    assert tuple(v[name] for name in names.split()) == TABLE[preset]
    modern = preset.startswith("modern")
    assert (v["max_steps"], v["eval_every"]) == ((5000, 100) if modern else (50000, 200))
    assert (v["seed"], v["grad_clip"], v["train_frac"]) == (1337, 1.0, 0.9)
    assert (v["optimizer"], v["schedule"], v["warmup_steps"], v["sampling"]) == ("adamw", "constant", 0, "random")
    assert v["arch"] == ("moe" if preset == "modern_moe_char_02" else "modern" if modern else "classic")


def test_mixture_recipe_and_its_dense_control_agree() -> None:
    moe, dense = values("modern_moe_char_02"), values("modern_dense_char")
    expected = {"n_experts": 4, "moe_top_k": 1, "moe_aux_loss_coef": 0.0015, "rope_theta": 10_000, "rms_norm_eps": 1e-8}
    assert {name: moe[name] for name in expected} == expected
    differing = {name for name in moe if moe[name] != dense[name]}
    assert differing == {"arch", "n_experts", "moe_top_k", "moe_aux_loss_coef", "moe_balance", "moe_norm_topk"}
    assert {name for name in dense if dense[name] != values("bpe_char_compare")[name]} == {"tokenizer"}


@pytest.mark.parametrize(
    ("preset", "expected"),
    {
        "mini-gpt": {
            "arch": "classic", "activation": "relu", "batch_size": 16, "block_size": 32, "max_steps": 5000, "lr": 1e-3,
            "n_embd": 64, "n_head": 4, "n_layer": 4, "dropout": 0.0,
        },
        "minilm": {"batch_size": 32, "block_size": 128, "n_embd": 128, "n_head": 4, "n_layer": 2, "lr": 3e-4, "max_steps": 200},
        "gpt2-124m": {
            "arch": "classic", "n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "dropout": 0.1, "tokenizer": "gpt2",
            "init_std": 0.019, "bias": True, "tie_weights": True,
        },
        "nanogpt-cpu": {
            "arch": "classic", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "max_steps": 2000,
            "dropout": 0.0, "lr": 1e-3, "min_lr": 1e-4, "beta2": 0.99, "warmup_steps": 100, "schedule": "cosine", "weight_decay": 0.1,
            "grad_clip": 1.0, "bias": False, "tie_weights": True, "sampling": "random", "optimizer": "adamw",
        },
        "nanogpt-baby": {
            "arch": "classic", "n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 64, "max_steps": 5000,
            "dropout": 0.2, "lr": 1e-3, "min_lr": 1e-4, "beta2": 0.99, "warmup_steps": 100, "schedule": "cosine", "weight_decay": 0.1,
            "grad_clip": 1.0, "bias": False, "tie_weights": True, "sampling": "random", "optimizer": "adamw",
        },
    }.items(),
)  # fmt: skip
def test_named_recipe_holds_its_published_values(preset: str, expected: dict[str, Any]) -> None:
    assert {name: values(preset)[name] for name in expected} == expected


@pytest.mark.parametrize("preset", preset_names())
def test_preset_says_only_what_differs_and_why(preset: str) -> None:
    given = flatten(read_preset(preset), preset)
    defaults = resolve({"arch": given.get("arch", "modern")}, environment={}).config
    for name, value in given.items():
        section = settings()[name].section
        default = getattr(getattr(defaults, section) if section else defaults, name)
        assert name == "arch" or value != default, f"{name} is the default already"
    text = (files("minigpt_cli") / "presets" / f"{preset}.toml").read_text(encoding="utf-8")
    assert all(re.search(r"\S\s+#\s\S", line) for line in text.splitlines() if "=" in line.partition("#")[0])
    assert len(preset_summary(preset)) > 10
    assert tomllib.loads(text) == read_preset(preset)


def test_each_source_of_settings_overrides_the_ones_before(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("lr = 1e-4\n[optim]\nweight_decay = 0.3\n[eval]\npatience = 3\n", encoding="utf-8")
    environment = {"MINIGPT_WEIGHT_DECAY": "0.4", "MINIGPT_DROPOUT": "0.5", "MINIGPT_PATIENCE": "5"}
    found = resolve({"patience": 0}, preset="p1_base", file=file, environment=environment)
    config, source = found.config, found.sources
    assert (config.model.arch, source["arch"]) == ("classic", "preset p1_base")
    assert (config.optim.lr, source["lr"]) == (1e-4, str(file))
    assert (config.optim.weight_decay, source["weight_decay"]) == (0.4, "MINIGPT_WEIGHT_DECAY")
    assert (config.model.dropout, source["dropout"]) == (0.5, "MINIGPT_DROPOUT")  # type: ignore[union-attr]
    assert (config.eval.patience, source["patience"]) == (0, "--patience")
    assert (config.optim.beta1, source["beta1"]) == (0.9, "default")
    assert "n_experts" not in source


def test_flag_of_another_architecture_names_both() -> None:
    with pytest.raises(UsageError, match=r"--n-experts belongs to --arch moe, and this run is --arch classic"):
        resolve({"arch": "classic", "n_experts": 8}, environment={})
    with pytest.raises(UsageError, match=r"MINIGPT_ACTIVATION belongs to --arch classic, and this run is --arch modern"):
        resolve({}, environment={"MINIGPT_ACTIVATION": "relu"})


def test_another_architecture_over_a_preset_leaves_out_what_it_lacks_and_says_so() -> None:
    found = resolve({"arch": "modern"}, preset="mini-gpt", environment={})
    assert found.config.model.arch == "modern"
    assert found.config.model.block_size == 32
    assert found.notices == ["preset mini-gpt is for classic; modern has no activation, left out"]


@pytest.mark.parametrize(
    ("flags", "heads", "width"),
    [
        ({"n_embd": 100}, 2, 100),
        ({"n_embd": "100", "n_kv_head": "5"}, 5, 100),
        ({"n_head": 3}, 3, 144),
        ({"n_head": 50}, 50, 400),
        ({"n_kv_head": 3}, 3, 144),
        ({"n_embd": 256}, 4, 256),
        ({"n_head": 8}, 8, 128),
    ],
)
def test_a_width_alone_gets_heads_that_divide_it_where_the_rest_is_planned(flags: dict[str, Any], heads: int, width: int) -> None:
    found = resolve(flags, environment={}, planned=True)
    model: Any = found.config.model
    assert (model.n_head, model.n_embd, set(found.explicit)) == (heads, width, {*flags, "arch"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"n_head": 3, "n_embd": 128}, "--n-head 3 does not divide --n-embd 128"),
        ({"n_embd": 100}, "--n-embd 100 / --n-head 4 is 25: choose another --n-head or --n-embd"),
        ({"n_embd": 7}, "--n-head 4 does not divide --n-embd 7"),
        ({"n_kv_head": 3}, "--n-kv-head 3 does not divide --n-head 4: choose heads that are a multiple of it"),
        ({"dropout": 1.0}, "--dropout 1: must be less than 1"),
        ({"lr": "nan"}, "--lr nan"),
        ({"lr": 1e9}, "--lr 1e+09: must be 10 or less"),
        ({"n_layer": 10**9}, "--n-layer 1000000000"),
        ({"min_delta": "some"}, "--min-delta some"),
        ({"time_budget": "soon"}, "'soon' is not a duration"),
    ],
)
def test_bad_value_is_one_line_that_names_the_flag(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        resolve(flags, environment={})
    assert "\n" not in str(caught.value)


def test_a_bad_value_names_its_source() -> None:
    with pytest.raises(UsageError, match=r"--dropout 7: .*\(from MINIGPT_DROPOUT\)"):
        resolve({}, environment={"MINIGPT_DROPOUT": "7"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate = 1", "unknown setting 'lerning_rate'"),
        ("lr =", "Invalid value"),
        ("[optim]\nlrr = 1", "did you mean 'lr'"),
        ("model = 3", "unknown"),
    ],
)
def test_bad_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        resolve({}, file=file, environment={})
    assert str(file) in str(caught.value)


def test_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'nanogpt-cpu'"):
        resolve({}, preset="nanogptcpu", environment={})


def test_configuration_written_out_reads_back_equal(tmp_path: Path) -> None:
    config = resolve({}, preset="modern_moe_char_02", environment={}).config
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json(), encoding="utf-8")
    assert resolve({}, file=file, environment={}).config == config


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("digits.toml", "max_steps = " + "9" * 5000),
        ("deep.toml", "a = " + "[" * 3000 + "]" * 3000),
        ("keys.toml", "a." * 100_000 + "a = 1"),
        ("large.toml", "# " + "x" * (1 << 20)),
        ("digits.json", '{"max_steps": ' + "9" * 5000 + "}"),
        ("deep.json", '{"a":' * 100_000),
        ("nan.json", '{"lr": NaN}'),
        ("half.json", '{"source": "\\ud800"}'),
        ("list.json", "[1]"),
    ],
)
def test_a_hostile_file_of_settings_is_one_line(cli: Cli, home: Path, name: str, text: str) -> None:
    Path(name).write_text(text)
    done = cli("train", "--config", name, "--print-config")
    assert done.code == 2
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1


def test_a_preset_may_name_its_text_and_a_source_as_typed_wins(cli: Any, home: Path) -> None:
    assert values("mini-gpt")["source"] == "tinyshakespeare"
    assert (values("minilm")["source"], values("minilm")["eval_every"]) == ("wikitext-2", 50)
    said = [cli("train", *typed, "--preset", "minilm", "--print-config", "--json").json for typed in ([], ["mine.txt"])]
    assert [document["config"]["data"]["source"] for document in said] == ["wikitext-2", "mine.txt"]
    assert [document["sources"]["source"] for document in said] == ["preset minilm", "--source"]


def test_presets_say_what_is_not_known_and_what_was_not_measured() -> None:
    text = {name: (files("minigpt_cli") / "presets" / f"{name}.toml").read_text(encoding="utf-8") for name in preset_names()}
    assert [name for name, words in text.items() if "expert" in words] == ["modern_dense_char", "modern_moe_char_02"]
    assert all("expert" not in line for line in text["modern_dense_char"].splitlines()[1:] if line.startswith("dropout"))
    for name in ("fast-gpu", "shakespeare-best"):
        assert preset_summary(name).endswith("not yet measured.")
    for name in TABLE:
        if name.startswith("p"):
            assert "it is not known whether it was constant" in text["p1_base"]
            assert name == "p1_base" or "# The learning rate: p1_base.toml says" in text[name]
