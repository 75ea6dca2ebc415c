"""A process of its own in which so many threads resolve a connection at once; prints what each got.

Arguments: organization, connection, threads. Waits for a line on standard input before it begins."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from continuitybridge import tokens
from continuitybridge.errors import BridgeError
from continuitybridge.settings import get_settings
from continuitybridge.vault.keyring import Keyring


def main(organization: str, connection: str, threads: str) -> None:
    keys = Keyring.open(get_settings())
    keys.export(UUID(organization))

    def ask(_: int) -> str:
        try:
            return tokens.resolve(UUID(organization), "dev", connection, keys, wait_s=30).auth["token"]
        except BridgeError as error:
            return error.code

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(int(threads)) as pool:
        print(json.dumps(list(pool.map(ask, range(int(threads))))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
