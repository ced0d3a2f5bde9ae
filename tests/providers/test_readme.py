"""What aftercall/providers/README.md says is so: its provider keeps the contract, and its tables are the code's."""

import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from aftercall.plugins import provider_class
from aftercall.providers.base import Provider
from aftercall.settings import load as load_settings
from aftercall.testing.given import Given
from tests import lantern

ROOT = Path(__file__).parents[2]
PACKAGE, TABLE = lantern.blocks("toml")


def rows(heading: str) -> list[str]:
    """The first cells of the table with this heading."""
    [table] = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", lantern.README, re.MULTILINE)
    return re.findall(r"^\| `(\w+)", table, re.MULTILINE)


def test_the_example_keeps_the_contract_that_it_shows(tmp_path: Path) -> None:
    lantern.lay_down(tmp_path)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
    environ |= {"PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # pytest, and nothing else
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]

    ran = subprocess.run([*command, "test_lantern.py"], cwd=tmp_path, env=environ, capture_output=True, text=True)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "failed" not in ran.stdout
    assert int(re.findall(r"(\d+) passed", ran.stdout)[0]) > 30


def test_every_verb_of_a_provider_is_in_the_tables() -> None:
    [required, optional] = [
        re.findall(r"^\| `(\w+)\(", table, re.MULTILINE)
        for table in re.findall(r"^\| verb \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", lantern.README, re.MULTILINE)
    ]
    verbs = {name for name, _ in inspect.getmembers(Provider, inspect.isfunction) if not name.startswith("_")}
    assert set(required) == Provider.__abstractmethods__
    assert set(optional) == verbs - Provider.__abstractmethods__
    assert len(optional) == len(set(optional))


def test_every_attribute_of_the_suite_is_in_its_table() -> None:
    assert set(rows("attribute")) | {"provider", "fixtures"} == set(Given.__annotations__)


def test_the_example_is_configured_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lantern.lay_down(tmp_path)
    [(group, entries)] = tomllib.loads(PACKAGE)["project"]["entry-points"].items()
    installed = tmp_path / "aftercall_lantern-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: aftercall-lantern\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in entries.items()]
    (installed / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    environ = {"REDIS_URL": "redis://localhost", "LANTERN_API_KEY": "key-62", "LANTERN_SECRET": "secret-62"}

    for named in ("lantern", "aftercall_lantern:Lantern"):
        table = TABLE.replace('"lantern"', f'"{named}"')
        (tmp_path / "aftercall.toml").write_text(table + '[sinks.out]\ntype = "console"\n')
        account = load_settings(environ, tmp_path).accounts["acme"]
        assert (account.provider, account.webhook_secrets) == (named, ("secret-62",))
        assert provider_class(named).__name__ == "Lantern"
    sys.modules.pop("aftercall_lantern", None)
