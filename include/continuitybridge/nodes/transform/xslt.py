"""The node `xslt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from continuitybridge.engine.message import Message
from continuitybridge.nodes import _legacy
from continuitybridge.nodes.base import BuildContext, Example, Node, NodeConfig, RunContext, hints
from continuitybridge.nodes.language import side_file
from continuitybridge.nodes.language.problems import Problems
from continuitybridge.nodes.language.stylesheet import Stylesheet, included
from continuitybridge.nodes.language.template import Template, scope_of


class XsltConfig(NodeConfig):
    """Configuration of `xslt`: a stylesheet, in place or as a side file."""

    file: str | None = Field(
        default=None,
        description="Side file with the stylesheet; files that it includes or imports come along.",
        json_schema_extra=hints(file=True, placeholder="order.xsl"),
    )
    stylesheet: str | None = Field(
        default=None,
        description="The stylesheet itself.",
        json_schema_extra=hints(language="xslt", multiline=True),
    )
    params: dict[str, str] = Field(
        default_factory=dict,
        description="The stylesheet's top-level parameters: name → text, a template over the message.",
        json_schema_extra=hints(language="jinja", placeholder="sender: '{{ headers[\"x-sender\"] }}'"),
    )

    @model_validator(mode="after")
    def _has_one_stylesheet(self) -> Self:
        if (self.file is None) == (self.stylesheet is None):
            raise ValueError("give either file or stylesheet")
        return self


class Xslt(Node[XsltConfig]):
    """The processor is libxslt, with the EXSLT functions.

    The message is XML as text or bytes. The result follows `xsl:output`: `xml`, `html` or `text`, with or
    without declaration; it is text when the output's encoding is UTF-8 (the default), and bytes in any other
    encoding. `xsl:message` goes to the flow's log; with `terminate="yes"` it fails the message.

    A stylesheet reads and writes no files and no addresses: `document()` and extension elements are refused when
    the flow is checked, as are unknown functions and elements, undeclared variables and XSLT 2.0.
    `xsl:include` and `xsl:import` find the flow's side files. Documents with a document type declaration are
    refused.

    Parameters are strings. What the message does not have fails it: `{{ body... | default("") }}` says otherwise.
    """

    type = "xslt"
    category = "transform"
    label = "XSLT"
    summary = "Transforms XML with an XSLT 1.0 stylesheet."
    Config = XsltConfig
    legacy_types = ("xslt_transform",)
    examples = (
        Example(
            title="An order in other words",
            config={
                "stylesheet": '<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">'
                '<xsl:output omit-xml-declaration="yes"/><xsl:param name="sender"/>'
                '<xsl:template match="/Order"><order id="{Number}" from="{$sender}">'
                '<xsl:for-each select="Line"><sku><xsl:value-of select="@sku"/></sku></xsl:for-each>'
                "</order></xsl:template></xsl:stylesheet>",
                "params": {"sender": "{{ headers['x-sender'] }}"},
            },
            input='<Order><Number>7</Number><Line sku="A-1"/><Line sku="B-2"/></Order>',
            input_headers={"x-sender": "acme"},
            output='<order id="7" from="acme"><sku>A-1</sku><sku>B-2</sku></order>\n',
        ),
        Example(
            title="XML to CSV",
            config={
                "stylesheet": '<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">'
                '<xsl:output method="text"/><xsl:template match="/Order/Line">'
                "<xsl:value-of select=\"concat(@sku, ';', @quantity, '&#10;')\"/>"
                "</xsl:template></xsl:stylesheet>"
            },
            input='<Order><Line sku="A-1" quantity="3"/><Line sku="B-2" quantity="1"/></Order>',
            output="A-1;3\nB-2;1\n",
        ),
        Example(
            title="What is not XML fails",
            config={
                "stylesheet": '<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"/>'
            },
            input="<Order>",
            fails="invalid-payload",
        ),
    )

    def build(self, context: BuildContext) -> None:
        config = self.config
        problems = Problems()
        self._params: dict[str, Template] = {}
        for name, text in config.params.items():
            with problems.noting():
                self._params[name] = Template(text, field=f"params.{name}")
        with problems.noting():
            field = "stylesheet" if config.file is None else "file"
            self._stylesheet = Stylesheet(
                side_file.text_of(context.files, config.file, field=field)
                if config.file is not None
                else config.stylesheet or "",
                field=field,
                name=config.file or "",
                files=context.files,
                params=frozenset(config.params),
            )
        problems.raise_any()

    def process(self, message: Message, context: RunContext) -> Message:
        params: dict[str, str] = {}
        if self._params:
            scope = scope_of(message)
            params = {name: template.render(scope) for name, template in self._params.items()}
        message.body, messages = self._stylesheet.apply(message.body, params)
        for text in messages[:100]:
            context.services.log("info", text, {"message_id": message.id, "node_id": context.node_id})
        return message

    @classmethod
    def files_within(cls, name: str, text: str) -> tuple[str, ...]:
        return included(name, text)

    @classmethod
    def from_legacy(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The old type had a name and no executor; the keys its forms used for the stylesheet are read."""
        names = {"xslt": "stylesheet", "xsl": "stylesheet", "template": "stylesheet"}
        return _legacy.renamed(config, {**names, "stylesheetRef": "file", "parameters": "params"})
