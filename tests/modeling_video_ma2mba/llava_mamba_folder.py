"""Makes tiny checkpoints in the layout that the authors published: no code of the package is used."""

import json

import torch
from safetensors.torch import save_file

WIDTH, LAYERS, TOWER_LAYERS, TOWER_WIDTH, PATCH, GRID = 64, 2, 3, 32, 14, 4
CONFIG = {
    "model_type": "llava_mamba", "architectures": ["LlavaMambaForCausalLM"], "d_model": WIDTH, "n_layer": LAYERS,
    "vocab_size": 30, "ssm_cfg": {"layer": "Mamba2", "headdim": 32, "d_state": 16, "chunk_size": 16},
    "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 16,
    "tie_embeddings": True, "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": TOWER_WIDTH, "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
    "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2, "mm_patch_merge_type": "flat",
    "mm_vision_tower_lr": 4e-6, "tokenizer_model_max_length": 32768, "use_mm_proj": True,
    # The published configs name a tower; this one's heads are in no tensor.
    "vision_config": {"model_type": "clip_vision_model", "num_attention_heads": 2, "num_hidden_layers": TOWER_LAYERS},
}  # fmt: skip


def make_tensors(siglip=False, tower_layers=TOWER_LAYERS, dtype=torch.float32, width=WIDTH, layers=LAYERS):
    """Return every tensor under its published name, lively and from a fixed seed."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape, scale=0.2, shift=0.0):
        return (torch.randn(*shape, generator=generator) * scale + shift).to(dtype)

    inner, heads, state = 2 * width, 2 * width // 32, 16
    conv = inner + 2 * state
    tensors = {"backbone.embedding.weight": draw(32, width, scale=1.0)}
    for i in range(layers):
        name = f"backbone.layers.{i}"
        tensors |= {
            f"{name}.norm.weight": draw(width, shift=1.0),
            f"{name}.mixer.in_proj.weight": draw(inner + conv + heads, width),
            f"{name}.mixer.conv1d.weight": draw(conv, 1, 4, scale=0.5),
            f"{name}.mixer.conv1d.bias": draw(conv),
            f"{name}.mixer.dt_bias": draw(heads, scale=1.5, shift=-1.5),
            f"{name}.mixer.A_log": draw(heads, scale=0.7, shift=-1.0),
            f"{name}.mixer.D": draw(heads, shift=1.0),
            f"{name}.mixer.norm.weight": draw(inner, shift=1.0),
            f"{name}.mixer.out_proj.weight": draw(width, inner),
        }
    tensors["backbone.norm_f.weight"] = draw(width, shift=1.0)
    tensors["lm_head.weight"] = tensors["backbone.embedding.weight"].clone()
    tower = "mm_model.vision_tower.vision_tower.vision_model"
    tensors[f"{tower}.embeddings.patch_embedding.weight"] = draw(TOWER_WIDTH, 3, PATCH, PATCH, scale=0.05)
    tensors[f"{tower}.embeddings.position_embedding.weight"] = draw(GRID * GRID + (not siglip), TOWER_WIDTH)
    norms = ["post_layernorm"]
    if siglip:
        tensors[f"{tower}.embeddings.patch_embedding.bias"] = draw(TOWER_WIDTH)
    else:
        tensors[f"{tower}.embeddings.class_embedding"] = draw(TOWER_WIDTH)
        tensors[f"{tower}.embeddings.position_ids"] = torch.arange(GRID * GRID + 1)[None]
        norms.append("pre_layrnorm")
    sizes = {f"self_attn.{part}_proj": (TOWER_WIDTH, TOWER_WIDTH) for part in ("q", "k", "v")}
    sizes |= {
        "self_attn.out_proj": (TOWER_WIDTH, TOWER_WIDTH),
        "mlp.fc1": (48, TOWER_WIDTH),
        "mlp.fc2": (TOWER_WIDTH, 48),
    }
    for i in range(tower_layers):
        norms += [f"encoder.layers.{i}.layer_norm{n}" for n in (1, 2)]
        for name, shape in sizes.items():
            tensors[f"{tower}.encoder.layers.{i}.{name}.weight"] = draw(*shape)
            tensors[f"{tower}.encoder.layers.{i}.{name}.bias"] = draw(shape[0])
    for name in norms:
        tensors[f"{tower}.{name}.weight"] = draw(TOWER_WIDTH, shift=1.0)
        tensors[f"{tower}.{name}.bias"] = draw(TOWER_WIDTH)
    for i, columns in ((0, TOWER_WIDTH), (2, width)):
        tensors[f"mm_model.mm_projector.{i}.weight"] = draw(width, columns)
        tensors[f"mm_model.mm_projector.{i}.bias"] = draw(width)
    return tensors


def write_folder(folder, tensors, tokenizer, form="safetensors", shards=1, **changes):
    """Write a checkpoint: form "safetensors" or "bin"; in several shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    tokenizer.save_pretrained(folder)
    stem, save = ("model", save_file) if form == "safetensors" else ("pytorch_model", torch.save)
    if shards == 1:
        save(tensors, folder / f"{stem}.{form}")
        return folder
    weight_map = {}
    names = list(tensors)
    for k in range(shards):
        part, file = names[k::shards], f"{stem}-{k + 1:05}-of-{shards:05}.{form}"
        save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
