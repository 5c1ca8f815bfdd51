#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""A daemon whose system calls fail, by strace: whatever fails, it goes on or ends in good order, answers nothing wrong,
and after a start on a sound machine everything it acknowledged is there. Usage: test_inject.py COLDKVD [SEED]

Runs for some seconds, or for COLDKV_TORTURE_SECONDS, and ends in a line
    torture: calls failed=N lost=N wrong=N crashed=N
Exit status 77: skipped, strace is missing or not permitted."""
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

from coldkv_protocol import Client, Daemon, RpcError, geometry, model
from coldkv_records import append, check_all, fill, lookup

SKIPPED = 77
SECONDS = 15
FINGERPRINT = bytes(range(32))
SHAPE = geometry(layers=2, kv_heads=1)
SEALED, NEARLY = 4200, 4090

# What may fail, and how. EINTR and EAGAIN are to be unnoticed, which the count of acknowledged tokens shows.
CALLS = {
    "fdatasync": ("EIO", "ENOSPC", "EINTR"),
    "fsync": ("EIO", "EINTR"),
    "pwritev": ("EIO", "ENOSPC", "EINTR"),
    "pwrite64": ("EIO", "ENOSPC"),
    "openat": ("EIO", "EMFILE", "ENOSPC", "EINTR"),
    "rename": ("EIO", "ENOSPC"),
    "ftruncate": ("EIO", "EINTR"),
    "mmap": ("ENOMEM", "EIO"),
    "pread64": ("EIO", "EINTR"),
    "io_uring_enter": ("EIO", "EINTR", "EAGAIN"),
    "mkdir": ("EIO", "ENOSPC"),
    "unlink": ("EIO",),
    "rmdir": ("EIO",),
    "madvise": ("EAGAIN", "ENOMEM"),
    "mincore": ("EAGAIN",),
    "mlock": ("EPERM", "ENOMEM"),
    "getdents64": ("EIO",),
    "newfstatat": ("EIO",),
}
OFTEN = ["pwritev", "pwritev", "fdatasync", "openat", "pread64"]


class Torture:
    def __init__(self, binary, seed):
        self.binary, self.rng = binary, random.Random(seed)
        self.failed = self.lost = self.wrong = self.crashed = self.runs = 0
        self.what = self.model = None
        with open(binary, "rb") as file:
            program = file.read()
        # a sanitizer's own calls, which fail with the others, end the process
        self.sanitized = b"__asan_init" in program or b"__tsan_init" in program
        self.calls = [call for call in CALLS if not self.sanitized or call not in ("mmap", "madvise")]
        self.dir = tempfile.mkdtemp(prefix="coldkv-inject-")
        self.template = os.path.join(self.dir, "template")
        self.trace = os.path.join(self.dir, "trace")
        self.told = {}

    def note(self, text):
        print(f"run {self.runs} ({self.what}): {text}", flush=True)

    # --- the archive that every run begins with

    def open(self, client, name, create=False, **more):
        return client.call("conversation.open", name=name, fingerprint=FINGERPRINT, geometry=SHAPE, create=create,
                           write=True, **more)["conversation"]

    def prepare(self):
        daemon = Daemon(self.binary)
        try:
            client = Client(daemon.socket)
            frozen = client.call("model.calibrate", **model(FINGERPRINT, SHAPE))
            for name, count in (("sealed", SEALED), ("nearly", NEARLY), ("gone", 20)):
                fill(client, SHAPE, self.open(client, name, True, model=frozen["id"]), count)
            while not client.call("stats")["segments_sealed"]:
                time.sleep(0.01)
            self.model = frozen["id"]
            client.close()
            assert daemon.stop() == 0
            shutil.copytree(daemon.data, self.template)
        finally:
            daemon.finish()

    # --- one run

    def attempt(self, call, *arguments):
        """What a call answered; None when it was refused, with a sentence that says why."""
        try:
            return call(*arguments)
        except RpcError as error:
            if error.code in ("internal", "bad_message") or len(str(error)) < len(error.code) + 10:
                self.wrong += 1
                self.note(f"says nothing of use: {error}")
            return None
        except AssertionError as error:
            self.wrong += 1
            self.note(str(error))
            return None

    def grow(self, client, name, handle, count):
        first = self.told.get(name, 0)
        if handle is not None and self.attempt(append, client, SHAPE, handle, first, count):
            self.told[name] = first + count

    def work(self, client):
        handles = {name: self.attempt(self.open, client, name) for name in ("sealed", "nearly")}
        self.grow(client, "nearly", handles["nearly"], 3)
        self.grow(client, "nearly", handles["nearly"], 50)  # over the border: a new log, a segment
        for name, handle in handles.items():
            if handle is None:
                continue
            for layer in (0, 1):
                self.attempt(lookup, client, SHAPE, handle, layer, 8, layer)
            if self.attempt(check_all, client, SHAPE, handle, min(self.told[name], 400)):
                self.wrong += 1
                self.note(f"{name} reads wrong")
        if not self.sanitized:  # a child that is forked while another thread is in its allocator may hang
            self.attempt(client.call, "verify")
        made = self.attempt(lambda: self.open(client, "new", True, model=self.model))
        self.grow(client, "new", made, 20)
        if self.attempt(lambda: client.call("conversation.delete", name="gone", confirm="gone")) is not None:
            self.told.pop("gone")
        else:
            self.told["gone"] = None  # either way is right
        for name, handle in handles.items():
            if handle is not None:
                self.attempt(lambda h=handle: client.call("conversation.close", conversation=h))
                handle = self.attempt(self.open, client, name)
                self.grow(client, name, handle, 2)
        self.attempt(lambda: client.call("conversation.list", after="", limit=10))
        self.attempt(lambda: client.call("conversation.info", name="sealed"))

    def check(self, daemon):
        """A start on a sound machine."""
        try:
            daemon.start()
        except RuntimeError as error:
            self.lost += 1
            self.note(str(error))
            return
        try:
            self.check_told(daemon)
        except RpcError as error:
            self.lost += 1
            self.note(str(error))
        except (ConnectionError, TimeoutError) as fault:
            self.crashed += 1
            self.note(f"{fault}\n{daemon.log_text()}{self.threads(daemon)}")
            return
        log = daemon.log_text()
        if daemon.stop() != 0:
            self.crashed += 1
            self.note("does not end in good order:\n" + log)

    @staticmethod
    def threads(daemon):
        """What each thread of a daemon that does not answer waits for."""
        lines = []
        tasks = f"/proc/{daemon.process.pid}/task"
        for task in os.listdir(tasks):
            for name in ("wchan", "syscall", "children"):
                with open(os.path.join(tasks, task, name), encoding="utf-8") as file:
                    lines.append(f"{task} {name} {file.read().strip()}")
        return "\n".join(lines)

    def check_told(self, daemon):
        client = Client(daemon.socket)
        for name, count in self.told.items():
            try:
                answer = client.call("conversation.open", name=name, fingerprint=FINGERPRINT, geometry=SHAPE,
                                     create=False, write=False)
            except RpcError as error:
                if count is not None:
                    self.lost += 1
                    self.note(f"{name} is gone: {error}")
                continue
            if count is not None and answer["count"] < count:
                self.lost += 1
                self.note(f"{name} has {answer['count']} tokens of {count}")
            if check_all(client, SHAPE, answer["conversation"], answer["count"]):
                self.wrong += 1
                self.note(f"{name} holds wrong bytes")
        client.close()

    def inject(self, call, error, when):
        return ["strace", "-f", "-qq", "-o", self.trace, "-e", "trace=" + call, "-e",
                f"inject={call}:error={error}:when={when}"]

    def attach(self, daemon, call, error, when):
        process = subprocess.Popen(self.inject(call, error, when) + ["-p", str(daemon.process.pid)],
                                   stderr=subprocess.DEVNULL)
        tasks = f"/proc/{daemon.process.pid}/task"
        for _ in range(500):
            traced = []
            for task in os.listdir(tasks):
                with open(os.path.join(tasks, task, "status"), encoding="utf-8") as status:
                    traced.append("TracerPid:\t0\n" not in status.read())
            if all(traced):
                return process
            time.sleep(0.005)
        raise RuntimeError("strace did not attach")

    def count_failed(self):
        if os.path.exists(self.trace):
            with open(self.trace, encoding="utf-8", errors="replace") as trace:
                self.failed += trace.read().count("(INJECTED)")
            os.unlink(self.trace)

    def run(self, call, error, when, at_start, options):
        self.runs += 1
        self.what = f"{call} {error} when={when}{' from the start' if at_start else ''} {' '.join(options)}"
        self.told = {"sealed": SEALED, "nearly": NEARLY, "gone": 20}
        daemon, strace, client = Daemon(self.binary, *options, start=False), None, None
        shutil.copytree(self.template, daemon.data)
        try:
            if at_start:
                daemon.wrap = self.inject(call, error, when)
            try:
                daemon.start()
            except RuntimeError:
                if daemon.process.poll() is None or daemon.process.returncode < 0 or daemon.process.returncode > 128:
                    raise
            if daemon.process.poll() is None:
                if not at_start:
                    strace = self.attach(daemon, call, error, when)
                client = Client(daemon.socket)
                self.work(client)
        except (RuntimeError, ConnectionError, TimeoutError, OSError) as fault:
            self.crashed += 1
            self.note(f"{fault}\n{daemon.log_text()}")
        finally:
            if client:
                client.close()
            if strace:
                strace.terminate()
                strace.wait()
            if daemon.process.poll() is None:
                self.end(daemon)
            self.count_failed()
            daemon.wrap = []
            self.check(daemon)
            daemon.finish()

    def end(self, daemon):
        """By a signal to be obeyed, or at once; strace, when it is the parent, passes neither on."""
        pid = daemon.process.pid
        children = f"/proc/{pid}/task/{pid}/children"
        with open(children, encoding="utf-8") as file:
            inner = [int(word) for word in file.read().split()] if daemon.wrap else [pid]
        for target in inner:
            os.kill(target, self.rng.choice((9, 15)))
        try:
            daemon.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.crashed += 1
            self.note("does not end\n" + self.threads(daemon))
            daemon.kill()

    def go(self, seconds):
        self.prepare()
        ends = time.monotonic() + seconds
        cases = []
        while time.monotonic() < ends:
            if not cases:
                cases = self.calls + OFTEN
                self.rng.shuffle(cases)
            call = cases.pop()
            number = self.rng.choice((1, 1, 2, 3, 4, 6, 9, 14))
            at_start = not self.sanitized and self.rng.random() < 0.2
            if at_start:
                number += self.rng.randrange(60)
            error = self.rng.choice(CALLS[call])
            # a call that is interrupted for ever is no disk's fault
            when = f"{number}+" if error not in ("EINTR", "EAGAIN") and self.rng.random() < 0.3 else f"{number}"
            self.run(call, error, when, at_start, self.rng.choice(((), ("--io-uring", "off"))))
        print(f"{self.runs} runs")
        print(f"torture: calls failed={self.failed} lost={self.lost} wrong={self.wrong} crashed={self.crashed}")
        shutil.rmtree(self.dir)
        return self.lost + self.wrong + self.crashed > 0 or self.failed == 0


def main():
    if not shutil.which("strace") or subprocess.run(["strace", "-f", "true"], capture_output=True,
                                                    check=False).returncode:
        print("skipped: strace is missing or not permitted here")
        return SKIPPED
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    print(f"seed {seed}")
    return int(Torture(sys.argv[1], seed).go(float(os.environ.get("COLDKV_TORTURE_SECONDS") or SECONDS)))


if __name__ == "__main__":
    sys.exit(main())
