#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Power cuts on real file systems. The archive lies on a file system (ext4, XFS) in an image file; while clients
append, that file is cloned at an instant, and the clone is mounted, started on, and compared with what had been
acknowledged until then. Usage: test_powercut.py COLDKVD

The image lies on an XFS of its own, where a clone of a file (FICLONE) shuts out writes to it while it is made: it
holds exactly what the loop device had written at one moment, as a disk without a volatile cache does when its power
goes. What the file system above still had in memory is lost. A copy, which takes time, would show states that no disk
ever had.

The control is the same with durability none and clients that take stored for durable: there tokens have to be lost.

Needs root, loop devices, mkfs.ext4 and mkfs.xfs; skips (exit status 77) without. COLDKV_TORTURE_SECONDS=N: about so
long in all, half of it on XFS."""
import contextlib
import fcntl
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

from coldkv_load import Expected, Worker
from coldkv_protocol import Client, Daemon, RpcError

FICLONE = 0x40049409
CLIENTS = 3
OUTER_BYTES, INNER_BYTES = 2 << 30, 320 << 20
SECONDS, CONTROL_PART = 12.0, 0.25
MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
MOUNT = {"ext4": "loop", "xfs": "loop,nouuid"}  # a clone has the same UUID


class Refused(Exception):
    """This machine does not let us."""


def run(*command):
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if answer.returncode:
        raise Refused(f"{' '.join(command)}: {answer.stdout.decode(errors='replace').strip()}")


@contextlib.contextmanager
def mounted(image, where, options):
    os.makedirs(where, exist_ok=True)
    run("mount", "-o", options, image, where)
    try:
        yield where
    finally:
        for _ in range(50):
            if subprocess.run(["umount", where], stderr=subprocess.DEVNULL, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", where], check=False)


def make(image, size, kind):
    with open(image, "wb") as file:
        file.truncate(size)
    run(*MAKE[kind], image)


def clone(image, copy):
    with open(image, "rb") as source, open(copy, "wb") as target:
        fcntl.ioctl(target, FICLONE, source.fileno())


def sizes(logs):
    return [os.path.getsize(log) if os.path.exists(log) else 0 for log in logs]


def look(binary, image, where, kind, logs, certain, asked):
    """Mounts what a cut left, starts on it and compares. Returns lost, wrong, sentences."""
    with mounted(image, where, MOUNT[kind]):
        if not os.path.isdir(os.path.join(where, "data")):
            tokens = Expected(logs, certain, asked).tokens()
            return tokens, 0, ["the archive is gone"] if tokens else []
        daemon = Daemon(binary, data=os.path.join(where, "data"))
        try:
            with contextlib.closing(Client(daemon.socket)) as client:
                return Expected(logs, certain, asked).compare(client)
        finally:
            daemon.stop()
            daemon.finish()


def cuts(binary, base, kind, seconds, lies):
    """Cuts until the time is over. Returns cuts, lost, wrong, sentences."""
    rng, done, lost, wrong, said = random.Random(kind), 0, 0, 0, []
    image, copy = os.path.join(base, "image"), os.path.join(base, "cut")
    logs = [os.path.join(base, f"log-{i}") for i in range(CLIENTS)]
    make(image, INNER_BYTES, kind)
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(mounted(image, os.path.join(base, "disk"), MOUNT[kind]))
        os.sync()  # the directory that the archive is made in is there, whatever comes
        daemon = Daemon(binary, "--durability", "none" if lies else "always", data=os.path.join(where, "data"))
        stack.callback(daemon.finish)
        workers = [Worker(i, log, lies) for i, log in enumerate(logs)]
        stack.callback(lambda: [worker.finish() for worker in workers])
        for worker in workers:
            worker.go(daemon.socket)
        end = time.monotonic() + seconds
        while done == 0 or time.monotonic() < end:
            time.sleep(rng.random() * 0.3)
            certain = sizes(logs)
            clone(image, copy)
            asked = sizes(logs)
            less, other, more = look(binary, copy, os.path.join(base, "look"), kind, logs, certain, asked)
            os.unlink(copy)
            done, lost, wrong = done + 1, lost + less, wrong + other
            said += [f"{kind}, cut {done}: {sentence}" for sentence in more]
        for worker in workers:
            problem = worker.stop()
            if problem:
                wrong += 1
                said.append(problem)
    for log in logs:
        os.unlink(log)
    return done, lost, wrong, said


def torture(binary, base, seconds):
    kinds = ["ext4", "xfs"] if seconds > SECONDS else ["ext4"]
    done, lost, wrong = 0, 0, 0
    for kind in kinds:
        some, less, other, said = cuts(binary, base, kind, seconds * (1 - CONTROL_PART) / len(kinds), False)
        done, lost, wrong = done + some, lost + less, wrong + other
        for sentence in said[:10]:
            print(sentence, flush=True)
    _, control_lost, control_wrong, said = cuts(binary, base, "ext4", seconds * CONTROL_PART, True)
    if control_wrong:
        print("\n".join(sentence for sentence in said if "acknowledged" not in sentence))
    print(f"torture: powercut cuts={done} lost={lost} wrong={wrong} control_lost={control_lost}", flush=True)
    return lost == 0 and wrong + control_wrong == 0 and control_lost > 0


def main():
    seconds = float(os.environ.get("COLDKV_TORTURE_SECONDS", SECONDS))
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if os.geteuid() != 0:
        print("skipped: mounting file systems needs root")
        return 77
    base = tempfile.mkdtemp(prefix="coldkv-powercut-")
    outer = os.path.join(base, "outer")
    try:
        with contextlib.ExitStack() as stack:
            try:
                make(outer, OUTER_BYTES, "xfs")
                where = stack.enter_context(mounted(outer, os.path.join(base, "mnt"), "loop"))
                trial = os.path.join(where, "trial")
                make(trial, INNER_BYTES, "ext4")
                clone(trial, trial + "-clone")
                with mounted(trial + "-clone", os.path.join(where, "look"), "loop"):
                    pass
            except (Refused, OSError) as reason:
                print(f"skipped: no file system in an image can be made, mounted and cloned here: {reason}")
                return 77
            return 0 if torture(sys.argv[1], where, seconds) else 1
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RpcError as error:
        sys.exit(f"failed: {error}")
