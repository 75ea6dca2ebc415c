"""Typed secrets of an organization's environments: passwords, keys and clients, with versions and reminders."""

from continuitybridge.secrets.references import Referred
from continuitybridge.secrets.references import forget as forget_outside
from continuitybridge.secrets.reminders import DueSecret, due, remind
from continuitybridge.secrets.types import TYPES, SecretValue, parse
from continuitybridge.secrets.verbs import (
    Resolved,
    SecretSwitchedOff,
    SecretVersion,
    StoredSecret,
    get,
    list_secrets,
    put,
    remove,
    resolve,
    resolved,
    roll_back,
    show,
    stored,
    switch,
    versions,
)

__all__ = [
    "TYPES",
    "DueSecret",
    "Referred",
    "Resolved",
    "SecretSwitchedOff",
    "SecretValue",
    "SecretVersion",
    "StoredSecret",
    "due",
    "forget_outside",
    "get",
    "list_secrets",
    "parse",
    "put",
    "remind",
    "remove",
    "resolve",
    "resolved",
    "roll_back",
    "show",
    "stored",
    "switch",
    "versions",
]
