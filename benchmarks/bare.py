"""Contestant `bare`: the least that could be called the same. Check the HMAC, store the body in one round trip.

No routing, no decoding, no duplicates, no order, no metrics. What it stores nobody could deliver. It is here to show
what the HTTP server, the signature and the store cost by themselves.
"""

import hashlib
import hmac
import os
import re
import time
import uuid
from typing import Any

from redis.asyncio import Redis

from benchmarks.webhooks import KEY

SIGNATURE = re.compile(rb"v=([0-9]+),d=([0-9a-f]{64})")
TOLERANCE_S = 300

redis = Redis.from_url(os.environ["REDIS_URL"])


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    status = 401
    if _is_signed(dict(scope["headers"]).get(b"x-retell-signature", b""), body):
        key = uuid.uuid4().hex
        pipe = redis.pipeline(transaction=False)
        pipe.hset(f"bare:{key}", "body", body)
        pipe.zadd("bare:index", {key: time.time()})
        await pipe.execute()
        status = 204
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _is_signed(header: bytes, body: bytes) -> bool:
    match = SIGNATURE.fullmatch(header)
    if match is None or abs(time.time() - int(match[1]) / 1000) > TOLERANCE_S:
        return False
    return hmac.compare_digest(
        hmac.digest(KEY.encode(), body + match[1], hashlib.sha256), bytes.fromhex(match[2].decode())
    )
