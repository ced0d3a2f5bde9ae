"""How `s3` takes a recording from the provider's link into the bucket, a part of 8 MiB in memory at a time.

What is shorter than a part becomes an object at once. What is longer is a multipart upload. Whatever cuts an attempt
short (its time, a killed worker, a source that breaks off) costs the part under way: a note keeps the upload's id, S3
knows the parts it has, and the next attempt asks the source for the rest by a Range. Where the source cannot do that it
is read from the start, and what is uploaded already is skipped. The object appears when it is whole: as long as the
source said, and from a source whose validator (ETag or Last-Modified) stayed the same.

Parts have at least 5 MiB, but the last: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html (2026-11). R2
wants them all of one size: https://developers.cloudflare.com/r2/objects/multipart-objects/ (2026-11).
"""

import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import Any, NoReturn

import httpx
import msgspec

from aftercall.client import retry_after_s
from aftercall.errors import AddressRefused, SinkError
from aftercall.sinks.aws import Refused
from aftercall.sinks.base import Memory
from aftercall.sinks.http import PASSING, TOO_MANY

MIB = 1024 * 1024
PART = 8 * MIB
MAX_REDIRECTS = 3
NOTE_S = 7 * 86400.0

# The object's type is one of ours, never the source's word for it: the bucket may be public.
TYPES = {
    "wav": "audio/wav", "mp3": "audio/mpeg", "ogg": "audio/ogg", "opus": "audio/ogg", "m4a": "audio/mp4",
    "aac": "audio/aac", "flac": "audio/flac", "webm": "audio/webm", "mp4": "video/mp4",
}  # fmt: skip
_SUFFIXES = {
    **{type_: suffix for suffix, type_ in TYPES.items() if suffix != "opus"},
    "audio/x-wav": "wav", "audio/wave": "wav", "audio/vnd.wave": "wav", "audio/mp3": "mp3", "audio/x-flac": "flac",
}  # fmt: skip
_PAGES = ("text/html", "text/xml", "application/json", "application/problem+json", "application/xml")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class Upload(msgspec.Struct, frozen=True):
    """The note of an upload under way."""

    key: str
    id: str
    validator: str
    total: int | None


