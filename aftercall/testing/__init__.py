"""For the tests of plug-ins: the contracts as suites, which a subclass runs on its own class.

    class TestCrmNotes(HttpSinkContract):
        sink = CrmNotes

        async def options(self):
            return {"url": self.destination.url, "token": "sesame-7291"}

        async def received(self):
            return [sent.body for sent in self.destination.sent]

    class TestLantern(ProviderContract):
        provider = Lantern
        fixtures = Path(__file__).parent / "fixtures"

        def signed(self, body, secret, now):
            return {"Lantern-Signature": hmac.new(secret.encode(), body, "sha256").hexdigest()}

They need pytest and nothing else, listen on loopback only, and what they bend at random they bend alike each time.
`aftercall/sinks/README.md` and `aftercall/providers/README.md` tell more.
"""

from aftercall.testing.destination import Answer, Destination, Sent
from aftercall.testing.given import signed_request
from aftercall.testing.http_sink import HttpSinkContract
from aftercall.testing.provider import ProviderContract
from aftercall.testing.recording import RecordingSink
from aftercall.testing.sink import SinkContract
from aftercall.testing.sink_parts import a_delivery, an_event

__all__ = [
    "Answer",
    "Destination",
    "HttpSinkContract",
    "ProviderContract",
    "RecordingSink",
    "Sent",
    "SinkContract",
    "a_delivery",
    "an_event",
    "signed_request",
]
