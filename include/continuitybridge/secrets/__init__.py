"""Typed secrets of an organization's environments: passwords, keys and clients, with versions and reminders."""

from continuitybridge.secrets.reminders import DueSecret, due, remind
from continuitybridge.secrets.types import TYPES, SecretValue, parse
from continuitybridge.secrets.verbs import (
    SecretSwitchedOff,
    SecretVersion,
    StoredSecret,
    get,
    list_secrets,
    put,
    remove,
    resolve,
    roll_back,
    switch,
    versions,
)

__all__ = [
    "TYPES",
    "DueSecret",
    "SecretSwitchedOff",
    "SecretValue",
    "SecretVersion",
    "StoredSecret",
    "due",
    "get",
    "list_secrets",
    "parse",
    "put",
    "remind",
    "remove",
    "resolve",
    "roll_back",
    "switch",
    "versions",
]
