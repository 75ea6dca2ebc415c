"""A busy port is named, with who holds it and the setting that changes it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from continuitybridge.errors import ConfigurationError
from continuitybridge.runtime import ports
from continuitybridge.settings import Settings


def test_a_busy_port_is_refused_with_its_holder_and_its_setting(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        settings = Settings(state_dir=tmp_path, warehouse_port=server.getsockname()[1])
        with pytest.raises(ConfigurationError) as refused:
            ports.check_free(settings, ["warehouse_port"])
    assert (
        f"port {settings.warehouse_port} on 127.0.0.1: is in use by process {os.getpid()}" in refused.value.detail
    )
    assert "BRIDGE_WAREHOUSE_PORT" in refused.value.detail
    assert refused.value.facts["field"] == "BRIDGE_WAREHOUSE_PORT"


def test_a_port_that_was_just_left_is_free(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, warehouse_port=ports.free_port())
    with socket.create_server(("127.0.0.1", settings.warehouse_port)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        accepted.close()
        client.close()
    ports.check_free(settings, ["warehouse_port"])


def test_an_address_of_another_machine_is_refused_by_its_setting(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, host="192.0.2.1")
    refusal = r"192\.0\.2\.1 is not an address of this machine: set BRIDGE_HOST"
    with pytest.raises(ConfigurationError, match=refusal):
        ports.check_free(settings, ["http_port"])
