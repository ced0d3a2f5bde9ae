"""The name of every key in Redis.

    aftercall:event:<id>            hash: the webhook as it arrived, the event, the state of each delivery
    aftercall:call:<account>:<id>   hash: the call as a whole (see lifecycle.py), or its tombstone
    aftercall:calls:<account>       sorted set: call ids by when their first event was accepted
    aftercall:events                sorted set: event ids by when they were accepted
    aftercall:work:process          sorted set: event ids to process, by when they are due
    aftercall:work:settle           sorted set: event ids of calls to settle, by when they are due
    aftercall:work:deliver:<sink>   sorted set: event ids to deliver to that sink, by when they are due
    aftercall:rate:<lane>           hash: the token bucket of a sink that is limited
    aftercall:health:<lane>         hash: the health of a lane's sink, where it is not simply well
    aftercall:sinks                 set: every sink that ever was configured
    aftercall:reconcile:<account>   hash: how far reconciling with the provider's list came
    aftercall:deaths                hash: <lane>|<event id> → leases that ended without an outcome
    aftercall:claim:<worker>        hash: what that process claimed last, should the answer have been lost
    aftercall:dead                  sorted set: <event id>|<sink>, by when it died
    aftercall:counters              hash: <what>|<account or sink> → how often
    aftercall:memory:<sink>:<name>  string: a sink's own note
    aftercall:wake                  list: one entry while there may be new work

A *lane* is one kind of open work: `process`, `settle`, or `deliver:<sink>`.
"""

_PREFIX = "aftercall:"

EVENTS = _PREFIX + "events"
DEAD = _PREFIX + "dead"
DEATHS = _PREFIX + "deaths"
SINKS = _PREFIX + "sinks"
COUNTERS = _PREFIX + "counters"
WAKE = _PREFIX + "wake"
PROBE = _PREFIX + "probe"


def event_key(event: str) -> str:
    return f"{_PREFIX}event:{event}"


def call_key(account: str, call_id: str) -> str:
    return f"{_PREFIX}call:{account}:{call_id}"


def calls_key(account: str) -> str:
    return f"{_PREFIX}calls:{account}"


def reconcile_key(account: str) -> str:
    return f"{_PREFIX}reconcile:{account}"


def work_key(lane: str) -> str:
    return f"{_PREFIX}work:{lane}"


def rate_key(lane: str) -> str:
    return f"{_PREFIX}rate:{lane}"


def claim_key(worker: str) -> str:
    return f"{_PREFIX}claim:{worker}"


def memory_key(sink: str, name: str) -> str:
    return f"{_PREFIX}memory:{sink}:{name}"


def health_key(lane: str) -> str:
    return f"{_PREFIX}health:{lane}"
