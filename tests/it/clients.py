"""Speaks Flotilla's public contract with nothing but nats-py: publish, follow the events, request-reply, discovery.

    python clients.py nats://127.0.0.1:4222
"""
import asyncio
import json
import sys
import uuid

import nats

MODELS = {"adder": ("123+456=", "579"), "sorter": ("sort 52914=", "12459"), "reverser": ("reverse hello=", "olleh")}


async def follow(connection, jetstream, model, prompt):
    """Publishes one request and returns its events as (kind, attempt, body)."""
    request = uuid.uuid4().hex
    subscription = await connection.subscribe(f"flotilla.events.{request}")
    body = json.dumps({"prompt": prompt, "max_tokens": 16}).encode()
    headers = {"Nats-Msg-Id": request, "Content-Type": "application/json"}
    await jetstream.publish(f"flotilla.request.interactive.{model}", body, headers=headers)
    events = []
    while not events or events[-1][0] not in ("finished", "failed"):
        message = await subscription.next_msg(timeout=30)
        assert message.headers["Content-Type"] == "application/json", message.headers
        kind, attempt = message.headers["Flotilla-Event"], int(message.headers["Flotilla-Attempt"])
        events.append((kind, attempt, json.loads(message.data)))
    await subscription.unsubscribe()
    return request, events


async def check_events(connection, model, prompt, right):
    request, events = await follow(connection, connection.jetstream(), model, prompt)
    stored = [event for event in events if event[0] != "progress"]
    assert [kind for kind, _, _ in stored][0] == "accepted", stored
    assert stored[0][2] == {"request": request, "model": model, "prompt_tokens": len(prompt) + 1}, stored[0]
    tokens = [body for kind, _, body in stored if kind == "tokens"]
    offset = 0
    for body in tokens:
        assert body["offset"] == offset, tokens
        offset += len(body["token_ids"])
    assert "".join(body["text"] for body in tokens) == right, tokens
    kind, attempt, finished = stored[-1]
    assert (kind, attempt, finished["finish_reason"]) == ("finished", 1, "stop"), stored[-1]
    assert finished["usage"]["total_tokens"] == len(prompt) + 1 + offset, finished
    assert set(finished["timings"]) == {"queued_ms", "load_ms", "prefill_ms", "decode_ms"}, finished


async def check_failure(connection):
    _, events = await follow(connection, connection.jetstream(), "nobody", "x")
    error = events[-1][2]["error"]
    assert error["code"] == "unknown_model" and "nobody" in error["message"] and "param" in error, error


async def check_services(connection):
    reply = await connection.request("flotilla.infer.adder", b'{"prompt":"2+2="}', timeout=30)
    assert json.loads(reply.data)["choices"][0]["text"] == "4", reply.data
    reply = await connection.request("flotilla.infer.nobody", b'{"prompt":"2+2="}', timeout=30)
    assert reply.headers["Nats-Service-Error-Code"] == "404", reply.headers
    ping = json.loads((await connection.request("$SRV.PING", b"", timeout=10)).data)
    assert ping["name"] == "flotilla" and ping["type"] == "io.nats.micro.v1.ping_response", ping
    info = json.loads((await connection.request("$SRV.INFO.flotilla", b"", timeout=10)).data)
    subjects = [endpoint["subject"] for endpoint in info["endpoints"]]
    assert "flotilla.infer.*" in subjects and "flotilla.admin.queue" in subjects, subjects


async def main(url):
    connection = await nats.connect(url)
    for model, (prompt, right) in MODELS.items():
        await check_events(connection, model, prompt, right)
    await check_failure(connection)
    await check_services(connection)
    await connection.close()
    print("every answer was right")


asyncio.run(main(sys.argv[1]))
