# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""model(...) and model.generate(...) while a conversation is attached, and that nothing of it is left afterwards."""
import os
import signal
import warnings

import pytest
import tokenizers
import torch
import transformers

import coldkv
import coldkv.transformers as cold
from conftest import random_ids

GREEDY = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
TEMPLATE = ("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")


def tokenizer():
    """Bytes as tokens, with a chat template."""
    letters = {chr(i): i for i in range(32, 127)} | {"?": 63}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[], unk_token="?"))
    made.decoder = tokenizers.decoders.Fuse()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?",
                                                   model_input_names=["input_ids", "attention_mask"])
    wrapped.chat_template = TEMPLATE
    return wrapped


def test_the_same_tokens_are_generated(service, llama):
    ids = random_ids(150)
    alone = llama.generate(ids, **GREEDY)
    with cold.attach(llama, "same", socket=service.socket) as attachment:
        together = llama.generate(ids, **GREEDY)
        assert attachment.tokens == 162 and attachment.status.tokens == 162
        assert attachment.status.durable == attachment.status.stored
    assert torch.equal(alone, together)


def test_all_logits_come_back_from_several_blocks(service, llama):
    ids = random_ids(200)
    alone = llama(ids).logits
    with cold.attach(llama, "logits", socket=service.socket) as attachment:
        first = llama(ids[:, :70], torch.ones(1, 70), logits_to_keep=66)
        assert first.logits.shape == (1, 66, 300) and first.past_key_values is attachment.cache
        assert torch.allclose(first.logits, alone[:, 4:70], atol=1e-3)
        second = llama(input_ids=ids[:, 70:], return_dict=False)
        assert torch.allclose(second[0], alone[:, 70:], atol=1e-3)


def test_weights_are_untouched_and_detaching_leaves_nothing(service, llama):
    ids = random_ids(100)
    alone, weights, attributes = llama(ids).logits, cold.hash_of_weights(llama), set(llama.__dict__)
    attachment = cold.attach(llama, "untouched", socket=service.socket)
    assert cold.hash_of_weights(llama) == weights and cold.attached(llama) is attachment
    with pytest.raises(ValueError, match="untouched"):
        cold.attach(llama, "second", socket=service.socket)
    llama.generate(ids, **GREEDY)
    assert cold.hash_of_weights(llama) == weights
    cold.detach(llama)
    cold.detach(llama)
    assert cold.hash_of_weights(llama) == weights and cold.attached(llama) is None
    assert set(llama.__dict__) == attributes and llama.config._attn_implementation == "sdpa"
    assert torch.equal(llama(ids).logits, alone)
    with pytest.raises(coldkv.StateError):
        attachment.sync()


def test_a_hook_that_was_there_stays(service, llama):
    calls, original = [], llama.forward
    llama.forward = lambda *a, **b: (calls.append(1), original(*a, **b))[1]
    mine = llama.forward
    with cold.attach(llama, "hook", socket=service.socket):
        calls.clear()
        llama(input_ids=random_ids(10))
        assert len(calls) == 1
    assert llama.forward is mine


def test_a_chat_goes_on(service, llama):
    words, messages, expected = tokenizer(), [], []
    turns = ["Hello, who are you?", "And what is the time?", "Good bye."]
    for attached in (False, True):
        messages = []
        if attached:
            attachment = cold.attach(llama, "chat", socket=service.socket)
        for number, turn in enumerate(turns):
            messages.append({"role": "user", "content": turn})
            inputs = words.apply_chat_template(messages, add_generation_prompt=True, return_dict=True,
                                               return_tensors="pt")
            out = llama.generate(**inputs, **GREEDY, suppress_tokens=list(range(32)) + list(range(127, 300)))
            answer = words.decode(out[0, inputs["input_ids"].shape[1]:])
            messages.append({"role": "assistant", "content": answer})
            if attached:
                assert answer == expected[number]
                assert attachment.tokens == out.shape[1], "what is there already is not read again"
            else:
                expected.append(answer)
    cold.detach(llama)


