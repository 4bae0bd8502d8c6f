"""The web server of `condastore up`: uvicorn on a socket that its parent opened.

The parent keeps the socket open, so that requests wait, and are not refused, while this process is
started again. Elsewhere run `uvicorn condastore.asgi:application --http
condastore.http.protocol:HttpProtocol`.
"""

from __future__ import annotations

import gc
import os
import socket
import sys

import uvicorn

from condastore.http.protocol import HttpProtocol
from condastore.private_files import PRIVATE_UMASK

#: Seconds that a request, or a subscription, has to end when the server stops.
GRACE = 5
#: Seconds that an idle connection stays open: longer than clients and nginx keep theirs (5 and 60),
#: so that none sends a request on a connection that is being closed.
KEEP_ALIVE = 75
#: New objects until the collector looks at them: a list of a hundred rows would let it look a dozen
#: times, for what is gone with the answer.
COLLECT = (10_000, 10, 10)


def serve(descriptor: int) -> None:
    config = uvicorn.Config(
        "condastore.asgi:application",
        http=HttpProtocol,
        log_config=None,
        lifespan="off",
        proxy_headers=False,  # Django reads them, where CONDASTORE_BEHIND_PROXY says so
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=KEEP_ALIVE,
    )
    config.load()
    # gc.freeze(): modules imported by now stay, so that no collection visits them again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)
    with socket.socket(fileno=descriptor) as listener:
        uvicorn.Server(config).run(sockets=[listener])


def main() -> None:
    os.umask(PRIVATE_UMASK)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "condastore.settings")
    serve(int(sys.argv[1]))


if __name__ == "__main__":
    main()
