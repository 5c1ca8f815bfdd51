#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Who may connect, what users see of each other, and what modes files have. Needs several users, so it runs as root;
clients of other users are children that give root up. Usage: test_access.py COLDKVD [TEST ...]"""
import os
import pickle
import stat
import sys
import traceback
import unittest
import warnings

from coldkv_protocol import Client, Daemon, RpcError, geometry, model, tokens
from coldkv_testcase import FINGERPRINT, WithDaemon, main

ALICE, BOB, CAROL = 54321, 54322, 54323
TEAM = 54400


def as_user(uid, task, groups=(), gid=None):
    """What task() returns, run by a child with that uid; exceptions of the child fail the test."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        warnings.simplefilter("ignore")  # the child's end closes its sockets
        try:
            os.setgroups(groups)
            os.setgid(gid or uid)
            os.setuid(uid)
            answer = (True, task())
        except Exception:  # pylint: disable=broad-except
            answer = (False, traceback.format_exc())
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        good, answer = pickle.load(pipe)
    os.waitpid(child, 0)
    if not good:
        raise AssertionError(answer)
    return answer


class Shared(WithDaemon):
    options = ("--allow-users", f"{ALICE}, nobody", "--allow-groups", str(TEAM))

    def setUp(self):
        super().setUp()
        os.chmod(self.daemon.dir, 0o711)

    def code_of(self, method, **params):
        """The error code a call ends with, None when it succeeds."""
        client = Client(self.daemon.socket)
        try:
            client.call(method, **params)
            return None
        except RpcError as error:
            return error.code
        finally:
            client.close()

    def knock(self, uid, **more):
        return as_user(uid, lambda: self.code_of("hello", protocol=1), **more)

    def test_who_may_connect(self):
        self.assertIsNone(self.knock(ALICE))
        self.assertIsNone(self.knock(65534))  # nobody, by name
        self.assertEqual(self.knock(BOB), "denied")
        self.assertIsNone(self.knock(BOB, gid=TEAM))
        self.assertIsNone(self.knock(BOB, groups=[1, 2, TEAM]))
        self.assertIsNone(self.knock(BOB, groups=list(range(60000, 60200)) + [TEAM]))
        self.assertEqual(self.knock(BOB, groups=[1, 2]), "denied")
        self.assertEqual(stat.S_IMODE(os.stat(self.daemon.socket).st_mode), 0o666)
        self.assertIn(f"user {BOB} may not connect", self.daemon.log_text())
        self.assertEqual(self.client.call("stats")["refused"], 2)

    def test_refusals_do_not_fill_the_log(self):
        as_user(BOB, lambda: [self.code_of("hello", protocol=1) for _ in range(200)] and None)
        self.assertLess(self.daemon.log_text().count("may not connect"), 20)
        self.assertIsNone(self.knock(ALICE))

    def own_things(self, name, count):
        """A model and a conversation of `count` tokens; the id of the model."""
        client = Client(self.daemon.socket)
        known = client.call("model.calibrate", **model(FINGERPRINT, geometry()))
        handle = client.call("conversation.open", name=name, fingerprint=FINGERPRINT, geometry=geometry(),
                             model=known["id"], create=True, write=True)["conversation"]
        ids, records = tokens(self.rng, geometry(), 0, count)
        client.call("conversation.append", conversation=handle, first=0, ids=ids, records=records)
        return known["id"], known["uid"]

    def foreign_codes(self, model_id):
        """What somebody is told who tries to get at the conversation "secret"."""
        wanted = {"name": "secret", "fingerprint": FINGERPRINT, "geometry": geometry()}
        return [self.code_of("conversation.info", name="secret"), self.code_of("conversation.open", **wanted),
                self.code_of("conversation.delete", name="secret", confirm="secret"),
                self.code_of("model.get", id=model_id), self.code_of("model.get", fingerprint=FINGERPRINT),
                self.code_of("conversation.open", **{**wanted, "name": "x", "create": True, "model": model_id}),
                self.code_of("conversation.tokens", conversation=256, first=0, count=4),
                self.code_of("verify")]

    def test_users_do_not_see_each_other(self):
        model_id, uid = as_user(ALICE, lambda: self.own_things("secret", 20))
        self.assertEqual(uid, ALICE)
        for other in (0, CAROL):
            client = {"groups": [TEAM]} if other else {}
            codes = as_user(other, lambda: self.foreign_codes(model_id), **client)
            self.assertEqual(codes[:7], ["no_conversation"] * 3 + ["no_model"] * 3 + ["not_open"])
            self.assertEqual(codes[7], None if other == 0 else "denied")
            lists = as_user(other, lambda: [Client(self.daemon.socket).call(f"{what}.list")[f"{what}s"]
                                            for what in ("model", "conversation")], **client)
            self.assertEqual(lists, [[], []])
        # the same names and fingerprint are another's to use
        bob_model, bob = as_user(CAROL, lambda: self.own_things("secret", 3), groups=[TEAM])
        self.assertEqual(bob, CAROL)
        self.assertNotEqual(bob_model, model_id)

        def look():
            return Client(self.daemon.socket).call("conversation.info", name="secret")
        self.assertEqual(as_user(ALICE, look)["tokens"], 20)
        self.assertEqual(as_user(CAROL, look, groups=[TEAM])["tokens"], 3)

    def test_stats_tell_a_user_of_itself(self):
        as_user(ALICE, lambda: self.own_things("secret", 20))
        figures = as_user(CAROL, lambda: Client(self.daemon.socket).call("stats"), groups=[TEAM])
        harmless = {"uptime_s", "connections", "connections_total", "requests", "io_uring"}
        self.assertEqual({name for name, value in figures.items() if value} - harmless, set())
        self.assertEqual((figures["connections"], figures["requests"]), (1, 1))
        everything = self.client.call("stats")
        self.assertEqual(everything["appended_tokens"], 20)
        self.assertGreater(everything["requests"], 3)


