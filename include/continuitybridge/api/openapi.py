"""The OpenAPI 3.1 document of everything the platform serves over HTTP, intake included."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from continuitybridge import problems
from continuitybridge.api import gate
from continuitybridge.organizations.matrix import EXTENSION, MATRIX, ROLES, Action
from continuitybridge.settings import Settings
from continuitybridge.webhooks.verification import VERIFIERS

DESCRIPTION = (
    "Flows that carry messages between organizations' systems. Every route but intake and liveness needs a "
    "signed-in user, who sees his organizations only: what is another's is answered like what does not exist. "
    "Errors are problem details (RFC 9457)."
)

_USER: list[dict[str, list[str]]] = [{"bearer": []}, {"cookie": []}]

_SECURITY_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token from `POST /auth/token`.",
    },
    "cookie": {
        "type": "apiKey",
        "in": "cookie",
        "name": "_token",
        "description": "The session of the web pages. Requests that change something must come from these pages.",
    },
    "standardWebhooks": {
        "type": "apiKey",
        "in": "header",
        "name": "webhook-signature",
        "description": "Standard Webhooks 1.0: HMAC-SHA256 over id, timestamp and raw body.",
    },
    "endpointKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The endpoint's key.",
    },
    "endpointBearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The endpoint's key, or a JSON Web Token, as a bearer token.",
    },
    "endpointBasic": {
        "type": "http",
        "scheme": "basic",
        "description": "User name, and the endpoint's secret as password.",
    },
    "providerSignature": {
        "type": "apiKey",
        "in": "header",
        "name": "x-hub-signature-256",
        "description": "A signature as its provider makes it: GitHub's, or another's in another header, as the "
        "endpoint's `verification` says.",
    },
}

_PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "Problem details (RFC 9457). Further members help to put it right (`problems`, `valid`, …).",
    "required": ["type", "title", "status", "instance", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "What kind of problem; never changes."},
        "title": {"type": "string", "description": "The kind in a sentence."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What was wrong this time."},
        "instance": {"type": "string", "format": "uri", "description": "This occurrence; the log knows it."},
        "code": {"type": "string", "description": "The kind in kebab-case."},
    },
    "additionalProperties": True,
}

_MEANING = {
    "401": "The caller is not known.",
    "403": "The caller may not do this.",
    "404": "It does not exist, or is not the caller's.",
    "405": "The address does not take this method (`Allow`).",
    "408": "The body did not arrive in time.",
    "409": "It contradicts what is stored.",
    "410": "Switched off.",
    "413": "The body is larger than allowed.",
    "415": "The content type or coding is not taken.",
    "422": "The request, or what it contains, is not valid.",
    "429": "Too many requests (`Retry-After`).",
    "431": "Address and headers are too large.",
    "500": "A defect of the platform.",
    "502": "The flow's destination did not take the message (`reply: result`).",
    "503": "A needed service does not answer, or there is no room (`Retry-After`).",
}


def document(app: FastAPI, settings: Settings, prefix: str) -> dict[str, Any]:
    """The document; paths from the server's root."""
    made = get_openapi(
        title=app.title,
        version=app.version,
        description=DESCRIPTION,
        routes=app.routes,
        servers=[{"url": settings.external_url}],
    )
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for generated in ("HTTPValidationError", "ValidationError"):
        schemas.pop(generated, None)
    schemas["Problem"] = _PROBLEM
    schemas["Accepted"] = _ACCEPTED
    made["components"]["securitySchemes"] = _SECURITY_SCHEMES
    paths = {}
    for path, item in made["paths"].items():
        for method, operation in item.items():
            _complete(operation, method, public=path in gate.PUBLIC)
        paths[prefix + path] = item
    paths[f"{prefix}/hooks/{{organization}}/{{environment}}/{{slug}}"] = {
        "post": _intake("hooks_receive", "Send a message to a flow", ("organization", "environment", "slug"))
    }
    paths["/api/webhook/{slug}"] = {
        "post": _intake("hooks_receive_old_address", "Send a message to a flow, at its old address", ("slug",))
    }
    paths["/api/health"] = {
        "get": {
            "operationId": "health_old_address",
            "summary": "Liveness at its old address; public",
            "tags": ["health"],
            "security": [],
            "responses": {"200": {"description": "The process answers."}},
        }
    }
    made["paths"] = paths
    return made


