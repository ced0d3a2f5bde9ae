"""Faults by rule: which webhooks and requests they hit, how often, and what happens to them.

A rule is a line of words: kind, provider (`*`: any), for webhooks an event if only one is meant, what happens, and how
often: `20%`, `first 3`, or nothing for always.

    webhook retell drop 20%
    webhook ultravox call.billed delay 5 first 10
    get * 429 first 2
    list ultravox truncated 5%
"""

import random
import re
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, get_args

import msgspec

from simulator.parts import Call, Webhook

Kind: TypeAlias = Literal["get", "list", "delete"]
PROVIDERS = ("retell", "cartesia", "ultravox")
OF_WEBHOOKS = ("drop", "delay", "double", "reorder")
OF_REQUESTS = ("429", "5xx", "slow", "truncated")  # 5xx: 500, or the status that is written out
TIMED = ("delay", "slow")  # followed by seconds

EVENT = re.compile(r"[a-z]+[._][a-z_]+")
STATUS = re.compile(r"429|5xx|5[0-9][0-9]")
SECONDS = re.compile(r"([0-9]+(?:\.[0-9]+)?)s?")
WHOLE = re.compile(r"([0-9]{1,9})")
PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)%")


class FaultError(ValueError):
    """A rule that says nothing; the text names the rule and the word."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    kind: str  # webhook | get | list | delete
    provider: str  # or *
    action: str  # webhooks: drop, delay, double, reorder; requests: error, slow, truncated
    event: str = ""  # only this event's webhooks
    seconds: float = 0.0
    status: int = 0
    first: int | None = None  # only the first so many that it could hit
    probability: float = 1.0


def parse_rule(text: str) -> Rule:
    """The rule that the words make. Raises `FaultError`."""
    words = text.split()
    try:
        kind = _take(words, "a kind", ("webhook", *get_args(Kind)))
        provider = _take(words, "a provider", (*PROVIDERS, "*"))
        event = words.pop(0) if kind == "webhook" and words and EVENT.fullmatch(words[0]) else ""
        status, seconds = 0, 0.0
        if kind != "webhook" and words and STATUS.fullmatch(words[0]):
            action, status = "error", int(words.pop(0).replace("xx", "00"))
        else:
            action = _take(words, "what happens", OF_WEBHOOKS if kind == "webhook" else OF_REQUESTS)
        if action in TIMED:
            seconds = _number(words, SECONDS, "a number of seconds")
        first, probability = _how_often(words)
    except FaultError as error:
        raise FaultError(f'fault "{text}": {error}') from None
    return Rule(
        kind=kind,
        provider=provider,
        action=action,
        event=event,
        seconds=seconds,
        status=status,
        first=first,
        probability=probability,
    )


def _take(words: list[str], what: str, among: Sequence[str]) -> str:
    if not words:
        raise FaultError(f"{what} is missing: one of {', '.join(among)}")
    word = words.pop(0)
    if word not in among:
        raise FaultError(f'"{word}" is not {what}: one of {", ".join(among)}')
    return word


def _number(words: list[str], form: re.Pattern[str], what: str) -> float:
    if not words:
        raise FaultError(f"{what} is missing at the end")
    word = words.pop(0)
    found = form.fullmatch(word)
    if found is None:
        raise FaultError(f'"{word}" is not {what}')
    return float(found[1])


def _how_often(words: list[str]) -> tuple[int | None, float]:
    first, probability = None, 1.0
    if words[:1] == ["first"]:
        first = int(_number(words[1:], WHOLE, "a whole number after first"))
        del words[:2]
    elif words:
        probability = _number(words, PERCENT, "how often: a percentage as 20%, or first and a number") / 100
    if not 0 <= probability <= 1:
        raise FaultError("a probability is at most 100%")
    if words:
        raise FaultError(f'"{words[0]}" is one word too many')
    return first, probability


class Faults:
    """The rules, and how often each was asked. The same questions in the same order have the same answers."""

    def __init__(self, rules: Iterable[Rule] = (), seed: int = 1) -> None:
        self._rules = list(rules)
        self._seed = seed
        self._asked = [0] * len(self._rules)

    def of_webhook(self, call: Call, webhook: Webhook) -> list[Rule]:
        """The rules that hit this webhook. Chance depends on the webhook alone, `first` on the order of the asking."""
        name = f"{call.provider} {call.id} {webhook.event}"
        return [
            rule
            for number, rule in enumerate(self._rules)
            if rule.kind == "webhook"
            and rule.event in ("", webhook.event)
            and rule.provider in ("*", call.provider)
            and self._hits(number, rule, name)
        ]

    def of_request(self, kind: Kind, provider: str) -> list[Rule]:
        """The rules that hit the request that has just come."""
        return [
            rule
            for number, rule in enumerate(self._rules)
            if rule.kind == kind and rule.provider in ("*", provider) and self._hits(number, rule, "")
        ]

    def _hits(self, number: int, rule: Rule, name: str) -> bool:
        self._asked[number] += 1
        if rule.first is not None:
            return self._asked[number] <= rule.first
        return random.Random(f"{self._seed} {number} {name or self._asked[number]}").random() < rule.probability
