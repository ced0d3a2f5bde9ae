"""`aftercall register`, run as a process with a provider of a plug-in, without any Redis."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich_click import UsageError

from aftercall.cli.register import webhook_url
from tests.stack import ROOT

PLUG_IN = '''
import json
from pathlib import Path

from aftercall import Provider, ProviderError
from aftercall.errors import NotOffered


class Silent(Provider):
    name = "silent"
    base_url = "https://api.silent.example"
    needs = ("api_key",)

    def verify(self, request, secrets, now): ...
    def decode(self, body): return []
    async def fetch(self, call_id): return {}
    def normalize(self, webhook, record): raise NotImplementedError


class Bell(Silent):
    """Writes down what it was asked, and fails as its account's tag says."""

    name = "bell"

    async def register(self, url, *, agents=(), dry_run=False):
        open_ = not self.http.is_closed
        asked = {"url": url, "agents": list(agents), "dry_run": dry_run, "open": open_}
        again = Path("asked.json").exists()
        Path("asked.json").write_text(json.dumps(asked))
        status, _, once = self.account.tags.get("fails", "").partition(" ")
        if status and not (once and again):
            error = ProviderError(f"the provider's API answered HTTP {status}", status=int(status) or None)
            error.add_note("agent one: registered")
            raise error
        return [f"agent {agent}: registered" for agent in agents or ("all",)]
'''
ACCOUNT = '[accounts.{name}]\nprovider = "bells:{kind}"\napi_key = "fennel-53"\ntags = {{ fails = "{fails}" }}\n'

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def register(tmp_path: Path) -> Run:
    """`aftercall register …` for the accounts tower (`bells:Bell`) and mute, which cannot register."""
    (tmp_path / "bells.py").write_text(PLUG_IN)

    def run(*arguments: str, fails: str = "") -> subprocess.CompletedProcess[str]:
        accounts = ACCOUNT.format(name="tower", kind="Bell", fails=fails)
        (tmp_path / "aftercall.toml").write_text(accounts + ACCOUNT.format(name="mute", kind="Silent", fails=""))
        done = subprocess.run(
            [sys.executable, "-m", "aftercall.cli", "register", *arguments],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert "fennel" not in done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def asked(tmp_path: Path) -> Callable[[], Any]:
    """What the provider was asked; None if it was not."""
    path = tmp_path / "asked.json"
    return lambda: json.loads(path.read_text()) if path.exists() else None


Asked = Callable[[], Any]


def words_of(text: str) -> str:
    """Without the frame that usage errors have."""
    return " ".join(text.replace("│", " ").split())


def test_the_provider_is_asked_and_its_lines_are_printed(register: Run, asked: Asked) -> None:
    url = "https://hub.example.com/webhooks/tower"
    done = register("tower", "--url", url, "--agent", "one", "--agent", "two")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "agent one: registered\nagent two: registered\n"
    assert asked() == {"url": url, "agents": ["one", "two"], "dry_run": False, "open": True}


@pytest.mark.parametrize("fails", ["429 once", "503 once", "0 once"])
def test_what_passes_at_the_provider_is_asked_for_again(register: Run, fails: str) -> None:
    done = register("tower", "--url", "https://hub.example.com/webhooks/tower", fails=fails)
    assert (done.returncode, done.stdout, done.stderr) == (0, "agent all: registered\n", "")


def test_a_dry_run_is_passed_on_and_told(register: Run, asked: Asked) -> None:
    done = register("tower", "--url", "https://hub.example.com/webhooks/tower", "--dry-run")
    assert done.returncode == 0
    assert "nothing was changed" in done.stderr
    assert (asked()["dry_run"], asked()["agents"]) == (True, [])


def test_the_path_is_appended_to_the_service_s_root_and_told(register: Run, asked: Asked) -> None:
    done = register("tower", "--url", "https://hub.example.com")
    assert asked()["url"] == "https://hub.example.com/webhooks/tower"
    assert "/webhooks/tower is appended" in done.stderr


def test_another_path_is_kept_with_a_warning(register: Run, asked: Asked) -> None:
    done = register("tower", "--url", "https://hub.example.com/voice")
    assert done.returncode == 0
    assert asked()["url"] == "https://hub.example.com/voice"
    assert "warning: aftercall takes the webhooks of tower at /webhooks/tower" in done.stderr


def test_a_url_without_encryption_is_refused_before_the_provider_is_asked(register: Run, asked: Asked) -> None:
    done = register("tower", "--url", "http://hub.example.com")
    assert done.returncode == 2
    assert "in the clear" in words_of(done.stderr)
    assert asked() is None


@pytest.mark.parametrize(
    ("url", "target", "told"),
    [
        ("https://hub.example.com/", "https://hub.example.com/webhooks/tower", "appended"),
        ("https://hub.example.com?via=edge", "https://hub.example.com/webhooks/tower?via=edge", "appended"),
        ("http://localhost:8000", "http://localhost:8000/webhooks/tower", "appended"),
        ("http://127.8.8.8", "http://127.8.8.8/webhooks/tower", "appended"),
        ("http://[::1]:8000", "http://[::1]:8000/webhooks/tower", "appended"),
        ("https://hub.example.com/x/webhooks/tower?a=1", "https://hub.example.com/x/webhooks/tower?a=1", ""),
        ("https://hub.example.com/webhooks/mute", "https://hub.example.com/webhooks/mute", "warning"),
        ("https://hub.example.com/webhooks/tower/", "https://hub.example.com/webhooks/tower/", "warning"),
        ("https://hub.example.com/webhooks/watchtower", "https://hub.example.com/webhooks/watchtower", "warning"),
    ],
)
def test_the_url_that_is_registered(url: str, target: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert webhook_url(url, "tower") == target
    shown = capsys.readouterr().err
    assert told in shown
    assert bool(shown) == bool(told)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost.example.com/webhooks/tower", "in the clear"),
        ("http://10.0.0.8", "in the clear"),
        ("hub.example.com", "expected a whole URL"),
        ("ftp://hub.example.com", "expected a whole URL"),
        ("https://", "expected a whole URL"),
        ("https://[::1", "expected a whole URL"),
        ("https://hub.example.com:port", "expected a whole URL"),
        ("https://hub.example.com/#top", "after #"),
    ],
)
def test_a_url_that_cannot_be_is_refused(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        webhook_url(url, "tower")


def test_an_unknown_account_exits_2_with_those_there_are(register: Run) -> None:
    done = register("towr", "--url", "https://hub.example.com")
    assert done.returncode == 2
    assert "there are tower, mute" in words_of(done.stderr)


def test_a_provider_without_registration_exits_1_and_says_where_to_do_it(register: Run) -> None:
    done = register("mute", "--url", "https://edge:gorse-77@hub.example.com/webhooks/mute")
    assert (done.returncode, done.stdout) == (1, "")
    assert "silent has no registration of webhooks by API" in done.stderr
    assert "gorse" not in done.stderr
    assert "register https://hub.example.com/webhooks/mute by hand, in the provider's console" in done.stderr


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        ("0", 5, "is the network up"),
        ("500", 5, "in trouble"),
        ("429", 5, "try again"),
        ("401", 1, "accounts.tower.api_key"),
        ("422", 1, "the agents named"),
    ],
)
def test_a_failure_tells_what_was_done_and_what_to_check(register: Run, status: str, code: int, words: str) -> None:
    done = register("tower", "--url", "https://hub.example.com", fails=status)
    assert done.returncode == code
    assert done.stdout == "agent one: registered\n"
    assert words in done.stderr
    assert "it may be repeated" in done.stderr
