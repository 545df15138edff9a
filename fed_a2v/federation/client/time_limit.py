"""A time limit for a site's work: whatever hangs, the server gets an answer, and the process can end."""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Callable
from typing import TypeVar

from fed_a2v.federation.process import serves_one_message

Result = TypeVar("Result")

# Seconds behind the deadline after which a process that cannot even answer is ended.
GRACE = 15.0


class DeadlineError(TimeoutError):
    """A site's work took longer than it may."""


def within(seconds: float, what: str, work: Callable[[], Result], key: str = "federation.site_timeout") -> Result:
    """Do some work, but wait for it no longer than so many seconds.

    A thread cannot be killed: work that takes longer goes on in a thread that nobody waits for, and that ends with
    the process at the latest. In a deployment Flower starts a process for every message, which ends when the reply
    is sent. Work that holds the interpreter's lock would keep even the reply from being sent: such a process is
    ended `GRACE` seconds later, with the stacks of its threads on standard error, and Flower reports it as lost.

    Args:
        seconds: to wait at most.
        what: the work, in words, for the error.
        work: what is to be done.
        key: the setting that holds `seconds`, for the error.

    Returns:
        What `work` returns.

    Raises:
        DeadlineError: it takes longer.
        Exception: whatever `work` raises.
    """
    outcome: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # raised again below, in the caller's thread
            errors.append(error)

    worker = threading.Thread(target=run, name=what, daemon=True)
    alone = serves_one_message()
    if alone:
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True)
    try:
        worker.start()
        worker.join(seconds)
    finally:
        if alone:
            faulthandler.cancel_dump_traceback_later()
    if worker.is_alive():
        raise DeadlineError(
            f"{what} took longer than {key}={seconds:g} s: is a disk slow, the encoder stuck, or the cache still empty?"
        )
    if errors:
        raise errors[0]
    return outcome[0]
