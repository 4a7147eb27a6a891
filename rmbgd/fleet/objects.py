"""Objects in S3-compatible storage: head, get, put, delete, list; what fails is an OSError, as of a file system.

One request each: no multipart transfers, no listing before a write. Writes are conditional where the server knows
If-Match and If-None-Match (RFC 9110, 13.1), and carry their SHA-256, so that a torn upload is refused there.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import mimetypes
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

import botocore.session
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError

from rmbgd.config.load import S3Settings
from rmbgd.fleet.credentials import private_lines

CONNECTIONS = 64
TRIES = 3  # of one request, with growing pauses; what lasts longer is waited for by those who ask
CHUNK = 1 << 20
PAGE = 1000  # objects of one listing, the most that a server gives
KEY_BYTES_MAXIMUM = 1024
PROBE = ".rmbgd-probe"

_ERRNO = {
    **dict.fromkeys(("NoSuchBucket",), errno.ENOENT),
    **dict.fromkeys(("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"), errno.EACCES),
    **dict.fromkeys(("ExpiredToken", "InvalidToken", "AccountProblem", "RequestTimeTooSkewed"), errno.EACCES),
    "EntityTooLarge": errno.EFBIG,
    "KeyTooLongError": errno.ENAMETOOLONG,
    "QuotaExceeded": errno.EDQUOT,
    "XMinioStorageFull": errno.ENOSPC,
}
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_CONFLICT = {"409", "412", "PreconditionFailed", "ConditionalRequestConflict"}
_NO_CONDITIONS = {"501", "NotImplemented"}

NoDownload = Literal["gone", "superseded", "archived", "large"]


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket, and the prefix of the keys that are meant."""

    bucket: str
    prefix: str

    @classmethod
    def of(cls, address: str) -> Place:
        """Of s3://BUCKET/PREFIX."""
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        return cls(bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else "")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def may_hold(self, below: str) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.key(below))
        return False

    def key(self, below: str) -> str:
        """Raises OSError where no object can have it."""
        key = self.prefix + below
        try:
            too_long = len(key.encode()) > KEY_BYTES_MAXIMUM
        except UnicodeEncodeError:
            raise OSError(errno.EILSEQ, "a key is UTF-8", f"{self}/{below}") from None
        if too_long:
            raise OSError(errno.ENAMETOOLONG, f"a key has at most {KEY_BYTES_MAXIMUM} bytes", f"{self}/{below}")
        return key


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What a server says of an object. etag: without quotes."""

    key: str
    etag: str
    size: int
    modified: datetime
    metadata: Mapping[str, str]


@contextlib.contextmanager
def _faults(place: Place) -> Iterator[None]:
    """What a request fails with, as an OSError."""
    try:
        yield
    except NoCredentialsError as error:
        raise OSError(errno.EACCES, "no credentials; name a file with them in s3.credentials", str(place)) from error
    except HTTPClientError as error:  # no connection, no answer in time, a body that broke off
        raise OSError(errno.EHOSTUNREACH, str(error), str(place)) from error
    except ClientError as error:
        raise OSError(_ERRNO.get(code_of(error), errno.EIO), _said(error), str(place)) from error
    except BotoCoreError as error:
        raise OSError(errno.EIO, str(error), str(place)) from error


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _said(error: ClientError) -> str:
    told = error.response.get("Error", {})
    return f"{error.operation_name}: {told.get('Message') or told.get('Code') or error}"


class ObjectStore:
    """Usable from every thread. Every method raises OSError."""

    def __init__(self, settings: S3Settings) -> None:
        """Raises ConfigError."""
        session = botocore.session.Session()
        if settings.credentials is not None:
            private_lines(settings.credentials, "s3.credentials")
            session.set_config_variable("credentials_file", str(settings.credentials))
        path_style = settings.addressing == "path" or (settings.addressing == "auto" and settings.endpoint != "")
        self._client: Any = session.create_client(
            "s3",
            region_name=settings.region or session.get_config_variable("region") or "us-east-1",
            endpoint_url=settings.endpoint or None,
            config=ClientConfig(
                connect_timeout=settings.timeout,
                read_timeout=settings.timeout,
                max_pool_connections=CONNECTIONS,
                retries={"mode": "standard", "total_max_attempts": TRIES},
                s3={"addressing_style": "path" if path_style else "auto"},
                request_checksum_calculation="when_required",  # not every server takes what is usual; we give our own
                response_checksum_validation="when_required",
            ),
        )
        self._conditional: dict[str, bool] = {}  # by bucket
        self._probing = threading.Lock()

    def head(self, place: Place, below: str) -> ObjectFacts | None:
        with _faults(place):
            key = place.key(below)
            try:
                found = self._client.head_object(Bucket=place.bucket, Key=key)
            except ClientError as error:
                if code_of(error) in _ABSENT:
                    return None
                raise
            return _facts(key, found, found["ContentLength"])

    def download(self, place: Place, below: str, etag: str, path: str, most: int) -> ObjectFacts | NoDownload:
        """The object into a new file, if it is this version and has at most `most` bytes; or why not."""
        with _faults(place):
            key = place.key(below)
            try:
                found = self._client.get_object(Bucket=place.bucket, Key=key, IfMatch=f'"{etag}"')
            except ClientError as error:
                if code_of(error) in _ABSENT:
                    return "gone"
                if code_of(error) in _CONFLICT:
                    return "superseded"
                if code_of(error) == "InvalidObjectState":
                    return "archived"
                raise
            with contextlib.closing(found["Body"]) as body:
                facts = _facts(key, found, found["ContentLength"])
                if facts.size > most:
                    return "large"
                if facts.etag != etag:  # the server does not know conditions
                    return "superseded"
                with Path(path).open("xb") as file:
                    file.writelines(body.iter_chunks(CHUNK))
            at = int(facts.modified.timestamp() * 1e9)
            os.utime(path, ns=(at, at))
            return facts

    def read(self, place: Place, below: str, most: int) -> bytes | None:
        """None where there is none, or it is larger."""
        with _faults(place):
            try:
                found = self._client.get_object(Bucket=place.bucket, Key=place.key(below))
            except ClientError as error:
                if code_of(error) in _ABSENT:
                    return None
                raise
            with contextlib.closing(found["Body"]) as body:
                return bytes(body.read()) if found["ContentLength"] <= most else None

    def put(
        self,
        place: Place,
        below: str,
        body: bytes | IO[bytes],
        *,
        sha256: str = "",
        metadata: Mapping[str, str] | None = None,
        over: str | None = None,
    ) -> bool:
        """False when it was not stored: another than `over` stands there. over: an ETag; "" for none; None for any."""
        with _faults(place):
            condition = {"IfNoneMatch": "*"} if over == "" else {"IfMatch": f'"{over}"'} if over else {}
            checked = {"ChecksumSHA256": base64.b64encode(bytes.fromhex(sha256)).decode()} if sha256 else {}
            try:
                self._client.put_object(
                    Bucket=place.bucket,
                    Key=place.key(below),
                    Body=body,
                    Metadata=dict(metadata or {}),
                    ContentType=mimetypes.guess_type(below)[0] or "application/octet-stream",
                    **condition,
                    **checked,
                )
            except ClientError as error:
                if over is not None and code_of(error) in _CONFLICT | _ABSENT - {"NoSuchBucket"}:
                    return False
                raise
            return True

    def has_conditions(self, place: Place) -> bool:
        """Does the server keep us from overwriting what we did not see? Asked once for each bucket, by an object."""
        with self._probing:
            if place.bucket not in self._conditional:
                try:  # the first time it may be stored, the second time it must not
                    kept = [self.put(place, PROBE, b"", over="") for _ in range(2)]
                except OSError as error:
                    cause = error.__cause__
                    if not (isinstance(cause, ClientError) and code_of(cause) in _NO_CONDITIONS):
                        raise
                    kept = [True]
                self._conditional[place.bucket] = not kept[-1]
            return self._conditional[place.bucket]

    def delete(self, place: Place, below: str) -> None:
        with _faults(place):
            self._client.delete_object(Bucket=place.bucket, Key=place.key(below))

    def reachable(self, place: Place) -> None:
        with _faults(place):
            self._client.list_objects_v2(Bucket=place.bucket, Prefix=place.prefix, MaxKeys=1)

    def list_all(self, place: Place) -> Iterator[ObjectFacts]:
        """In the order of the keys, which are those below the place; without metadata."""
        token: str | None = ""
        while token is not None:
            page, token = self._page(place, token)
            for each in page:
                key = each["Key"].removeprefix(place.prefix)
                yield ObjectFacts(key, each["ETag"].strip('"'), each["Size"], each["LastModified"], {})

    def _page(self, place: Place, token: str) -> tuple[list[dict[str, Any]], str | None]:
        with _faults(place):
            more = {"ContinuationToken": token} if token else {}
            found = self._client.list_objects_v2(Bucket=place.bucket, Prefix=place.prefix, MaxKeys=PAGE, **more)
            return found.get("Contents", []), found.get("NextContinuationToken")


def _facts(key: str, found: Mapping[str, Any], size: int) -> ObjectFacts:
    return ObjectFacts(key, found["ETag"].strip('"'), size, found["LastModified"], found.get("Metadata", {}))
