# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Clients that work on a daemon in processes of their own, and a log outside of the daemon of what they asked for and
what was acknowledged to them; and the comparison of an archive with that log."""
import contextlib
import multiprocessing
import os
import random
import time

from coldkv_protocol import Client, RpcError, geometry, model
from coldkv_records import check_all, records, token_ids

SHAPE = geometry(layers=1, kv_heads=1)
FINGERPRINT = bytes(range(32))
TOKENS_MAX = 4700  # of one conversation: so that some are sealed
DEPTH = 4          # appends on their way at a time


def salt_of(name):
    worker, generation = name[1:].split("-")
    return int(worker) << 12 | int(generation)


class Worker:
    """One client process. `lies`: it takes what is stored for durable."""

    def __init__(self, number, log, lies=False):
        self.number, self.log_path, self.lies = number, log, lies
        self.ours, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=self.serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def go(self, socket):
        self.ours.send(socket)

    def wait(self, timeout=60):
        """Until it has noticed that the daemon is gone, or was told to stop; returns what else went wrong."""
        if not self.ours.poll(timeout):
            raise TimeoutError(f"client {self.number} does not stop")
        return self.ours.recv()

    def stop(self):
        self.ours.send("stop")
        return self.wait()

    def finish(self):
        self.process.kill()
        self.process.join()

    # --- in the process

    def serve(self, pipe):
        self.ours.close()
        self.pipe = pipe
        self.log = os.open(self.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.rng = random.Random(self.number)
        self.generation = 0
        self.names = []
        while True:
            problem = None
            socket = pipe.recv()
            try:
                self.work(socket)
            except RpcError as error:
                problem = f"client {self.number}: {error}"
            except TimeoutError as error:
                problem = f"client {self.number}: {error or 'no answer'}"
            except OSError:
                pass
            pipe.send(problem)

    def note(self, *words):
        os.write(self.log, (" ".join(map(str, words)) + "\n").encode())

    def told_to_stop(self):
        return self.pipe.poll() and self.pipe.recv() == "stop"

    def work(self, socket):
        with contextlib.closing(Client(socket)) as client:
            found = client.call("model.calibrate", **model(FINGERPRINT, SHAPE))["id"]
            while True:
                if not self.names or self.rng.random() < 0.02:
                    self.names.append(f"w{self.number}-{self.generation}")
                    self.generation += 1
                if len(self.names) > 2:
                    self.drop(client, self.names[0])
                    del self.names[0]
                if self.append_some(client, found, self.names[-1]):
                    return
                if self.full:
                    self.names.append(f"w{self.number}-{self.generation}")
                    self.generation += 1

    def drop(self, client, name):
        self.note("drop", name)
        for _ in range(1000):
            try:
                client.call("conversation.delete", name=name, confirm=name)
            except RpcError as error:
                if error.code == "busy":  # still being sealed
                    time.sleep(0.01)
                    continue
                if error.code != "no_conversation":
                    raise
            self.note("dropped", name)
            return
        raise TimeoutError(f"{name} stays busy")

    def append_some(self, client, found, name):
        """Opens a conversation and appends to it; true when told to stop."""
        self.note("make", name)
        answer = client.call("conversation.open", name=name, fingerprint=FINGERPRINT, geometry=SHAPE, model=found,
                             create=True, write=True)
        handle, at = answer["conversation"], answer["count"]
        self.note("made", name)
        salt, wanted = salt_of(name), min(TOKENS_MAX, at + self.rng.randrange(1, 1500))
        ids, bytes_ = token_ids(at, wanted - at, salt), records(SHAPE, at, wanted - at, salt)
        start, sent, stop = at, [], False
        while (at < wanted and not stop) or sent:
            stop = stop or self.told_to_stop()
            if at < wanted and not stop and len(sent) < DEPTH:
                count = min(wanted - at, self.rng.randrange(1, 65))
                self.note("ask", name, at + count)
                sent.append(client.send("conversation.append", conversation=handle, first=at,
                                        ids=ids[at - start:at - start + count].tobytes(),
                                        records=bytes_[at - start:at - start + count].tobytes(), ahead=b""))
                at += count
            elif sent:
                answer = client.wait(sent.pop(0))
                self.note("ack", name, answer["stored" if self.lies else "durable"])
        client.call("conversation.close", conversation=handle)
        self.full = at >= TOKENS_MAX
        return stop


class Expected:
    """What the logs say: up to `certain` bytes of each it has been acknowledged; up to `asked` it was asked for."""

    def __init__(self, paths, certain=None, asked=None):
        self.made, self.acked, self.dropped, self.asked, self.dropping = set(), {}, set(), {}, set()
        for i, path in enumerate(paths):
            with open(path, "rb") as log:
                text = log.read()
            for line in text[:certain[i] if certain else None].decode().splitlines():
                self.certain(line.split())
            for line in text[:asked[i] if asked else None].decode().splitlines():
                self.possible(line.split())

    def certain(self, words):
        if words[0] == "made":
            self.made.add(words[1])
        elif words[0] == "ack":
            self.acked[words[1]] = max(self.acked.get(words[1], 0), int(words[2]))
        elif words[0] == "dropped":
            self.dropped.add(words[1])

    def possible(self, words):
        if words[0] == "make":
            self.asked.setdefault(words[1], 0)
        elif words[0] == "ask":
            self.asked[words[1]] = max(self.asked[words[1]], int(words[2]))
        elif words[0] == "drop":
            self.dropping.add(words[1])

    def tokens(self):
        return sum(self.acked.values())

    def compare(self, client):
        """Returns how many acknowledged tokens are lost, how much is wrong, and sentences about both."""
        lost, wrong, said = 0, 0, []
        there = {c["name"] for c in client.call("conversation.list", limit=1000)["conversations"]}
        for name in sorted(there - set(self.asked)) + sorted(there & self.dropped):
            wrong += 1
            said.append(f"{name} is there, which should not be")
        for name in sorted(self.made - there - self.dropping):
            lost += max(1, self.acked.get(name, 0))
            said.append(f"{name} is gone")
        for name in sorted(there & set(self.asked)):
            less, other = self.compare_one(client, name, said)
            lost += less
            wrong += other
        return lost, wrong, said

    def compare_one(self, client, name, said):
        try:
            answer = client.call("conversation.open", name=name, fingerprint=FINGERPRINT, geometry=SHAPE, create=False,
                                 write=False)
        except RpcError as error:
            said.append(f"{name}: {error}")
            return max(1, self.acked.get(name, 0)), 0
        count, handle, other = answer["count"], answer["conversation"], 0
        try:
            other = check_all(client, SHAPE, handle, count, salt_of(name))
        except RpcError as error:
            said.append(f"{name}: {error}")
            other = 1
        client.call("conversation.close", conversation=handle)
        less = max(0, self.acked.get(name, 0) - count)
        if less:
            said.append(f"{name} has {count} tokens although {self.acked[name]} were acknowledged")
        if count > self.asked[name]:
            said.append(f"{name} has {count} tokens although {self.asked[name]} were asked for")
            other += 1
        if other:
            said.append(f"{name}: {other} tokens are wrong")
        return less, other
