"""A whole HTTP request to a WSGI application, and its response to bytes (PEP 3333)."""

from __future__ import annotations

import io
import sys
from typing import Callable, Dict, Iterable, List, Tuple

from guestmtce.wire.http_request import Request, build_response

Headers = List[Tuple[str, str]]
Application = Callable[[Dict[str, object], Callable[..., object]], Iterable[bytes]]


def call_application(
    application: Application, request: Request, client: str, server: Tuple[str, int]
) -> bytes:
    """What `application` responds with. `client`: its address; `server`: ours and the port."""
    started: List[Tuple[str, Headers]] = [("500 Internal Server Error", [])]  # the last one counts
    parts: List[bytes] = []

    def start_response(status: str, headers: Headers, exc_info: object = None) -> Callable[[bytes], None]:
        # PEP 3333 has an application call this again, with exc_info, to replace what it said before.
        started.append((status, headers))
        return parts.append

    result = application(_build_environ(request, client, server), start_response)
    try:
        parts.extend(result)
    finally:
        # PEP 3333 demands it, after an error too: CherryPy clears the thread's request there.
        close = getattr(result, "close", None)
        if close is not None:
            close()
    return build_response(*started[-1], b"".join(parts))


def _build_environ(request: Request, client: str, server: Tuple[str, int]) -> Dict[str, object]:
    environ: Dict[str, object] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "SERVER_PROTOCOL": request.version,
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": client,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in request.headers.items():
        if "_" not in name:  # it would be taken for the one with a hyphen
            environ["HTTP_" + name.upper().replace("-", "_")] = value
    # The body is whole, and no longer in chunks.
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    environ.pop("HTTP_CONTENT_LENGTH", None)
    if request.body:
        environ["CONTENT_LENGTH"] = str(len(request.body))
    if "HTTP_CONTENT_TYPE" in environ:
        environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE")
    return environ
