"""Waiting as a state in the tables: messages that wait for a time, for others, for a person, for another flow.

A hand-over in state `waiting` has a row in `bridge.waits`, written in the transaction that ended the unit it came
from. When what it waits for has come, or its time is over, it becomes `available` with `resume` saying how: any
worker claims it as any other hand-over, and its node says where it goes. (A `delay` needs no more than a hand-over
that is available later.) Nothing is kept in a process, so nothing is lost with one.

Modules: `parking` works out what is written for a wait, `arriving` writes it and finds groups that are complete,
`releasing` lets go on what has something to do, `people` is for those who decide, `resuming` puts together what a
claimed hand-over goes on with.

Lock order, beside that of messages and hand-overs: messages before groups, groups by key. A group is completed by
whoever holds its row and the rows of all messages in it; nobody waits for a message's row while holding a group.
"""

from continuitybridge.inbox.waits.people import Approval, decide, get_approval, list_approvals
from continuitybridge.inbox.waits.releasing import CHANNEL_DUE, Released, release_due

__all__ = ["CHANNEL_DUE", "Approval", "Released", "decide", "get_approval", "list_approvals", "release_due"]
