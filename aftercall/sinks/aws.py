"""What the sinks for Amazon's services share: options, one client for the sink's life, refusals in words of our own.

The client never tries again by itself (botocore's default is up to four times more): the worker does that. Its loggers
are silent, since at DEBUG they write bodies and signed headers.
"""

import hashlib
import logging
import re
from contextlib import AsyncExitStack
from typing import Annotated, Any, ClassVar

import httpx
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import get_session  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
from msgspec import Meta

from aftercall.errors import SinkError
from aftercall.sinks.base import Secret, Sink, SinkConfig, url_scheme

for _library in ("aiobotocore", "botocore"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)

_MODELS = get_session().get_component("data_loader")  # megabytes of JSON, read once for all sinks
_SETTINGS = AioConfig(
    connect_timeout=10,
    read_timeout=25,
    max_pool_connections=32,
    retries={"total_max_attempts": 1},
    # Since 1.36 botocore adds checksums that some S3-compatible servers refuse:
    # https://github.com/boto/boto3/issues/4392 (2026-11).
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)
# Refusals of what was sent, which another attempt would not change. Everything else an operator can mend (permissions,
# a queue that is not there yet) or it passes. https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/
# API_SendMessage.html, …/sns/latest/api/API_Publish.html, …/AmazonS3/latest/API/ErrorResponses.html (2026-11).
_FOR_GOOD = frozenset({
    "EntityTooLarge", "InvalidArgument", "InvalidMessageContents", "InvalidParameter", "InvalidParameterValue",
    "InvalidRequest", "KeyTooLongError", "MessageTooLong", "ParameterValueInvalid", "ValidationError",
    "ValidationException",
})  # fmt: skip
_THROTTLED = frozenset({
    "KMSThrottling", "KmsThrottled", "RequestThrottled", "SlowDown", "Throttled", "Throttling", "ThrottlingException",
    "TooManyRequestsException",
})  # fmt: skip
_CODE = re.compile(r"[A-Za-z0-9.]{1,64}")
_GROUP = re.compile(r"[!-~]{1,128}")  # of a FIFO queue or topic: letters, digits and punctuation
_NOT_IN_XML = str.maketrans({"\ufffe": "\\ufffe", "\uffff": "\\uffff"})


class Refused(SinkError):
    """The service answered, and said no. `code` is its word for why."""

    def __init__(self, service: str, code: str, status: int) -> None:
        self.code = code
        throttled = code in _THROTTLED or status == 429
        super().__init__(
            f"{service} refused: {code}", permanent=code in _FOR_GOOD, retry_after=0.0 if throttled else None
        )


class AwsConfig(SinkConfig, frozen=True, kw_only=True):
    """Base of the options of a sink for one of Amazon's services, or for another's with the same interface."""

    region: Annotated[str | None, Meta(description="such as eu-central-1; default: as AWS_REGION and profiles say")] = (
        None
    )
    access_key_id: Annotated[
        Secret | None, Meta(description="default: credentials from the environment, a profile or the instance's role")
    ] = None
    secret_access_key: Annotated[Secret | None, Meta(description="belongs to access_key_id")] = None
    endpoint_url: Annotated[str | None, Meta(description="another server than Amazon's: MinIO, R2 …")] = None

    def __post_init__(self) -> None:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key: write both or neither")
        if self.endpoint_url is not None and url_scheme(self.endpoint_url) not in ("http", "https"):
            raise ValueError("endpoint_url: expected http:// or https:// and a host")


class AwsSink(Sink):
    """Base of the sinks for Amazon's services."""

    service: ClassVar[str]
    signature_version: ClassVar[str] = "v4"
    region: str | None  # where the address of the queue or topic names one
    config: AwsConfig

    def __init__(self, name: str, config: AwsConfig, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self.region = config.region
        self.client: Any = None
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        if self.client is not None:
            return
        config, session = self.config, get_session()
        session.register_component("data_loader", _MODELS)
        try:
            # Asked for here: a client that was made without credentials would stay without.
            if config.access_key_id is None and await session.get_credentials() is None:
                raise SinkError("no AWS credentials: set access_key_id and secret_access_key, or give the host a role")
            made = session.create_client(
                self.service,
                region_name=self.region,
                endpoint_url=config.endpoint_url,
                aws_access_key_id=config.access_key_id,
                aws_secret_access_key=config.secret_access_key,
                config=_SETTINGS.merge(AioConfig(signature_version=self.signature_version)),
            )
            self.client = await self._stack.enter_async_context(made)
        except (BotoCoreError, ValueError) as error:
            raise SinkError(f"cannot prepare for {self.service.upper()}: {type(error).__name__}") from None

    async def close(self) -> None:
        self.client = None
        await self._stack.aclose()

    async def ask(self, operation: str, **parameters: Any) -> Any:
        """One request; its answer. Raises `Refused`, or `SinkError` where there was no answer."""
        try:
            return await getattr(self.client, operation)(**parameters)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            shown = code if _CODE.fullmatch(code) else f"HTTP {status}"
            raise Refused(self.service.upper(), shown, status) from None
        except Exception as error:  # botocore's own, and what aiohttp raises while an answer is read; texts quote URLs
            raise SinkError(f"{self.service.upper()} does not answer ({type(error).__name__})") from None


def message_text(body: bytes) -> str:
    """JSON as SQS and SNS take it: with the two characters as escapes that XML cannot hold but UTF-8 can.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html (2026-11).
    """
    try:
        return body.decode().translate(_NOT_IN_XML)
    except UnicodeDecodeError:
        raise SinkError("the webhook's body is not UTF-8, and a message must be", permanent=True) from None


def attributes(**values: str) -> dict[str, dict[str, str]]:
    """Message attributes of SQS and SNS, which are never empty there."""
    return {name: {"DataType": "String", "StringValue": value} for name, value in values.items() if value}


def grouped(call_id: str, event_id: str) -> dict[str, str]:
    """What a FIFO queue or topic needs: a group for each call, and the event's id to know it again for five minutes."""
    group = call_id if _GROUP.fullmatch(call_id) else hashlib.sha256(call_id.encode()).hexdigest()
    return {"MessageGroupId": group, "MessageDeduplicationId": event_id}
