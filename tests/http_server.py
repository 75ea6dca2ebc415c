"""An HTTP server of a test: a thread for each connection, and room for as many new ones as a test makes."""

from __future__ import annotations

from http.server import ThreadingHTTPServer


class HttpServer(ThreadingHTTPServer):
    # The standard library's is 5: of more new connections at once the kernel drops some, which try again after 1,
    # 3 and 7 seconds, until their time is over.
    request_queue_size = 256