def test_what_inputs_mean(service, llama):
    ids = random_ids(80)
    with cold.attach(llama, "prompt new", socket=service.socket, prompt="new") as attachment:
        first = llama.generate(ids, **GREEDY)
        llama.generate(first, **GREEDY)  # looks like the whole, is taken as new
        assert attachment.tokens == 92 + 92 + 12
    with cold.attach(llama, "prompt auto", socket=service.socket) as attachment:
        first = llama.generate(ids, **GREEDY)
        assert torch.equal(llama.generate(first, **GREEDY)[:, :92], first) and attachment.tokens == 104
        assert llama.generate(ids, **GREEDY).shape == (1, 92) and attachment.tokens == 104 + 92
    with cold.attach(llama, "prompt whole", socket=service.socket, prompt="whole") as attachment:
        first = llama.generate(ids, **GREEDY)
        assert torch.equal(llama.generate(ids, **GREEDY), first), "the same again"
        changed = torch.cat([first[:, :85], random_ids(9, seed=2)], dim=1)
        second = llama.generate(changed, **GREEDY)
        assert attachment.tokens == second.shape[1] == 106
    assert torch.equal(second, llama.generate(changed, **GREEDY))
    with cold.attach(llama, "prompt whole", socket=service.socket, prompt="whole") as attachment:
        llama(random_ids(900))
        with pytest.raises(coldkv.OutOfRangeError):
            llama.generate(ids, **GREEDY)


def test_guessed_tokens_are_taken_back(service, llama):
    ids, options = torch.cat([random_ids(30)] * 4, dim=1), {**GREEDY, "eos_token_id": 299}
    alone = llama.generate(ids, **options)
    with cold.attach(llama, "guess", socket=service.socket) as attachment:
        assert torch.equal(llama.generate(ids, **options, prompt_lookup_num_tokens=4), alone)
        assert attachment.tokens == alone.shape[1]


def test_what_is_refused(service, llama):
    ids = random_ids(10)
    with pytest.raises(ValueError, match="hot=512"):
        cold.attach(llama, "refused", socket=service.socket, hot=512)
    with pytest.raises(ValueError, match="prompt"):
        cold.attach(llama, "refused", socket=service.socket, prompt="maybe")
    with cold.attach(llama, "refused", socket=service.socket) as attachment:
        padded = torch.ones(1, 10)
        padded[0, 0] = 0
        for words, call in {
            r"\[1, n\]": lambda: llama(ids.repeat(2, 1)),
            r"shape \(2, 10\)": lambda: llama.generate(ids.repeat(2, 1)),
            "conversation": lambda: llama.generate(ids, num_beams=2, max_new_tokens=2),
            "padding": lambda: llama(ids, attention_mask=padded),
            "inputs_embeds": lambda: llama(inputs_embeds=torch.zeros(1, 2, 128)),
            "input_ids": lambda: llama.generate(inputs_embeds=torch.zeros(1, 2, 128)),
            "labels": lambda: llama(ids, labels=ids),
            "output_attentions": lambda: llama(ids, output_attentions=True),
            "past_key_values": lambda: llama(ids, past_key_values=transformers.DynamicCache()),
            "use_cache": lambda: llama.generate(ids, use_cache=False),
            "past_key_values of": lambda: llama.generate(ids, past_key_values=transformers.DynamicCache()),
            "training": lambda: llama.train()(ids),
        }.items():
            with pytest.raises(cold.NotSupported, match=words):
                call()
            llama.eval()
            assert attachment.tokens == 0 == attachment.status.tokens, words
        with pytest.raises(RuntimeError, match="not a part of it"):
            llama.model(ids)
        llama(ids)  # and none of that stands in the way


def test_an_exception_inside_leaves_a_whole_number_of_blocks(service, llama):
    with cold.attach(llama, "exception", socket=service.socket) as attachment:
        llama(random_ids(64))
        handle = llama.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llama(random_ids(10))
        handle.remove()
        assert attachment.tokens == 64 == attachment.status.tokens
        llama(random_ids(10))


def test_generation_goes_on_without_a_daemon(service, llama):
    with cold.attach(llama, "away", socket=service.socket) as attachment:
        llama(random_ids(500))
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                attachment.conversation.model.client  # the client is the attachment's own, with its usual patience
                assert llama(random_ids(200)).logits.isfinite().all()
        finally:
            service.start()
        assert not caught and attachment.tokens == 700
        attachment.sync()
        assert attachment.status.connected and attachment.status.backlog == 0
