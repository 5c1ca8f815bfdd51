# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""What the harness asks of an engine. Ids are lists of ints; this project's model has bytes as tokens."""


class Engine:
    """An inference engine with a model loaded. One conversation at a time is open."""

    name = "?"

    def versions(self):
        """What the figures depend on beside coldkv: {library: version}."""
        raise NotImplementedError

    def device(self):
        """The device that the model runs on, in words."""
        raise NotImplementedError

    def window(self):
        """Trained window in tokens."""
        raise NotImplementedError

    # --- with coldkv

    def open(self, conversation):
        """Opens a conversation, making it if need be."""
        raise NotImplementedError

    def close(self):
        """Closes it; nothing happens if none is open."""
        raise NotImplementedError

    def feed(self, ids, slots):
        """Reads tokens with that many retrieved ones."""
        raise NotImplementedError

    def answer(self, ids, count, slots):
        """The likeliest `count` ids after these, one by one; the conversation is then as it was before."""
        raise NotImplementedError

    def logits(self, ids, slots):
        """Logits after each of these tokens, numpy float32 [n, vocabulary]; they stay in the conversation."""
        raise NotImplementedError

    def missed(self):
        """Lookups that got no answer, and bad records: figures with any are of something else."""
        raise NotImplementedError

    # --- without

    def plain_logits(self, ids):
        """Logits of the unmodified engine after each token, numpy float32 [n, vocabulary]."""
        raise NotImplementedError

    def decode_seconds(self, ids, count, slots):
        """Seconds that `count` tokens take one by one: in the open conversation, or, when none is open, in a plain
        cache that holds `ids`. What was added is taken back."""
        raise NotImplementedError

    def memory_bytes(self):
        """Memory of this process now, {kind: bytes}: "resident", and "device" where the model runs on another one."""
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return {"resident": 1024 * int(line.split()[1])}
        raise RuntimeError("/proc/self/status has no VmRSS")
