"""`aftercall verify`, run as a process, without any Redis."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aftercall.cli.verify import read_headers
from tests.stack import KEYS, ROOT, a_retell_call, sign_cartesia, sign_retell, sign_ultravox

CONFIGURATION = """
[accounts.clinic]
provider = "retell"
api_key = "${RETELL_KEY}"

[accounts.annex]
provider = "retell"
api_key = "key_annex_70"

[accounts.parcel]
provider = "cartesia"
api_key = "${CARTESIA_KEY}"
webhook_secrets = ["${CARTESIA_SECRET}"]

[accounts.ferry]
provider = "ultravox"
api_key = "${ULTRAVOX_KEY}"
webhook_secrets = ["${ULTRAVOX_SECRET}"]
"""
BODY = json.dumps(a_retell_call("call_lamp", from_number="+15550100143")).encode()
PRIVATE = (*KEYS.values(), "key_annex_70", "call_lamp", "5550100143")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "aftercall.toml").write_text(CONFIGURATION)
    (tmp_path / "body.json").write_bytes(BODY)
    return tmp_path


def verify(directory: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """The command's outcome; whatever it is, nothing private is shown."""
    done = subprocess.run(
        [sys.executable, "-m", "aftercall.cli", "verify", *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **KEYS},
        cwd=directory,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    stdout, stderr = done.stdout.decode(), done.stderr.decode()
    assert [value for value in PRIVATE if value in stdout + stderr] == []
    assert "Traceback" not in stderr
    return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)


def options(headers: dict[str, str]) -> list[str]:
    return [part for name, value in headers.items() for part in ("--header", f"{name}: {value}")]


def found(done: subprocess.CompletedProcess[str]) -> Any:
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def test_a_genuine_webhook_of_each_provider_holds(directory: Path) -> None:
    for account, headers in (
        ("clinic", sign_retell(BODY)),
        ("parcel", sign_cartesia(BODY)),
        ("ferry", sign_ultravox(BODY)),
    ):
        done = verify(directory, "--account", account, "--body", "body.json", *options(headers))
        assert (done.returncode, done.stderr) == (0, "")
        assert "the signature holds" in done.stdout


def test_the_body_comes_from_standard_input_byte_for_byte(directory: Path) -> None:
    odd = b'\xff{"call": 1}\r\n\x00'
    arguments = ("--account", "clinic", "--body", "-", "--json", *options(sign_retell(odd)))
    assert found(verify(directory, *arguments, stdin=odd)) == {
        "valid": True,
        "cause": None,
        "message": "the signature holds",
        "hints": [],
    }


def test_another_account_s_key_on_an_old_capture_is_told_as_json(directory: Path) -> None:
    headers = sign_retell(BODY, key="key_annex_70", at=time.time() - 3 * 86400)
    done = verify(directory, "--account", "clinic", "--body", "body.json", "--json", *options(headers))

    assert done.returncode == 1
    told = found(done)
    assert (told["valid"], told["cause"]) == (False, "mismatch")
    assert "accounts.annex" in told["hints"][0]
    assert "3 days before" in told["hints"][1]


def test_the_cause_and_the_remedy_are_shown_to_people(directory: Path) -> None:
    signed = json.dumps(json.loads(BODY), separators=(",", ":"), ensure_ascii=False).encode()
    done = verify(directory, "--account", "clinic", "--body", "body.json", *options(sign_retell(signed)))

    assert done.returncode == 1
    assert done.stdout.startswith("clinic (retell): the x-retell-signature does not match")
    assert "\n- the body's JSON was written anew on the way: it was signed compact" in done.stdout


def test_a_webhook_for_another_provider_s_account_is_told(directory: Path) -> None:
    done = verify(directory, "--account", "clinic", "--body", "body.json", *options(sign_ultravox(BODY)))
    assert done.returncode == 1
    assert "pass --account ferry" in done.stdout


def test_at_is_when_it_was_received(directory: Path) -> None:
    arguments = ("--account", "clinic", "--body", "body.json", *options(sign_retell(BODY, at=1_790_000_000)))
    assert "pass --at" in verify(directory, *arguments).stdout
    assert verify(directory, *arguments, "--at", "2026-09-21T16:13:21+02:00").returncode == 0


DUMP = """* Connected to hub.example.com\r
> POST /webhooks/clinic HTTP/1.1\r
> Host: hub.example.com\r
> X-Retell-Signature: @\r
> \r
> no header\r
"""


def test_headers_come_from_a_file_of_them(directory: Path) -> None:
    dump = "\ufeff" + DUMP.replace("@", sign_retell(BODY)["x-retell-signature"])
    (directory / "headers.txt").write_bytes(dump.encode())
    done = verify(directory, "--account", "clinic", "--body", "body.json", "--headers", "headers.txt")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "dump",
    [
        DUMP,
        DUMP.replace("> ", "").replace("* Connected to hub.example.com\r\n", ""),
        "HTTP/1.1 100 Continue\n\nHTTP/2 200\nx-retell-signature:@\n\nbody: of the answer",
        ":method: POST\n:path: /webhooks/clinic\nx-retell-signature: @",
        "X-RETELL-SIGNATURE: @  \n",
        "x-retell-signature:\n @\naccept: */*",
        "x-note: \x85 is no end of a line\nx-retell-signature: @",
    ],
)
def test_dumps_of_several_kinds_are_read(dump: str) -> None:
    headers = dict(read_headers(dump, "--headers"))
    assert headers["x-retell-signature"] == "@"
    assert set(headers) <= {"host", "x-retell-signature", "accept", "x-note"}


def test_a_header_given_twice_counts_by_its_last_value_as_in_the_service(directory: Path) -> None:
    good, bad = options(sign_retell(BODY)), options(sign_retell(BODY, key="proxy"))
    arguments = ("--account", "clinic", "--body", "body.json")
    assert verify(directory, *arguments, *bad, *good).returncode == 0
    refused = verify(directory, *arguments, *good, *bad)
    assert refused.returncode == 1
    assert "came more than once: the first one holds" in refused.stdout


def test_no_headers_at_all_says_how_to_pass_them(directory: Path) -> None:
    done = verify(directory, "--account", "clinic", "--body", "body.json")
    assert done.returncode == 1
    assert "x-retell-signature header is missing" in done.stdout
    assert "--headers" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--account", "clinc", "--body", "body.json"), "there are clinic, annex, parcel, ferry"),
        (("--account", "clinic", "--body", "none.json"), "none.json"),
        (("--account", "clinic", "--body", "body.json", "--at", "2026-11-20T12:00:00"), "offset"),
        (("--account", "clinic", "--body", "body.json", "--header", KEYS["CARTESIA_SECRET"]), "expected name: value"),
        (("--account", "clinic", "--body", "-", "--headers", "-"), "standard input"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_right(directory: Path, arguments: tuple[str, ...], words: str) -> None:
    done = verify(directory, *arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())


def test_a_wrong_configuration_exits_3(directory: Path) -> None:
    (directory / "aftercall.toml").write_text('[accounts.clinic]\nprovider = "retel"\n')
    done = verify(directory, "--account", "clinic", "--body", "body.json")
    assert done.returncode == 3
    assert 'did you mean "retell"' in done.stderr
    assert "REDIS_URL" not in done.stderr


def test_a_line_that_is_no_header_is_named_by_its_number() -> None:
    with pytest.raises(Exception, match="line 3 of --headers is no header") as caught:
        read_headers("POST / HTTP/1.1\na: b\nsilver-bracken\n", "--headers")
    assert "bracken" not in str(caught.value)