def _complete(operation: dict[str, Any], method: str, *, public: bool) -> None:
    operation["security"] = [] if public else _USER
    responses = operation["responses"]
    responses.pop("422", None)
    statuses = ["431", "500"] if public else ["401", "429", "431", "500", "503"]
    parameters = operation.get("parameters", [])
    if parameters:
        statuses.append("404")
    if parameters or "requestBody" in operation:
        statuses.append("422")
    if method != "get":
        statuses += ["403", "409"]
    elif not public and MATRIX[Action(operation[EXTENSION])].roles < set(ROLES):
        statuses.append("403")
    if "requestBody" in operation:
        statuses.append("413")
    for status in sorted(statuses):
        responses.setdefault(status, _problem(status))


def _problem(status: str) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": _MEANING[status],
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in ("429", "503"):
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}
        }
    if status == "429":
        response["headers"] |= {
            "RateLimit-Policy": {"description": "The limits that were counted.", "schema": {"type": "string"}},
            "RateLimit": {"description": "What is left of each.", "schema": {"type": "string"}},
        }
    return response


_ACCEPTED = {
    "type": "object",
    "title": "Accepted",
    "description": "The message is stored.",
    "required": ["id", "status_url", "duplicate"],
    "properties": {
        "id": {"type": "string", "description": "The message's id."},
        "status_url": {"type": "string", "format": "uri", "description": "Where its state can be asked for."},
        "duplicate": {
            "type": "boolean",
            "description": "Whether it had been sent before, with the same idempotency key and body.",
        },
    },
}


def _intake(operation_id: str, summary: str, names: tuple[str, ...]) -> dict[str, Any]:
    credentials = {name for way in VERIFIERS.values() for name in way.headers} - {
        "authorization",
        "x-api-key",
        "webhook-signature",
    }
    refused = (401, 403, 404, 405, 408, 409, 410, 413, 415, 422, 429, 431, 500, 502, 503)
    return {
        "operationId": operation_id,
        "summary": summary,
        "description": "Verified as the endpoint says; answered when the message is committed, never before. "
        "Sending again with the same idempotency key gives the same message. PUT, PATCH and GET work alike where "
        "the endpoint takes them; challenges of providers are answered with 200.",
        "tags": ["intake"],
        "security": [
            {"standardWebhooks": []},
            {"endpointKey": []},
            {"endpointBearer": []},
            {"endpointBasic": []},
            {"providerSignature": []},
        ],
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string", "maxLength": 128}}
                for name in names
            ),
            *(
                {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
                for name in sorted({*credentials, "idempotency-key"})
            ),
            {
                "name": "prefer",
                "in": "header",
                "required": False,
                "description": "RFC 7240, where the trigger says `reply: result`: `wait=5` or `respond-async`.",
                "schema": {"type": "string"},
            },
        ],
        "requestBody": {
            "required": True,
            "description": "Whatever the endpoint takes; by default JSON or XML.",
            "content": {"application/json": {"schema": {}}, "application/xml": {"schema": {"type": "string"}}},
        },
        "responses": {
            "200": {
                "description": "Where the trigger says `reply: result`, what the flow made of the message; the "
                "flow decides on status, headers and body. Or the answer to a provider's challenge.",
                "headers": {
                    "Bridge-Message-Id": {"description": "The message's id.", "schema": {"type": "string"}},
                    "Idempotent-Replayed": {
                        "description": "`true` when the message had been sent before.",
                        "schema": {"type": "string"},
                    },
                },
                "content": {"*/*": {"schema": {}}},
            },
            "204": {"description": "Where the trigger says `reply: result`: no message left the flow."},
            "202": {
                "description": "Stored; it will be delivered or stand in triage. Where the trigger says `reply: "
                "result`: its flow has not dealt with it in time.",
                "headers": {
                    "Location": {"description": "The same as `status_url`.", "schema": {"type": "string"}}
                },
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}},
            },
            **{str(status): _problem(str(status)) for status in refused},
        },
    }
