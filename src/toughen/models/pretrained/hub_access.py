"""Whether the Hugging Face Hub can be reached, asked before its client tries for a minute to find out.

with cache_where_unreachable():
    timm.create_model("resnet18", pretrained=True)     # from the network, or from the cache, or an OSError at once
"""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE = 5.0
"""Seconds for a name to be looked up and a connection to be made; of a slow network, too, only the first answer."""


@contextmanager
def cache_where_unreachable() -> Iterator[None]:
    """Where the Hub does not answer, its client is offline in here: it takes what lies in its cache, or fails at once.

    Its setting for that is read when it is imported; here it is changed for a while, and put back.
    """
    # timm has imported it, unless there is none.
    constants = getattr(sys.modules.get("huggingface_hub"), "constants", None)
    if constants is None or constants.HF_HUB_OFFLINE or answers(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def answers(url: str, within: float = PATIENCE) -> bool:
    """Whether a connection can be made to the host of an address, or to the proxy on the way to it.

    Args:
        url: the address; nothing is asked for.
        within: seconds.
    """
    place = urlsplit(url)
    proxies = {} if proxy_bypass(place.hostname or "") else getproxies()
    if proxy := proxies.get(place.scheme) or proxies.get("all"):
        place = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    connected, done = threading.Event(), threading.Event()

    def attempt(address: tuple[str, int]) -> None:
        with suppress(OSError), socket.create_connection(address[:2], within):
            connected.set()
            done.set()

    def attempts() -> None:
        # Every address of the host at once: some networks lead nowhere by IPv6.
        with suppress(OSError, ValueError):
            port = place.port or {"https": 443, "http": 80}.get(place.scheme, 1080)
            found = {row[4] for row in socket.getaddrinfo(place.hostname, port, type=socket.SOCK_STREAM)}
            threads = [threading.Thread(target=attempt, args=(address,), daemon=True) for address in found]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        done.set()

    # In a thread, for looking a name up cannot be interrupted.
    threading.Thread(target=attempts, daemon=True).start()
    done.wait(within)
    return connected.is_set()
