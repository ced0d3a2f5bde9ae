"""Contestant `fastapi`: as one would write it from the documentation. FastAPI, Retell's own SDK, a job for arq.

In two points kinder than the usual recipe: the signature is checked over the raw body (Retell's sample parses and
re-serialises it first), and the body is parsed once.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from fastapi import FastAPI, Request, Response
from retell.lib import verify

from benchmarks.webhooks import KEY, PATH

pool: ArqRedis


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    global pool
    pool = await create_pool(RedisSettings.from_dsn(os.environ["REDIS_URL"]))
    yield
    await pool.aclose()


app = FastAPI(lifespan=lifespan)


@app.post(PATH)
async def receive_webhook(request: Request) -> Response:
    body = (await request.body()).decode()
    if not verify(body, KEY, request.headers.get("x-retell-signature", "")):  # type: ignore[no-untyped-call]
        return Response(status_code=401)
    await pool.enqueue_job("process_call", await request.json())
    return Response(status_code=204)