class Private(WithDaemon):
    def test_only_the_own_user(self):
        self.assertEqual(stat.S_IMODE(os.stat(self.daemon.socket).st_mode), 0o600)
        os.chmod(self.daemon.dir, 0o711)
        with self.assertRaises(AssertionError) as caught:  # the socket's mode already keeps it out
            as_user(ALICE, lambda: Client(self.daemon.socket))
        self.assertIn("PermissionError", str(caught.exception))
        os.chmod(self.daemon.socket, 0o666)
        with self.assertRaises(AssertionError) as caught:
            as_user(ALICE, lambda: Client(self.daemon.socket).call("stats"))
        self.assertIn("denied", str(caught.exception))


class Modes(unittest.TestCase):
    def check(self, umask):
        before = os.umask(umask)
        try:
            daemon = Daemon(WithDaemon.binary)
        finally:
            os.umask(before)
        self.addCleanup(daemon.finish)
        client = Client(daemon.socket)
        known = client.call("model.calibrate", **model(FINGERPRINT, geometry()))
        client.call("conversation.open", name="a", fingerprint=FINGERPRINT, geometry=geometry(), model=known["id"],
                    create=True, write=True)
        client.call("conversation.append", conversation=256, first=0, ahead=bytes(4))
        client.close()
        daemon.stop()
        seen = 0
        for where, folders, files in os.walk(daemon.data):
            self.assertEqual(stat.S_IMODE(os.stat(where).st_mode), 0o700, where)
            for name in files:
                path = os.path.join(where, name)
                self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600, path)
                seen += 1
        self.assertGreaterEqual(seen, 6)  # LOCK, two of the catalog, model, meta, log
        return daemon

    def test_umask_0(self):
        self.check(0)

    def test_umask_0777(self):
        self.check(0o777)

    def test_an_open_archive_is_closed(self):
        daemon = self.check(0o022)
        os.chmod(daemon.data, 0o755)
        daemon.start()
        self.assertEqual(stat.S_IMODE(os.stat(daemon.data).st_mode), 0o700)
        self.assertIn("was open to other users", daemon.log_text())


if __name__ == "__main__":
    if os.getuid():
        print("skipped: takes several users, and only root can be them")
        sys.exit(77)
    main()
