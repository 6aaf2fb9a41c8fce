"""How does a request end that was served no further, other than by bad input?"""

from __future__ import annotations

from hjgc.plan_format.errors import RunError


class Cancelled(RunError):
    """Somebody called `cancel()`."""


class DeadlineExceeded(RunError):
    """The request's deadline passed, in the queue or between two steps."""


class ContextFull(RunError):
    """Prompt and answer fill the context: there is no room to decode another token."""


class SessionClosed(RunError):
    """The session, or the function, was closed before or during the request."""

    def __init__(self) -> None:
        super().__init__("expected the plan to be open, found it closed; open it again: hjgc.load(plan)")
