"""Logs: one JSON object a line on stderr. Facts have names; no payload, secret or phone number is ever one of them."""

import logging
import sys

import structlog
from structlog.typing import Processor


def configure_logs(level: int = logging.INFO) -> None:
    """Set up structlog, and the libraries that log by themselves, for a process of aftercall."""
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *shared,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processor=structlog.processors.JSONRenderer())
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # They log whole URLs (Slack's is a credential) and jobs' arguments at INFO.
    for name in ("httpx", "httpcore", "arq", "aiohttp", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
