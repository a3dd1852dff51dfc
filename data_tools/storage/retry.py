"""Patience with storage: errors that may pass are waited for, those that cannot end at once, in one line."""

from __future__ import annotations

import logging
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from data_tools.errors import UserError
from data_tools.storage import counters
from data_tools.storage.background import StoppedError, pause
from data_tools.storage.options import AS_IT_IS, StorageOptions
from data_tools.storage.urls import redact_urls, redacted

log = logging.getLogger(__name__)

T = TypeVar("T")
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
MISSING_STATUS = frozenset({404, 410})
REFUSING_STATUS = frozenset({401, 403})
LASTING = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "UnauthorizedSSOTokenError", "SSOTokenLoadError", "ProfileNotFound", "NoRegionError", "InvalidRegionError",
    "ParamValidationError", "UnsupportedSignatureVersionError",  # botocore
    "DefaultCredentialsError", "RefreshError",  # google-auth
    "ClientAuthenticationError", "CredentialUnavailableError",  # azure
    "InvalidURL", "NonHttpUrlClientError", "LocationValueError", "TooManyRedirects",  # aiohttp, http.client, urllib3
}  # fmt: skip
"""Errors of storage libraries, by the name of their class, that no waiting mends: credentials and addresses."""
NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}
HOST_ERRORS = {"NameResolutionError", "ClientConnectorDNSError"}


class MissingError(OSError):
    """The object is not there, or may not be read; trying again would not help."""


class RefusedError(MissingError):
    """It may be there, and may not be read: credentials or a signature are missing, wrong or out of date."""


class NoRangesError(OSError):
    """The server sends whole objects only."""


class StatusError(ConnectionError):
    """An HTTP answer that is no success; ``after``: the seconds that the server asks to wait."""

    def __init__(self, status: int, after: float = 0.0) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.after = status, after


@dataclass(frozen=True)
class Retry:
    """How storage is asked. In seconds: ``patience`` is how long an outage is waited for in all, ``timeout`` how long
    without a byte, ``host_patience`` how long a host is looked up whose name nobody knows. On a cluster that may pass;
    mostly it is a mistyped name. ``storage``: the options that a store is opened with.
    """

    patience: float = 300.0
    timeout: float = 30.0
    first_wait: float = 0.5
    longest_wait: float = 30.0
    host_patience: float = 15.0
    storage: StorageOptions = AS_IT_IS


PATIENT = Retry()


@dataclass(frozen=True)
class Fault:
    """What an error means: ``kind`` is missing, refused, lasting, host or passing."""

    kind: str
    reason: str
    after: float = 0.0


def with_retries(attempt: Callable[[], T], url: str, retry: Retry) -> T:
    """The result of ``attempt``, tried again after passing errors for at most ``patience`` seconds.

    Raises:
        MissingError, RefusedError: the object is not there, or may not be read.
        UserError: an error that cannot pass, or that has not passed; one line that names the URL without secrets.
        StoppedError: nobody waits for the result any more.
    """
    begun, wait = time.monotonic(), retry.first_wait
    while True:
        try:
            return attempt()
        except (MissingError, NoRangesError, UserError, MemoryError, StoppedError):
            raise
        except Exception as error:  # each storage library has errors of its own; those that pass are the rule
            fault = judge(error)
        place = redacted(url)
        if fault.kind == "missing":
            raise MissingError(f"{place}: {fault.reason}")
        if fault.kind == "refused":
            raise RefusedError(f"{place}: access refused ({fault.reason})")
        if fault.kind == "lasting":
            raise UserError(
                f"{place}: cannot be opened ({fault.reason}); check the URL, its options and credentials"
            )
        looked_up = fault.kind == "host"
        patience = min(retry.patience, retry.host_patience) if looked_up else retry.patience
        seconds = max(
            wait * random.uniform(0.5, 1.0), fault.after
        )  # jitter: a thousand clients must not return at once
        if time.monotonic() - begun + seconds > patience:
            raise UserError(describe_outage(place, fault, patience))
        log.warning("%s: %s; trying again in %.1f s", place, fault.reason, seconds)
        counters.counts.retries += 1
        pause(seconds)
        wait = min(2 * wait, retry.longest_wait)


def describe_outage(place: str, fault: Fault, patience: float) -> str:
    """The line that ends it when patience is at its end."""
    if fault.kind == "host":
        return (
            f"{place}: unknown host, looked up for {patience:.0f} s ({fault.reason}); check the name, and whether this "
            "machine reaches a name server"
        )
    asked = f", which asks to wait {fault.after:.0f} s" if fault.after > patience else ""
    return f"{place}: no answer for {patience:.0f} s ({fault.reason}{asked}); check server and network"


def judge(error: Exception) -> Fault:
    """Whether an error of any storage library can pass, by it or by the error that it came from."""
    causes = list(causes_of(error))
    reason = describe(error)
    for cause in causes:
        status = status_of(cause)
        if isinstance(cause, FileNotFoundError) or status in MISSING_STATUS:
            return Fault("missing", reason)
        if isinstance(cause, PermissionError) or status in REFUSING_STATUS:
            return Fault("refused", reason)
        if status is not None:
            passing = status >= 500 or status in PASSING_STATUS
            return Fault("passing" if passing else "lasting", reason, getattr(cause, "after", 0.0))
        kinds = {kind.__name__ for kind in type(cause).__mro__}
        if isinstance(cause, socket.gaierror) or kinds & HOST_ERRORS:
            return Fault("host", describe(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Fault("lasting", f"bad certificate: {cause.verify_message}")
        if isinstance(cause, ssl.SSLError) and cause.reason in NO_TLS:
            return Fault("lasting", "the server speaks no https on this port")
        if kinds & LASTING:
            return Fault("lasting", describe(cause))
        if "ResponseError" in kinds and "too many redirects" in str(cause):  # urllib3
            return Fault("lasting", "it is redirected again and again")
    programming = (TypeError, ValueError, LookupError, AttributeError, ImportError, NotImplementedError)
    return Fault("lasting" if isinstance(error, programming) else "passing", reason)


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, as the libraries keep that."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            kept = getattr(one, "kwargs", None)  # botocore
            inner = kept.get("error") if isinstance(kept, dict) else None
            waiting += [
                one.__cause__,
                getattr(one, "reason", None),
                getattr(one, "os_error", None),
                inner,
                *one.args,
            ]


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error tells of, where it does."""
    if isinstance(error, StatusError):
        return error.status
    answer = getattr(error, "response", None)
    found = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    if isinstance(answer, dict):  # botocore
        found.append(answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return next((one for one in found if isinstance(one, int) and 400 <= one < 600), None)


def describe(error: BaseException) -> str:
    """An error's kind and text in one short line, without secrets."""
    text = redact_urls(" ".join(str(error).split()))[:200]
    if isinstance(error, StatusError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
