"""Which account is whose at an identity provider."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from continuitybridge import invitations, organizations
from continuitybridge.audit.reading import Filter, search
from continuitybridge.errors import QuotaExceeded
from continuitybridge.identity_providers import IdentityProvider
from continuitybridge.organizations import Organization, quotas
from continuitybridge.sign_in import Account, identities
from continuitybridge.sign_in.identities import Claims, NotLet
from continuitybridge.vault import Keyring

from .conftest import Table

PROVIDER = IdentityProvider(
    name="corporate",
    issuer="https://login.example.com",
    client_id="bridge",
    client_secret_file=Path("unused"),
    email_domains=("example.com",),
)


@pytest.fixture
def table() -> Table:
    return Table()


def member(table: Table, organization: Organization) -> Account:
    name = f"person-{uuid4().hex[:10]}"
    table.accounts[name] = Account(name, f"{name}@example.com", True)
    organizations.add_member(organization.organization_id, name, "customer_user")
    return table.accounts[name]


def claims(email: str, subject: str = "") -> Claims:
    return Claims(PROVIDER.issuer, subject or uuid4().hex, email, True)


def test_of_two_subjects_that_show_one_address_at_once_one_is_linked(
    table: Table, organization: Organization
) -> None:
    account = member(table, organization)

    def sign_in(_: int) -> str | None:
        try:
            return identities.account_of(claims(account.email.upper()), PROVIDER, table).user_name
        except NotLet:
            return None

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(sign_in, range(4)))
    assert sorted(map(str, outcomes)) == ["None"] * 3 + [account.user_name]
    told = search(organization.organization_id, Filter(action="identity"), keys=Keyring.open())
    assert [each.action for each in told] == ["identity.linked"]


def test_the_subject_counts_whatever_its_address_is_by_now(table: Table, organization: Organization) -> None:
    first, second = member(table, organization), member(table, organization)
    assert identities.account_of(claims(first.email, "one"), PROVIDER, table) == first
    assert identities.account_of(claims(second.email, "one"), PROVIDER, table) == first
    elsewhere = PROVIDER.model_copy(update={"issuer": "https://other.example.com"})
    other = replace(claims(second.email, "one"), issuer=elsewhere.issuer)
    assert identities.account_of(other, elsewhere, table) == second, "a subject is its issuer's"
    assert identities.unlink(first.user_name, by="test") == 1
    assert identities.account_of(claims(first.email, "another"), PROVIDER, table) == first


def test_no_provider_opens_a_superadmins_account(table: Table, organization: Organization) -> None:
    account = member(table, organization)
    table.accounts[account.user_name] = replace(account, superadmin=True)
    with pytest.raises(NotLet, match="superadmins"):
        identities.account_of(claims(account.email), PROVIDER, table)


def test_every_invitation_of_the_address_is_accepted_or_nothing_is_made(
    table: Table, organization: Organization
) -> None:
    email = f"new-{uuid4().hex[:8]}@example.com"
    with pytest.raises(NotLet, match="not invited"):
        identities.account_of(claims(email), PROVIDER, table)
    first = invitations.invite(organization.organization_id, email, "customer_user", by="test")
    invitations.revoke(organization.organization_id, first.shown.invitation_id, by="test")
    with pytest.raises(NotLet, match="not invited"):
        identities.account_of(claims(email), PROVIDER, table)
    assert not table.accounts
    invitations.invite(organization.organization_id, email, "customer_admin", by="test")
    made = identities.account_of(claims(email), PROVIDER, table)
    [membership] = organizations.memberships(made.user_name)
    assert (made.user_name, membership.role) == (email, "customer_admin")


def test_who_has_an_account_and_no_organization_joins_by_his_invitation(
    table: Table, organization: Organization
) -> None:
    name = f"person-{uuid4().hex[:10]}"
    table.accounts[name] = Account(name, f"{name}@example.com", True)
    with pytest.raises(NotLet, match="belongs to no organization"):
        identities.account_of(claims(f"{name}@example.com", "his"), PROVIDER, table)
    invitations.invite(organization.organization_id, f"{name}@example.com", "customer_user", by="test")
    assert identities.account_of(claims(f"{name}@example.com", "his"), PROVIDER, table).user_name == name


def test_an_address_that_folds_onto_somebody_elses_is_not_taken(table: Table, organization: Organization) -> None:
    account = member(table, organization)
    table.accounts[account.user_name] = replace(account, email=f"k{account.email}")
    with pytest.raises(NotLet, match="does not speak for"):
        identities.account_of(claims(f"\N{KELVIN SIGN}{account.email}"), PROVIDER, table)


def test_an_organization_that_is_full_does_not_keep_others_from_having_who_they_invited(
    table: Table, make_organization: Callable[[], Organization]
) -> None:
    places = sorted((make_organization() for _ in range(2)), key=lambda each: each.organization_id)
    full, other = (each.organization_id for each in places)
    email = f"new-{uuid4().hex[:8]}@example.com"
    invitations.invite(full, email, "customer_user", by="test")
    quotas.agree(full, "members", 0)
    with pytest.raises(QuotaExceeded):
        identities.account_of(claims(email), PROVIDER, table)
    assert not table.accounts
    invitations.invite(other, email, "customer_user", by="test")
    made = identities.account_of(claims(email), PROVIDER, table)
    assert [each.organization_id for each in organizations.memberships(made.user_name)] == [other]
    assert [each.state for each in invitations.list_invitations(full)] == ["open"]
