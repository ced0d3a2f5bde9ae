"""What a transcript tells by counting: `Call.metrics`. Plain functions over the turns."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from aftercall.call import Call, Metrics, ResponseTime, Turn

# Scripts that are written without spaces between words (Chinese characters, Japanese, Thai, Lao, Khmer, Burmese): there
# each character counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['’\-][^\W{_UNSPACED}]+)*")


def enrich(call: Call) -> Call:
    """The call with its metrics; unchanged where there is no transcript."""
    if call.transcript is None:
        return call
    return msgspec.structs.replace(call, metrics=metrics(call.transcript))


def metrics(transcript: Sequence[Turn]) -> Metrics:
    """`turns` and words count what user and agent said; silence and response times need the turns' times."""
    spoken = [turn for turn in transcript if turn.role in ("user", "agent")]
    tools = [turn.tool for turn in transcript if turn.tool is not None]
    interrupted = [turn.interrupted for turn in spoken if turn.interrupted is not None]
    timed = sorted(
        (turn for turn in spoken if turn.start_ms is not None and turn.end_ms is not None),
        key=lambda turn: turn.start_ms or 0,
    )
    return Metrics(
        turns=len(spoken),
        user_words=sum(words(turn.text) for turn in spoken if turn.role == "user"),
        agent_words=sum(words(turn.text) for turn in spoken if turn.role == "agent"),
        tool_calls=len(tools),
        tool_failures=sum(tool.ok is False for tool in tools),
        talk_ratio=_talk_ratio(timed),
        interruptions=sum(interrupted) if interrupted else None,
        longest_silence_ms=_longest_silence_ms(timed),
        response_ms=_response_ms(timed),
    )


def words(text: str | None) -> int:
    text = text or ""
    if not text.isascii():  # vowel signs and accents of their own (Hindi, Arabic, decomposed é) are no letters to `re`
        text = "".join(character for character in text if not unicodedata.category(character).startswith("M"))
    return len(_WORD.findall(text))


def _talk_ratio(timed: Sequence[Turn]) -> float | None:
    agent = sum(_length_ms(turn) for turn in timed if turn.role == "agent")
    everyone = sum(_length_ms(turn) for turn in timed)
    return round(agent / everyone, 3) if everyone else None


def _longest_silence_ms(timed: Sequence[Turn]) -> int | None:
    """The longest gap in which nobody spoke, between the first word and the last."""
    if len(timed) < 2:
        return None
    heard_until, longest = timed[0].end_ms or 0, 0
    for turn in timed[1:]:
        longest = max(longest, (turn.start_ms or 0) - heard_until)
        heard_until = max(heard_until, turn.end_ms or 0)
    return longest


def _response_ms(timed: Sequence[Turn]) -> ResponseTime | None:
    """How long users waited for the agent; an agent that began before the user had ended took 0."""
    waits = sorted(
        max(0, (after.start_ms or 0) - (before.end_ms or 0))
        for before, after in pairwise(timed)
        if before.role == "user" and after.role == "agent"
    )
    if not waits:
        return None
    return ResponseTime(p50=_percentile(waits, 50), p95=_percentile(waits, 95), max=waits[-1])


def _percentile(ordered: Sequence[int], percent: int) -> int:
    """Nearest rank."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _length_ms(turn: Turn) -> int:
    return max(0, (turn.end_ms or 0) - (turn.start_ms or 0))
