"""Health checks of containers: exit code 0 when the process beside this one does its work. Imports no prefect."""

import os
import sys
import time
import urllib.request
from collections.abc import Sequence

HEARTBEATS = "prefect:workers"
"""Where Prefect's background services report every two seconds, in the Redis of PREFECT_SERVER_DOCKET_URL."""
SILENT_SECONDS = 30.0
TIMEOUT_SECONDS = 5.0


def answers(url: str) -> str:
    """What is wrong with a web page that should answer with status 200; empty when nothing is."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 - given by the operator
            return "" if response.status == 200 else f"{url} answers with status {response.status}"
    except (OSError, ValueError) as error:
        return f"{url}: {error}"


def services_beat(redis_url: str) -> str:
    """What is wrong with Prefect's background services; empty when they reported lately."""
    import redis

    try:
        with redis.Redis.from_url(redis_url, socket_timeout=TIMEOUT_SECONDS) as client:
            newest = client.zrange(HEARTBEATS, -1, -1, withscores=True)
    except (redis.RedisError, ValueError) as error:
        return f"no answer from Redis: {error}"
    if not newest:
        return "the background services have never reported"
    silent = time.time() - float(newest[0][1])
    return f"the background services have been silent for {silent:.0f} s" if silent > SILENT_SECONDS else ""


def main(arguments: Sequence[str]) -> int:
    """Carry out `http URL` or `services`; prints what is wrong."""
    match arguments:
        case ["http", url]:
            problem = answers(url)
        case ["services"]:
            problem = services_beat(os.environ.get("PREFECT_SERVER_DOCKET_URL", ""))
        case _:
            problem = "usage: python -m flows.deploy.health http URL | services"
    if problem:
        sys.stderr.write(f"{problem}\n")
    return 1 if problem else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
