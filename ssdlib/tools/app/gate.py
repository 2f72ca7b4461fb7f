"""What stands before Gradio's own routes: who may ask, and where uploads lie until they are read."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gradio.route_utils import GradioMultiPartParser, GradioUploadFile, MultiPartException
from gradio.routes import file_upload_statuses
from gradio.utils import get_upload_folder
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ssdlib.tools.app.address import is_loopback
from ssdlib.tools.app.uploads import Limits

UPLOAD = "/gradio_api/upload"
ROUTES = re.compile(
    r"/(?:(?:assets|static)/.+|config|theme\.css|favicon\.ico|manifest\.json|robots\.txt|gradio_api/"
    r"(?:upload|upload_progress|startup-events|heartbeat/[^/]+|queue/(?:join|data)|run/predict|cancel|reset))?/?"
)
"""What the page needs of Gradio. Its other routes write files (recordings, links to a state with a visitor's
picture) or fetch addresses from elsewhere."""

MOST_BODY = 1_000_000
"""Bytes of a request that is no upload: the names and places of a thousand files."""

LINGER = 60.0
"""Seconds that an upload lies on the disk if the page does not fetch it; it does so at once."""

STALL = 60.0
"""Seconds without a byte after which an upload is given up: what it has sent counts for all until then."""

LEAST_CHARGE = 100_000
"""Bytes that an upload counts for at least, so that many small ones have an end, too."""


class Gate:
    """ASGI middleware: refuses what other sites send through a visitor's browser and what is no part of the
    page, and receives uploads.

    `only_here`: the page is for this computer alone, so `Host` must be a loopback name. Otherwise a site
    could have its own name point to 127.0.0.1 and would be the page's origin (DNS rebinding).

    Gradio's route for uploads puts equal files of all visitors in one place and under the names they came
    with, and takes any number. Here each request has a folder of its own, which goes when it has been read.
    """

    def __init__(self, app: Any, *, limits: Limits, only_here: bool) -> None:
        self.app, self.limits, self.only_here = app, limits, only_here
        self._lying: dict[Path, int] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, body = Headers(scope=scope), _Body(receive)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if why := self._refusal(scope["method"], headers):
            answer = PlainTextResponse(why, 403)
        elif not ROUTES.fullmatch(path):
            answer = PlainTextResponse("This is no part of the page.\n", 404)
        elif scope["method"] == "POST" and path.rstrip("/") == UPLOAD:
            answer = await self._receive(Request(scope, body))
        else:
            return await self.app(scope, _Body(receive, MOST_BODY), send)
        if answer.status_code >= 400:
            await body.drain()
        await answer(scope, body, send)

    def _refusal(self, method: str, headers: Headers) -> str:
        """Why nobody but another site can have sent this, or that it is for another address; else empty."""
        host = headers.get("host", "").lower()
        if self.only_here and not is_loopback(_hostname(host)):
            return (
                "This page is for the computer that it runs on, at http://127.0.0.1 or http://localhost. For "
                "another name, start it with --host, or let the proxy before it send the Host 127.0.0.1.\n"
            )
        if method in ("GET", "HEAD", "OPTIONS"):
            return ""
        # Browsers tell the first of encrypted and of loopback pages, whatever a proxy makes of the host; the
        # second always. Programs, which no site can command, send neither.
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is None and origin is not None:
            forwarded = headers.get("x-forwarded-host", "").lower()
            own = (f"{scheme}://{name}" for scheme in ("http", "https") for name in (host, forwarded) if name)
            site = "same-origin" if origin.lower() in own else "cross-site"
        if site in (None, "same-origin", "none"):
            return ""
        return "Another site may send nothing to this page. Open the page itself.\n"

    async def _receive(self, request: Request) -> Response:
        """Take the files of an upload; the answer lists where they lie, as Gradio's page expects it."""
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            return PlainTextResponse("Send the files as a form.", 400)
        self._lying = {one: size for one, size in self._lying.items() if one.exists()}
        folder = Path(get_upload_folder()) / secrets.token_hex(16)
        upload_id = request.query_params.get("upload_id")
        try:
            folder.mkdir(parents=True)
            self._lying[folder] = LEAST_CHARGE
            if upload_id:
                file_upload_statuses.track(upload_id)
            parser = GradioMultiPartParser(
                request.headers,
                self._counted(folder, request.stream()),
                upload_dir=folder,
                upload_id=upload_id,
                upload_progress=file_upload_statuses if upload_id else None,
                max_fields=0,  # which would be kept in memory, of any size
                max_file_size=self.limits.file_bytes,
            )
            form = await parser.parse()
            files = [one for one in form.getlist("files") if isinstance(one, GradioUploadFile)]
            for file in files:
                file.file.close()
        except BaseException as error:
            self._forget(folder, upload_id)
            if isinstance(error, MultiPartException):
                return PlainTextResponse(error.message, 413 if "maximum" in error.message else 400)
            if isinstance(error, ClientDisconnect):
                return Response(status_code=400)  # which nobody reads
            if isinstance(error, TimeoutError):
                return PlainTextResponse("The upload came to a halt. Try again.", 408)
            if isinstance(error, OSError):
                return PlainTextResponse(f"The upload cannot be kept: {error.strerror or error}", 507)
            if isinstance(error, Exception):  # a form that Gradio's parser stumbles over
                return PlainTextResponse("This is no form with files.", 400)
            raise
        asyncio.get_running_loop().call_later(LINGER, self._forget, folder, upload_id)
        return JSONResponse([file.file.name for file in files])

    async def _counted(self, folder: Path, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The stream, until with it more would lie on the disk than may. Raises MultiPartException then, and
        TimeoutError once nothing comes any more."""
        received = 0
        while True:
            async with asyncio.timeout(STALL):
                chunk = await anext(stream, None)
            if chunk is None:
                return
            received += len(chunk)
            self._lying[folder] = max(received, LEAST_CHARGE)
            if sum(self._lying.values()) > self.limits.arriving_bytes:
                most = f"{self.limits.arriving_bytes / 1e6:g} MB"
                raise MultiPartException(
                    f"Uploads under way are above the maximum of {most} together. Try again in a minute."
                )
            yield chunk

    def _forget(self, folder: Path, upload_id: str | None) -> None:
        self._lying.pop(folder, None)
        shutil.rmtree(folder, ignore_errors=True)
        if upload_id:
            file_upload_statuses.stop_tracking(upload_id)


def _hostname(host: str) -> str:
    """The name in a `Host` header, without its port; empty if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class _Body:
    """`receive` of a request, which breaks off the body after so many bytes and knows whether more comes."""

    def __init__(self, receive: Any, most: float = math.inf) -> None:
        self._receive, self._left, self._more = receive, most, True

    async def __call__(self) -> Any:
        message = await self._receive()
        self._more = message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        return message if self._left >= 0 else {"type": "http.disconnect"}

    async def drain(self, most: int = 200_000_000) -> None:
        """Read what is left: a browser that still sends would not hear why it is refused."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STALL):
                while self._more and most > 0:
                    most -= len((await self()).get("body", b""))
