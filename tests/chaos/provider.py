"""Posts what the plan says, as a provider does: signed anew at each attempt, and again until it is answered 2xx."""

import asyncio
import io
import random
from contextlib import suppress
from urllib.parse import urlsplit

import aiohttp

from tests.chaos.facts import Clock, Post, Pulse, Writer
from tests.chaos.plan import Plan, Posting
from tests.stack import KEYS, SIGN, sign_retell

TIMEOUT_S = 10.0  # the shortest of the vendors': https://docs.retellai.com/features/webhook-overview (2026-11)
RETRY_S = (0.2, 0.4, 0.8, 1.5, 3.0)  # the vendors' own are minutes; the last goes on for ever
IN_FLIGHT = 48  # with `fast`
BEAT_S = 0.05
SILENCE = f"no answer in {TIMEOUT_S:g} s"
IMPATIENCE = "503 without Retry-After"
NOTABLE_S = 0.02


class Provider:
    def __init__(self, plan: Plan, urls: list[str], clock: Clock, facts: Writer) -> None:
        self.plan = plan
        self.urls = urls
        self.clock = clock
        self.facts = facts
        self.open = 0  # copies not answered 2xx yet
        self.given_up = 0
        self.places = asyncio.Semaphore(IN_FLIGHT if plan.options.fast else 1_000_000)

    async def play(self, deadline_s: float) -> None:
        """Post everything and wait until all of it was accepted, or until the deadline."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self.http:
            copies: set[asyncio.Task[None]] = set()
            try:
                async with asyncio.timeout(deadline_s - self.clock()):
                    for at_s, posting, first, count in sorted(self.sendings(), key=lambda sending: sending[0]):
                        await self.places.acquire()
                        self.places.release()
                        await asyncio.sleep(0 if self.plan.options.fast else at_s - self.clock())
                        for copy in range(first, first + count):
                            copies.add(task := asyncio.create_task(self.send(posting, copy)))
                            task.add_done_callback(copies.discard)
                    while copies:
                        await asyncio.wait(copies)
            except TimeoutError:
                pass
            finally:
                for task in copies:
                    task.cancel()

    def sendings(self) -> list[tuple[float, Posting, int, int]]:
        """When which copies of a posting go out."""
        sendings = [(posting.at_s, posting, 1, posting.copies) for posting in self.plan.postings]
        again = [posting for posting in self.plan.postings if posting.again_at_s is not None]
        return sendings + [(posting.again_at_s or 0.0, posting, posting.copies + 1, 1) for posting in again]

    async def send(self, posting: Posting, copy: int) -> None:
        """One copy, until it is answered 2xx; a forged one once it is answered at all."""
        self.open += 1
        attempt = 0
        async with self.places:
            while True:
                attempt += 1
                url = f"{random.choice(self.urls)}/webhooks/{posting.account}"
                sent_s = self.clock()
                first = attempt == 1 and copy == 1
                status, error = await (break_off if first and posting.broken else self.post)(url, posting)
                took_s = round(self.clock() - sent_s, 4)
                self.facts.write(
                    Post(
                        posting=posting.number,
                        copy=copy,
                        attempt=attempt,
                        sent_s=sent_s,
                        took_s=took_s,
                        status=status,
                        error=error,
                    )
                )
                if status is not None and status < 500:  # a refusal will not pass; the verifier says what it was worth
                    self.open -= 1
                    return
                await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S)) - 1] * random.uniform(0.7, 1.3))

    async def post(self, url: str, posting: Posting) -> tuple[int | None, str | None]:
        try:
            async with self.http.post(url, data=io.BytesIO(posting.body), headers=sign(posting)) as response:
                await response.read()
                impatient = response.status == 503 and "retry-after" not in response.headers
                return response.status, IMPATIENCE if impatient else None
        except TimeoutError:
            return None, SILENCE
        except (aiohttp.ClientError, OSError) as error:
            return None, type(error).__name__

    async def watch(self) -> None:
        """Write down how late this machine is: our own timer, and the services' answers that need no Redis."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as http:
            await asyncio.gather(self.beat(), *(self.feel(http, number) for number in range(len(self.urls))))

    async def beat(self) -> None:
        while True:
            before_s = self.clock()
            await asyncio.sleep(BEAT_S)
            self.note("load", before_s, self.clock() - before_s - BEAT_S)

    async def feel(self, http: aiohttp.ClientSession, number: int) -> None:
        while True:
            before_s = self.clock()
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with http.get(f"{self.urls[number]}/livez") as response:
                    await response.read()
                self.note(f"service-{number + 1}", before_s, self.clock() - before_s)
            await asyncio.sleep(2 * BEAT_S)

    def note(self, of: str, at_s: float, late_s: float) -> None:
        if late_s > NOTABLE_S:
            self.facts.write(Pulse(of=of, at_s=at_s, late_s=round(late_s, 4)))


def sign(posting: Posting) -> dict[str, str]:
    if posting.expect == "refused":
        return sign_retell(posting.body, key=KEYS["ULTRAVOX_KEY"])
    return SIGN[posting.account](posting.body)


async def break_off(url: str, posting: Posting) -> tuple[int | None, str | None]:
    """Send a request and go away: in the middle of its body, or before it is answered."""
    parts = urlsplit(url)
    head = {**sign(posting), "host": parts.netloc, "content-length": str(len(posting.body))}
    lines = [f"POST {parts.path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
    body = posting.body[: len(posting.body) // 2] if posting.broken == "body" else posting.body
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write("\r\n".join(lines).encode() + body)
            await writer.drain()
            await asyncio.sleep(0.001)
            writer.transport.abort()
    except (OSError, TimeoutError) as error:
        return None, type(error).__name__
    return None, f"broken off ({posting.broken})"
