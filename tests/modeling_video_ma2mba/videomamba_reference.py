"""VideoMamba read a second time, from the published layout alone: slow, in fp64, one clip and one token at a time.

It takes a state dict under published names and shares nothing with the model but torch. `published` makes such files.
"""

import math

import torch

# Of the made-up BERT: two heads.
TEXT_WIDTH = 128
KINDS = ("query", "key", "value")


def published(
    *, width=32, depth=2, side=2, frames=4, tubelet=1, classes=5, family="video", size=16, dtype=torch.float32, seed=0
):
    """Return a random state dict in the published layout of a family: image, distilled, video, masked, multi_modal."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=0.3):
        return torch.randn(*shape, generator=generator) * scale

    inner, rank, patches = 2 * width, -(-width // 16), side * side
    is_image = family in ("image", "distilled")
    tensors = {"cls_token": draw(1, 1, width), "pos_embed": draw(1, 1 + patches, width)}
    shape = (width, 3, 16, 16) if is_image else (width, 3, tubelet, 16, 16)
    tensors["patch_embed.proj.weight"] = draw(*shape, scale=0.05)
    tensors["patch_embed.proj.bias"] = draw(width)
    if not is_image:
        tensors["temporal_pos_embedding"] = draw(1, frames // tubelet, width)
    for i in range(depth):
        tensors[f"layers.{i}.norm.weight"] = 1 + draw(width)
        mixer = {
            "in_proj.weight": draw(2 * inner, width), "out_proj.weight": draw(width, inner),
            "A_log": draw(inner, size), "A_b_log": draw(inner, size), "D": draw(inner), "D_b": draw(inner),
        }  # fmt: skip
        for suffix in ("", "_b"):
            mixer[f"conv1d{suffix}.weight"] = draw(inner, 1, 4)
            mixer[f"conv1d{suffix}.bias"] = draw(inner)
            mixer[f"x_proj{suffix}.weight"] = draw(rank + 2 * size, inner)
            mixer[f"dt_proj{suffix}.weight"] = draw(inner, rank)
            mixer[f"dt_proj{suffix}.bias"] = draw(inner) - 1
        tensors |= {f"layers.{i}.mixer.{name}": tensor for name, tensor in mixer.items()}
    has_head = family in ("image", "distilled", "video")
    tensors["norm_f.weight" if has_head else "norm.weight"] = 1 + draw(width)
    if has_head:
        tensors |= {"head.weight": draw(classes, width), "head.bias": draw(classes)}
    if family == "distilled":
        tensors |= {"distill_head.0.weight": draw(width), "distill_head.1.weight": draw(24, width)}
        tensors["distill_head.1.bias"] = draw(24)
    if family in ("masked", "multi_modal"):
        tensors |= {"clip_decoder.0.head.weight": draw(24, width), "clip_decoder.0.head.bias": draw(24)}
        tensors |= {"clip_decoder.0.norm.weight": draw(24), "clip_decoder.0.norm.bias": draw(24)}
    if family == "multi_modal":
        tensors |= {"pool_norm.weight": draw(width), "pool_norm.bias": draw(width)}
        tensors = {f"vision_encoder.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {
            "vision_proj.weight": draw(24, width), "vision_proj.bias": draw(24), "temp": 0.05 + draw(1)[0].abs() / 10,
            "text_proj.weight": draw(24, TEXT_WIDTH), "text_proj.bias": draw(24),
            "itm_head.weight": draw(2, TEXT_WIDTH), "itm_head.bias": draw(2),
            "clip_teacher.class_embedding": draw(8), "clip_teacher.conv1.weight": draw(8, 3, 1, 16, 16),
            "clip_teacher.transformer.resblocks.0.attn.in_proj_weight": draw(24, 8), "clip_teacher.proj": draw(8, 24),
        }  # fmt: skip
        tensors |= {f"text_encoder.{name}": tensor for name, tensor in published_bert(draw, width).items()}
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def published_bert(draw, vision_width, *, layers=3, fusion=2, words=20, positions=40, inner=40):
    """Return a BERT with a head of masked words, whose layers from `fusion` on have cross-attention."""
    width = TEXT_WIDTH
    sizes = {f"{name}_embeddings": n for name, n in (("word", words), ("position", positions), ("token_type", 2))}
    tensors = {f"bert.embeddings.{name}.weight": draw(n, width) for name, n in sizes.items()}
    tensors["bert.embeddings.position_ids"] = torch.arange(positions)[None]
    linears, norms = {}, ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for i in range(layers):
        layer = f"bert.encoder.layer.{i}"
        for kind, own in (("attention", width), *([("crossattention", vision_width)] if i >= fusion else [])):
            reads = {"self.query": width, "self.key": own, "self.value": own, "output.dense": width}
            linears |= {f"{layer}.{kind}.{name}": (width, n) for name, n in reads.items()}
            norms.append(f"{layer}.{kind}.output.LayerNorm")
        linears |= {f"{layer}.intermediate.dense": (inner, width), f"{layer}.output.dense": (width, inner)}
        norms.append(f"{layer}.output.LayerNorm")
    linears["cls.predictions.transform.dense"] = (width, width)
    for name, shape in linears.items():
        tensors |= {f"{name}.weight": draw(*shape, scale=0.15), f"{name}.bias": draw(shape[0])}
    for name in norms:
        tensors |= {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}
    tensors["cls.predictions.bias"] = draw(words)
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    return tensors


def published_pair(tensors, pixels, words, fusion=2):
    """Return cosine (), match (2,) and words told (T, vocabulary) of a clip (F, 3, H, W) and words' numbers (T,)."""
    w = {name: t.double() for name, t in tensors.items()}
    vision = {name.removeprefix("vision_encoder."): t for name, t in w.items() if name.startswith("vision_encoder.")}
    vision |= {"norm_f.weight": vision["norm.weight"], "head.bias": torch.zeros(1).double()}
    vision["head.weight"] = torch.zeros(1, vision["cls_token"].shape[2]).double()
    tokens = published_logits(vision, pixels)[0]
    text = {name.removeprefix("text_encoder."): t for name, t in w.items() if name.startswith("text_encoder.")}
    rows = text["bert.embeddings.word_embeddings.weight"][words]
    rows = rows + text["bert.embeddings.position_embeddings.weight"][: len(words)]
    rows = rows + text["bert.embeddings.token_type_embeddings.weight"][0]
    rows = centred(text, "bert.embeddings.LayerNorm", rows, 1e-12)
    depth = 1 + max(int(name.split(".")[3]) for name in text if ".layer." in name)
    for i in range(depth):
        if i == fusion:
            said = rows[0]
        rows = attend(text, f"bert.encoder.layer.{i}.attention", rows, rows)
        if i >= fusion:
            rows = attend(text, f"bert.encoder.layer.{i}.crossattention", rows, tokens[1:])
        more = gelu(linear(text, f"bert.encoder.layer.{i}.intermediate.dense", rows))
        more = linear(text, f"bert.encoder.layer.{i}.output.dense", more)
        rows = centred(text, f"bert.encoder.layer.{i}.output.LayerNorm", rows + more, 1e-12)
    one, cosines = linear(w, "text_proj", said), []
    for frame in tokens[1:].reshape(len(pixels), -1, tokens.shape[1]):
        other = linear(w, "vision_proj", centred(vision, "pool_norm", tokens[0] + frame.mean(0), 1e-5))
        cosines.append(one @ other / (one.norm() * other.norm()))
    told = gelu(linear(text, "cls.predictions.transform.dense", rows))
    told = centred(text, "cls.predictions.transform.LayerNorm", told, 1e-12)
    told = told @ text["bert.embeddings.word_embeddings.weight"].T + text["cls.predictions.bias"]
    return sum(cosines) / len(cosines), linear(w, "itm_head", rows[0]), told


