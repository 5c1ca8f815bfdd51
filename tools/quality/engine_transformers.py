# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Hugging Face transformers for the harness."""
import time

import numpy as np
import torch
import transformers

import coldkv
import coldkv.transformers
from engine import Engine

SHORT_MAX = coldkv.REWIND_EXACT - 1  # tokens that can be taken back to the very state before


class Transformers(Engine):
    name = "transformers"

    def __init__(self, model, socket, device="cpu", dtype="float32", threads=1, spin_us=0):
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype), local_files_only=True).to(device).eval()
        self.socket, self.dtype, self.spin_us, self.attachment = socket, dtype, spin_us, None

    def versions(self):
        found = {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__,
                 "coldkv": coldkv.__version__}
        if self.model.device.type == "cuda":
            found["cuda"] = torch.version.cuda
        return found

    def device(self):
        name = torch.cuda.get_device_name(self.model.device) if self.model.device.type == "cuda" else "cpu"
        return f"{name}, {self.dtype}, {torch.get_num_threads()} threads"

    def window(self):
        return self.model.config.max_position_embeddings

    def open(self, conversation):
        self.attachment = coldkv.transformers.attach(self.model, conversation, socket=self.socket,
                                                     spin_us=self.spin_us)

    def close(self):
        coldkv.transformers.detach(self.model)
        self.attachment = None

    def _tensor(self, ids):
        return torch.tensor([ids], device=self.model.device)

    def _run(self, ids, slots, keep):
        self.attachment.set_slots(slots)
        return self.model(self._tensor(ids), logits_to_keep=keep).logits[0]

    def feed(self, ids, slots):
        self._run(ids, slots, 1)

    def answer(self, ids, count, slots):
        before = self.attachment.tokens
        if len(ids) + count > SHORT_MAX:
            raise ValueError(f"{len(ids)} tokens and {count} of the answer cannot be taken back exactly")
        found, given = [], ids
        for _ in range(count):
            found.append(int(self._run(given, slots, 1)[-1].argmax()))
            given = found[-1:]
        self.attachment.rewind(before)
        return found

    def logits(self, ids, slots):
        return self._run(ids, slots, len(ids)).float().cpu().numpy()

    def missed(self):
        status = self.attachment.status
        return status.lookups_missed + status.bad_records

    @torch.no_grad()
    def plain_logits(self, ids):
        return self.model(self._tensor(ids)).logits[0].float().cpu().numpy()

    def _generate_seconds(self, ids, count):
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        out = self.model.generate(self._tensor(ids), do_sample=False, min_new_tokens=count, max_new_tokens=count,
                                  pad_token_id=0)
        out.cpu()
        return time.perf_counter() - start

    def decode_seconds(self, ids, count, slots):
        if self.attachment is None:
            return self._generate_seconds(ids, count + 1) - self._generate_seconds(ids, 1)
        self.attachment.set_slots(slots)
        before, seconds = self.attachment.tokens, []
        for length in (1, count + 1):  # the difference leaves out reading the inputs, and storing in the end
            seconds.append(self._generate_seconds(ids[-8:], length))
            self.attachment.rewind(before)
        return seconds[1] - seconds[0]

    def memory_bytes(self):
        found = super().memory_bytes()
        if self.model.device.type == "cuda":
            found["device"] = torch.cuda.memory_allocated(self.model.device)
        return found
