"""From a name to a class: built-ins, entry points, `module:Class`, and what is said when there is none."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aftercall.errors import PluginError
from aftercall.plugins import PROVIDERS, SINKS, provider_class, sink_class
from aftercall.providers.base import Provider
from aftercall.sinks.base import Sink, SinkConfig

Package = Callable[..., None]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a module of this name and source on the path, for one test."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


@pytest.fixture
def package(module: Callable[[str, str], None], tmp_path: Path) -> Package:
    """Installs a package with one module and these entry points, for one test."""

    def install(source: str, entry_points: str) -> None:
        module("aftercall_foreign_example", source)
        metadata = tmp_path / "aftercall_foreign_example-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: aftercall-foreign-example\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(entry_points)

    return install


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_built_in_provider_loads_under_its_own_name(name: str) -> None:
    provider = provider_class(name)
    assert issubclass(provider, Provider)
    assert provider.name == name
    assert provider.base_url.startswith("https://")
    assert set(provider.needs) <= {"api_key", "webhook_secrets"}


@pytest.mark.parametrize("name", SINKS)
def test_every_built_in_sink_loads_and_describes_its_options(name: str) -> None:
    sink = sink_class(name)
    assert issubclass(sink, Sink)
    assert issubclass(sink.Config, SinkConfig)
    assert sink.deliver is not Sink.deliver
    with pytest.raises(TypeError):
        sink.Config(no_such_option=1)  # type: ignore[call-arg]


def test_an_installed_entry_point_is_found_by_its_name(package: Package) -> None:
    package(
        "from aftercall.providers.base import Provider\nfrom aftercall.sinks.base import Sink\n"
        "class Hello(Provider):\n    name = 'hello'\n    verify = decode = fetch = normalize = None\n"
        "class Pager(Sink):\n    async def deliver(self, delivery): ...\n",
        "[aftercall.providers]\nhello = aftercall_foreign_example:Hello\n"
        "[aftercall.sinks]\npager = aftercall_foreign_example:Pager\n",
    )
    assert provider_class("hello").__name__ == "Hello"
    assert sink_class("pager").__name__ == "Pager"
    with pytest.raises(PluginError, match='no sink "hello"'):
        sink_class("hello")  # a provider is not offered as a sink
    with pytest.raises(PluginError, match='did you mean "pager"'):
        sink_class("pagr")


def test_an_entry_point_cannot_take_a_built_in_s_name(package: Package) -> None:
    package(
        "from aftercall.sinks.base import Sink\nclass Slack(Sink):\n    pass\n",
        "[aftercall.sinks]\nslack = aftercall_foreign_example:Slack\n",
    )
    assert sink_class("slack").__module__ == "aftercall.sinks.slack"


def test_a_class_is_found_by_module_and_name(module: Callable[[str, str], None]) -> None:
    source = f"from aftercall.sinks.base import Sink\nclass Outer:\n    class Pager(Sink):\n    {VERB}\n"
    module("aftercall_foreign_example", source)
    assert sink_class("aftercall_foreign_example:Outer.Pager").__qualname__ == "Outer.Pager"
    assert provider_class("aftercall.providers.retell:Retell") is provider_class("retell")


@pytest.mark.parametrize("name", ["json:JSONDecoder", "json:loads", "aftercall.providers.retell:Retell"])
def test_what_is_not_a_sink_is_refused_with_the_base_to_use(name: str) -> None:
    with pytest.raises(PluginError, match=r"is not a subclass of aftercall\.sinks\.base\.Sink"):
        sink_class(name)


def test_a_sink_is_no_provider() -> None:
    with pytest.raises(PluginError, match=r"is not a subclass of aftercall\.providers\.base\.Provider"):
        provider_class("aftercall.sinks.slack:Slack")


def test_a_missing_module_is_named() -> None:
    with pytest.raises(PluginError, match="needs the module not_installed_here: is its package installed"):
        sink_class("not_installed_here:Sink")


def test_a_module_that_a_plug_in_itself_misses_is_named(module: Callable[[str, str], None]) -> None:
    module("aftercall_foreign_example", "import not_installed_here\n")
    with pytest.raises(PluginError, match="needs the module not_installed_here"):
        sink_class("aftercall_foreign_example:Pager")


def test_a_built_in_whose_library_is_missing_says_which_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SINKS, "redis_stream", "not_installed_here:RedisStream")
    with pytest.raises(PluginError) as caught:
        sink_class("redis_stream")
    assert "pip install 'aftercall[redis-stream]'" in str(caught.value)


def test_a_missing_class_is_named() -> None:
    with pytest.raises(PluginError, match=r"cannot be loaded from aftercall\.sinks\.slack:Slak"):
        sink_class("aftercall.sinks.slack:Slak")


@pytest.mark.parametrize("source", ["class Pager(:\n", "raise RuntimeError('no licence')\n", "1 / 0\n"])
def test_a_plug_in_that_fails_while_it_is_imported_is_a_problem_of_that_plug_in(
    module: Callable[[str, str], None], source: str
) -> None:
    module("aftercall_foreign_example", source)
    with pytest.raises(PluginError, match="aftercall_foreign_example:Pager"):
        sink_class("aftercall_foreign_example:Pager")


def test_an_unknown_name_comes_with_the_likely_one() -> None:
    with pytest.raises(PluginError, match='no provider "ultravx"; did you mean "ultravox"'):
        provider_class("ultravx")


@pytest.mark.parametrize("name", ["", "qqq"])
def test_a_name_like_no_other_comes_with_what_there_is(name: str) -> None:
    with pytest.raises(PluginError) as caught:
        sink_class(name)
    assert all(known in str(caught.value) for known in SINKS)
    assert '"module:Class"' in str(caught.value)


def test_a_sink_without_its_verb_is_refused_at_the_start(module: Callable[[str, str], None]) -> None:
    module("half_a_sink", "from aftercall import Sink\nclass Half(Sink):\n    def delivr(self): ...\n")

    with pytest.raises(PluginError, match="half_a_sink:Half does not define deliver"):
        sink_class("half_a_sink:Half")


VERB = "    async def deliver(self, delivery): ..."
IMPORTS = (
    "from typing import Annotated, Literal\nimport msgspec\nfrom msgspec import Meta\n"
    "from aftercall import Secret, Sink, SinkConfig\n"
)
CONFIG = "    class Config(SinkConfig, frozen=True):\n        "


def test_a_verb_that_is_not_awaitable_is_refused(module: Callable[[str, str], None]) -> None:
    module("blocking_sinks", "from aftercall import Sink\nclass Pager(Sink):\n    def deliver(self, delivery): ...\n")
    with pytest.raises(PluginError, match="write `async def deliver`: it is awaited"):
        sink_class("blocking_sinks:Pager")


def test_defaults_that_fit_are_taken_also_none_and_made_ones(module: Callable[[str, str], None]) -> None:
    fields = "a: int = 3; b: Secret | None = None; c: list[str] = []; d: Annotated[str, Meta(max_length=1)] = ''"
    module("harbour_sinks", f"{IMPORTS}class Pager(Sink):\n{CONFIG}{fields}\n{VERB}\n")
    assert sink_class("harbour_sinks:Pager").Config().a == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("inside", "problem"),
    [
        ("    class Config: ...", 'sink "harbour_sinks:Pager": its Config is not a subclass of aftercall.SinkConfig'),
        ("    class Config(msgspec.Struct): ...", 'sink "harbour_sinks:Pager": its Config is not a subclass of'),
        ("    Config = 7", 'sink "harbour_sinks:Pager": its Config is not a subclass of aftercall.SinkConfig'),
        ('    events = ("call.ended")', 'its events are one text; write events = ("call.ended",) with the comma'),
        ('    events = ("call.setled",)', "its events name 'call.setled'; there are *, call.started, call.connected"),
        ("    def open(self): ...", "write `async def open`: it is awaited"),
        ("    def erase(self, call): ...", "write `async def erase`: it is awaited"),
        ("    async def render(self, delivery): ...", "write `def render` without async"),
        ("    def __init__(self, url): ...", "leave __init__ away and connect in `open`, or take these three"),
        (f"{CONFIG}n: Annotated[int, Meta(ge=1, le=10)] = 99", "Config.n: its default 99 does not fit its own type:"),
        (f"{CONFIG}url: str = 7", "Config.url: its default 7 does not fit its own type: Expected `str`, got `int`"),
        (f"{CONFIG}tags: list[str] = None", "Config.tags: its default None does not fit its own type"),
        (f"{CONFIG}mode: Literal['a', 'b'] = 'c'", "Config.mode: its default 'c' does not fit its own type"),
        (f'{CONFIG}key: Secret = ""', "Config.key: its default does not fit its own type"),
        (f"{CONFIG}half: complex = 1j", "Config.half: no file can hold an option of its type"),
    ],
)
def test_a_sink_that_would_fail_later_or_never_say_why_is_refused(
    module: Callable[[str, str], None], inside: str, problem: str
) -> None:
    module("harbour_sinks", f"{IMPORTS}class Pager(Sink):\n{inside}\n{VERB}\n")
    with pytest.raises(PluginError) as raised:
        sink_class("harbour_sinks:Pager")
    assert problem in str(raised.value)


@pytest.mark.parametrize("name", [":Pager", "pager:", ".pager:Pager", "..pager:Pager", "./pager:Pager", "a b:C", ":"])
def test_what_is_no_module_and_class_is_told_what_to_write(name: str) -> None:
    with pytest.raises(PluginError, match='write "module:Class", as in "pager:Pager"'):
        sink_class(name)
