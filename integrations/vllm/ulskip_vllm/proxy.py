"""The proxy of a pair: it gets the first token of a request from the prefill server, then the
answer from the decode server.
"""

import json
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

_PATHS = ("/v1/completions", "/v1/chat/completions")
_REFUSED = ("logprobs", "top_logprobs", "prompt_logprobs", "echo", "use_beam_search")
_AT_PREFILL = {"stream": False, "kv_transfer_params": {"handoff": True}}
_BODY_BYTES = 64 * 2**20


class Refused(Exception):
    """A request that the pair cannot answer; the message is one line for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def serve(prefill: str, decode: str, host: str, port: int) -> None:
    """Run the proxy until it is stopped."""
    # A client that leaves cancels its handler, which closes the connection to the server.
    app = application(prefill, decode)
    web.run_app(app, host=host, port=port, handler_cancellation=True)


def application(prefill: str, decode: str) -> web.Application:
    """Return the proxy of two servers, given by their URLs."""
    app = web.Application(client_max_size=_BODY_BYTES)
    proxy = _Proxy(prefill.rstrip("/"), decode.rstrip("/"))
    app.cleanup_ctx.append(proxy.session)
    for path in _PATHS:
        app.router.add_post(path, proxy.complete)
    for path in ("/v1/models", "/health"):
        app.router.add_get(path, proxy.forward)
    return app


class _Proxy:
    def __init__(self, prefill: str, decode: str) -> None:
        self.prefill, self.decode = prefill, decode
        self.client: ClientSession

    async def session(self, app: web.Application) -> Any:
        connector, timeout = TCPConnector(limit=0), ClientTimeout(total=None, sock_connect=10)
        async with ClientSession(connector=connector, timeout=timeout) as self.client:
            yield

    async def forward(self, request: web.Request) -> web.Response:
        try:
            url = self.decode + request.path
            async with self.client.get(url, headers=_authorization(request)) as answer:
                return web.Response(
                    status=answer.status, body=await answer.read(), content_type=answer.content_type
                )
        except (ClientError, TimeoutError) as error:
            return _error(502, f"decode server {self.decode} failed: {error}")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer an OpenAI completion or chat completion request."""
        response: web.StreamResponse | None = None
        headers = _authorization(request)
        server = self.prefill
        try:
            body = _checked(await request.text())
            first = prefill_body(body)
            async with self.client.post(
                server + request.path, json=first, headers=headers
            ) as answer:
                if answer.status != 200:
                    return web.Response(
                        status=answer.status,
                        body=await answer.read(),
                        content_type=answer.content_type,
                    )
                handoff = (await answer.json()).get("kv_transfer_params")
            if not handoff:
                raise Refused(
                    502,
                    f"prefill server {server} made no hand-off; start it with `ulskip-vllm"
                    " prefill`",
                )
            server = self.decode
            body["kv_transfer_params"] = handoff
            async with self.client.post(
                server + request.path, json=body, headers=headers
            ) as answer:
                response = web.StreamResponse(
                    status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]}
                )
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    if not await _sent(response, chunk):
                        # the client is gone; closing the connection aborts the request at the
                        # server
                        return response
                await response.write_eof()
                return response
        except Refused as error:
            return _error(error.status, str(error))
        except (ClientError, ConnectionError, TimeoutError) as error:
            message = (
                f"{'decode' if server is self.decode else 'prefill'} server {server} failed:"
                f" {error or type(error).__name__}"
            )
            if response is None:
                return _error(502, message)
            if response.content_type != "text/event-stream":
                raise  # the body is incomplete, so close the connection
            if await _sent(response, f"data: {json.dumps(_error_body(502, message))}\n\n".encode()):
                await response.write_eof()
            return response


def _authorization(request: web.Request) -> dict[str, str]:
    return {key: request.headers[key] for key in ("Authorization",) if key in request.headers}


async def _sent(response: web.StreamResponse, chunk: bytes) -> bool:
    """Send a part of an answer and return False if the client has closed the connection."""
    try:
        await response.write(chunk)
    except ConnectionResetError:
        return False
    return True


def _checked(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise Refused(400, f"expected a JSON object, got an error: {error}") from None
    if not isinstance(body, dict):
        raise Refused(400, f"expected a JSON object, got {type(body).__name__}")
    for key in _REFUSED:
        if body.get(key) not in (None, False):
            raise Refused(400, f"a pair does not support {key}; leave it out")
    if any(body.get(key) not in (None, 1) for key in ("n", "best_of")):
        raise Refused(400, "a pair supports n=1 and best_of=1 only; send several requests")
    prompt = body.get("prompt")
    is_tokens = isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)
    if isinstance(prompt, list) and len(prompt) != 1 and not is_tokens:
        raise Refused(400, "a pair supports one prompt per request; send several requests")
    return body


def prefill_body(body: dict[str, Any]) -> dict[str, Any]:
    """Return the request for the first token: the client's own, with one token and no streaming."""
    first = {
        key: value
        for key, value in body.items()
        if key not in ("stream_options", "max_completion_tokens")
    } | _AT_PREFILL
    first["max_tokens"] = 1
    if first.get("min_tokens"):
        first["min_tokens"] = min(1, first["min_tokens"])
    return first


def _error_body(status: int, message: str) -> dict[str, Any]:
    return {
        "error": {
            "message": message,
            "type": "BadRequestError" if status == 400 else "BadGateway",
            "code": status,
        }
    }


def _error(status: int, message: str) -> web.Response:
    return web.json_response(_error_body(status, message), status=status)
