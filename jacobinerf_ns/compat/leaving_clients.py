"""The last thing that somebody does on a page counts, also where the page is gone before it is looked at.

viser 0.2.7 looks for the client of a click or of a control's new value among those who are still there: of one who has
left the click is lost, nobody is told of the value, and an exception is printed.
"""

from collections import OrderedDict
from typing import Any

import viser

MOST = 64
"""Clients that are remembered."""


class _Clients(dict[int, Any]):
    """Those who are there; asked for by number, those who have just left too."""

    def __init__(self, here: dict[int, Any], known: dict[int, Any]) -> None:
        super().__init__(here)
        self._known = known

    def __missing__(self, number: int) -> Any:
        return self._known[number]


def remember_clients(server: viser.ViserServer) -> None:
    """Let a server find clients that have left, where it looks for one by its number."""
    known: OrderedDict[int, Any] = OrderedDict()
    get_clients = server.get_clients

    def came(client: viser.ClientHandle) -> None:
        known[client.client_id] = client
        while len(known) > MOST:
            known.popitem(last=False)

    server.on_client_connect(came)
    server.get_clients = lambda: _Clients(get_clients(), known)
    server.scene._get_client_handle = lambda client_id: server.get_clients()[client_id]
