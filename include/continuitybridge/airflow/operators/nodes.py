"""The nodes that DAGs in Python use most, by name. What is not a parameter here goes into `config`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from continuitybridge.airflow.operators import _task
from continuitybridge.airflow.operators.node import NodeOperator


class _Configured(NodeOperator):
    """A node whose keys have no parameters of their own."""

    runs: ClassVar[str]

    def __init__(self, *, config: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(node_type=self.runs, config=config, **kwargs)


class JsonParseOperator(_Configured):
    """JSON text to data, strictly by RFC 8259 (node `json_parser`)."""

    runs = "json_parser"


class XmlParseOperator(_Configured):
    """XML text to data; DTDs and entities are refused (node `xml_parser`)."""

    runs = "xml_parser"


class CsvParseOperator(_Configured):
    """CSV text to a list of rows (node `csv_parser`)."""

    runs = "csv_parser"


class JsonBuildOperator(_Configured):
    """Data to JSON text (node `json_builder`)."""

    runs = "json_builder"


class XmlBuildOperator(_Configured):
    """Data to XML text (node `xml_builder`)."""

    runs = "xml_builder"


class JqOperator(NodeOperator):
    """Reshapes data with a jq program (node `jq`).

    :param program: the program; it sees the input as `.`. Several outputs need `many=True`.
    """

    def __init__(self, *, program: str, config: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(node_type="jq", config={"program": program, **(config or {})}, **kwargs)


class FilterOperator(NodeOperator):
    """Passes data on for which an expression holds, and skips what follows otherwise (node `filter`).

    :param where: a jq expression.
    """

    def __init__(self, *, where: str, config: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(node_type="filter", config={"where": where, **(config or {})}, **kwargs)


class ObjectMapperOperator(NodeOperator):
    """Maps fields by paths, with defaults, casts and lookups (node `object_mapper`).

    :param mapping: target field → source, or the path of a mapping file.
    """

    def __init__(
        self,
        *,
        mapping: Mapping[str, Any] | Path,
        config: Mapping[str, Any] | None = None,
        files: _task.Files | None = None,
        **kwargs: Any,
    ) -> None:
        given, files = _in_place_or_file("mapping", "file", mapping, files)
        super().__init__(node_type="object_mapper", config={**given, **(config or {})}, files=files, **kwargs)


class XsltOperator(NodeOperator):
    """Transforms XML text with an XSLT 1.0 stylesheet (node `xslt`).

    :param stylesheet: its text, or the path of its file.
    """

    def __init__(
        self,
        *,
        stylesheet: str | Path,
        config: Mapping[str, Any] | None = None,
        files: _task.Files | None = None,
        **kwargs: Any,
    ) -> None:
        given, files = _in_place_or_file("stylesheet", "file", stylesheet, files)
        super().__init__(node_type="xslt", config={**given, **(config or {})}, files=files, **kwargs)


class ValidateOperator(NodeOperator):
    """Passes valid data on and fails the task for other, naming the violations (node `validation`).

    :param schema: a JSON Schema, or the path of its file (JSON or YAML).
    :param rules: field rules by dotted path.
    """

    def __init__(
        self,
        *,
        schema: Mapping[str, Any] | Path | None = None,
        rules: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        files: _task.Files | None = None,
        **kwargs: Any,
    ) -> None:
        given: dict[str, Any] = {}
        if schema is not None:
            given, files = _in_place_or_file("schema", "schema_file", schema, files)
        if rules is not None:
            given["rules"] = dict(rules)
        super().__init__(node_type="validation", config={**given, **(config or {})}, files=files, **kwargs)


def _in_place_or_file(
    key: str, file_key: str, given: Any, files: _task.Files | None
) -> tuple[dict[str, Any], _task.Files | None]:
    """A value as configuration; a path as a side file of its name."""
    if isinstance(given, Path):
        return {file_key: given.name}, {given.name: given, **(files or {})}
    return {key: given}, files
