"""The audit of the dependencies: what it lets through, what it stops at, and that it tells a silent service from a bad
package. pip-audit is the real one; OSV is a server on loopback that answers as OSV does.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distributions
from pathlib import Path
from threading import Event, Thread
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.servers import free_port

pytestmark = pytest.mark.long  # of the tools, not of what is shipped
ROOT = Path(__file__).parents[1]
SHIPPED = ("aftercall", "service", "workers", "simulator")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit = _load()


def pins_of(*lines: str, file: str = "requirements.txt") -> list[Any]:
    return [audit.Pin(file, Requirement(line)) for line in lines]


# Pins


def test_the_pins_of_this_repository_are_in_order() -> None:
    pins, problems = audit.read_pins(ROOT)
    assert len(pins) > 80
    assert problems == []
    assert audit.pin_problems(ROOT, pins) == []


@pytest.mark.parametrize(
    "line",
    [
        "msgspec",
        "msgspec>=0.20",
        "msgspec==0.*",
        "msgspec==0.22.0,<1",
        "msgspec===0.22.0",
        "msgspec @ https://example.com/msgspec.whl",
        "git+https://example.com/msgspec.git",
        "--index-url https://example.com/simple",
        "-r nowhere.txt",
        "-r requirements-nowhere.txt",
        "-e .",
    ],
)
def test_a_line_that_is_no_exact_pin_is_named_with_its_place(tmp_path: Path, line: str) -> None:
    (tmp_path / "requirements-dev.txt").write_text(f"# tools\n\nruff==0.17.5\n{line}\n")
    pins, problems = audit.read_pins(tmp_path)
    assert [pin.name for pin in pins] == ["ruff"]
    assert len(problems) == 1
    assert problems[0].startswith("requirements-dev.txt:4: ")


@pytest.mark.parametrize(
    ("pins", "problem"),
    [
        (pins_of("httpx==0.28.1", "ruff==0.17.5"), None),
        (
            pins_of("HTTPX==0.28.1", 'ruff==0.17.5; python_version >= "3"', 'ruff==0.1; python_version < "3"'),
            "ruff: 0.1",
        ),
        (pins_of("httpx==0.29.0", "ruff==0.17.5"), "httpx: 0.29.0 in requirements.txt is not <0.29,>=0.28"),
        (pins_of("httpx==0.28.1"), "ruff: in pyproject.toml (test), and not pinned in requirements*.txt"),
        (pins_of("httpx==0.28.1", "ruff==0.10.0"), "ruff: 0.10.0 in requirements.txt is not >=0.11"),
        (
            pins_of("httpx==0.28.1", file="requirements-dev.txt") + pins_of("ruff==0.17.5"),
            "httpx: in pyproject.toml, and not pinned in requirements.txt",
        ),
        (
            pins_of("httpx==0.28.1", "ruff==0.17.5") + pins_of("ruff==0.17.6", file="requirements-bench.txt"),
            "ruff: 0.17.5 in requirements.txt, 0.17.6 in requirements-bench.txt",
        ),
    ],
    ids=["in order", "marker", "outside", "missing", "too old", "in the wrong file", "two versions"],
)
def test_pins_agree_with_each_other_and_with_the_bounds(tmp_path: Path, pins: list[Any], problem: str | None) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["httpx>=0.28,<0.29"]\noptional-dependencies.test = ["ruff>=0.11"]\n'
    )
    problems = audit.pin_problems(tmp_path, pins)
    assert len(problems) == (0 if problem is None else 1)
    assert problem is None or problems[0].startswith(problem)


def test_what_is_installed_without_a_pin_or_in_another_version_is_named() -> None:
    pins = pins_of("httpx==0.28.1", "arq==0.28.0", 'uvloop==9.9; python_version < "3"')
    installed = {"httpx": "0.28.1", "arq": "0.29.0", "leftpad": "1.0", "pip": "26.0", "aftercall": "0.1", "uvloop": "1"}
    assert audit.installed_problems(installed, pins) == [
        "arq 0.29.0 is installed, requirements.txt has 0.28.0: make clean",
        "leftpad 1.0 is installed and nowhere pinned: add it to a requirements file",
        "uvloop 1 is installed and nowhere pinned: add it to a requirements file",
    ]
    assert audit.installed_problems({"httpx": "0.28.1"}, pins) == []


# Licences


@pytest.mark.parametrize(
    ("metadata", "fine"),
    [
        ("License-Expression: MIT", True),
        ("License-Expression: Apache-2.0 OR BSD-2-Clause", True),
        ("License: MPL-2.0", True),
        ("Classifier: License :: OSI Approved :: BSD License", True),
        ("License-File: LICENSE", True),
        ("Summary: says nothing", False),
        ("License-Expression: AGPL-3.0-only", False),
        ("License: LGPLv3+", False),
        ("Classifier: License :: OSI Approved :: GNU General Public License v2 (GPLv2)", False),
        ("Classifier: License :: Other/Proprietary License", False),
        ("License-Expression: BUSL-1.1", False),
    ],
)
def test_a_licence_that_binds_or_is_not_named_is_stopped_at(tmp_path: Path, metadata: str, fine: bool) -> None:
    info = tmp_path / "gears-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: Gears\nVersion: 1.0\n{metadata}\n")
    there = list(distributions(path=[str(tmp_path)]))
    problems = audit.licence_problems(there, pins_of("gears==1.0"))
    assert (problems == []) is fine
    assert all(problem.startswith("gears: its licence is ") for problem in problems)
    assert audit.licence_problems(there, pins_of("gears==1.0", file="requirements-dev.txt")) == []


# Known vulnerabilities


class Osv:
    """Answers each query about `vulnerable` with one advisory, and all others with none; or every one with `status`."""

    def __init__(self) -> None:
        self.vulnerable = ""
        self.status = 200
        self.body = b"{}"
        self.silent = False
        self._closing = Event()
        self.queries: list[tuple[str, str]] = []
        osv = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["content-length"])))
                name, version = query["package"]["name"], query["version"]
                osv.queries.append((name, version))
                if osv.silent:
                    osv._closing.wait(30)
                    return
                found = osv.advisory(name) if name == osv.vulnerable else osv.body
                self.send_response(osv.status)
                self.send_header("content-length", str(len(found)))
                self.end_headers()
                self.wfile.write(found)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/query"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @staticmethod
    def advisory(name: str) -> bytes:
        versions = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}
        affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [versions]}]
        return json.dumps({"vulns": [{"id": "GHSA-9x7q-gear", "summary": "It grinds.", "affected": affected}]}).encode()

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def osv() -> Iterator[Osv]:
    made = Osv()
    yield made
    made.close()


TWO = pins_of("arq==0.28.0", "msgspec==0.22.0")


def test_every_pin_is_asked_about_and_clean_when_nothing_is_known(osv: Osv) -> None:
    assert audit.vulnerabilities(TWO, osv.url) == ("clean", ["2 packages"])
    assert set(osv.queries) == {("arq", "0.28.0"), ("msgspec", "0.22.0")}


def test_a_known_vulnerability_is_named_with_its_remedy(osv: Osv) -> None:
    osv.vulnerable = "msgspec"  # not the one that is asked about first
    assert audit.vulnerabilities(TWO, osv.url) == ("vulnerable", ["msgspec 0.22.0: GHSA-9x7q-gear (mended in 99.1)"])


def test_a_service_in_trouble_has_not_been_asked(osv: Osv) -> None:
    osv.status = 503
    outcome, lines = audit.vulnerabilities(TWO, osv.url)
    assert outcome == "unasked"
    assert lines[0].startswith("503 ")


def test_a_service_that_does_not_answer_is_given_up(osv: Osv) -> None:
    osv.silent = True
    assert audit.vulnerabilities(TWO, osv.url, first_answer_s=1) == ("unasked", ["no answer within 1 s"])
    assert audit.FIRST_ANSWER_S <= 20


def test_a_page_in_place_of_the_service_is_no_answer(osv: Osv) -> None:
    osv.body = b"<html>please log in</html>"
    assert audit.ask(TWO, osv.url, 20).outcome == "unasked"


def test_an_answer_that_pip_audit_does_not_understand_is_not_taken_for_silence(osv: Osv) -> None:
    osv.body = b'{"message": "this version of the API is gone"}'
    outcome, lines = audit.ask(TWO, osv.url, 20)
    assert outcome == "broken"
    assert "KeyError: 'vulns'" in lines[-1]


def test_a_question_that_the_service_refuses_is_not_taken_for_silence(osv: Osv) -> None:
    osv.status = 400
    assert audit.ask(TWO, osv.url, 20).outcome == "broken"


CLEAN = '{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}'
SKIPPED = '{"dependencies": [{"name": "a", "skip_reason": "not found"}]}'
VULNERABLE = '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": []}]}]}'
TRACEBACK = "Traceback (most recent call last):\n  File …\n"
SERVICE_ERROR = f"\n\nThe above exception was …\n\n{TRACEBACK}pip_audit._service.interface.ServiceError"


@pytest.mark.parametrize(
    ("exit_status", "output", "errors", "outcome"),
    [
        (0, CLEAN, "", "clean"),
        (0, '{"dependencies": []}', "", "broken"),
        (0, "", "", "broken"),
        (0, "[]", "", "broken"),
        (1, CLEAN, "", "broken"),
        (0, SKIPPED, "", "broken"),
        (1, VULNERABLE, "", "vulnerable"),
        (0, VULNERABLE, "", "vulnerable"),
        (1, VULNERABLE, f"{TRACEBACK}requests.exceptions.ReadTimeout: Read timed out.", "vulnerable"),
        (1, "", f"{TRACEBACK}requests.exceptions.SSLError: certificate verify failed", "unasked"),
        (1, "", f"{TRACEBACK}requests.exceptions.ProxyError: Cannot connect to proxy", "unasked"),
        (1, "", f"{TRACEBACK}requests.exceptions.ReadTimeout: Read timed out.", "unasked"),
        (
            1,
            "",
            "ERROR:pip_audit._cli:Could not connect to OSV's vulnerability feed\nERROR:pip_audit._cli:…",
            "unasked",
        ),
        (1, "", f"{TRACEBACK}requests.exceptions.HTTPError: 429 Client Error: …{SERVICE_ERROR}", "unasked"),
        (1, "", f"{TRACEBACK}requests.exceptions.HTTPError: 404 Client Error: …{SERVICE_ERROR}", "broken"),
        (1, "", f"{TRACEBACK}requests.exceptions.ConnectionError: x\n\nDuring …\n\n{TRACEBACK}TypeError: y", "broken"),
        (1, "", f"{TRACEBACK}requests.exceptions.InvalidURL: no host", "broken"),
        (2, "", "pip-audit: error: unrecognized arguments", "broken"),
        (1, "", "/usr/bin/python: No module named pip_audit", "broken"),
        (1, "", "ERROR:pip_audit._cli:requirement foo is not pinned", "broken"),
        (-9, "", f"{TRACEBACK}requests.exceptions.ReadTimeout: Read timed out.", "broken"),
    ],
)
def test_only_silence_of_the_service_is_excused(exit_status: int, output: str, errors: str, outcome: str) -> None:
    verdict = audit.judge(exit_status, output, errors)
    assert verdict.outcome == outcome
    assert verdict.lines


# The command


def run(root: Path, url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "audit.py"), "--root", str(root), "--osv-url", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose pins are what is installed here."""
    (tmp_path / "pyproject.toml").write_text("[project]\ndependencies = []\n")
    installed = sorted({(one.name, one.version) for one in distributions() if one.name not in audit.NOT_PINNED})
    (tmp_path / "requirements-dev.txt").write_text("".join(f"{name}=={version}\n" for name, version in installed))
    return tmp_path


