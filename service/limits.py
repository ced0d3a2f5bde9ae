"""What one client may take of this process, before it has shown a signature: bytes and seconds."""

MAX_HEAD_BYTES = 64 * 1024  # the request line and the headers; httptools itself has no limit
MAX_HEADERS = 200
HEAD_TIMEOUT_S = 10.0

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_DRAINED_BYTES = 4 * MAX_BODY_BYTES  # a body that is not wanted is read so far, so that its sender sees the answer
BODY_TIMEOUT_S = 20.0

# Of all bodies being read or stored. A body may grow while so many times its size is still free: the big ones, of which
# a few would fill the memory, are sent away first, and what most webhooks need is there to the last.
MAX_HELD_BYTES = 256 * 1024 * 1024
FREE_PER_HELD = 8

ANSWER_TIMEOUT_S = 30.0  # to make the answer, and for the client to take it
LINGER_S = 2.0  # for a client that is refused while it sends: closed at once, it would see a reset and no answer
