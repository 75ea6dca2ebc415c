"""`bridge role`: who may do what."""

from __future__ import annotations

import click

from continuitybridge.cli import options

_INTRODUCTION = """\
# Who may do what

Made by `bridge role list --markdown` from the table that the API, Airflow's pages and its REST API obey.

A cell says what a role may do within its reach: a superadmin in every organization, a consultant in those that
are assigned to him, customer admins and users in their own. Outside of his reach nothing exists for anybody:
the answer is the same as for what was never there (404). Within it, what the table does not allow is refused
(403, `not-allowed`). In a suspended organization its members read only: what changes something is refused (403,
`organization-suspended`). An API key does what its user may in the one organization it was made for; with the
scope `read`, what a customer user may. The command line of the platform's machine acts as superadmin. Each
operation of the OpenAPI document names its action as `x-bridge-action`.

"""


@click.group("role")
def group() -> None:
    """Roles and what they may do."""


@group.command("list")
@click.option("--markdown", is_flag=True, help="Print the reference page.")
@options.json_output
def list_(markdown: bool, as_json: bool) -> None:
    """The matrix of roles and actions."""
    from continuitybridge.organizations import matrix

    headings = ("action", "what", "of", *(role.replace("_", " ") for role in matrix.ROLES))
    rows = list(matrix.rows())
    if as_json:
        options.print_json([dict(zip(headings, row, strict=True)) for row in rows])
    elif markdown:
        lines = [" | ".join(headings), " | ".join("---" for _ in headings)]
        lines += [" | ".join((f"`{row[0]}`", *row[1:])) for row in rows]
        click.echo(_INTRODUCTION + "\n".join(f"| {line} |" for line in lines))
    else:
        options.print_table(headings, rows)
