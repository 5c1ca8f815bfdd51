# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""What the tests that see the daemon from outside share: one daemon and one connection for each test."""
import random
import sys
import unittest

from coldkv_protocol import Client, Daemon, RpcError, geometry, model, tokens

FINGERPRINT = bytes(range(32))


def main():
    """Runs the tests of the calling program: COLDKVD [TEST ...]"""
    WithDaemon.binary = sys.argv.pop(1)
    unittest.main(verbosity=2)


class WithDaemon(unittest.TestCase):
    binary = None
    options = ()

    def setUp(self):
        self.daemon = Daemon(self.binary, *self.options)
        self.addCleanup(self.daemon.finish)
        self.client = self.connect()
        self.rng = random.Random(1)
        self.shape = geometry()

    def connect(self):
        client = Client(self.daemon.socket)
        self.addCleanup(client.close)
        return client

    def calibrated(self, fingerprint=FINGERPRINT):
        return self.client.call("model.calibrate", **model(fingerprint, self.shape))

    def open(self, name="c", client=None, **more):
        return (client or self.client).call("conversation.open", name=name, fingerprint=FINGERPRINT,
                                            geometry=self.shape, **{"create": True, "write": True, **more})

    def ready(self, name="c"):
        """An open conversation with a model."""
        return self.open(name, model=self.calibrated()["id"])["conversation"]

    def append(self, handle, first, count, ahead=b"", **more):
        ids, records = tokens(self.rng, self.shape, first, count)
        answer = self.client.call("conversation.append", conversation=handle, first=first, ids=ids, records=records,
                                  ahead=ahead, **more)
        return ids, records, answer

    def refused(self, code, method, client=None, **params):
        with self.assertRaises(RpcError) as caught:
            (client or self.client).call(method, **params)
        self.assertEqual(caught.exception.code, code, str(caught.exception))
