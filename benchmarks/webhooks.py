"""The webhooks that are sent: Retell's `call_ended` of 20 KB, invented, each with its own call id and signature.

Shape: https://docs.retellai.com/features/webhook-overview (2026-11). Names, words and numbers are made up.
"""

import hashlib
import hmac
import json
import random
import time
from typing import Any

KEY = "key_benchmark"
PATH = "/webhooks/retell"
BODY_BYTES = 20_000
VARIANTS = 8

_SLOT = "call_00000000000000000000000000"  # as long as a real call id, so that every body has the same length
_SAID = (
    ("agent", "Good afternoon, Juniper Veterinary Clinic, you are speaking with the desk. How may I help you?"),
    ("user", "Hi, this is Mirela Okafor. My dog Pixel has been limping since this morning and I am a bit worried."),
    ("agent", "I am sorry to hear that, Mirela. Is Pixel putting any weight on the leg, and is there any swelling?"),
    ("user", "A little weight, yes. I do not see swelling, but he does not like it when I touch the paw."),
    ("agent", "Thank you. We have a free appointment today at twenty past four with Doctor Halloran."),
    ("user", "Twenty past four works. Should I bring anything, or keep him from eating before that?"),
    ("agent", "Please bring his vaccination card, and no food for two hours before, in case an image is needed."),
    ("user", "All right, I will do that. Could you also send me the address as a text message?"),
    ("agent", "Of course. You will have the address and the time in a minute. Is there anything else?"),
    ("user", "No, that is everything, thank you so much for the quick help."),
)


def make_call(rng: random.Random, call_id: str, *, body_bytes: int = BODY_BYTES) -> dict[str, Any]:
    """A call as Retell shows it in `call_ended` and in its record; as JSON about `body_bytes` long."""
    turns: list[dict[str, Any]] = []
    clock_s = 0.5
    size = 0
    # Retell carries each turn three times: as text, with its words, and again among the tool calls.
    while size < body_bytes - 1700:
        role, text = _SAID[len(turns) % len(_SAID)]
        words = []
        for word in text.split():
            length_s = rng.uniform(0.12, 0.45)
            words.append({"word": word, "start": round(clock_s, 3), "end": round(clock_s + length_s, 3)})
            clock_s += length_s + 0.03
        clock_s += rng.uniform(0.3, 1.2)
        turns.append({"role": role, "content": text, "words": words})
        size += 2 * len(_compact(turns[-1])) + len(text) + 10
    started_ms = int((time.time() - clock_s) * 1000)
    duration_ms = int(clock_s * 1000)
    return {
        "call_id": call_id,
        "call_type": "phone_call",
        "agent_id": "agent_benchmark",
        "agent_version": 4,
        "agent_name": "Clinic desk",
        "call_status": "ended",
        "from_number": "+15550100123",
        "to_number": "+15550100177",
        "direction": "inbound",
        "metadata": {"clinic": "juniper", "ticket": rng.randrange(1000, 9999)},
        "retell_llm_dynamic_variables": {"caller": "Mirela Okafor"},
        "collected_dynamic_variables": {"pet": "Pixel", "appointment": "16:20"},
        "data_storage_setting": "everything",
        "opt_in_signed_url": False,
        "start_timestamp": started_ms,
        "end_timestamp": started_ms + duration_ms,
        "duration_ms": duration_ms,
        "disconnection_reason": "user_hangup",
        "transcript": "".join(f"{turn['role'].title()}: {turn['content']}\n" for turn in turns),
        "transcript_object": turns,
        "transcript_with_tool_calls": turns,
        "recording_url": "https://recordings.example.com/benchmark/recording.wav",
        "public_log_url": "https://recordings.example.com/benchmark/public_log.txt",
        "latency": {
            part: {"p50": base, "p90": base * 1.4, "p95": base * 1.6, "p99": base * 2, "max": base * 2, "num": 9}
            for part, base in (("e2e", 900), ("llm", 450), ("tts", 160))
        },
        "call_cost": {
            "product_costs": [{"product": "elevenlabs_tts", "unit_price": 0.1166667, "cost": 9.3}],
            "total_duration_seconds": duration_ms // 1000,
            "combined_cost": 9.3,
        },
    }


def call_ended(call: dict[str, Any]) -> bytes:
    """The webhook's body."""
    return _compact({"event": "call_ended", "call": call})


def signature(body: bytes) -> str:
    """The value of `x-retell-signature`, made now: https://docs.retellai.com/features/secure-webhook (2026-11)."""
    now_ms = str(int(time.time() * 1000)).encode()
    return f"v={now_ms.decode()},d={hmac.digest(KEY.encode(), body + now_ms, hashlib.sha256).hex()}"


class Requests:
    """Complete HTTP/1.1 requests, signed beforehand, no two with the same call id.

    Only what differs is kept of each; the rest is put around it when it is sent, which costs a copy and saves a
    gigabyte.
    """

    def __init__(self, count: int, *, seed: int) -> None:
        rng = random.Random(seed)
        bodies = [call_ended(make_call(rng, _SLOT)) for _ in range(VARIANTS)]
        self._around = [tuple(body.split(_SLOT.encode())) for body in bodies]
        self._own = []
        for number in range(count):
            call_id = f"call_{rng.getrandbits(104):026x}".encode()
            body = call_id.join(self._around[number % VARIANTS])
            head = (
                f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                f"x-retell-signature: {signature(body)}\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            self._own.append((head.encode(), call_id))
        self._next = 0

    def next(self) -> bytes | None:
        """The next request, or None: all have been given out."""
        if self._next == len(self._own):
            return None
        head, call_id = self._own[self._next]
        before, after = self._around[self._next % VARIANTS]
        self._next += 1
        return b"".join((head, before, call_id, after))


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
