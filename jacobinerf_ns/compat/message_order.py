"""What is sent to the viewer's page arrives in the order in which it was sent.

viser 0.2.7 puts a message aside where another thread is just sending one, and sends it when a thread of its pool comes
to it. What the same thread sends next goes out at once: a text that was replaced a moment later then comes last, and
stays on the page for ever.
"""

from collections import deque

from viser.infra._infra import WebsockMessageHandler
from viser.infra._messages import Message

_WAITING = "_waiting_in_order"
"""Attribute of a connection with its messages that are not sent yet, the first first."""


def keep_messages_in_order() -> None:
    """Let all connections send what waits before what comes, from now on."""
    WebsockMessageHandler.queue_message = _queue_message  # pyright: ignore[reportAttributeAccessIssue]


def _queue_message(connection: WebsockMessageHandler, message: Message) -> None:
    """Stand for viser's `queue_message`."""
    if connection._record_handle is not None:
        connection._record_handle._insert_message(message)
    waiting: deque[Message] = connection.__dict__.setdefault(_WAITING, deque())
    waiting.append(message)
    if not connection._atomic_lock.acquire(blocking=False):
        # Whoever has the lock may be done with what waited, or hold it for an atomic change.
        connection._thread_executor.submit(_send_locked, connection, waiting)
        return
    try:
        _send(connection, waiting)
    finally:
        connection._atomic_lock.release()


def _send_locked(connection: WebsockMessageHandler, waiting: deque[Message]) -> None:
    with connection._atomic_lock:
        _send(connection, waiting)


def _send(connection: WebsockMessageHandler, waiting: deque[Message]) -> None:
    while waiting:
        connection.unsafe_send_message(waiting.popleft())
