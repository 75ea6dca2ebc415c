"""Answers for callers who wait for their message's result: written where it is settled, told where they wait."""

from continuitybridge.inbox.replies.notices import CHANNEL, Notice, Notices
from continuitybridge.inbox.replies.rows import Content, Prepared, open_content

__all__ = ["CHANNEL", "Content", "Notice", "Notices", "Prepared", "open_content"]
