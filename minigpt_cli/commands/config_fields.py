"""The settings: every leaf field of RunConfig by its name, which is also its flag, its environment variable and its TOML key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from minigpt_cli.config import ARCHITECTURES, ModernConfig, RunConfig
from minigpt_cli.resume_changes import in_words

PANELS = {
    "model": "Model",
    "data": "Data",
    "optim": "Optimisation",
    "eval": "Evaluation and stopping",
    "compute": "Computation",
    "lora": "Fine-tuning",
    "distil": "Distillation",
    "": "Run",
}
DEFAULT_ARCH = ModernConfig.model_fields["arch"].default


@dataclass(frozen=True)
class Setting:
    """A leaf field of RunConfig with its section and its architectures."""

    name: str
    section: str  # "model", "data", … or "" at the top
    fields: Mapping[str, FieldInfo]  # by architecture; one entry "" outside the model
    annotation: Any

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return f"MINIGPT_{self.name.upper()}"

    @property
    def is_typed(self) -> bool:
        """Whether it has a flag and a variable. Settings that only training writes have none."""
        extra = self.info.json_schema_extra
        return not isinstance(extra, dict) or extra.get("flag") is not False

    def value_in(self, config: RunConfig) -> Any:
        """Its value in a configuration. Raises AttributeError if the architecture has no such setting."""
        return getattr(getattr(config, self.section) if self.section else config, self.name)

    @property
    def info(self) -> FieldInfo:
        return self.fields.get(DEFAULT_ARCH) or next(iter(self.fields.values()))


@cache
def settings() -> dict[str, Setting]:
    """Every setting by name, in the order of config.py."""
    found: dict[str, Setting] = {}

    def add(name: str, section: str, fields: dict[str, FieldInfo], annotation: Any) -> None:
        if name in found:
            raise TypeError(f"two config fields are named {name!r}, so they would share a flag")
        found[name] = Setting(name, section, fields, annotation)

    for section, info in RunConfig.model_fields.items():
        if section == "model":
            add("arch", "model", {arch: model.model_fields["arch"] for arch, model in ARCHITECTURES.items()}, Literal[tuple(ARCHITECTURES)])
            for name in dict.fromkeys(name for model in ARCHITECTURES.values() for name in model.model_fields if name != "arch"):
                fields = {arch: model.model_fields[name] for arch, model in ARCHITECTURES.items() if name in model.model_fields}
                add(name, "model", fields, next(iter(fields.values())).annotation)
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            for name, leaf in info.annotation.model_fields.items():
                add(name, section, {"": leaf}, leaf.annotation)
        elif section != "schema_version":
            add(section, "", {"": info}, info.annotation)
    return found


def show_setting(name: str, value: Any) -> str:
    """The value of a setting for people."""
    if name == "resume_changes" and value:
        return in_words(value)
    if name == "taught_by" and value:
        steps = [f"{int(teacher.partition(':')[0]):,}" for teacher in value.split(";")]
        return f"a teacher of {steps[0]} steps" if len(steps) == 1 else f"teachers of {' and '.join(steps)} steps"
    return show_value(value)


def show_value(value: Any) -> str:
    """The value of a setting as it is typed on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return " ".join(map(str, value)) or "''"
    return str(value) if value != "" else "''"