def test_a_service_that_is_not_there_is_told_in_one_line_and_no_failure(project: Path) -> None:
    done = run(project, f"http://127.0.0.1:{free_port()}/")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("audit: known vulnerabilities were NOT looked up, since http://127.0.0.1:")
    assert "Connection refused" in line


def test_a_vulnerable_package_is_a_failure(project: Path, osv: Osv) -> None:
    osv.vulnerable = "msgspec"
    done = run(project, osv.url)
    assert done.returncode == 1
    assert "audit: a known vulnerability: msgspec " in done.stderr


def test_all_that_is_wrong_is_said_at_once_and_without_a_service_too(project: Path) -> None:
    pins = (project / "requirements-dev.txt").read_text()
    (project / "requirements-dev.txt").write_text(pins.replace("msgspec==", "msgspec==0."))
    (project / "requirements.txt").write_text("httpx\n")
    done = run(project, f"http://127.0.0.1:{free_port()}/")
    assert done.returncode == 1
    assert "audit: requirements.txt:1: not an exact version: httpx; write httpx==…" in done.stderr
    assert "audit: msgspec " in done.stderr


# What the linter's rules must see


RULES = "S102,S301,S302,S307,S506,S602,S604,S605"  # exec, pickle, marshal, eval, yaml.load, shells


def ruff(*arguments: str, source: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--output-format", "concise", "--no-cache", *arguments]
    return subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True, timeout=60, check=False)


def test_nothing_that_is_shipped_runs_what_it_reads_also_not_behind_a_noqa() -> None:
    done = ruff("--isolated", "--ignore-noqa", "--select", RULES, *SHIPPED)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("package", [*SHIPPED, "aftercall/cli"])
def test_the_linter_stops_at_code_that_runs_what_it_reads(package: str) -> None:
    calls = [
        "exec(text)", "eval(text)", "pickle.loads(text)", "marshal.loads(text)", "yaml.load(text)",
        "subprocess.run(text, shell=True)", "os.system(text)",
    ]  # fmt: skip
    imports = ["import marshal", "import os", "import pickle", "import subprocess", "import yaml", "def take(text):"]
    source = "\n".join([*imports, *(f"    {call}" for call in calls)])
    found = ruff(f"--stdin-filename={package}/new.py", "-", source=source).stdout.splitlines()
    for number, call in enumerate(calls, len(imports) + 1):
        rules = {row.split()[1] for row in found if row.split(":")[1] == str(number)}
        assert rules & set(RULES.split(",")), call
