#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The coldkv authors
"""Writes the model of the demo as GGUF, for llama.cpp. Usage: tiny_gguf.py MODEL-FOLDER OUT.gguf [half|yarn]

Pairs of RoPE are made neighbours, as llama.cpp wants them of a Llama. "half" leaves them half a head apart and calls
the architecture Exaone, which is a Llama that llama.cpp rotates that way. "yarn" changes the model a little, to see
whether coldkv follows: it stretches the window by YaRN and divides frequencies by factors."""
import json
import os
import sys

import gguf
import numpy


def read_safetensors(path):
    """Name to array."""
    with open(path, "rb") as file:
        data = file.read()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        kind = {"F16": numpy.float16, "F32": numpy.float32}[entry["dtype"]]
        tensors[name] = numpy.frombuffer(data[begin:end], kind).reshape(entry["shape"])
    return tensors


def interleave(weight, heads):
    """Rows i and i + d/2 of each head become neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_vocabulary(writer, size):
    """Every byte is a token. llama.cpp turns blanks into U+2581 first, so that is what stands for byte 32."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + [f"<unused{i}>" for i in range(256, size)]
    kinds = [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.CONTROL] * (size - 256)
    tokens[32], kinds[32] = "\u2581", gguf.TokenType.NORMAL
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_unk_token_id(258)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def write_shape(writer, config):
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def write_tensors(writer, tensors, config, half):
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"].astype(numpy.float32))
    for layer in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}.", f"blk.{layer}."
        for part in "qkvo":
            weight = tensors[f"{old}self_attn.{part}_proj.weight"]
            if part in heads and not half:
                weight = interleave(weight, heads[part])
            writer.add_tensor(new + ("attn_output" if part == "o" else f"attn_{part}") + ".weight", weight)
        for part in ("gate", "up", "down"):
            writer.add_tensor(f"{new}ffn_{part}.weight", tensors[f"{old}mlp.{part}_proj.weight"])
        for source, target in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")):
            writer.add_tensor(f"{new}{target}.weight", tensors[f"{old}{source}.weight"].astype(numpy.float32))


def main():
    folder, out = sys.argv[1:3]
    variant = sys.argv[3] if len(sys.argv) > 3 else ""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    writer = gguf.GGUFWriter(out, "exaone" if variant == "half" else "llama")
    writer.add_name("tiny-llama-passkey")
    write_shape(writer, config)
    if variant == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(2.0)
        writer.add_rope_scaling_orig_ctx_len(config["max_position_embeddings"] // 2)
        pairs = config["head_dim"] // 2
        writer.add_tensor("rope_freqs.weight", (1 + 0.02 * numpy.arange(pairs) / pairs).astype(numpy.float32))
    write_vocabulary(writer, config["vocab_size"])
    write_tensors(writer, read_safetensors(os.path.join(folder, "model.safetensors")), config, variant == "half")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
