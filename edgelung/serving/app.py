"""The routes. Each one is thin: it reads the request, asks the service, and answers.

| route | answer |
|---|---|
| `POST /v1/classify` | the row of one encoded image |
| `GET /v2`, `GET /v2/models/NAME[/versions/1]` | metadata |
| `GET /v2/health/live`, `/v2/health/ready`, `/v2/models/NAME[/versions/1]/ready` | 200 or 503 |
| `POST /v2/models/NAME[/versions/1]/infer` | the outputs of the model |
| `GET /metrics` | metrics in the text format of Prometheus |
"""

import logging
import time
from collections.abc import Iterable
from urllib.parse import parse_qsl

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.core.errors import one_line
from edgelung.serving.access import Token, names_this_machine
from edgelung.serving.exchange import Exchanges, refused
from edgelung.serving.protocol import HEADER_LENGTH, ModelMetadata
from edgelung.serving.refusal import Refusal, bad_request, unavailable
from edgelung.serving.service import VERSION, Service
from edgelung.tiles.names import printable

LIVE, READY = "/v2/health/live", "/v2/health/ready"
OPEN_ROUTES = (LIVE, READY)  # need no token: they only say whether the service runs
MAX_PATH = 1024  # characters of the name that a client gives to an image
MESSAGES = {  # of starlette's own refusals
    404: "nothing is at this path; expected /v1/classify, /v2, /v2/models/NAME or /metrics",
    405: "this path does not take the method; the header Allow names those that it takes",
}
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

logger = logging.getLogger(__name__)


class Routes:
    """The endpoints of a service. `stopping` turns readiness off and refuses new requests."""

    def __init__(self, service: Service, exchanges: Exchanges) -> None:
        self._service, self._exchanges = service, exchanges
        self.stopping = False

    def all(self) -> list[Route]:
        """The routes, each with a name for the metrics."""
        posted, check = self._exchanges.posted, self._service.batcher.check_room
        model, version = "/v2/models/{model}", f"/v2/models/{{model}}/versions/{VERSION}"
        infer = posted(self._infer, check)
        return [
            Route("/v1/classify", posted(self._classify, check), methods=["POST"]),
            Route("/v2", self._server_metadata),
            Route(LIVE, self._live),
            Route(READY, self._ready),
            *(Route(path, self._model_metadata) for path in (model, version)),
            *(Route(f"{path}/ready", self._model_ready) for path in (model, version)),
            *(Route(f"{path}/infer", infer, methods=["POST"]) for path in (model, version)),
            Route("/metrics", self._metrics),
        ]

    async def _classify(self, request: Request, body: bytes) -> Response:
        line, status = await self._service.classify(body, _path_of(request))
        return Response(line, status, media_type="application/json")

    async def _infer(self, request: Request, body: bytes) -> Response:
        length = request.headers.get(HEADER_LENGTH)
        content, headers = await self._service.infer(self._model(request), body, length)
        return Response(content, 200, headers)

    async def _server_metadata(self, request: Request) -> Response:
        return _json(
            {
                "name": "edgelung",
                "version": __version__,
                "extensions": ["binary_tensor_data"],
                "note": RESEARCH_USE_ONLY,
            }
        )

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        return _json({"ready": not self.stopping}, 503 if self.stopping else 200)

    async def _model_metadata(self, request: Request) -> Response:
        return _json(self._model(request))

    async def _model_ready(self, request: Request) -> Response:
        name = self._model(request).name
        status = 503 if self.stopping else 200
        return _json({"name": name, "ready": not self.stopping}, status)

    async def _metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), headers={"content-type": METRICS_TYPE})

    def _model(self, request: Request) -> ModelMetadata:
        name = request.path_params["model"]
        if name not in self._service.models:
            raise Refusal(
                404,
                f"there is no model {one_line(name, 64)!r}; expected one of "
                f"{', '.join(self._service.models)}",
            )
        return self._service.models[name]


def make_app(
    service: Service, routes: Routes, token: Token | None, *, checks_host: bool
) -> ASGIApp:
    """The routes with their errors, the token and the measurements.

    `checks_host`: refuse requests whose header `Host` names another machine.
    """

    async def on_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return refused(error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = MESSAGES.get(error.status_code, error.detail)
        return refused(Refusal(error.status_code, message, error.headers))

    async def on_bug(request: Request, error: Exception) -> Response:
        return refused(Refusal(500, "an internal error"))  # starlette then raises it again

    app = Starlette(
        routes=routes.all(),
        exception_handlers={Refusal: on_refusal, HTTPException: on_http, Exception: on_bug},
    )
    app.router.redirect_slashes = False  # an answer that `curl --fail` would take for success
    return _Middleware(app, service, routes, token, checks_host)


class _Middleware:
    """Checks who asks and that the service still answers; counts the answer."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        routes: Routes,
        token: Token | None,
        checks_host: bool,
    ) -> None:
        self._app, self._metrics = app, service.metrics
        self._routes, self._token, self._checks_host = routes, token, checks_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin, code = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, counted)
        except Refusal as refusal:
            await refused(refusal)(scope, receive, counted)
        except Exception as error:  # a bug costs one request
            logger.error("a request failed: %s: %s", type(error).__name__, one_line(error))
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.request(route, code, time.perf_counter() - begin)

    def _check(self, scope: Scope) -> None:
        """Raise Refusal for a client that may not ask, and once the service stops."""
        if scope["path"] in OPEN_ROUTES:
            return
        headers = dict(scope["headers"])
        if self._checks_host:
            _check_hosts(value for name, value in scope["headers"] if name == b"host")
        if self._token is not None and not self._token.allows(headers.get(b"authorization")):
            raise Refusal(
                401,
                "expected the header 'Authorization: Bearer TOKEN' with the token of this service",
                {"WWW-Authenticate": "Bearer"},
            )
        if self._routes.stopping:
            stop = unavailable("the service is stopping")
            raise Refusal(stop.status, stop.message, {**stop.headers, "Connection": "close"})


def _check_hosts(hosts: Iterable[bytes]) -> None:
    """Raise Refusal if a header `Host` is not of this machine; some simple clients send none."""
    for host in hosts:
        if not names_this_machine(host):
            raise Refusal(
                421,
                f"found Host: {one_line(host.decode('latin-1'), 64)}; expected localhost or "
                "127.0.0.1. For other names, start the service with --token-file",
            )


def _path_of(request: Request) -> str:
    """The name of the image, `?path=…`, as a row holds it. Raises Refusal if it is too long."""
    query = request.scope["query_string"].decode("latin-1")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape", max_num_fields=8)
    except ValueError as error:
        raise bad_request(f"the query cannot be read: {one_line(error)}") from error
    if other := [name for name, _ in pairs if name != "path"]:
        raise bad_request(f"the query has {one_line(other[0], 40)!r}; expected `path` alone")
    path = pairs[-1][1] if pairs else ""
    if len(path) > MAX_PATH:
        raise bad_request(f"path has {len(path)} characters; expected {MAX_PATH} at most")
    return printable(path)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
