"""Slack: a message in one channel for every event, through an incoming webhook.

Delivered means that Slack answered `ok`. It gives no message id, so a message can neither be changed nor recognised: an
attempt repeated after a lost answer shows twice.
"""

from typing import Annotated, Any

import httpx
import msgspec
from msgspec import Meta

from aftercall.errors import SinkError
from aftercall.sinks.base import Delivery, Secret, Sink
from aftercall.sinks.http import request
from aftercall.sinks.slack_blocks import escape, message
from aftercall.sinks.text import MessageConfig, is_web, message_of

# https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks#handling_errors (2026-11). Only these words
# are repeated in an error text, whoever answered.
ERRORS = frozenset(
    b"action_prohibited channel_is_archived channel_not_found invalid_blocks invalid_payload invalid_token"
    b" no_active_hooks no_service no_service_id no_team no_text posting_to_general_channel_denied team_disabled"
    b" too_many_attachments user_not_found".split()
)
NO_WEBHOOK = 404  # likewise: no_service, no_active_hooks, no_team: it was disabled or removed


class Slack(Sink):
    events = ("call.settled",)  # a team wants one message a call

    class Config(MessageConfig, frozen=True):
        url: Annotated[Secret, Meta(description="the incoming webhook's URL, which belongs to one channel")]

        def __post_init__(self) -> None:
            if not is_web(self.url):
                raise ValueError("url must be the whole https:// address Slack shows under Incoming Webhooks")
            super().__post_init__()

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._url, self._template = config.url, message_of(config, escape)

    async def deliver(self, delivery: Delivery) -> str:
        """Slack has the message when it answers `ok`. Another 2xx answer is final: a next try might post it twice."""
        body, headers = msgspec.json.encode(self.render(delivery)), {"content-type": "application/json"}
        answer = await request(self.http, "POST", self._url, body, headers, accept={NO_WEBHOOK}, quotable=ERRORS)
        word = answer.body.strip()
        known = f" {word.decode()}" if word in ERRORS else ""
        if answer.status == NO_WEBHOOK:
            raise SinkError(f"{answer}{known}", permanent=True, gone=True)
        if known:
            raise SinkError(f"Slack refused the message:{known}", permanent=True)
        if word != b"ok":
            raise SinkError("the answer is not Slack's; check that url is an incoming webhook", permanent=True)
        return str(answer)

    def render(self, delivery: Delivery) -> dict[str, Any]:
        return message(delivery.event, self._template)
