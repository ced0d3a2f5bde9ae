"""Every built-in sink runs the same suite against its server, and is short enough to read."""

import importlib
import statistics
from pathlib import Path

import pytest

from aftercall.plugins import SINKS, sink_class
from aftercall.testing import SinkContract

SOURCES = Path(__file__).parents[2] / "aftercall" / "sinks"
# Where a destination has no refusal for good, or none that can be told from an outage. The sinks' own texts say why.
NEVER_REFUSE = {"apprise", "console"}


def contracts(name: str) -> list[type[SinkContract]]:
    """The suites in the sink's test file that run it."""
    module = importlib.import_module(f"tests.sinks.test_{name}")
    suites = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, SinkContract)]
    return [one for one in suites if one.__name__.startswith("Test") and one.sink is sink_class(name)]


@pytest.mark.parametrize("name", SINKS)
def test_it_passes_the_suite_with_an_outage_and_a_refusal(name: str) -> None:
    suites = contracts(name)
    assert suites, f"tests/sinks/test_{name}.py has no SinkContract of {sink_class(name).__name__}"
    assert all(callable(suite.outage) for suite in suites)
    assert any(callable(suite.refusal) for suite in suites) == (name not in NEVER_REFUSE)


@pytest.mark.parametrize("name", SINKS)
def test_no_test_of_the_suite_is_taken_out(name: str) -> None:
    for suite in contracts(name):
        own = {test for base in suite.__mro__ if not base.__module__.startswith("aftercall") for test in vars(base)}
        assert not {test for test in own if test.startswith("test_") and hasattr(SinkContract, test)}


def test_a_sink_is_a_page() -> None:
    lengths = {name: len((SOURCES / f"{name}.py").read_text("utf-8").splitlines()) for name in SINKS}
    assert statistics.median(lengths.values()) <= 80, sorted(lengths.items(), key=lambda item: item[1])
