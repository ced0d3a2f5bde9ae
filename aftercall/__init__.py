"""aftercall: one trustworthy, normalized account of every call that your AI voice agents make.

What a plug-in author needs is here: the call and the event, what a provider and a sink are, and the errors they raise.
"""

from aftercall.call import Call, Turn
from aftercall.errors import (
    AftercallError,
    ConfigurationError,
    ProviderError,
    RecordNotReady,
    SignatureError,
    SinkError,
    UndecodableWebhook,
)
from aftercall.event import CallEvent
from aftercall.providers.base import Account, Provider, Request, Webhook
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig

__all__ = [
    "Account",
    "AftercallError",
    "Call",
    "CallEvent",
    "ConfigurationError",
    "Delivery",
    "Provider",
    "ProviderError",
    "RecordNotReady",
    "Request",
    "Secret",
    "SignatureError",
    "Sink",
    "SinkConfig",
    "SinkError",
    "Turn",
    "UndecodableWebhook",
    "Webhook",
]
