"""A local process that is watched with its guest, and votes. usage: process_example.py [SOCKET]"""

import json
import socket
import sys

link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1] if len(sys.argv) > 1 else "/run/guest-client/processes.sock")
link.sendall(b'{"type":"register","name":"example","interval_ms":1000,"votes":true}\n')
for message in map(json.loads, link.makefile()):
    if message["type"] == "heartbeat":
        link.sendall(b'{"type":"alive","number":%d}\n' % message["number"])
    if message["type"] == "question":
        answer = b'{"type":"answer","number":%d,"vote":"reject","reason":"a backup is running"}\n'
        link.sendall(answer % message["number"])
