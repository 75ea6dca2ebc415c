"""CSV text to rows, by RFC 4180."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from continuitybridge.engine.message import Emit, Message
from continuitybridge.errors import InvalidPayload
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import Example, Node, NodeConfig, RunContext, hints
from continuitybridge.nodes.parse._text import not_utf8, payload_bytes

csv.field_size_limit(2**31 - 1)  # of the whole process; a message's size is limited before it comes here

_ENCODING = re.compile(r"utf-8|utf-16|(?:windows-|cp)125\d|iso-8859-\d{1,2}|us-ascii|gb18030|shift_jis")


class CsvParserConfig(NodeConfig):
    delimiter: str = Field(
        default=",",
        min_length=1,
        max_length=1,
        description="The character between fields; a tab is written `\\t` in double quotes.",
    )
    quote: str = Field(
        default='"',
        min_length=1,
        max_length=1,
        description="The character around fields that hold delimiters, line breaks or, doubled, itself.",
    )
    header: bool = Field(default=True, description="Whether the first line names the columns.")
    columns: list[str] | None = Field(
        default=None, min_length=1, description="Names of the columns, in place of those in the header."
    )
    output: Literal["list", "messages"] = Field(
        default="list", description="One message with a list of all rows, or one message per row."
    )
    uneven_rows: Literal["refuse", "fit"] = Field(
        default="refuse",
        description="A row with more or fewer fields than there are columns: refuse the message, or fill missing "
        "fields with empty text and drop surplus ones.",
    )
    skip_empty_lines: bool = Field(default=True, description="Pass over lines with nothing on them.")
    trim: bool = Field(
        default=False,
        description="Remove white space around fields and names. RFC 4180 counts it as part of the field.",
    )
    encoding: str = Field(
        default="utf-8",
        description="Character set of payloads that arrive as bytes: utf-8 (a byte order mark is skipped), "
        "utf-16, iso-8859-1, windows-1252 …",
        json_schema_extra=hints(advanced=True),
    )

    @field_validator("delimiter", "quote")
    @classmethod
    def _separates(cls, character: str) -> str:
        if character in "\r\n\0":
            raise ValueError("a line break cannot separate or quote fields")
        return character

    @field_validator("columns")
    @classmethod
    def _named_once(cls, columns: list[str] | None) -> list[str] | None:
        if columns is not None and len(set(columns)) != len(columns):
            raise ValueError("each column needs a name of its own")
        return columns

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        try:
            if _ENCODING.fullmatch(encoding.lower()):
                return codecs.lookup(encoding).name
        except LookupError:  # a number that no character set has
            pass
        raise ValueError(
            f"{encoding!r} is not one of utf-8, utf-16, us-ascii, iso-8859-1 … -16, windows-1250 … -1258, "
            "gb18030, shift_jis"
        )

    @model_validator(mode="after")
    def _has_names(self) -> CsvParserConfig:
        if not self.header and self.columns is None:
            raise ValueError("without a header, columns must name the fields")
        if self.delimiter == self.quote:
            raise ValueError("delimiter and quote must differ")
        return self


class CsvParser(Node[CsvParserConfig]):
    """Reads the payload as delimited text and passes its rows on as objects: column name → text.

    **Format.** RFC 4180: fields in quotes may hold delimiters, line breaks and doubled quotes; lines end in CRLF,
    LF or CR; the last line may lack its end. A quote inside a field that does not begin with one is text (`5"
    pipe`); text behind a closing quote, and a quote that is never closed, are refused with their line.

    **Columns** are named by the first line, or by `columns`: with `header: true` the first line is then skipped.
    An unnamed column, a name that occurs twice and (unless `uneven_rows: fit`) a row with another number of fields
    are refused: silently shifted columns are how wrong prices get into an ERP.

    **Every value is text.** Casting is the mapper's work.

    **One message per row** with `output: messages`; its id is the parent's with `.1`, `.2` … behind it. More rows
    than `BRIDGE_MAX_EMITTED_MESSAGES` fail the message.

    Older flows' keys are read on import: `hasHeader`, `skipEmptyLines`, `columns` as text with commas; they get
    `trim: true` and `uneven_rows: fit`, which is what they had.
    """

    type = "csv_parser"
    category = "parse"
    label = "Parse CSV"
    summary = "Reads delimited text (RFC 4180) into a list of rows or one message per row."
    Config = CsvParserConfig
    examples = (
        Example(
            "A stock report with a line break in a field",
            config={"delimiter": ";"},
            input=b'sku;qty;note\r\nA-1;3;"fragile;\nkeep upright"\r\nB-2;0;\r\n',
            output=[
                {"sku": "A-1", "qty": "3", "note": "fragile;\nkeep upright"},
                {"sku": "B-2", "qty": "0", "note": ""},
            ],
        ),
        Example(
            "One message per row, columns named here",
            config={"header": False, "columns": ["sku", "qty"], "output": "messages"},
            input=b"A-1,3\nB-2,0\n",
            output=[("out", {"sku": "A-1", "qty": "3"}), ("out", {"sku": "B-2", "qty": "0"})],
            several=True,
        ),
        Example(
            "A row that is too long is refused",
            config={},
            input=b"sku,qty\nA-1,3,9\n",
            fails="invalid-payload",
        ),
    )

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        old = not _legacy.has_any(config, ("header", "skip_empty_lines", "uneven_rows", "output", "encoding"))
        ours = _legacy.renamed(config, {"hasHeader": "header", "skipEmptyLines": "skip_empty_lines"})
        columns = ours.get("columns")
        if isinstance(columns, str):
            names = [name.strip() for name in columns.split(",") if name.strip()]
            ours["columns"] = names or None
        if old:
            ours.setdefault("trim", True)
            ours.setdefault("uneven_rows", "fit")
        return ours

    def process(self, message: Message, context: RunContext) -> Message | Iterator[Emit]:
        body = message.body
        text = body if isinstance(body, str) else self._decoded(payload_bytes(body, "CSV"))
        rows = self._rows(text.removeprefix("\ufeff"))
        if self.config.output == "messages":
            return (Emit(row) for row in rows)
        message.body = list(rows)
        return message

    def _decoded(self, data: bytes) -> str:
        encoding = self.config.encoding
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            if encoding == "utf-8":
                raise not_utf8(error, data) from None
            raise InvalidPayload(f"the payload is not {encoding}: {error}", encoding=encoding) from None
        except UnicodeError as error:
            raise InvalidPayload(f"the payload is not {encoding}: {error}", encoding=encoding) from None

    def _rows(self, text: str) -> Iterator[dict[str, str]]:
        config = self.config
        reader = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=config.delimiter,
            quotechar=config.quote,
            doublequote=True,
            # A space that means something cannot be skipped as well.
            skipinitialspace=config.trim and " " not in (config.delimiter, config.quote),
            strict=True,
        )
        lines = self._lines(reader)
        names = self._names(lines)
        if names is None:
            return
        width = len(names)
        for fields in lines:
            if len(fields) != width:
                if config.uneven_rows == "refuse":
                    raise InvalidPayload(
                        f"line {reader.line_num}: {len(fields)} fields where {width} columns are",
                        line=reader.line_num,
                        fields=len(fields),
                        columns=width,
                    )
                fields = [*fields[:width], *[""] * (width - len(fields))]
            yield dict(zip(names, fields, strict=True))

    def _lines(self, reader: Any) -> Iterator[list[str]]:
        """The lines as fields, trimmed, without empty ones."""
        trim, skip = self.config.trim, self.config.skip_empty_lines
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InvalidPayload(f"line {reader.line_num}: {error}", line=reader.line_num) from None
            if trim:
                fields = [field.strip() for field in fields]
            if not fields:
                if skip:
                    continue
                fields = [""]
            elif skip and fields == [""]:
                continue
            yield fields

    def _names(self, lines: Iterator[list[str]]) -> list[str] | None:
        first = next(lines, None) if self.config.header else None
        if self.config.columns is not None:
            return self.config.columns
        if first is None:
            return None
        for position, name in enumerate(first, start=1):
            if not name:
                raise InvalidPayload(f"column {position} has no name in the header", column=position)
        if len(set(first)) != len(first):
            twice = next(name for name in first if first.count(name) > 1)
            raise InvalidPayload(f"the header names {twice[:100]!r} twice", name=twice[:100])
        return first
