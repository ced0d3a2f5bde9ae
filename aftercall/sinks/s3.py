"""S3 and what speaks like it (MinIO, R2 …): an archive of the events and of the calls' recordings.

Each event is the object `<prefix><account>/<call id>/<event id>.json`. Delivered means that the bucket has it, and the
recording too where the event names one: as `recording.<wav, mp3 …>` beside the events, fetched once a call. The event
comes first, so what cannot be fetched (providers' links expire: Retell's within a day) is a dead letter whose event is
archived. An event that comes again finds its object there: If-None-Match is answered with PreconditionFailed,
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html (2026-11).

A long recording takes several attempts, none of which spends a retry while it gets on; s3_recording.py tells how. While
one event brings the recording, others of the call are delivered without waiting for it: the one that brings it is
tried until it is there, or is a dead letter. Every type of event is archived, unless the table names some.

It needs s3:PutObject, s3:GetObject (links), s3:ListBucket, s3:ListBucketMultipartUploads, s3:ListMultipartUploadParts,
s3:AbortMultipartUpload and s3:DeleteObject. `erase` deletes the current versions: in a bucket with versioning let a
lifecycle rule remove the others.
"""

import asyncio
import io
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Meta

from aftercall.call import Call, Recording
from aftercall.errors import SinkError
from aftercall.event import rfc3339
from aftercall.sinks.aws import AwsConfig, AwsSink, Refused
from aftercall.sinks.base import Delivery, url_scheme
from aftercall.sinks.s3_recording import MIB, Transfer

BUDGET_S = 8.0  # of an attempt, less than the 10 s that a sink has by default
LEASE_S = 60.0  # how long others leave the recording to the event that began with it
AT_ONCE = 4  # recordings under way, each with a part of 8 MiB in memory
DELETED_AT_ONCE = 25
DAY_S = 86_400


