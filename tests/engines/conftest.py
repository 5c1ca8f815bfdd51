# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""What the engine tests share: one coldkvd (its path is in COLDKVD), tiny models of every kind, the demo's model."""
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
sys.path[:0] = [os.path.join(ROOT, "client", "python"), os.path.join(ROOT, "tools", "quality")]

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from service import Service  # noqa: E402

DEMO_MODEL = os.path.join(ROOT, "tools", "demo", "model")
SMALL = {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048,
         "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 0}

torch.set_num_threads(1)  # the machine may have few cores, and the models are tiny
transformers.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def service():
    with Service(os.environ["COLDKVD"]) as running:
        yield running


def random_model(config, seed=1):
    """A model of that configuration with random weights, larger than usual so that attention is not all alike."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model.eval()


@pytest.fixture
def llama():
    return random_model(transformers.LlamaConfig(**SMALL))


@pytest.fixture(scope="session")
def demo_model():
    return transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()


def random_ids(count, seed=1, vocab=256):
    return torch.randint(1, vocab, (1, count), generator=torch.Generator().manual_seed(seed))
