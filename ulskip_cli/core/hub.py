"""Check at once that the Hugging Face hub can be reached."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Use the local cache alone inside the block if the hub cannot be reached; the next block looks again."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        check_reachable()
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def check_reachable() -> None:
    """Look the hub's host up: its own client would try an unknown one for half a minute.

    Raises:
        OSError: the host is not known here.
    """
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not getproxies():
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
