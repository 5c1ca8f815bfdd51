# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""A conversation outlives its process and the daemon: the demo's model reads facts, both are killed, and a new process
is asked for them."""
import json
import os
import subprocess
import sys

import pytest
import torch

import coldkv
import coldkv.transformers as cold
import documents
from conftest import DEMO_MODEL, ROOT

READER = """
import json, os, signal, sys
sys.path[:0] = [sys.argv[1]]
import torch, transformers
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
import coldkv.transformers as cold
ids, questions, count = json.load(sys.stdin)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32).eval()
attachment = cold.attach(model, "book", socket=sys.argv[3], must_exist=not ids)
if ids:
    model(torch.tensor([ids]), logits_to_keep=1)
    attachment.sync()
said = []
for question in questions:
    before = attachment.tokens
    out = model.generate(torch.tensor([question]), max_new_tokens=count, do_sample=False)
    said.append(bytes(out[0, len(question):].tolist()).decode(errors="replace"))
    attachment.rewind(before)
last = model(torch.tensor([[10]])).logits[0, -1].tolist()
attachment.rewind(attachment.tokens - 1)
attachment.sync()
print(json.dumps([said, attachment.tokens, last]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def read(service, ids, questions):
    answer = subprocess.run(
        [sys.executable, "-c", READER, os.path.join(ROOT, "client", "python"), DEMO_MODEL, service.socket],
        input=json.dumps([ids, questions, documents.DIGITS]), stdout=subprocess.PIPE, text=True, check=False)
    return json.loads(answer.stdout.splitlines()[-1])


def test_a_new_process_goes_on_where_the_old_one_was_killed(service):
    text, facts = documents.document(3, 4096, 6)
    facts = facts[:5]
    questions = [list(fact.question.encode()) for fact in facts]
    first, tokens, last = read(service, list(text.encode()), questions)
    service.kill()
    service.start()
    again, tokens_again, last_again = read(service, [], questions)
    right = [fact.digits for fact in facts]
    assert sum(a == b for a, b in zip(first, right)) >= 4 and sum(a == b for a, b in zip(again, right)) >= 4
    assert tokens == tokens_again == 4096
    # the hot window is computed again, with what its tokens see of the past now: close, not equal
    agreement = torch.nn.functional.cosine_similarity(torch.tensor(last), torch.tensor(last_again), dim=0)
    assert agreement > 0.99


def test_another_model_is_refused(service, demo_model, llama):
    with cold.attach(demo_model, "whose", socket=service.socket):
        demo_model(torch.full((1, 400), 65))
    with pytest.raises(coldkv.ModelMismatchError):
        cold.attach(llama, "whose", socket=service.socket)
    assert cold.attached(llama) is None and llama.config._attn_implementation == "sdpa"
    with torch.no_grad():
        llama.lm_head.weight[7, 7] += 1e-3
    with cold.attach(demo_model, "whose", socket=service.socket) as attachment:
        assert attachment.tokens == 400
    changed = demo_model.state_dict()["model.norm.weight"].clone()
    try:
        demo_model.state_dict()["model.norm.weight"][3] += 1e-3
        with pytest.raises(coldkv.ModelMismatchError):
            cold.attach(demo_model, "whose", socket=service.socket)
    finally:
        demo_model.state_dict()["model.norm.weight"].copy_(changed)
