"""What an organization works with: ecosystems (its ERP, a marketplace) and the systems of each."""

from continuitybridge.systems.verbs import (
    KINDS,
    Ecosystem,
    Kind,
    System,
    connect,
    ecosystems,
    put_ecosystem,
    put_system,
    remove_ecosystem,
    remove_system,
    systems,
)

__all__ = [
    "KINDS",
    "Ecosystem",
    "Kind",
    "System",
    "connect",
    "ecosystems",
    "put_ecosystem",
    "put_system",
    "remove_ecosystem",
    "remove_system",
    "systems",
]
