"""Every error raised on purpose. The docstring says what happened and what to do."""

from collections.abc import Sequence


class AftercallError(Exception):
    """The root of aftercall's own errors."""


class ConfigurationError(AftercallError):
    """The configuration is wrong. `problems` lists every one, each with the path of the key to mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class SignatureError(AftercallError):
    """A webhook's signature does not hold.

    `cause` is `missing`, `malformed`, `mismatch`, or `stale`: the signature is genuine, but its time is too far from
    now. The service then asks the ledger whether it knows the event, so `stale` must not be said of what may be forged.
    The message names the likely reason and what to check, and never holds a secret or a part of the body.
    """

    def __init__(self, cause: str, message: str) -> None:
        self.cause = cause
        super().__init__(message)


class UndecodableWebhook(AftercallError):
    """The webhook's body is not what this provider sends; the message says what is missing, without the values."""


class ProviderError(AftercallError):
    """A provider's API could not be asked, or refused.

    `status` is the HTTP status it answered with (None: no answer), `retry_after` how many seconds it asked to wait. The
    message says what was asked and what to check, and holds no key and nothing of a call.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        self.status = status
        self.retry_after = retry_after
        super().__init__(message)


class RecordNotReady(ProviderError):
    """The provider cannot give the record now: come back later, after `retry_after` seconds if it said so."""


class NotOffered(AftercallError):
    """The provider's API has no such thing (a list of calls, say), or its plug-in does not know it."""


class SinkError(AftercallError):
    """A sink did not take the event.

    `permanent=True`: the destination refused it for good, and no other attempt would change that. `gone=True`: there
    is no such destination any more; the sink is disabled, and its deliveries wait until an operator resumes it.
    Otherwise it is tried again by the sink's schedule, not before `retry_after` seconds; a destination that asks for
    patience in that way does not use the schedule up. The message is stored and shown: put the destination's answer in
    it, and no secret, phone number or transcript.
    """

    def __init__(
        self, message: str, *, permanent: bool = False, gone: bool = False, retry_after: float | None = None
    ) -> None:
        self.permanent = permanent
        self.gone = gone
        self.retry_after = retry_after
        super().__init__(message)


class LedgerUnavailable(AftercallError):
    """Redis cannot store or answer now. Nothing was accepted; check that `REDIS_URL` is reachable and writable."""


class PluginError(AftercallError):
    """A provider or sink named in the configuration cannot be loaded; the message says what to install or correct."""


class AddressRefused(AftercallError):
    """A sink's URL leads to a private, loopback or link-local address.

    Set `allow_private_network = true` on the sink if that is meant.
    """
