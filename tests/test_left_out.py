"""A run of the tests without some server says in one line what was left out, and how to have it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import left_out

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
SMALL = """
import pytest
from tests.servers import need

@pytest.fixture(scope="module")
def broker():
    need("nats-server", "nats-server")

def test_one(broker): pass
def test_two(broker): pass
def test_three(): need("redis-server", "redis-server")
def test_four(): pass
def test_five(): pytest.skip("for another reason")
"""
LINE = (
    "left out: 3 tests that need nats-server, redis-server; apt install nats-server redis-server,"
    " or AFTERCALL_TEST_SERVERS=required makes them fail"
)


def run(tmp_path: Path, *arguments: str, source: str = SMALL, **environ: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_small.py").write_text(source)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AFTERCALL_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", *arguments, "test_small.py"],
        env={**kept, "PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environ},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments", [(), ("--quiet", "-ra", "-p", "xdist", "--numprocesses", "2")], ids=["plain", "as make test"]
)
def test_what_needs_a_server_is_counted_in_one_line_at_the_end(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ran = run(tmp_path, *arguments)
    assert ran.returncode == 0, ran.stdout
    *_, line, counts = ran.stdout.rstrip().splitlines()
    assert line == LINE
    assert "1 passed, 4 skipped" in counts


def reason(program: str, package: str) -> str:
    return str(("tests/x.py", 3, f"Skipped: {program} is not installed: apt install {package}"))


def test_the_line_counts_tests_and_names_each_server_once() -> None:
    assert left_out([]) == left_out([str(("tests/x.py", 3, "Skipped: for another reason"))]) == ""
    assert left_out([reason("postgres", "postgresql")]) == (
        "left out: 1 test that needs postgres; apt install postgresql, or AFTERCALL_TEST_SERVERS=required makes it fail"
    )
    both = [reason("redis-server", "redis-server"), reason("nats-server", "nats-server")]
    assert left_out([*both, "Skipped: no", both[1]]) == LINE


def test_where_the_servers_are_required_the_tests_fail(tmp_path: Path) -> None:
    ran = run(tmp_path, AFTERCALL_TEST_SERVERS="required")
    assert ran.returncode == 1
    assert "nats-server is not installed: apt install nats-server" in ran.stdout
    assert "left out" not in ran.stdout
