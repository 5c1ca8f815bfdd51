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


class Clock(transformers.StoppingCriteria):
    """Tells when generate() has its first token, and when it has `count`. Never stops it."""

    def __init__(self, device, count):
        self.device, self.left, self.count = device, count, count
        self.began = self.ended = None

    def __call__(self, input_ids, scores, **_):
        if self.left in (1, self.count):
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.began, self.ended = self.began or time.perf_counter(), time.perf_counter()
        self.left -= 1
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


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
        """Of `count` tokens after the first one: reading the inputs varies more than these take."""
        clock = Clock(self.model.device, count + 1)
        self.model.generate(self._tensor(ids), do_sample=False, min_new_tokens=count + 1, max_new_tokens=count + 1,
                            pad_token_id=0, stopping_criteria=[clock])
        return clock.ended - clock.began

    def decode_seconds(self, ids, count, slots):
        if self.attachment is None:
            return self._generate_seconds(ids, count)
        self.attachment.set_slots(slots)
        before = self.attachment.tokens
        seconds = self._generate_seconds(ids[-8:], count)
        self.attachment.rewind(before)
        return seconds

    def memory_bytes(self):
        found = super().memory_bytes()
        if self.model.device.type == "cuda":
            found["device"] = torch.cuda.memory_allocated(self.model.device)
        return found
