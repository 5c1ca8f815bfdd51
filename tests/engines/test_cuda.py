# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Models and tensors on a CUDA device: with the hot window there, and with it on the processor."""
import sys

import pytest
import torch

import coldkv
import coldkv.transformers as cold
from conftest import ROOT, random_ids

sys.path.append(ROOT + "/tests/python")
import toy  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def open_there(service):
    """Opens conversations on the device, or skips where the library was built without CUDA."""
    with coldkv.Client(service.socket) as client, toy.model(client) as model:
        def make(name, **options):
            try:
                return coldkv.Conversation(model, name, device=0, **options)
            except coldkv.NotSupportedError as error:
                pytest.skip(str(error))
        yield model, make


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_tensors_there_and_arrays_here_give_the_same(open_there, kind):
    model, make = open_there
    dtype, tokens = getattr(torch, kind), 640
    tolerance = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}[kind]
    with make(f"there {kind}", hot_type=kind) as there, coldkv.Conversation(model, f"here {kind}") as here:
        for first in range(0, tokens, 64):
            with there.block(toy.ids(first, 64)), here.block(toy.ids(first, 64)):
                for layer in range(toy.LAYERS):
                    q, k, v = (torch.from_numpy(x).to(dtype) for x in toy.vectors(layer, first, 64))
                    mine = there.attend(layer, q.cuda(), k.cuda(), v.cuda())
                    theirs = here.attend(layer, q.float(), k.float(), v.float())
                    assert mine.dtype == dtype and mine.device.type == "cuda"
                    difference = torch.linalg.norm(mine.float().cpu() - theirs) / torch.linalg.norm(theirs)
                    assert difference < tolerance, (first, layer)
        status = there.status
        assert status.device_bytes >= status.hot_bytes > 0 and status.lookups and not status.lookups_missed


def test_what_is_not_taken_there(open_there):
    _, make = open_there
    with make("wrong", hot_type="bfloat16") as there:
        q, k, v = (torch.from_numpy(x).cuda() for x in toy.vectors(0, 0, 2))
        there.begin(toy.ids(0, 2))
        with pytest.raises(TypeError, match="float64"):
            there.attend(0, q.double(), k, v)
        with pytest.raises(TypeError, match="k is torch.float16"):
            there.attend(0, q, k.half(), v)
        with pytest.raises(TypeError, match="v is on cpu"):
            there.attend(0, q, k, v.cpu())
        with pytest.raises(ValueError, match="shape"):
            there.attend(0, q, q, v)
        with pytest.raises(ValueError, match="contiguous"):
            there.attend(0, q.transpose(1, 2).contiguous().transpose(1, 2), k, v)
        there.abort()


@pytest.mark.parametrize("gpu", [False, True])
def test_a_model_there_says_what_it_says_alone(service, llama, gpu):
    model, ids = llama.to("cuda", torch.bfloat16), random_ids(380).cuda()
    with torch.no_grad():
        exact = model.float()(ids).logits
        alone = model.bfloat16()(ids).logits.float()
    try:
        attachment = cold.attach(model, f"model, gpu={gpu}", socket=service.socket, gpu=gpu)
    except coldkv.NotSupportedError as error:
        pytest.skip(str(error))
    together = model(ids).logits.float()
    assert (attachment.conversation.device is not None) == gpu
    out = model.generate(ids[:, :10], max_new_tokens=5, do_sample=False)
    assert out.shape == (1, 15) and out.device.type == "cuda"
    cold.detach(model)
    hot = slice(0, 319)
    assert torch.linalg.norm(together[:, hot] - exact[:, hot]) < 1.2 * torch.linalg.norm(alone[:, hot] - exact[:, hot])
    rest = torch.linalg.norm(together[:, 319:] - exact[:, 319:]) / torch.linalg.norm(exact[:, 319:])
    assert rest < 0.1
