#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Kills the daemon at random moments while clients append, make and delete, and now and then while it starts; what was
acknowledged, by a log outside of it, has to be there again. Usage: test_sigkill.py COLDKVD

COLDKV_TORTURE_KILLS=N and COLDKV_TORTURE_SECONDS=N: at least that many kills, and at least so long."""
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time

from coldkv_load import Expected, Worker
from coldkv_protocol import Client, Daemon, RpcError

CLIENTS = 3
KILLS = 20


def settle(daemon, rng):
    """Starts the daemon again, sometimes only after it was killed in the middle of that. Returns the kills."""
    kills = 0
    while rng.random() < 0.3:
        daemon.launch()
        time.sleep(rng.random() * 0.05)
        daemon.kill()
        kills += 1
    daemon.start()
    return kills


def verify(client):
    """What the daemon's own check finds."""
    client.call("verify")
    for _ in range(3000):
        answer = client.call("verify")
        if not answer.get("running"):
            return [f"verify: {problem['path']}: {problem['what']}" for problem in answer["problems"]]
        time.sleep(0.01)
    return ["verify does not end"]


def torture(daemon, workers, logs, kills_wanted, seconds):
    rng, kills, lost, wrong, end = random.Random(1), 0, 0, 0, time.monotonic() + seconds
    while kills < kills_wanted or time.monotonic() < end:
        for worker in workers:
            worker.go(daemon.socket)
        time.sleep(0.05 + rng.random() * 0.3)
        daemon.kill()
        kills += 1
        said = [problem for problem in [worker.wait() for worker in workers] if problem]
        wrong += len(said)
        kills += settle(daemon, rng)
        with contextlib.closing(Client(daemon.socket)) as client:
            less, other, more = Expected(logs).compare(client)
            if kills % 10 == 0:
                more += verify(client)
                other += len(more) if not less and not other else 0
        lost += less
        wrong += other
        for sentence in (said + more)[:5]:
            print(f"after kill {kills}: {sentence}", flush=True)
    acknowledged = Expected(logs).tokens()
    print(f"torture: sigkill kills={kills} acknowledged={acknowledged} lost={lost} wrong={wrong}", flush=True)
    return acknowledged > 0 and lost == 0 and wrong == 0


def main():
    kills = int(os.environ.get("COLDKV_TORTURE_KILLS", KILLS))
    seconds = float(os.environ.get("COLDKV_TORTURE_SECONDS", 0))
    directory = tempfile.mkdtemp(prefix="coldkv-sigkill-")
    logs = [os.path.join(directory, f"log-{i}") for i in range(CLIENTS)]
    workers = [Worker(i, log) for i, log in enumerate(logs)]
    daemon = Daemon(sys.argv[1])
    try:
        return 0 if torture(daemon, workers, logs, kills, seconds) else 1
    except (RpcError, RuntimeError, OSError):
        print(daemon.log_text()[-2000:])
        raise
    finally:
        for worker in workers:
            worker.finish()
        daemon.finish()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
