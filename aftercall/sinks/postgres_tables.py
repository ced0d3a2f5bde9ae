"""The tables of the Postgres sink, and every statement about them. `{s}` is the schema.

A migration that was released is never changed: what follows gets a new one at the end, that older versions of aftercall
can live with while they deliver (a column may be added, with a default or null; none goes, and none is renamed).
"""

VERSIONS = "create table {s}.aftercall_schema (version int primary key, since timestamptz default now())"

MIGRATIONS = (
    """
    create table {s}.calls (
        provider text, account text, call_id text, primary key (provider, account, call_id),
        agent_id text, agent_name text, agent_version text,
        channel text, direction text, from_number text, to_number text,
        status text, end_reason text, ended_by text, provider_reason text, error text,
        started_at timestamptz, ended_at timestamptz, duration_ms bigint,
        cost numeric, currency text,
        summary text, sentiment text, successful boolean, voicemail boolean,
        recording_url text, recording_expires_at timestamptz, log_url text, storage text,
        tags jsonb, metadata jsonb, variables jsonb,
        call jsonb not null,                        -- the whole call, as events write it
        told jsonb not null,                        -- how much the event knew that told each field, and its sequence
        revision bigint not null default 0,         -- the highest sequence among its events
        settled boolean not null default false,     -- whether call.settled is among them
        updated_at timestamptz not null default now()
    );
    create index calls_started_at on {s}.calls (started_at);
    create table {s}.turns (
        provider text, account text, call_id text, position int, primary key (provider, account, call_id, position),
        role text, text text, start_ms bigint, end_ms bigint, interrupted boolean, tool jsonb, latency jsonb,
        foreign key (provider, account, call_id) references {s}.calls on delete cascade
    );
    create table {s}.events (
        id text primary key,
        provider text not null, account text not null, call_id text not null,
        type text, sequence bigint, time timestamptz, received_at timestamptz, complete boolean,
        event jsonb not null,
        foreign key (provider, account, call_id) references {s}.calls on delete cascade
    );
    create index events_call on {s}.events (provider, account, call_id, sequence);
    """,
)

# What stands in a column of its own: its type, and where the call (with the event's tags) has it.
COLUMNS = {
    "agent_id": ("text", "agent,id"),
    "agent_name": ("text", "agent,name"),
    "agent_version": ("text", "agent,version"),
    "channel": ("text", "channel"),
    "direction": ("text", "direction"),
    "from_number": ("text", "from"),
    "to_number": ("text", "to"),
    "status": ("text", "status"),
    "end_reason": ("text", "end,reason"),
    "ended_by": ("text", "end,by"),
    "provider_reason": ("text", "end,provider_reason"),
    "error": ("text", "error"),
    "started_at": ("timestamptz", "started_at"),
    "ended_at": ("timestamptz", "ended_at"),
    "duration_ms": ("bigint", "duration_ms"),
    "cost": ("numeric", "cost,total"),
    "currency": ("text", "cost,currency"),
    "summary": ("text", "analysis,summary"),
    "sentiment": ("text", "analysis,sentiment"),
    "successful": ("boolean", "analysis,successful"),
    "voicemail": ("boolean", "analysis,voicemail"),
    "recording_url": ("text", "recording,url"),
    "recording_expires_at": ("timestamptz", "recording,expires_at"),
    "log_url": ("text", "log_url"),
    "storage": ("text", "privacy,storage"),
    "tags": ("jsonb", "tags"),
    "metadata": ("jsonb", "metadata"),
    "variables": ("jsonb", "variables"),
}

# Set for the transaction alone, so that a pooler between (PgBouncer) does no harm. A worker that vanished must not keep
# a call's row, and attempts that were given up must not wait on for somebody else's lock, each with its connection.
BEGIN = """
begin isolation level read committed;
set local lock_timeout = '5s';
set local idle_in_transaction_session_timeout = '30s';
"""

ONE_AT_A_TIME = "select pg_advisory_xact_lock(hashtextextended('aftercall/' || $1, 0))"

_THE_CALL = "provider = $1 and account = $2 and call_id = $3"

# First of all, so that what comes for the same call waits here, and nothing can wait in a circle.
LOCK_CALL = """
insert into {s}.calls as known (provider, account, call_id, call, told) values ($1, $2, $3, '{{}}', '{{}}')
on conflict (provider, account, call_id) do update set revision = known.revision
returning call || jsonb_build_object('tags', coalesce(tags, '{{}}')) as call, told
"""

ADD_EVENT = """
insert into {s}.events (provider, account, call_id, id, type, sequence, time, received_at, complete, event)
select $1, $2, $3, e ->> 'id', e ->> 'type', (e #>> '{{data,sequence}}')::bigint, (e ->> 'time')::timestamptz,
    (e #>> '{{data,received_at}}')::timestamptz, (e #>> '{{data,complete}}')::boolean, e
from (select $4::jsonb as e) as given
on conflict (id) do nothing returning true
"""

WRITE_CALL = f"""
update {{s}}.calls set call = c - 'tags', told = $5::jsonb, revision = greatest(revision, $6),
    settled = settled or $7, updated_at = now(),
    {", ".join(f"{name} = (c #>> '{{{{{path}}}}}')::{type_}" for name, (type_, path) in COLUMNS.items())}
from (select $4::jsonb as c) as given where {_THE_CALL}
"""  # noqa: S608 - of the constants above

DROP_TURNS = f"delete from {{s}}.turns where {_THE_CALL}"  # noqa: S608

ADD_TURNS = """
insert into {s}.turns (provider, account, call_id, position, role, text, start_ms, end_ms, interrupted, tool, latency)
select $1, $2, $3, position, t ->> 'role', t ->> 'text', (t ->> 'start_ms')::bigint, (t ->> 'end_ms')::bigint,
    (t ->> 'interrupted')::boolean, nullif(t -> 'tool', 'null'), nullif(t -> 'latency', 'null')
from jsonb_array_elements($4::jsonb) with ordinality as turn (t, position)
"""

ERASE = f"delete from {{s}}.calls where {_THE_CALL}"  # noqa: S608 - its turns and events go with it
