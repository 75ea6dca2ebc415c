"""Who looks for other people's holes: addresses that this platform never had, and clients that name themselves.

The user agents are those of the list `crawler-user-agents` by its tags, and some scanners that it does not know.
Senders of webhooks are on that list too; what really sends is let through by name before the list is asked.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Literal
from urllib.parse import unquote

Kind = Literal["scanner", "crawler"]
DECODED_TIMES = 2
"""So many times what is percent-encoded is decoded before it is looked at once more."""

_PATHS = re.compile(
    r"""
      (^|/)\.(env|git|svn|hg|aws|ssh|docker|kube|vscode|idea|htaccess|htpasswd|ds_store|npmrc)([./_~;\s-]|$)
    | /(wp-(login|admin|content|includes|config|json)|wordpress|xmlrpc\.php)
    | /(phpmyadmin|pma|myadmin|adminer|cgi-bin|boaform|hnap1|owa/auth|ecp/|vendor/phpunit|solr/|actuator)
    | \.(php\d?|phtml|aspx?|jspx?|cgi|cfm)([/;~\s]|$)
    | /etc/(passwd|shadow) | /proc/self | (^|[/\\])\.\.([/\\]|$) | \x00
    | /(backup|dump|database|db)\.(sql|zip|tar|gz|tgz|bak)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_OF_A_DAG = re.compile(r"/dags/[\w~-][\w.~-]*(/[\w:%+-][\w.:%+-]*)*/?$")
_QUERIES = re.compile(
    r"(\.\.(/|\\|%2f|%5c)){2}|/etc/(passwd|shadow)|/proc/self|<script|\bunion\b[\s+/*()]+(all[\s+]+)?select\b"
    r"|base64_decode\s*\(|\$\{\s*(jndi:|\$\{|lower:|upper:|env:|::-)|allow_url_include",
    re.IGNORECASE,
)

_SENDERS = re.compile(
    r"Stripe/|GitHub-Hookshot|GitLab/|Bitbucket-Webhooks|Shopify|WooCommerce|Magento|Adobe|PayPal|Adyen|Mollie"
    r"|Klarna|Twilio|SendGrid|Mailgun|Slack|Amazon Simple Notification|Microsoft|Azure|APIs-Google|\bSAP\b"
    r"|Salesforce|SFDC|NetSuite|Oracle|Odoo|Zapier|\bMake/|n8n|MercadoLibre|MercadoPago|Zendesk|HubSpot|Jira"
    r"|Atlassian|Svix|Hookdeck|\bDHL\b|FedEx|\bUPS\b|^curl/|^Wget/|PostmanRuntime"
)
_MORE_SCANNERS = re.compile(
    r"nuclei|gobuster|fuzz faster|feroxbuster|wfuzz|dirsearch|acunetix|nessus|openvas|qualys|netsparker|hydra"
    r"|zmap|l9explore|l9tcpid|arachni|w3af|commix|jaeles|projectdiscovery|sqlninja|havij|skipfish|whatweb|joomscan"
    r"|fimap|zgrab|masscan|nikto|sqlmap|wpscan",
    re.IGNORECASE,
)
_CRAWLERS = frozenset(
    {"search-engine", "seo", "ai-crawler", "archiver", "advertising", "academic", "feed-reader", "social-preview"}
)


def looks_for_holes(path: str) -> bool:
    """Whether an address is one that only scanners ask for. Asked about addresses outside of our own alone."""
    # A flow may be called `php`.
    return not _OF_A_DAG.match(path) and _is_found(_PATHS, path)


def carries_attack(query: bytes) -> bool:
    """Whether a query string is one that only scanners send."""
    return bool(query) and _is_found(_QUERIES, query.decode("latin-1").replace("+", " "))


def _is_found(pattern: re.Pattern[str], text: str) -> bool:
    """Whether it is there, as it is or encoded, once or twice as for servers behind another."""
    for _ in range(DECODED_TIMES + 1):
        if pattern.search(text):
            return True
        if "%" not in text:
            return False
        text = unquote(text, "latin-1")
    return False


@lru_cache(maxsize=8192)
def kind_of(user_agent: bytes) -> Kind | None:
    """What a user agent names itself; None for people, programs and senders of webhooks."""
    text = user_agent[:1024].decode("latin-1")
    if _SENDERS.search(text):
        return None
    if _MORE_SCANNERS.search(text) or _listed("scanner").search(text):
        return "scanner"
    return "crawler" if _listed("crawler").search(text) else None


@cache
def _listed(kind: Kind) -> re.Pattern[str]:
    from crawleruseragents import CRAWLER_USER_AGENTS_DATA  # type: ignore[import-untyped]

    wanted = frozenset({"scanner"}) if kind == "scanner" else _CRAWLERS
    return re.compile(
        "|".join(
            f"(?:{each['pattern']})" for each in CRAWLER_USER_AGENTS_DATA if wanted & set(each.get("tags", ()))
        )
    )