class S3(AwsSink):
    raw = True
    service = "s3"
    signature_version = "s3v4"  # for some regions botocore would sign links by version 2, which R2 and others refuse

    class Config(AwsConfig, frozen=True, kw_only=True):
        bucket: Annotated[str, Meta(min_length=1, description="the bucket's name")]
        prefix: Annotated[str, Meta(description="what every key begins with")] = "calls/"
        recordings: Annotated[bool, Meta(description="whether to fetch the calls' recordings too")] = True
        max_recording_mb: Annotated[
            int, Meta(ge=1, le=8_000, description="MiB; a longer recording is not archived")
        ] = 500
        public_url: Annotated[
            str | None, Meta(description="where the bucket's objects can be read by everyone; default: presigned links")
        ] = None
        link_days: Annotated[
            int, Meta(ge=1, le=7, description="how long a presigned link to a recording holds, if its credentials do")
        ] = 7

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.public_url is not None and url_scheme(self.public_url) not in ("http", "https"):
                raise ValueError("public_url: expected http:// or https:// and a host")

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._options = config
        self._few = asyncio.Semaphore(AT_ONCE)

    async def deliver(self, delivery: Delivery) -> str:
        until = asyncio.get_running_loop().time() + BUDGET_S
        event = delivery.event
        receipt = await self._store(delivery)
        if self._options.recordings and event.data.call.recording is not None:
            await self._bring(event.data.call, event.data.call.recording.url, event.id, until)
        return receipt

    async def archived_recording(self, call: Call) -> Recording | None:
        """The bucket's copy of the call's recording, if there is one. The link is made once and kept for its life."""
        known = await self.memory.get(_note("recording", call))
        if known is not None:
            return msgspec.json.decode(known, type=Recording)
        listed = await self.ask(
            "list_objects_v2", Bucket=self._options.bucket, Prefix=f"{self._folder(call)}recording.", MaxKeys=1
        )
        return await self._linked(call, listed["Contents"][0]["Key"]) if listed.get("Contents") else None

    async def erase(self, call: Call) -> None:
        """Delete what is in the call's folder, uploads that are under way first: they could still become objects."""
        bucket, folder = self._options.bucket, self._folder(call)
        await self._transfer(call).forget()
        uploads = await self.ask("list_multipart_uploads", Bucket=bucket, Prefix=folder)
        for upload in uploads.get("Uploads", []):
            await self._transfer(call).abort(upload["Key"], upload["UploadId"])
        after: dict[str, str] = {}
        while True:
            page = await self.ask("list_objects_v2", Bucket=bucket, Prefix=folder, **after)
            await self._delete([entry["Key"] for entry in page.get("Contents", [])])
            if not page.get("IsTruncated"):
                break
            after = {"ContinuationToken": page["NextContinuationToken"]}
        for kind in ("recording", "bringing"):
            await self.memory.delete(_note(kind, call))

    async def _store(self, delivery: Delivery) -> str:
        event = delivery.event
        to = {"Bucket": self._options.bucket, "Key": f"{self._folder(event.data.call)}{quote(event.id, safe='')}.json"}
        put = {**to, "ContentType": delivery.content_type}
        try:
            stored = await self.ask("put_object", **put, Body=io.BytesIO(self.render(delivery)), IfNoneMatch="*")
        except Refused as error:
            if error.code == "PreconditionFailed":
                return "already archived"
            if error.code != "NotImplemented":
                raise
            stored = await self.ask("put_object", **put, Body=io.BytesIO(self.render(delivery)))
        return str(stored["ETag"]).strip('"')

    async def _bring(self, call: Call, url: str, event_id: str, until: float) -> None:
        if await self.archived_recording(call) is not None:
            return
        lease = _note("bringing", call)
        if not await self.memory.add(lease, event_id, for_s=LEASE_S):
            bringer = await self.memory.get(lease)
            if bringer not in (event_id, None):
                return
        transfer = self._transfer(call)
        try:
            async with asyncio.timeout_at(until), self._few:
                key = await transfer.run(url)
        except TimeoutError:
            raise transfer.unfinished() from None
        except SinkError as error:
            if error.permanent:
                await self.memory.delete(lease)  # another event may have a better link
            raise
        await self._linked(call, key)

    async def _linked(self, call: Call, key: str) -> Recording:
        """Make the note of where the recording is, unless another worker was first."""
        options, expires_at, for_s = self._options, None, 30.0 * DAY_S
        if options.public_url is not None:
            url = f"{options.public_url.rstrip('/')}/{quote(key)}"
        else:
            for_s = float(options.link_days * DAY_S)
            expires_at = rfc3339(datetime.now(UTC) + timedelta(seconds=for_s))
            of = {"Bucket": options.bucket, "Key": key}
            url = await self.ask("generate_presigned_url", ClientMethod="get_object", Params=of, ExpiresIn=int(for_s))
        recording = Recording(url=url, expires_at=expires_at)
        note = _note("recording", call)
        if await self.memory.add(note, msgspec.json.encode(recording).decode(), for_s=for_s):
            return recording
        known = await self.memory.get(note)
        return recording if known is None else msgspec.json.decode(known, type=Recording)

    async def _delete(self, keys: list[str]) -> None:
        """One by one: DeleteObjects needs a Content-MD5 at some servers, which botocore no longer sends.

        https://github.com/s3fs-fuse/s3fs-fuse/issues/2639 (2026-11).
        """
        for start in range(0, len(keys), DELETED_AT_ONCE):
            some = keys[start : start + DELETED_AT_ONCE]
            deletions = (self.ask("delete_object", Bucket=self._options.bucket, Key=key) for key in some)
            for outcome in await asyncio.gather(*deletions, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    def _folder(self, call: Call) -> str:
        return f"{self._options.prefix}{quote(call.account, safe='')}/{quote(call.id, safe='')}/"

    def _transfer(self, call: Call) -> Transfer:
        options = self._options
        return Transfer(
            self.ask, self.http, self.memory, note=_note("upload", call), bucket=options.bucket,
            stem=f"{self._folder(call)}recording", max_bytes=options.max_recording_mb * MIB,
        )  # fmt: skip


def _note(kind: str, call: Call) -> str:
    return f"{kind}:{call.provider}/{call.account}/{call.id}"
