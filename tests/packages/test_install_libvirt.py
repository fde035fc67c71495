"""docs/install.md, "On a libvirt host without StarlingX": done as it stands there, in a booted tree."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex

import pytest
from installed import HTTP_PORT, LOOPBACK, WAIT
from scripted import read_text
from tree import POLL, REPOSITORY

from guestmtce.lab.cluster import wait_for

pytestmark = pytest.mark.ci
HOST = "compute-0"


def commands(block):
    """An indented block of that section, counted from 0."""
    text = read_text(os.path.join(REPOSITORY, "docs", "install.md"))
    (found,) = re.findall(r"(?ms)^## On a libvirt host without StarlingX$(.*?)(?=^## )", text)
    return re.findall(r"(?m)(?:^    .*\n)+", found)[block]


def send_as_curl_would(tree, command):
    """What `curl` of the page sends, from within the tree, which has none; the status of the answer."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:1] == ["curl"]
    values = {"-H": [], "-X": [], "-d": []}
    for option, value in zip(words, words[1:]):
        if option in values:
            values[option].append(value)
    (url,) = [word for word in words if word.startswith("http://")]
    assert url.startswith("http://%s:%d/" % (LOOPBACK, HTTP_PORT))
    headers = dict(line.split(": ", 1) for line in values["-H"])
    with tree.network():
        connection = http.client.HTTPConnection(LOOPBACK, HTTP_PORT, timeout=WAIT)
        connection.request(values["-X"][0], "/" + url.split("/", 3)[3], values["-d"][0], headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_a_libvirt_host_without_starlingx_is_made_as_the_page_says(place):
    tree = place.tree
    place.open_cloud()  # its mtcAgent and the VIM's list are what such a host does not have
    with place.without_mtc():
        place.vim.instances, place.vim.hosts = {}, {}
        tree.run("rm -rf /etc/platform && systemctl restart guestServer")
        tree.run("set -e\n" + commands(0))
        assert [place.server.is_active(), place.agent.is_active()] == ["active", "active"]
        wait_for(lambda: HOST in place.agent.dump("host"), "guestAgent knows its host", WAIT, POLL)
        for uuid in place.uuids:
            command = commands(1).replace("UUID", uuid).replace("HOST", HOST)
            assert send_as_curl_would(tree, command)[0] == 200
        wait_for(place._all_heartbeat, "all guests heartbeat", WAIT, POLL)
        place.vim.record.clear()
        place.guests.say(1, "hang")
        wait_for(place.alarms, "the alarm at port 30002", WAIT, POLL)


def test_the_command_of_the_page_shows_which_guests_heartbeat(place):
    text = read_text(os.path.join(REPOSITORY, "docs", "install.md"))
    (command,) = set(re.findall(r"`(kill -USR2 [^`]*)`", text))
    place.tree.run("rm -f /var/log/guestServer.dump; " + command)
    wait_for(lambda: place.tree.exists("/var/log/guestServer.dump"), "the dump", WAIT, POLL)
    rows = place.server.dump("guest")
    assert set(rows) == set(place.uuids)


def test_programs_are_for_users_as_far_as_they_only_speak(place):
    for name in ("guestServer", "guestAgent", "guestClient", "guestmtce"):
        said = place.tree.run("setpriv --reuid nobody --clear-groups %s --help" % name)
        assert "usage: " + name in said


def test_the_manual_and_the_documents_are_installed(place):
    for path in (
        "man8/guestServer.8.gz",
        "man8/guestAgent.8.gz",
        "man8/guestClient.8.gz",
        "man1/guestmtce.1.gz",
    ):
        assert place.tree.exists("/usr/share/man/" + path), path
    assert "# Install" in place.tree.read("/usr/share/doc/python3-guestmtce/install.md")
