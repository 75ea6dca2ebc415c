"""An HTTP server of a test: a thread for each connection, and room for as many new ones as a test makes."""

from __future__ import annotations

import socket
from http.server import ThreadingHTTPServer
from typing import Any


class HttpServer(ThreadingHTTPServer):
    # The standard library's is 5: of more new connections at once the kernel drops some, which try again after 1,
    # 3 and 7 seconds, until their time is over.
    request_queue_size = 256

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # Handlers write an answer's head and its body apart: the second waited 40 ms for word of the first.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address
