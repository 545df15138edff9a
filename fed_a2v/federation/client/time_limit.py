"""A time limit for a site's work: even if the work hangs, the server gets a reply and the process can exit."""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Callable
from typing import TypeVar

from fed_a2v.federation.process import serves_one_message

Result = TypeVar("Result")

# Seconds after the deadline after which a process that cannot even reply is terminated.
GRACE = 15.0


class DeadlineError(TimeoutError):
    """A site's work exceeded its time limit."""


def within(seconds: float, what: str, work: Callable[[], Result], key: str = "federation.site_timeout") -> Result:
    """Call a function, and wait for it at most this many seconds.

    A thread cannot be killed: after the deadline the work continues in a daemon thread, at the latest until the process
    exits. In a deployment every message has a process of its own, which exits when the reply is sent. Work that
    keeps the interpreter's lock prevents even the reply: such a process is terminated `GRACE` seconds later, with the
    stacks of its threads on standard error, and Flower reports it as lost.

    Args:
        seconds: the time limit.
        what: a description of the work, for the error message.
        work: the function to call.
        key: the setting with the value `seconds`, for the error message.

    Returns:
        The result of `work`.

    Raises:
        DeadlineError: the work exceeds the time limit.
        Exception: any exception of `work`.
    """
    outcome: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # raised below in the caller's thread
            errors.append(error)

    worker = threading.Thread(target=run, name=what, daemon=True)
    one_message = serves_one_message()
    if one_message:
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True)
    try:
        worker.start()
        worker.join(seconds)
    finally:
        if one_message:
            faulthandler.cancel_dump_traceback_later()
    if worker.is_alive():
        raise DeadlineError(
            f"{what} took longer than {key}={seconds:g} s; raise it, or fill the site's cache with `fed-a2v embed`"
        )
    if errors:
        raise errors[0]
    return outcome[0]
