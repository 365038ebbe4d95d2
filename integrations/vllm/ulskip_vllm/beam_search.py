"""A middleware of the server of `ulskip-vllm serve` that refuses beam search.

vLLM sends a new request for each token of a beam, with the tokens so far as its prompt. They would run through all layers.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_MESSAGE = (
    "one process does not support use_beam_search, because all tokens of a beam would run through all layers; leave it out"
)
_ERROR = json.dumps(
    {"error": {"message": _MESSAGE, "type": "BadRequestError", "param": "use_beam_search", "code": 400}}
).encode()


class RefuseBeamSearch:
    """An ASGI application that answers requests with `use_beam_search` with status 400 and forwards all others."""

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer or forward a request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        if _asks_for_beam_search(b"".join(message.get("body", b"") for message in messages)):
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_ERROR)).encode())]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            return await send({"type": "http.response.body", "body": _ERROR})
        received = iter(messages)

        async def replay() -> Message:
            return next(received, None) or await receive()

        return await self.app(scope, replay, send)


def _asks_for_beam_search(body: bytes) -> bool:
    if b"use_beam_search" not in body:
        return False
    try:
        request = json.loads(body)
    except ValueError:
        return False  # vLLM answers with an error
    return isinstance(request, dict) and request.get("use_beam_search") not in (None, False)
