"""What kind of address a request is for: that decides which limits and rules it meets."""

from __future__ import annotations

from enum import Enum


class Place(Enum):
    """A class of addresses."""

    WEBHOOKS = "webhooks"
    HEALTH = "health"
    TASKS = "tasks"
    """Airflow's own tasks, by their tokens."""
    STATIC = "static"
    SIGN_IN = "sign-in"
    API = "api"
    PAGES = "pages"
    """Airflow's pages, and every address that does not exist."""


_HEALTH = frozenset({"/bridge/health/live", "/api/health", "/api/v2/monitor/health"})
_HOOKS = "/bridge/hooks/"
_BEGINNINGS = (
    (_HOOKS, Place.WEBHOOKS),
    ("/api/webhook/", Place.WEBHOOKS),
    ("/execution/", Place.TASKS),
    ("/static/", Place.STATIC),
    ("/auth/static/", Place.STATIC),
    ("/auth/", Place.SIGN_IN),
    ("/bridge/", Place.API),
    ("/api/v2/", Place.API),
    ("/ui/", Place.API),
)


def organization_of(path: str, legacy: str | None) -> str:
    """The slug in a webhook's address; `legacy` owns the old ones. "" for none."""
    if path.startswith(_HOOKS):
        return path[len(_HOOKS) :].partition("/")[0]
    return legacy or ""


def place_of(path: str) -> Place:
    """The class of a path, which is without the server's root path."""
    if path in _HEALTH:
        return Place.HEALTH
    for beginning, place in _BEGINNINGS:
        if path.startswith(beginning):
            return place
    return Place.PAGES
