# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Conversations through the Python package, against attention in float64 and a real daemon."""
import gc
import os
import signal
import threading
import time

import numpy as np
import pytest

import coldkv
import toy


def test_attention_inside_the_hot_window_is_exact(client):
    with toy.model(client) as model, coldkv.Conversation(model, "exact") as conversation:
        outs = toy.feed(conversation, 0, 200)
        for layer in range(toy.LAYERS):
            np.testing.assert_allclose(outs[layer], toy.attention(layer, 0, 200), atol=2e-5)
        assert conversation.status.tokens == 200


@pytest.mark.parametrize("interleaved", [False, True])
def test_queries_and_keys_may_come_after_rope(client, interleaved):
    rope = coldkv.Rope.INTERLEAVED if interleaved else coldkv.Rope.HALF
    with toy.model(client, rope=rope) as model, coldkv.Conversation(model, "rotated") as conversation:
        positions = np.arange(7, 57) * 3
        q, k, v = toy.vectors(0, 0, 50)
        q, k = (toy.rotate(x, positions, interleaved).astype(np.float32) for x in (q, k))
        conversation.begin(toy.ids(0, 50), positions)
        out = conversation.attend(0, q, k, v)
        np.testing.assert_allclose(out, toy.attention(0, 0, 50, interleaved), atol=2e-5)
        conversation.abort()


def test_an_old_token_comes_back(client):
    with toy.model(client) as model, coldkv.Conversation(model, "old") as conversation:
        old = 40
        toy.feed(conversation, 0, 640)
        q, k, v = toy.vectors(0, 640, 1)
        wanted = toy.vectors(0, old, 1)
        # every query head asks for what that token's key says, rotated to where the query is
        q = np.repeat(wanted[1] * 4, toy.GROUP, axis=1)
        q = np.ascontiguousarray(toy.rotate(q, [old - 640]).astype(np.float32))
        conversation.begin(toy.ids(640, 1))
        conversation.prefetch(0, q[0])
        slots = conversation.retrieve(0, q)
        assert slots.index.shape[:2] == (1, toy.KV_HEADS) and slots.hot_first == 384 and not slots.packed
        for head in range(toy.KV_HEADS):
            assert list(slots.tokens[head]) == sorted(slots.tokens[head]) and old in slots.tokens[head]
            place = list(slots.tokens[head]).index(old)
            assert cosine(slots.keys[head][place], wanted[1][0, head]) > 0.95
            assert cosine(slots.values[head][place], wanted[2][0, head]) > 0.95
        assert conversation.status.prefetches == conversation.status.prefetches_used == 1
        out = conversation.attend(0, q, k, v)
        assert cosine(out[0, 0], wanted[2][0, 0]) > 0.9
        conversation.abort()
        conversation.set_slots(0)
        conversation.begin(toy.ids(640, 1))
        assert cosine(conversation.attend(0, q, k, v)[0, 0], wanted[2][0, 0]) < 0.5
        conversation.abort()


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_conversation_is_resumed(service):
    with coldkv.Client(service.socket) as client, toy.model(client) as model:
        with coldkv.Conversation(model, "long") as conversation:
            toy.feed(conversation, 0, 900)
            conversation.sync()
            assert conversation.status.durable == conversation.status.stored > 0
    service.kill()
    service.start()
    with coldkv.Client(service.socket) as client, toy.model(client) as model:
        with coldkv.Conversation(model, "long", must_exist=True) as conversation:
            fed = []
            while (block := conversation.resume()).size:
                first = int(block[0])  # the toy's ids are the tokens' indices
                np.testing.assert_array_equal(block, toy.ids(first, block.size))
                toy.feed(conversation, first, block.size)
                fed += range(first, first + block.size)
            assert fed[:4] == [0, 1, 2, 3] and fed[4] > 250 and fed[-1] == 899
            assert conversation.status.tokens == 900
            outs = toy.feed(conversation, 900, 10)
        with coldkv.Conversation(model, "other") as other:
            toy.feed(other, 0, 900)
            np.testing.assert_allclose(outs[0], toy.feed(other, 900, 10)[0], atol=1e-5)


def test_going_back_and_giving_up(client):
    with toy.model(client) as model, coldkv.Conversation(model, "back") as conversation:
        toy.feed(conversation, 0, 100)
        first = toy.feed(conversation, 100, 20)
        conversation.rewind(100)
        again = toy.feed(conversation, 100, 20)
        np.testing.assert_array_equal(first[0], again[0])
        with pytest.raises(ZeroDivisionError):
            with conversation.block(toy.ids(120, 3)):
                1 / 0
        assert conversation.status.tokens == 120
        with pytest.raises(coldkv.OutOfRangeError):
            conversation.rewind(121)


def test_push_is_attention_without_the_answer(client):
    with toy.model(client) as model, coldkv.Conversation(model, "push") as conversation:
        with conversation.block(toy.ids(0, 30)):
            for layer in range(toy.LAYERS):
                conversation.push(layer, *toy.vectors(layer, 0, 30)[1:])
        np.testing.assert_allclose(toy.feed(conversation, 30, 5)[1], toy.attention(1, 30, 5), atol=2e-5)


def test_closing_a_client_closes_what_was_made_from_it(service):
    client = coldkv.Client(service.socket)
    model = toy.model(client)
    conversation = coldkv.Conversation(model, "closed")
    client.close()
    client.close()
    assert client.closed and model.closed and conversation.closed
    with pytest.raises(coldkv.StateError, match="closed"):
        conversation.begin([1])
    with coldkv.Client(service.socket) as second, toy.model(second) as model:
        coldkv.Conversation(model, "closed").close()  # the lease is free again


def test_garbage_in_a_circle_is_destroyed_in_order(service, monkeypatch):
    class Recorder:
        def __getattr__(self, name):
            if name in ("coldkv_close", "coldkv_model_destroy", "coldkv_client_destroy"):
                calls.append(name)
            return getattr(coldkv.library, name)

    calls = []
    monkeypatch.setattr(coldkv.client, "library", Recorder())
    monkeypatch.setattr(coldkv.conversation, "library", Recorder())
    for attempt in range(3):
        client = coldkv.Client(service.socket)
        model = toy.model(client)
        conversation = coldkv.Conversation(model, "circle")
        client.circle = [model, conversation]
        calls.clear()
        del client, model, conversation
        assert not calls
        gc.collect()
        assert calls == ["coldkv_close", "coldkv_model_destroy", "coldkv_client_destroy"]


def test_another_thread_runs_while_a_call_waits(service):
    with coldkv.Client(service.socket, sync_timeout_ms=1500) as client, toy.model(client) as model:
        with coldkv.Conversation(model, "waits") as conversation:
            toy.feed(conversation, 0, 400)
            turns, stop = [0], threading.Event()

            def work():
                while not stop.is_set():
                    turns[0] += 1
                    time.sleep(0.001)

            worker = threading.Thread(target=work)
            os.kill(service.process.pid, signal.SIGSTOP)
            try:
                worker.start()
                before, start = turns[0], time.monotonic()
                with pytest.raises(coldkv.TimedOutError):
                    conversation.sync()
                assert time.monotonic() - start > 1 and turns[0] - before > 100
            finally:
                os.kill(service.process.pid, signal.SIGCONT)
                stop.set()
                worker.join()
