# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Tiny random models of every supported kind against themselves without coldkv, and models that are refused."""
import pytest
import torch
import transformers

import coldkv.transformers as cold
from conftest import SMALL, random_ids, random_model

EXACT = 319  # tokens that a block ending there still sees all of: hot window and block
COVERED = 380  # here 64 tokens are cold, 60 of them not sinks, so 64 slots hold them all


def scaled(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **more}}


WITHOUT_HEAD_DIM = {key: SMALL[key] for key in SMALL if key != "head_dim"} | {"hidden_size": 256}
KINDS = {
    "llama": transformers.LlamaConfig(**SMALL),
    "llama, MHA": transformers.LlamaConfig(**{**SMALL, "num_key_value_heads": 4}),
    "llama, one kv head of 128": transformers.LlamaConfig(**{**SMALL, "num_key_value_heads": 1, "head_dim": 128}),
    "llama, head_dim 80": transformers.LlamaConfig(**{**SMALL, "head_dim": 80}),
    "llama, linear": transformers.LlamaConfig(**SMALL, **scaled("linear")),
    "llama, llama3": transformers.LlamaConfig(**SMALL, **scaled(
        "llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512)),
    "llama, yarn": transformers.LlamaConfig(**SMALL, **scaled("yarn", original_max_position_embeddings=512)),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**WITHOUT_HEAD_DIM),
    "qwen3": transformers.Qwen3Config(**SMALL),
    "stablelm, a quarter of each head rotated": transformers.StableLmConfig(**{
        **WITHOUT_HEAD_DIM, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                                                         "partial_rotary_factor": 0.25}}),
    "glm, half of each head rotated in pairs": transformers.GlmConfig(**SMALL, **{
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_model_alone(service, kind):
    model, ids = random_model(KINDS[kind]), random_ids(COVERED)
    with torch.no_grad():
        alone = model(ids).logits
    with cold.attach(model, f"kind {kind}", socket=service.socket):
        together = model(ids).logits
    assert together.shape == alone.shape
    assert torch.allclose(together[:, :EXACT], alone[:, :EXACT], atol=2e-3 * float(alone.std()))
    rest = torch.linalg.norm(together[:, EXACT:] - alone[:, EXACT:]) / torch.linalg.norm(alone[:, EXACT:])
    assert rest < 0.05
    with cold.attach(model, f"kind {kind}, cut", socket=service.socket, k=0):
        cut = model(ids).logits
    without = torch.linalg.norm(cut[:, EXACT:] - alone[:, EXACT:]) / torch.linalg.norm(alone[:, EXACT:])
    assert rest < 0.2 * without


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types(service, dtype):
    model, ids = random_model(KINDS["llama"]).to(dtype), random_ids(300)
    with torch.no_grad():
        exact = model.float()(ids).logits
        alone = model.to(dtype)(ids).logits.float()
    with cold.attach(model, f"type {dtype}", socket=service.socket):
        together = model(ids).logits
    assert together.dtype == dtype
    distance = torch.linalg.norm(together.float() - exact)
    assert distance < 1.1 * torch.linalg.norm(alone - exact)  # no worse than the type itself


REFUSED = {
    "sliding_window": (transformers.MistralConfig(**SMALL, sliding_window=128), "sliding window of 128"),
    "some layers slide": (transformers.Gemma2Config(**SMALL, sliding_window=128), "sliding window|softcap"),
    "mla": (transformers.DeepseekV3Config(**{**SMALL, "num_key_value_heads": 4, "head_dim": 32}, q_lora_rank=32,
                                          kv_lora_rank=32, qk_rope_head_dim=32, qk_nope_head_dim=32, v_head_dim=48,
                                          first_k_dense_replace=2, n_routed_experts=4, moe_intermediate_size=32,
                                          n_group=1, topk_group=1, num_experts_per_tok=2), "MLA"),
    "head_dim 256": (transformers.LlamaConfig(**{**SMALL, "head_dim": 256}), "head_dim 256"),
    "head_dim 32": (transformers.LlamaConfig(**{**SMALL, "head_dim": 32}), "head_dim 32"),
    "dynamic rope": (transformers.LlamaConfig(**SMALL, **scaled("dynamic", original_max_position_embeddings=512)),
                     "depend on the length"),
    "learned positions": (transformers.GPT2Config(vocab_size=300, n_embd=128, n_layer=2, n_head=2), "does not rotate"),
    "a layer without rope": (transformers.SmolLM3Config(**SMALL, no_rope_layers=[1, 0]), "layer 1 does not rotate"),
    "no attention to take over": (transformers.MambaConfig(vocab_size=300, hidden_size=64, num_hidden_layers=2),
                                  "attention|Mamba"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_done_is_refused(service, kind):
    config, words = REFUSED[kind]
    model = random_model(config)
    before = dict(model.__dict__), model.config._attn_implementation, cold.hash_of_weights(model)
    with pytest.raises(cold.NotSupported, match=words):
        cold.attach(model, f"refused {kind}", socket=service.socket)
    assert (dict(model.__dict__), model.config._attn_implementation, cold.hash_of_weights(model)) == before
    assert cold.attached(model) is None
