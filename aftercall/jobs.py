"""What service and workers agree on: the jobs' names and arguments, and how arq writes them.

A job carries ids and nothing else. What is to be done, and when, stands in the ledger; losing every job costs nothing.
"""

from typing import Any

import msgspec

PROCESS = "process"  # (event_id): fetch, normalize, enrich, commit
DELIVER = "deliver"  # (event_id, sink): one attempt

# arq's own queue holds only its cron jobs. Written as JSON: a pickle would let whoever writes to Redis run code here.
ARQ_QUEUE = "aftercall:arq"


def serialize(job: dict[str, Any]) -> bytes:
    return msgspec.json.encode(job, enc_hook=str)


def deserialize(job: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = msgspec.json.decode(job)
    return loaded
