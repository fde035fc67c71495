"""What each command of the VIM does with the inventory: a table of handlers.

docs/protocol/3-vim-http.md#commands

Handlers never wait: what a command sets off is sent from elsewhere. They raise Failure.
"""

from __future__ import annotations

import re
import time
from typing import Callable, Dict, Optional, Tuple

from guestmtce.agent.inventory import Inventory, Reply
from guestmtce.wire import guest_channel, vim_http
from guestmtce.wire.vim_http import Failure

PATH = re.compile(r"/v1/(hosts|instances)/([^/]+)(?:/([^/]+))?/?")

# handler(inventory, uuid, body) → the reply; None is answered with 204
Handler = Callable[[Inventory, str, bytes], Optional[Reply]]


def create_host(inventory: Inventory, uuid: str, body: bytes) -> Reply:
    # No change: mtcAgent says which hosts there are. The body is not looked at, for there may be none.
    inventory.find_host(uuid)
    return vim_http.PASS


def enable_host(inventory: Inventory, uuid: str, body: bytes) -> Reply:
    vim_http.parse_named(uuid, body)
    inventory.set_host_reporting(uuid, True)
    return vim_http.PASS


def disable_host(inventory: Inventory, uuid: str, body: bytes) -> Reply:
    vim_http.parse_named(uuid, body)
    inventory.set_host_reporting(uuid, False)
    return vim_http.PASS


def query_host(inventory: Inventory, uuid: str, body: bytes) -> Reply:
    host = inventory.find_host(uuid)
    return vim_http.host_reply(uuid, host.name, host.enabled)


def delete_host(inventory: Inventory, uuid: str, body: bytes) -> None:
    return None  # hosts are mtcAgent's


def create_instance(inventory: Inventory, uuid: str, body: bytes) -> Reply:
    inventory.create_instance(vim_http.parse_create(uuid, body))
    return vim_http.PASS


def set_instance(inventory: Inventory, uuid: str, body: bytes) -> Reply:
    # The clock is read here: the inventory is pure.
    return inventory.set_instance(*vim_http.parse_set(uuid, body), time.monotonic())


def query_instance(inventory: Inventory, uuid: str, body: bytes) -> Reply:
    return inventory.query_instance(uuid)


def delete_instance(inventory: Inventory, uuid: str, body: bytes) -> None:
    inventory.delete_instance(uuid)


def ask_vote(inventory: Inventory, uuid: str, body: bytes) -> Reply:
    named, event = vim_http.parse_action(uuid, body)
    return inventory.ask_guest(named, guest_channel.VOTE, event, time.monotonic())


def send_notice(inventory: Inventory, uuid: str, body: bytes) -> Reply:
    named, event = vim_http.parse_action(uuid, body)
    return inventory.ask_guest(named, guest_channel.NOTICE, event, time.monotonic())


ROUTES: Dict[Tuple[str, Optional[str]], Dict[str, Handler]] = {
    ("hosts", None): {"POST": create_host, "GET": query_host, "DELETE": delete_host},
    ("hosts", "enable"): {"PUT": enable_host},
    ("hosts", "disable"): {"PUT": disable_host, "GET": query_host},  # the VIM queries by this path
    ("instances", None): {
        "POST": create_instance,
        "PATCH": set_instance,
        "GET": query_instance,
        "DELETE": delete_instance,
    },
    ("instances", "vote"): {"POST": ask_vote},
    ("instances", "notify"): {"POST": send_notice},
}


def find_route(method: str, path: str) -> Tuple[Handler, str]:
    """The handler of a request, and the uuid in its path. Raises Failure 403, 405."""
    match = PATH.fullmatch(path)
    methods = ROUTES.get((match.group(1), match.group(3))) if match else None
    if match is None or methods is None:
        raise Failure(403, vim_http.PARSE_ERROR, "unknown path")
    if method not in methods:
        raise Failure(405, vim_http.UNSUPPORTED, "unsupported method")
    return methods[method], match.group(2)
