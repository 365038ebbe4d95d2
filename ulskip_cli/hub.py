"""Whether the Hugging Face hub can be asked, found out at once."""

import logging
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies


def offline_if_unreachable() -> None:
    """Leave it to the cache, for the rest of this process, where the hub cannot be asked."""
    from huggingface_hub import constants

    try:
        check_reachable()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def check_reachable() -> None:
    """Look the hub's host up: its own client would try an unknown one for half a minute.

    Raises:
        OSError: the host is not known here.
    """
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not getproxies():
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
