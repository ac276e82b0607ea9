"""Holds up every packet of an iptables queue for some milliseconds, as tc's netem does where the kernel has it.

    python delay.py QUEUE DELAY_MS

Speaks nfnetlink_queue: packets wait in the kernel, here only their ids do. Says "ready" when the queue is bound, and
ends when its standard input does.
"""
import collections
import os
import select
import socket
import struct
import sys
import time

NETLINK_NETFILTER = 12
SO_RCVBUFFORCE = 33
QUEUE_PACKET, QUEUE_CONFIG, QUEUE_VERDICT_BATCH = 0x300, 0x302, 0x303
ACCEPT = 1
REQUEST = 1


def attribute(kind, payload):
    padding = -len(payload) % 4
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * padding


def message(kind, queue, *attributes):
    body = struct.pack("!BBH", 0, 0, queue) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, REQUEST, 0, 0) + body


def configure(link, queue):
    bind = attribute(1, struct.pack("!BBH", 1, 0, 0))
    nothing_of_the_packet = attribute(2, struct.pack("!IB", 0, 1))
    length_max = attribute(3, struct.pack("!I", 1 << 16))
    # Large packets stay whole.
    gso = struct.pack("!I", 4)
    for attributes in ([bind], [nothing_of_the_packet, length_max], [attribute(4, gso), attribute(5, gso)]):
        link.send(message(QUEUE_CONFIG, queue, *attributes))


def packet_ids(data):
    """The ids of the packets that a read from the kernel tells of."""
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if kind == QUEUE_PACKET:
            # The first attribute is the packet's header, which begins with its id.
            yield struct.unpack_from("!I", data, at + 24)[0]
        at += (length + 3) & ~3


def main(queue, delay_s):
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    link.bind((0, 0))
    configure(link, queue)
    # A link does not become longer when the machine is busy.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("ready", flush=True)
    link.setblocking(False)
    # When each may go on, and its id.
    waiting = collections.deque()
    while True:
        now = time.monotonic()
        due = None
        while waiting and waiting[0][0] <= now:
            due = waiting.popleft()[1]
        if due is not None:
            # Everything up to this packet goes on its way.
            verdict = attribute(2, struct.pack("!II", ACCEPT, due))
            link.send(message(QUEUE_VERDICT_BATCH, queue, verdict))
        wait = max(0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([link, sys.stdin], [], [], wait)
        if sys.stdin in readable:
            return
        try:
            while True:
                data = link.recv(1 << 16)
                for packet in packet_ids(data):
                    waiting.append((time.monotonic() + delay_s, packet))
        except BlockingIOError:
            pass


main(int(sys.argv[1]), float(sys.argv[2]) / 1000)
