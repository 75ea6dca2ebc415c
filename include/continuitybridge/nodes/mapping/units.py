"""Units of weight, length and volume, by the factor to one base unit each (kg, cm, l). Exact by definition:
pound and yard by the agreement of 1959, US gallon as 231 cubic inches."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

TABLES: Mapping[str, Mapping[str, Decimal]] = {
    "weight": {
        "KG": Decimal(1),
        "G": Decimal("0.001"),
        "MG": Decimal("0.000001"),
        "T": Decimal(1000),
        "MT": Decimal(1000),
        "TON": Decimal(1000),
        "LB": Decimal("0.45359237"),
        "OZ": Decimal("0.028349523125"),
    },
    "length": {
        "CM": Decimal(1),
        "MM": Decimal("0.1"),
        "M": Decimal(100),
        "KM": Decimal(100_000),
        "IN": Decimal("2.54"),
        "FT": Decimal("30.48"),
        "YD": Decimal("91.44"),
    },
    "volume": {
        "L": Decimal(1),
        "ML": Decimal("0.001"),
        "CM3": Decimal("0.001"),
        "M3": Decimal(1000),
        "GAL": Decimal("3.785411784"),
        "QT": Decimal("0.946352946"),
        "PT": Decimal("0.473176473"),
        "FLOZ": Decimal("0.0295735295625"),
    },
}
"""`TON` is the metric ton, as in the tables that users bring."""


def table_of(unit: str, other: str) -> Mapping[str, Decimal] | None:
    """The table that knows both units."""
    for table in TABLES.values():
        if unit in table and other in table:
            return table
    return None
