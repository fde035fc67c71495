"""What each command of the VIM does with the inventory: a table of handlers (spec 3, "Commands").

Handlers never wait: what a command sets off is sent from elsewhere. They raise Failure.
"""

from __future__ import annotations

import re
import time
from typing import Any, Callable, Dict, Optional, Tuple

from guestmtce.agent.inventory import Inventory
from guestmtce.wire import channel, vim
from guestmtce.wire.vim import Failure

PATH = re.compile(r"/v1/(hosts|instances)/([^/]+)(?:/([^/]+))?/?")

# handler(inventory, uuid, body) → the reply; None is answered with 204
Handler = Callable[[Inventory, str, bytes], Optional[Dict[str, Any]]]


def create_host(inventory: Inventory, uuid: str, body: bytes) -> Dict[str, Any]:
    inventory.host(uuid)
    return vim.PASS


def enable_host(inventory: Inventory, uuid: str, body: bytes) -> Dict[str, Any]:
    vim.parse_named(uuid, body)
    inventory.host_reporting(uuid, True)
    return vim.PASS


def disable_host(inventory: Inventory, uuid: str, body: bytes) -> Dict[str, Any]:
    vim.parse_named(uuid, body)
    inventory.host_reporting(uuid, False)
    return vim.PASS


def query_host(inventory: Inventory, uuid: str, body: bytes) -> Dict[str, Any]:
    host = inventory.host(uuid)
    return vim.host_reply(uuid, host.name, host.enabled)


def delete_host(inventory: Inventory, uuid: str, body: bytes) -> None:
    return None  # hosts are mtcAgent's


def create_instance(inventory: Inventory, uuid: str, body: bytes) -> Dict[str, Any]:
    inventory.create(vim.parse_create(uuid, body))
    return vim.PASS


def set_instance(inventory: Inventory, uuid: str, body: bytes) -> Dict[str, Any]:
    return inventory.set(*vim.parse_set(uuid, body), time.monotonic())


def query_instance(inventory: Inventory, uuid: str, body: bytes) -> Dict[str, Any]:
    return inventory.reply(uuid)


def delete_instance(inventory: Inventory, uuid: str, body: bytes) -> None:
    inventory.delete(uuid)


def ask_vote(inventory: Inventory, uuid: str, body: bytes) -> Dict[str, Any]:
    named, event = vim.parse_action(uuid, body)
    return inventory.ask(named, channel.VOTE, event, time.monotonic())


def send_notice(inventory: Inventory, uuid: str, body: bytes) -> Dict[str, Any]:
    named, event = vim.parse_action(uuid, body)
    return inventory.ask(named, channel.NOTICE, event, time.monotonic())


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
        raise Failure(403, vim.PARSE_ERROR, "unknown path")
    if method not in methods:
        raise Failure(405, vim.UNSUPPORTED, "unsupported method")
    return methods[method], match.group(2)
