"""The URL that names Sentinels, and the login at both kinds of server behind it."""

from pathlib import Path

import pytest

from aftercall.errors import LedgerUnavailable
from aftercall.ledger import Ledger
from aftercall.redis_client import connect, verifies_certificate
from aftercall.sentinel import SentinelUrl, parse_sentinel_url
from aftercall.settings import ConfigurationError, load
from tests.servers import RedisServer, SentinelServer, a_certificate, free_port, need

WHOLE = (
    "rediss+sentinel://user:p%40ss%2F%3F@one.example:26380,two.example,[fd00::3]:26379/my%20calls/2"
    "?sentinel_username=watch&ssl_cert_reqs=required&sentinel_password=p%26q"
)


def test_a_url_names_the_sentinels_the_service_and_both_logins() -> None:
    assert parse_sentinel_url(WHOLE) == SentinelUrl(
        sentinels=(("one.example", 26380), ("two.example", 26379), ("fd00::3", 26379)),
        service="my calls",
        login={"username": "watch", "password": "p&q"},
        server_url="rediss://user:p%40ss%2F%3F@primary/2?ssl_cert_reqs=required",
    )
    assert verifies_certificate(WHOLE)
    assert not verifies_certificate(WHOLE.replace("&ssl_cert_reqs=required", ""))
    assert parse_sentinel_url("redis+sentinel://h/calls/").server_url == "redis://primary/?"


@pytest.mark.parametrize(
    "url", ["redis+sentinel://h:26379/calls", "rediss+sentinel://a,b:1/calls/3?sentinel_password=x"]
)
def test_sentinels_are_taken_as_the_place_of_the_ledger(tmp_path: Path, url: str) -> None:
    assert load({"REDIS_URL": url, "RETELL_API_KEY": "r"}, tmp_path).redis_url == url


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:hunter2@h:26379",
        "redis+sentinel://:hunter2@h:26379/",
        "redis+sentinel://:hunter2@h:26379,/calls",
        "redis+sentinel://:hunter2@h:port/calls",
        "redis+sentinel://:hunter2@/calls",
        "redis+sentinel://:hunter2@h/calls/first",
        "redis+sentinel://:hunter2/x@h/calls",
        "redis+sentinel://:hunter2[@h/calls",
        "redis+sentinel://:hunter2@h/calls?sentinel_timeout=5",
    ],
)
def test_a_url_that_names_them_wrongly_is_refused_with_the_right_form_and_without_the_password(
    tmp_path: Path, url: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load({"REDIS_URL": url, "RETELL_API_KEY": "r"}, tmp_path)
    (problem,) = refused.value.problems
    assert problem.startswith("REDIS_URL: expected redis+sentinel://host:26379,host:26379/<service name>")
    assert "hunter2" not in problem


async def test_sentinels_and_servers_have_tls_and_passwords_of_their_own(tmp_path: Path) -> None:
    need("redis-sentinel", "redis-sentinel")
    key, certificate = a_certificate(tmp_path)
    tls = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no")
    port, sentinel_port = free_port(), free_port()
    server = RedisServer(tmp_path / "server", *tls, "--tls-port", str(port), "--requirepass", "p@ss")
    own = (*tls, "--tls-port", str(sentinel_port), "--requirepass", "watch&see")
    sentinel = SentinelServer(tmp_path / "sentinel", port, *own, quorum=1)
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel_port}"  # nobody is at the first
    with server, sentinel:
        for url, words in (
            (f"rediss+sentinel://:p%40ss@{hosts}/calls/1?sentinel_password=watch%26see", ""),
            (f"rediss+sentinel://:p%40ss@{hosts}/calls/1", "no Sentinel names the primary of the service calls"),
            (f"rediss+sentinel://:p%40ss@{hosts}/other?sentinel_password=watch%26see", "of the service other"),
            (f"rediss+sentinel://:pass@{hosts}/calls?sentinel_password=watch%26see", "AuthenticationError"),
            (f"redis+sentinel://:p%40ss@{hosts}/calls?sentinel_password=watch%26see", "no Sentinel names"),
        ):
            ledger = Ledger(connect(url), retention_s=60)
            if words:
                with pytest.raises(LedgerUnavailable, match=words):
                    await ledger.counters()
            else:
                assert await ledger.counters() == {}
            await ledger.close()
