"""Fetches what lies in an object store with nothing but nats-py's own object store: each object into a file of its name.

    python stock_client.py nats://127.0.0.1:4222 BUCKET FOLDER

Its digests are compared by the library, and its description is what stock tools show.
"""
import asyncio
import pathlib
import sys

import nats


async def main(url, bucket, folder):
    connection = await nats.connect(url)
    store = await connection.jetstream().object_store(bucket)
    for description in await store.list():
        found = await asyncio.wait_for(store.get(description.name), timeout=30)
        assert len(found.data) == description.size, description
        assert found.info.digest == description.digest, description
        (folder / description.name).write_bytes(found.data)
    await connection.close()


asyncio.run(main(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])))
