"""Mails to people: written in the transaction of what they tell of, sent by the platform's own postman.

`put` writes a letter to the outbox; it is sent when that transaction is committed, and never when it is not.
"""

from continuitybridge.mail.letters import Letter
from continuitybridge.mail.outbox import MailNotSetUp, forget_ended, is_set_up, listing, put, require_set_up
from continuitybridge.mail.postman import deliver_due, send_now

__all__ = [
    "Letter",
    "MailNotSetUp",
    "deliver_due",
    "forget_ended",
    "is_set_up",
    "listing",
    "put",
    "require_set_up",
    "send_now",
]
