"""What Slack takes and what it refuses, as its documentation says it, and a Web API that holds to it."""

import re
from typing import Any

import msgspec

from aftercall.testing import Answer, Sent

# What mrkdwn may hold between < and >: links and times that the sink made. Anything else is a mention or a link let in.
MADE_BY_US = re.compile(
    r"<https?://[^\s<>|]+\|(?:Recording|Log)>|<!date\^-?\d+\^\{date_short_pretty\} \{time\}\|[^<>]+>"
)
UNESCAPED = re.compile(r"[<>]|&(?!amp;|lt;|gt;)")


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def text_problems(text: Any, limit: int, kinds: tuple[str, ...] = ("plain_text", "mrkdwn")) -> list[str]:
    if not isinstance(text, dict) or text.get("type") not in kinds:
        return [f"not a text object of {kinds}"]
    problems = []
    if text["type"] == "mrkdwn" and UNESCAPED.search(MADE_BY_US.sub("", text["text"])):
        problems.append("mrkdwn with an unescaped control sequence")
    if text["type"] == "mrkdwn" and not text.get("verbatim"):
        problems.append("mrkdwn in which Slack would look for mentions by itself")
    if not text["text"].strip():
        problems.append("empty text")
    if units(text["text"]) > limit:
        problems.append(f"text over {limit}")
    return problems


def problems(message: dict[str, Any]) -> list[str]:
    """What Slack would hold against a message: its documented limits, and the undocumented one on all blocks."""
    found = []
    if not message.get("text", "").strip() or units(message["text"]) > 40_000:
        found.append("no text, or over 40,000")
    if UNESCAPED.search(message["text"]):
        found.append("fallback with an unescaped control sequence")
    blocks = message.get("blocks", [])
    if not 1 <= len(blocks) <= 50:
        found.append("no blocks, or over 50")
    if units(msgspec.json.encode(blocks).decode()) > 13_200:
        found.append("msg_blocks_too_long")
    for block in blocks:
        match block:
            case {"type": "header", "text": text}:
                found += text_problems(text, 150, ("plain_text",))
            case {"type": "section", "fields": fields} if 1 <= len(fields) <= 10:
                found += [problem for field in fields for problem in text_problems(field, 2000)]
            case {"type": "section", "text": text}:
                found += text_problems(text, 3000)
            case {"type": "context", "elements": elements} if 1 <= len(elements) <= 10:
                found += [problem for element in elements for problem in text_problems(element, 3000)]
            case _:
                found.append(f"not a block: {block}")
    return found


class SlackApi:
    """chat.postMessage, chat.update and chat.delete of one workspace, for one bot in one channel.

    `errors` are answered first, one for each request, as HTTP 200 with `"ok": false`.
    """

    token, channel, name = "xoxb-fiction-sesame-7291", "C0FICTION1", "#calls"
    arguments = {
        "chat.postMessage": {"channel", "text", "blocks", "thread_ts", "unfurl_links", "unfurl_media"},
        "chat.update": {"channel", "ts", "text", "blocks"},
        "chat.delete": {"channel", "ts"},
    }

    def __init__(self) -> None:
        self.messages: dict[str, dict[str, Any]] = {}
        self.errors: list[str] = []
        self.asked: list[str] = []  # the methods, in order
        self._posted = 0

    def answer(self, sent: Sent) -> Answer:
        method = sent.path.removeprefix("/api/")
        self.asked.append(method)
        error = self.errors.pop(0) if self.errors else self._refusal(method, sent)
        if error:
            return Answer(200, {"ok": False, "error": error})
        asked = sent.json()
        ts = asked.get("ts") or self._new_ts()
        if method == "chat.delete":
            del self.messages[ts]
        else:
            self.messages[ts] = {**self.messages.get(ts, {}), **asked}
        return Answer(200, {"ok": True, "channel": self.channel, "ts": ts})

    def _refusal(self, method: str, sent: Sent) -> str | None:
        if sent.headers.get("authorization") != f"Bearer {self.token}":
            return "invalid_auth"
        if sent.headers.get("content-type") != "application/json; charset=utf-8":
            return "invalid_post_type"
        asked = sent.json()
        if method not in self.arguments or not set(asked) <= self.arguments[method]:
            return "invalid_arguments"
        if asked["channel"] != self.channel and (method != "chat.postMessage" or asked["channel"] != self.name):
            return "channel_not_found"
        if method != "chat.postMessage" and asked["ts"] not in self.messages:
            return "message_not_found"
        parent = self.messages.get(asked.get("thread_ts", ""))
        if "thread_ts" in asked and (parent is None or "thread_ts" in parent):
            return "cannot_reply_to_message"
        return "invalid_blocks" if method != "chat.delete" and problems(asked) else None

    def _new_ts(self) -> str:
        self._posted += 1
        return f"1795176300.{self._posted:06}"
