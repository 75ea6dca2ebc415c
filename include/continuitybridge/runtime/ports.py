"""Which ports the platform binds, and who holds one that it cannot have."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

import psutil

from continuitybridge.errors import ConfigurationError
from continuitybridge.settings import Settings


def check_free(settings: Settings, wanted: Iterable[str]) -> None:
    """Raise `ConfigurationError` for the first of these port settings (`http_port`, ...) whose port cannot be
    bound, naming the port, who holds it and the setting that changes it."""
    for field in wanted:
        port: int = getattr(settings, field)
        name = f"BRIDGE_{field.upper()}"
        try:
            _bind(settings.host, port)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigurationError(
                    f"{settings.host} is not an address of this machine: set BRIDGE_HOST to one",
                    field="BRIDGE_HOST",
                    value=settings.host,
                ) from None
            problem = f"is in use by {_holder(port)}" if error.errno == errno.EADDRINUSE else str(error.strerror)
            raise ConfigurationError(
                f"port {port} on {settings.host}: {problem}. Free it, or set {name} to another port "
                f"(for example: {name}={free_port(settings.host)} make run)",
                field=name,
                value=port,
            ) from None


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _bind(host: str, port: int) -> None:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        # Connections that linger after their server ended do not keep the next one from the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,)
            if listens and connection.pid:
                process = psutil.Process(connection.pid)
                command = " ".join(process.cmdline())[:80] or process.name()
                return f"process {process.pid} ({command})"
    except psutil.Error:
        pass
    return "another user's process"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
