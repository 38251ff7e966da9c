"""What is shipped: a wheel and an sdist with every file that the program reads, and a reference page that is current."""

from __future__ import annotations

import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt_cli import reference

ROOT = Path(__file__).resolve().parents[1]
IGNORED = ("__pycache__", ".pyc", ".so", ".egg-info")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A wheel and an sdist, built by the backend that pyproject.toml names."""
    hatchling = pytest.importorskip("hatchling.build", reason="hatchling is not installed: pip install hatchling")
    out = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield out / hatchling.build_wheel(str(out)), out / hatchling.build_sdist(str(out))


def shipped() -> set[str]:
    """Every file of the package that belongs to it."""
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "minigpt_cli").rglob("*") if p.is_file()}
    return {name for name in files if not any(part in name for part in IGNORED)}


def test_the_wheel_holds_the_whole_package_and_nothing_else(built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[0]).namelist())
    package = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert package == shipped()
    assert "minigpt_cli/py.typed" in package
    assert "minigpt_cli/docs/reference.md" in package
    assert len([name for name in package if name.startswith("minigpt_cli/presets/") and name.endswith(".toml")]) >= 10


def test_the_wheel_names_its_command_licence_and_every_extra(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        texts = {name.rpartition("/")[2]: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    assert "minigpt = minigpt_cli.__main__:main" in texts["entry_points.txt"]
    assert "LICENSE" in texts
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in project["optional-dependencies"]:
        assert f"Provides-Extra: {extra}" in texts["METADATA"]
    assert "Requires-Python: >=3.11" in texts["METADATA"]


def test_the_sdist_builds_and_tests_by_itself(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert shipped() <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"} <= names
    assert not any(name.startswith(("runs/", "data/")) and not name.endswith("README.md") for name in names)


def test_extras_that_errors_name_exist() -> None:
    import re

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for path in (ROOT / "minigpt_cli").rglob("*.py"):
        for extra in re.findall(r'MissingExtra\([^()]*"(\w+)"\)', path.read_text("utf-8")):
            assert extra in project["optional-dependencies"], f"{path.name} names an extra {extra!r} that pyproject.toml lacks"


def test_the_reference_is_current() -> None:
    path = ROOT / "minigpt_cli" / "docs" / "reference.md"
    assert path.read_text("utf-8") == reference.page(), "write it anew: python -m minigpt_cli.reference"


def test_the_reference_names_every_command_and_setting() -> None:
    from minigpt_cli.commands.config_fields import settings

    page = reference.page()
    for command in ("train", "eval", "generate", "compare", "tokenize", "runs export", "runs import", "runs leaderboard"):
        assert f"## minigpt {command}\n" in page
    for setting in settings().values():
        assert (f"`{setting.flag}" in page) is (setting.is_typed and setting.name != "source")


def test_no_placeholder_of_a_flag_is_written_in_python() -> None:
    assert not [line for line in reference.page().splitlines() if "<class" in line or "metadata=" in line]
