"""Asks a fleet with nothing but nats-py (pip install nats-py).

    python client.py nats://127.0.0.1:4222 ask adder '123+456='
    python client.py nats://127.0.0.1:4222 follow REQUEST 0      # its events after sequence 0: all of them
    python client.py nats://127.0.0.1:4222 cancel REQUEST
    python client.py nats://127.0.0.1:4222 infer adder '2+2='
"""
import asyncio
import json
import string
import sys
import uuid

import nats
from nats.errors import TimeoutError
from nats.js.errors import APIError

UNESCAPED = (string.ascii_letters + string.digits + "-_").encode()
QUEUE_FULL = 10077


def token(model):
    """A model's name as one token of a subject."""
    return "".join(chr(byte) if byte in UNESCAPED else f"={byte:02X}" for byte in model.encode())


async def publish(connection, request, model, body):
    """Publishes a request until the server has stored it; the id makes a second publish harmless."""
    subject = f"flotilla.request.interactive.{token(model)}"
    headers = {"Nats-Msg-Id": request, "Content-Type": "application/json"}
    pause = 0.1
    while True:
        try:
            await connection.jetstream().publish(subject, json.dumps(body).encode(), headers=headers)
            return
        except TimeoutError:
            print("not confirmed, once more", file=sys.stderr, flush=True)
        except APIError as refusal:
            if refusal.err_code != QUEUE_FULL:
                raise
            print("busy:", refusal.description, file=sys.stderr, flush=True)
        await asyncio.sleep(pause)
        pause = min(2 * pause, 5)


async def follow(connection, request, after=0):
    """The events of a request after a sequence, each stored one once and in order, whatever the network does.

    Live events are republished by the server and may be lost; each names the one before it, so that a gap is seen.
    """
    live = await connection.subscribe(f"flotilla.events.{request}")
    missed = True
    while True:
        if missed:
            events = await replay(connection, request, after)
            missed = len(events) > 0
        else:
            try:
                events = [await live.next_msg(timeout=3)]
            except TimeoutError:
                missed = True
                continue
            sequence = number(events[0], "Nats-Sequence")
            if sequence and sequence <= after:
                continue
            if sequence and number(events[0], "Nats-Last-Sequence") != after:
                missed = True
                continue
        for event in events:
            # Progress is not stored and has no sequence.
            sequence, kind = number(event, "Nats-Sequence"), event.headers["Flotilla-Event"]
            after = max(after, sequence)
            yield sequence, kind, json.loads(event.data)
            if kind in ("finished", "failed"):
                await live.unsubscribe()
                return


async def replay(connection, request, after):
    """Stored events of a request after a sequence; none if nobody can be asked at the moment."""
    inbox = connection.new_inbox()
    answers = await connection.subscribe(inbox)
    question = json.dumps({"after": after}).encode()
    await connection.publish(f"flotilla.replay.{request}", question, reply=inbox)
    stored = []
    try:
        while True:
            answer = await answers.next_msg(timeout=5)
            if "Nats-Service-Error" in answer.headers:
                raise SystemExit(answer.headers["Nats-Service-Error"])
            if "Status" in answer.headers:
                return stored
            stored.append(answer)
    except TimeoutError:
        return []
    finally:
        await answers.unsubscribe()


def number(message, header):
    """A number out of a header; 0 where there is none."""
    return int(message.headers.get(header, 0))


async def cancel(connection, request):
    """Ends a request wherever it is; its journal gets a terminal event all the same."""
    await connection.publish("flotilla.cancel", json.dumps({"request": request}).encode())
    await connection.flush()


async def infer(connection, model, body):
    """One whole answer, in OpenAI's shape."""
    answer = await connection.request(f"flotilla.infer.{token(model)}", json.dumps(body).encode(), timeout=300)
    if "Nats-Service-Error" in (answer.headers or {}):
        raise SystemExit(answer.headers["Nats-Service-Error"])
    return json.loads(answer.data)


async def print_events(connection, request, after):
    async for sequence, kind, body in follow(connection, request, after):
        print(sequence, kind, json.dumps(body), flush=True)


async def main(url, command, *words):
    connection = await nats.connect(url, max_reconnect_attempts=-1)
    if command == "ask":
        model, prompt = words
        request = uuid.uuid4().hex
        print("request", request, file=sys.stderr, flush=True)
        await publish(connection, request, model, {"prompt": prompt, "max_tokens": 16})
        await print_events(connection, request, 0)
    elif command == "follow":
        request, after = words
        await print_events(connection, request, int(after))
    elif command == "cancel":
        await cancel(connection, *words)
    elif command == "infer":
        model, prompt = words
        answer = await infer(connection, model, {"prompt": prompt, "max_tokens": 16})
        print(answer["choices"][0]["text"])
    else:
        raise SystemExit(__doc__)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
