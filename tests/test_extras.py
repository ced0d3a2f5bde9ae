"""A missing client library and a misspelt option say what to do, for every sink that is built in."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from aftercall import plugins
from aftercall.errors import ConfigurationError, PluginError
from aftercall.plugins import SINKS, sink_class
from aftercall.settings import load

ROOT = Path(__file__).parents[1]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]
SHARED = {"aftercall.sinks", *(f"aftercall.sinks.{part}" for part in ("base", "http", "text"))}  # need no library
WITH_LIBRARIES = {extra: wanted for extra, wanted in EXTRAS.items() if wanted and extra.replace("-", "_") in SINKS}


def libraries(wanted: list[str]) -> set[str]:
    """The modules that these requirements bring."""
    names = {canonicalize_name(Requirement(one).name) for one in wanted}
    there = packages_distributions().items()
    found = {module for module, packages in there if names & {canonicalize_name(package) for package in packages}}
    assert found, f"not installed: {', '.join(wanted)}"
    return found


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_has_an_extra_and_says_so_where_its_library_is_missing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = name.replace("_", "-")
    wanted = EXTRAS[extra]
    for module in [one for one in sys.modules if one.startswith("aftercall.sinks.") and one not in SHARED]:
        monkeypatch.delitem(sys.modules, module)  # so that it is imported again
    for module in libraries(wanted) if wanted else ():
        for part in [one for one in sys.modules if one.startswith(f"{module}.")]:
            monkeypatch.delitem(sys.modules, part)
        monkeypatch.setitem(sys.modules, module, None)
    if not wanted:
        assert sink_class(name).__module__ == f"aftercall.sinks.{name}"
        return
    with pytest.raises(PluginError) as caught:
        sink_class(name)
    assert f"pip install 'aftercall[{extra}]'" in str(caught.value)
    assert "needs the module" in str(caught.value)


def test_a_library_that_is_missing_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test above, on a sink that needs one for certain."""
    (tmp_path / "needy.py").write_text("import nats\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SINKS, "nats", "needy:Nats")
    for part in [one for one in sys.modules if one == "nats" or one.startswith("nats.")]:
        monkeypatch.delitem(sys.modules, part)
    for module in libraries(EXTRAS["nats"]):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PluginError, match=r"needs the module nats: pip install 'aftercall\[nats\]'"):
        sink_class("nats")


@pytest.mark.long
def test_without_any_of_the_libraries_everything_else_works(tmp_path: Path) -> None:
    """In a process of its own, as where only `aftercall` was installed."""
    missing = sorted(set().union(*(libraries(wanted) for wanted in WITH_LIBRARIES.values())) | {"not_installed_here"})
    (tmp_path / "aftercall_needy_example.py").write_text("import not_installed_here\n")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing!r}))
from aftercall import plugins
plugins.SINKS["kafka"] = "aftercall_needy_example:Kafka"
from aftercall.cli import main
main()
"""

    def run(*arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{tmp_path}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    shown = {one["type"]: one["problem"] for one in map(json.loads, run("sinks", "show", "--json").splitlines())}
    unavailable = {extra.replace("-", "_") for extra in WITH_LIBRARIES} | {"kafka"}
    assert set(shown) >= set(SINKS)
    assert {name for name, problem in shown.items() if problem} == unavailable
    assert all(f"pip install 'aftercall[{name.replace('_', '-')}]'" in shown[name] for name in unavailable)
    definitions = json.loads(run("check", "--schema"))["$defs"]
    assert "pip install 'aftercall[kafka]'" in definitions["sink.kafka"]["description"]
    assert definitions["sink.webhook"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in SINKS for option in sink_class(name).Config.__struct_encode_fields__],
)
def test_a_misspelt_option_says_which_one_was_meant(name: str, option: str, tmp_path: Path) -> None:
    misspelt = option + option[-1]
    (tmp_path / "aftercall.toml").write_text(
        f'[accounts.a]\nprovider = "retell"\napi_key = "k"\n[sinks.s]\ntype = "{name}"\n{misspelt} = "x"\n'
    )
    with pytest.raises(ConfigurationError) as caught:
        load({"REDIS_URL": "redis://h"}, tmp_path)
    assert f'sinks.s.{misspelt}: unknown key; did you mean "{option}"?' in caught.value.problems


def test_the_extras_of_sinks_are_named_like_them() -> None:
    assert {name.replace("_", "-") for name in plugins.SINKS} <= set(EXTRAS)
