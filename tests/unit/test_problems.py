"""Errors as problem details (RFC 9457): what outsiders are told, and what they are not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from uuid import UUID

import pytest

from continuitybridge import errors, problems
from continuitybridge.errors import BridgeError


def every(cls: type[BridgeError] = BridgeError) -> Iterator[type[BridgeError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from every(child)


@pytest.mark.parametrize("cls", sorted(every(), key=lambda cls: cls.__name__))
def test_every_error_is_a_problem_with_all_that_the_standard_asks(cls: type[BridgeError]) -> None:
    problem = problems.of(cls("what was wrong", field="name", password="hunter2"))
    content = json.loads(problem.body())
    assert content["status"] == problem.status
    assert 400 <= problem.status < 600
    assert content["type"] == f"urn:continuitybridge:problem:{cls.code}"
    assert content["title"] == cls.title
    assert content["code"] == cls.code
    UUID(content["instance"].removeprefix("urn:uuid:"))
    assert "hunter2" not in problem.body().decode()
    assert ("detail" in content) == (problem.status < 500), "the platform's insides are not shown"


@pytest.mark.parametrize("error", [ValueError("secret"), KeyError("secret"), BridgeError("secret")])
def test_what_nobody_raised_on_purpose_shows_an_id_and_a_title_only(error: Exception) -> None:
    problem = problems.of(error)
    assert problem.status == 500
    assert "secret" not in problem.body().decode()
    assert set(problem.content) == {"type", "title", "status", "instance", "code"}


def test_the_headers_that_a_status_asks_for_go_with_it() -> None:
    assert problems.of(errors.NotAuthenticated("x")).headers == {"WWW-Authenticate": "Bearer"}
    assert problems.of(errors.MethodNotAllowed("x", allow=("GET", "POST"))).headers == {"Allow": "GET, POST"}
    assert problems.of(errors.TooManyRequests("x", retry_after_s=1.2)).headers == {"Retry-After": "2"}
    assert int(problems.of(errors.Unavailable("x")).headers["Retry-After"]) >= 1
    assert problems.of(errors.Conflict("x")).headers == {}


def test_a_subclass_has_its_nearest_ancestors_status() -> None:
    class Special(errors.DeliveryFailed):
        code = "special"
        title = "Special"

    assert problems.of(Special("x")).status == problems.STATUS[errors.NodeError]


def test_values_that_json_does_not_know_are_told_as_text() -> None:
    error = errors.ConfigurationError("x", value=object(), valid={"a"})
    assert json.loads(problems.of(error).body())["value"].startswith("<object")
