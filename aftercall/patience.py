"""Asking a provider's API again for what may pass, where somebody waits for the answer."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from aftercall.errors import ProviderError

LONGEST_WAIT_S = 120.0  # a provider may ask for patience, but somebody waits for this
A_FEW_S = (1.0, 2.0)  # where an operator sits before it

_Answer = TypeVar("_Answer")


def may_pass(error: ProviderError) -> bool:
    """Whether the same request may be answered otherwise later; a refusal (4xx) is not."""
    return error.status is None or not 400 <= error.status < 500 or error.status in (408, 425, 429)


async def patiently(
    ask: Callable[[], Awaitable[_Answer]],
    waits_s: Sequence[float],
    *,
    before: Callable[[], Awaitable[None]] | None = None,
) -> _Answer:
    """The answer. What may pass is asked for again after these waits, or longer ones if the provider says so.

    `before` is awaited before each request.
    """
    failures = 0
    while True:
        if before is not None:
            await before()
        try:
            return await ask()
        except ProviderError as error:
            if failures == len(waits_s) or not may_pass(error):
                raise
            await asyncio.sleep(min(max(waits_s[failures], error.retry_after or 0.0), LONGEST_WAIT_S))
            failures += 1