class Transfer:
    """One attempt to bring one recording."""

    def __init__(
        self,
        ask: Callable[..., Awaitable[Any]],
        http: httpx.AsyncClient,
        memory: Memory,
        *,
        note: str,
        bucket: str,
        stem: str,
        max_bytes: int,
    ) -> None:
        self._ask, self._http, self._memory = ask, http, memory
        self._note, self._bucket, self._stem, self._max_bytes = note, bucket, stem, max_bytes
        self._upload: Upload | None = None
        self._parts: list[dict[str, Any]] = []  # as complete_multipart_upload wants them
        self._done = 0  # bytes in those
        self._total: int | None = None
        self._began = self._advanced = False  # whether it had its turn, whether it uploaded anything

    async def run(self, url: str) -> str:
        """Bring it all; the object's key. Raises `SinkError` where it could not, and keeps what there is."""
        self._began = True
        await self._recall()
        if self._upload is not None and self._done == self._total:
            return await self._complete(self._upload)
        async with _source(self._http, url, self._done) as response:
            key, rest = await self._copy(response, url)
        if self._upload is None:
            if not rest.tell():
                raise SinkError("the recording is empty")
            rest.seek(0)
            await self._ask("put_object", Bucket=self._bucket, Key=key, Body=rest, ContentType=_type(key))
            return key
        if rest.tell():
            await self._add(self._upload, rest)
        return await self._complete(self._upload)

    async def forget(self) -> None:
        """Abort the upload that is noted, if there is one."""
        if self._upload is None:
            await self._recall()
        if self._upload is not None:
            await self.abort(self._upload.key, self._upload.id)
        await self._memory.delete(self._note)
        self._upload, self._parts, self._done = None, [], 0

    async def abort(self, key: str, upload_id: str) -> None:
        try:
            await self._ask("abort_multipart_upload", Bucket=self._bucket, Key=key, UploadId=upload_id)
        except Refused as error:
            if error.code != "NoSuchUpload":
                raise

    def unfinished(self, why: str = "more follows at the next attempt") -> SinkError:
        """What to raise when an attempt ends too early. One that brought something forward spends no retry."""
        if not self._began:
            return SinkError("other recordings are being archived first", retry_after=0.0)
        of = "an unknown number of" if self._total is None else str(-(-self._total // MIB))
        return SinkError(
            f"the recording is not whole yet: {self._done // MIB} of {of} MiB; {why}",
            retry_after=0.0 if self._advanced else None,
        )

    async def _recall(self) -> None:
        note = await self._memory.get(self._note)
        if note is None:
            return
        upload = msgspec.json.decode(note, type=Upload)
        try:
            listed = await self._ask("list_parts", **self._named(upload))
        except Refused as error:
            if error.code != "NoSuchUpload":
                raise
            await self._memory.delete(self._note)
            return
        self._upload, self._total = upload, upload.total
        for number, part in enumerate(listed.get("Parts", []), 1):
            is_last = self._done + part["Size"] == self._total
            if part["PartNumber"] != number or not (part["Size"] == PART or is_last):
                break
            self._parts.append({"PartNumber": number, "ETag": part["ETag"]})
            self._done += part["Size"]

    async def _copy(self, response: httpx.Response, url: str) -> tuple[str, io.BytesIO]:
        """Upload every full part; the object's key, and what is left over for the last one."""
        skip = await self._agree(response)
        key = self._upload.key if self._upload is not None else f"{self._stem}.{_suffix(url, response)}"
        part = io.BytesIO()
        try:
            async for chunk in response.aiter_raw():
                piece = memoryview(chunk)[skip:]
                skip -= len(chunk) - len(piece)
                while piece:
                    piece = piece[part.write(piece[: PART - part.tell()]) :]
                    if self._done + part.tell() > (self._max_bytes if self._total is None else self._total):
                        await (self._give_up() if self._total is None else self._begin_anew())
                    if part.tell() == PART:
                        await self._add(self._upload or await self._begin(key, _validator(response)), part)
                        part = io.BytesIO()
        except httpx.HTTPError:
            raise self.unfinished("its source broke off") from None
        if self._total is not None and self._done + part.tell() < self._total:
            raise self.unfinished("its source broke off")
        if skip:
            await self._begin_anew()
        return key, part

    async def _agree(self, response: httpx.Response) -> int:
        """Check that the source has what was begun with; how many bytes of it to skip."""
        is_rest = response.status_code == httpx.codes.PARTIAL_CONTENT
        found = _RANGE.fullmatch(response.headers.get("content-range", "")) if is_rest else None
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE or (
            is_rest and (found is None or int(found[1]) != self._done)
        ):
            await self._begin_anew()
        length = response.headers.get("content-length", "")
        total = int(found[2]) if found else int(length) if length.isdigit() else None
        if total is None and "chunked" not in response.headers.get("transfer-encoding", "").lower():
            raise SinkError("the recording's source does not say how long it is", permanent=True)
        if total is not None and total > self._max_bytes:
            await self._give_up()
        begun = self._upload
        if begun is not None and (begun.validator != _validator(response) or begun.total not in (None, total)):
            await self._begin_anew()
        self._total = total
        return 0 if is_rest else self._done

    async def _begin(self, key: str, validator: str) -> Upload:
        made = await self._ask("create_multipart_upload", Bucket=self._bucket, Key=key, ContentType=_type(key))
        self._upload = Upload(key, made["UploadId"], validator, self._total)
        await self._memory.set(self._note, msgspec.json.encode(self._upload).decode(), for_s=NOTE_S)
        return self._upload

    async def _add(self, upload: Upload, part: io.BytesIO) -> None:
        number, size = len(self._parts) + 1, part.tell()
        part.seek(0)
        added = await self._ask("upload_part", **self._named(upload), PartNumber=number, Body=part)
        self._parts.append({"PartNumber": number, "ETag": added["ETag"]})
        self._done += size
        self._advanced = True

    async def _complete(self, upload: Upload) -> str:
        await self._ask("complete_multipart_upload", **self._named(upload), MultipartUpload={"Parts": self._parts})
        await self._memory.delete(self._note)
        return upload.key

    def _named(self, upload: Upload) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": upload.key, "UploadId": upload.id}

    async def _begin_anew(self) -> NoReturn:
        await self.forget()
        raise SinkError("the recording changed at its source: the next attempt begins anew")

    async def _give_up(self) -> NoReturn:
        await self.forget()
        most = self._max_bytes // MIB
        why = f"the recording is longer than max_recording_mb = {most}: the event is archived, the recording not"
        raise SinkError(why, permanent=True)


@asynccontextmanager
async def _source(http: httpx.AsyncClient, url: str, start: int) -> AsyncIterator[httpx.Response]:
    """The recording from that byte on, or all of it. Redirects are followed by the same guarded client."""
    headers = {"accept-encoding": "identity", **({"range": f"bytes={start}-"} if start else {})}
    try:
        for _ in range(MAX_REDIRECTS + 1):
            if httpx.URL(url).scheme not in ("http", "https"):
                raise SinkError("the recording's link is no web address", permanent=True)
            async with http.stream("GET", url, headers=headers) as response:
                if not response.has_redirect_location:
                    _check(response)
                    yield response
                    return
                url = str(response.url.join(response.headers["location"]))
        raise SinkError(f"the recording's link redirects more than {MAX_REDIRECTS} times", permanent=True)
    except AddressRefused as error:
        raise SinkError(
            f"{error}; set allow_private_network = true on this sink if that is meant", permanent=True
        ) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise SinkError("the recording's link is no web address", permanent=True) from None
    except httpx.TimeoutException:
        raise SinkError("the recording's source does not answer in time") from None
    except httpx.HTTPError as error:
        raise SinkError(f"the recording's source cannot be read: {type(error).__name__}") from None


def _check(response: httpx.Response) -> None:
    status = response.status_code
    if status in (200, 206, 416):  # 416: nothing after what there is
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise SinkError("the recording's source compresses although asked not to", permanent=True)
        if response.headers.get("content-type", "").lower().startswith(_PAGES):
            raise SinkError("the recording's link leads to a page, not to a recording", permanent=True)
        return
    if status in (401, 403, 404, 410):
        raise SinkError(
            f"the recording's link has expired or is wrong (HTTP {status}): the event is archived, the recording not",
            permanent=True,
        )
    retry_after = retry_after_s(response.headers.get("retry-after"))
    raise SinkError(
        f"the recording's source answers HTTP {status}",
        permanent=400 <= status < 500 and status not in PASSING,
        retry_after=0.0 if status == TOO_MANY and retry_after is None else retry_after,
    )


def _validator(response: httpx.Response) -> str:
    return str(response.headers.get("etag") or response.headers.get("last-modified", ""))


def _suffix(url: str, response: httpx.Response) -> str:
    suffix = PurePosixPath(httpx.URL(url).path).suffix.lower().removeprefix(".")
    if suffix in TYPES:
        return suffix
    return _SUFFIXES.get(response.headers.get("content-type", "").partition(";")[0].strip().lower(), "bin")


def _type(key: str) -> str:
    return TYPES.get(key.rpartition(".")[2], "application/octet-stream")
