"""For the tests of plug-ins: the contract as a suite, which a subclass runs on its own class.

    class TestLantern(ProviderContract):
        provider = Lantern
        fixtures = Path(__file__).parent / "fixtures"

        def signed(self, body, secret, now):
            return {"Lantern-Signature": hmac.new(secret.encode(), body, "sha256").hexdigest()}

It needs pytest and nothing else, listens on loopback only, and what it bends at random it bends alike each time.
`aftercall/providers/README.md` says which fixtures it reads.
"""

from aftercall.testing.given import signed_request
from aftercall.testing.provider import ProviderContract

__all__ = ["ProviderContract", "signed_request"]
