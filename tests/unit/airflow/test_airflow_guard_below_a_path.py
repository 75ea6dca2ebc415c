"""What stands before Airflow's own addresses stands there also where the public address has a path."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

ADDRESSES = ("/ui/dags", "/api/v2/dags", "/docs", "/openapi.json", "/auth/fab/v1/users", "/execution/docs")


@pytest.fixture(scope="module")
def routed() -> Starlette:
    """Routes as Airflow's, behind the guard; they answer everybody."""
    from continuitybridge.airflow.guard import AirflowGuardMiddleware

    async def reached(request: Request) -> PlainTextResponse:
        return PlainTextResponse("reached")

    mounts = [Mount(f"/{each}", routes=[Route("/{path:path}", reached)]) for each in ("ui", "auth", "execution")]
    routes = [*mounts, *(Route(each, reached) for each in ADDRESSES)]
    app = Starlette(routes=routes)
    app.add_middleware(AirflowGuardMiddleware)
    return app


@pytest.mark.parametrize("root_path", ["", "/hub", "/u", "/a", "/d", "/openapi"])
def test_a_stranger_reaches_nothing_of_airflows_below_the_path_nor_beside_it(
    routed: Starlette, root_path: str
) -> None:
    client = TestClient(routed, root_path=root_path, raise_server_exceptions=False)
    for address in ADDRESSES:
        slashed = root_path + address[0] + address[1:].replace("/", "//")
        for path in (root_path + address, address, slashed):
            assert client.get(path).status_code in (401, 404), path
        assert client.get(root_path + address).status_code == 401, address
    assert client.get(f"{root_path}/auth/login/").text == "reached"