def attend(w, name, rows, seen):
    query, key, value = (linear(w, f"{name}.self.{kind}", x) for kind, x in zip(KINDS, (rows, seen, seen)))
    heads = []
    for start in range(0, TEXT_WIDTH, 64):
        own = slice(start, start + 64)
        shares = torch.exp(query[:, own] @ key[:, own].T / 8)
        heads.append(shares / shares.sum(1, keepdim=True) @ value[:, own])
    mixed = linear(w, f"{name}.output.dense", torch.cat(heads, 1))
    return centred(w, f"{name}.output.LayerNorm", rows + mixed, 1e-12)


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def centred(w, name, x, eps):
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def published_logits(tensors, pixels):
    """Return the final norm of all tokens (L, D) and the logits (classes,) of one clip (F, 3, H, W), normalised."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    hidden = embed(w, pixels.double())
    depth = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("layers."))
    for i in range(depth):
        own = {name.split("mixer.")[1]: t for name, t in w.items() if name.startswith(f"layers.{i}.mixer.")}
        hidden = hidden + mix(own, normed(hidden, w[f"layers.{i}.norm.weight"]))
    hidden = normed(hidden, w["norm_f.weight"])
    return hidden, w["head.weight"] @ hidden[0] + w["head.bias"]


def embed(w, pixels):
    kernel = w["patch_embed.proj.weight"]
    if kernel.dim() == 4:
        kernel = kernel[:, :, None]
    span = kernel.shape[2]
    tokens = [w["cls_token"][0, 0] + w["pos_embed"][0, 0]]
    for t in range(len(pixels) // span):
        place = 1
        for top in range(0, pixels.shape[2], 16):
            for left in range(0, pixels.shape[3], 16):
                box = pixels[t * span : (t + 1) * span, :, top : top + 16, left : left + 16].transpose(0, 1)
                token = (kernel * box).sum((1, 2, 3, 4)) + w["patch_embed.proj.bias"] + w["pos_embed"][0, place]
                if "temporal_pos_embedding" in w:
                    token = token + w["temporal_pos_embedding"][0, t]
                tokens.append(token)
                place += 1
    return torch.stack(tokens)


def normed(hidden, weight):
    return torch.stack([row * weight / math.sqrt(float((row * row).mean()) + 1e-5) for row in hidden])


def mix(w, hidden):
    inner = w["out_proj.weight"].shape[1]
    both = hidden @ w["in_proj.weight"].T
    forward = branch(w, both, inner, "")
    backward = branch(w, torch.flip(both, [0]), inner, "_b")
    return (forward + torch.flip(backward, [0])) @ w["out_proj.weight"].T


def branch(w, both, inner, suffix):
    x, gate = both[:, :inner], both[:, inner:]
    kernel = w[f"conv1d{suffix}.weight"][:, 0]
    A = -torch.exp(w[f"A{suffix}_log"])
    rank, size = w[f"dt_proj{suffix}.weight"].shape[1], A.shape[1]
    state, outputs = torch.zeros(inner, size, dtype=torch.float64), []
    for t in range(len(x)):
        c = w[f"conv1d{suffix}.bias"].clone()
        for back in range(kernel.shape[1]):
            if t - back >= 0:
                c = c + kernel[:, -1 - back] * x[t - back]
        c = c / (1 + torch.exp(-c))
        p = w[f"x_proj{suffix}.weight"] @ c
        raw = w[f"dt_proj{suffix}.weight"] @ p[:rank] + w[f"dt_proj{suffix}.bias"]
        dt = torch.log1p(torch.exp(raw))
        state = torch.exp(dt[:, None] * A) * state + torch.outer(dt * c, p[rank : rank + size])
        y = state @ p[rank + size :] + w[f"D{suffix}"] * c
        outputs.append(y * gate[t] / (1 + torch.exp(-gate[t])))
    return torch.stack(outputs)
