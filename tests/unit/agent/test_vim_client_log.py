"""What the log says of what the VIM was told."""

from __future__ import annotations

import re

import pytest
from vimlink_bench import U, closing, loss

from guestmtce.lab.cluster import wait_for
from guestmtce.lab.ports import free_ports
from guestmtce.lab.vim import Vim


@pytest.fixture
def bench():
    yield from closing()


def test_a_delivery_and_the_return_of_a_vim_are_logged(bench, caplog):
    caplog.set_level("INFO")
    (port,) = free_ports(1)
    link = bench("http://127.0.0.1:%d" % port)
    link.tell(loss(U))
    wait_for(lambda: "cannot be reached" in caplog.text, "the VIM is down")
    vim = Vim(port=port)
    vim.start()
    try:
        wait_for(lambda: "answers again" in caplog.text, "the return of the VIM is logged")
        told = r"%s: failed: PATCH \S+ to the VIM at http://127.0.0.1:%d: status \d+ after \d+ ms" % (U, port)
        wait_for(lambda: re.search(told, caplog.text), "the delivery is logged")
        assert caplog.text.count("answers again") == 1
    finally:
        vim.stop()
