"""A middleware of the server of `ulskip-vllm serve`: it refuses requests that would get a wrong
answer or end vLLM.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vllm.platforms import current_platform

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

# vLLM sends a new request for each token of a beam, with the tokens so far as its prompt.
_BEAMS = (
    "one process does not support use_beam_search, because all tokens of a beam would run through"
    " all layers; leave it out"
)
# vLLM 0.32 resets the generator of a request after a part of its prompt, which a generator on a CPU
# does not support.
_SEED = (
    "vLLM on a CPU ends if it splits the prompt of a request with a seed; leave out seed, or start"
    " the server with --no-enable-chunked-prefill"
)


class RequestCheck:
    """An ASGI application that answers refused requests with status 400 and forwards all others."""

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer or forward a request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        scheduler = scope["app"].state.vllm_config.scheduler_config
        splits_on_cpu = current_platform.is_cpu() and scheduler.enable_chunked_prefill
        if message := refusal(
            b"".join(message.get("body", b"") for message in messages), splits_on_cpu
        ):
            error = json.dumps(
                {"error": {"message": message, "type": "BadRequestError", "code": 400}}
            ).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(error)).encode()),
            ]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            return await send({"type": "http.response.body", "body": error})
        received = iter(messages)

        async def replay() -> Message:
            return next(received, None) or await receive()

        return await self.app(scope, replay, send)


def refusal(body: bytes, splits_on_cpu: bool) -> str | None:
    """Return why a request is refused, or None; `splits_on_cpu` is True for chunked prefill on a
    CPU.
    """
    try:
        request = json.loads(body)
    except ValueError:
        return None  # vLLM answers with an error
    if not isinstance(request, dict):
        return None
    if request.get("use_beam_search") not in (None, False):
        return _BEAMS
    is_seeded = request.get("seed") is not None and request.get("temperature") != 0
    return _SEED if is_seeded and splits_on_cpu else None
