# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""A conversation outlives its process and the daemon: the demo's model reads facts, both are killed, and a new process
is asked for them."""
import multiprocessing
import os
import signal

import pytest
import torch

import coldkv
import coldkv.transformers as cold
import documents


def reader(pipe, model, socket, ids, questions):
    """Sends answers, number of tokens and what one more token would give, and is killed."""
    attachment = cold.attach(model, "book", socket=socket, must_exist=not ids)
    if ids:
        attachment.set_slots(0)  # reading takes less time without retrieval
        model(torch.tensor([ids]), logits_to_keep=1)
        attachment.set_slots(64)
        attachment.sync()
    said = []
    for question in questions:
        before = attachment.tokens
        out = model.generate(torch.tensor([question]), max_new_tokens=documents.DIGITS, do_sample=False)
        said.append(bytes(out[0, len(question):].tolist()).decode(errors="replace"))
        attachment.rewind(before)
    last = model(torch.tensor([[10]])).logits[0, -1].tolist()
    attachment.rewind(attachment.tokens - 1)
    attachment.sync()
    pipe.send((said, attachment.tokens, last))
    os.kill(os.getpid(), signal.SIGKILL)


def read(model, service, ids, questions):
    """In a process of its own; forked, because loading PyTorch takes longer than all of this."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(False)
    process = context.Process(target=reader, args=(sender, model, service.socket, ids, questions))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()
        assert process.exitcode == -signal.SIGKILL


def test_a_new_process_goes_on_where_the_old_one_was_killed(service, demo_model):
    text, facts = documents.document(3, 3072, 6)
    facts = facts[:4]
    questions = [list(fact.question.encode()) for fact in facts]
    first, tokens, last = read(demo_model, service, list(text.encode()), questions)
    service.kill()
    service.start()
    again, tokens_again, last_again = read(demo_model, service, [], questions)
    right = [fact.digits for fact in facts]
    assert first == again == right
    assert tokens == tokens_again == 3072
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
