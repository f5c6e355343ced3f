"""Published VideoMamba checkpoints (`.pth` of all four families) in, a VideoMamba folder out.

    >>> from modeling_video_ma2mba.convert_videomamba import convert_videomamba

    convert_videomamba("videomamba_m16_k400_f8_res224.pth", "videomamba-m-k400")
    convert_videomamba("videomamba_m16_in1k_res224.pth", "start", num_frames=8, num_labels=174)  # image to clip

Families: image classifiers, clip classifiers, masked pre-training (no head, final norm called `norm`), multi-modal
pre-training (the encoder under `vision_encoder.`). What is inside a file decides, not its name.
"""

import argparse
import logging
import math
import re
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch.nn import functional as F

from .checkpoint_files import ConversionError, KeyLedger, read_tensors
from .configuration_videomamba import PRESETS, VideoMambaConfig
from .convert_mamba2 import load_and_save
from .modeling_videomamba import VideoMambaForImageClassification, VideoMambaForVideoClassification, VideoMambaModel

logger = logging.getLogger(__name__)

# Where a training checkpoint has its weights, and what wrappers put before their names.
_WEIGHTS = ("model", "module")
_WRAPPERS = ("module.", "backbone.", "encoder.")
_MULTI_MODAL = "vision_encoder."
_LEFT_OUT = {
    "distill_head.": "projection to the teacher of self-distillation, not used after training",
    "clip_decoder.": "projection to the teacher of masked pre-training, not used after training",
    "pool_norm.": "pooling of the multi-modal model, behind the encoder",
}
_OUTSIDE_ENCODER = re.compile(r"(text_encoder|vision_proj|text_proj|itm_head|clip_teacher)\.|temp$")
_FILE_NAME = re.compile(r"videomamba_([tsmb])16_(?:.*_f(\d+)_)?.*?res(?:\d+to)*(\d+)\.pth")


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a published `.pth` file or of a converted folder, under their published names.

    Of a `.pth` only tensors, plain values and `argparse.Namespace` are unpickled.

    Raises:
        ConversionError: missing, damaged, holds other objects, or no weights.
    """
    path = Path(path)
    if path.is_dir():
        tensors = read_tensors(path)
        return {name.removeprefix("videomamba."): tensor for name, tensor in tensors.items()}
    if not path.is_file():
        raise ConversionError(f"{path} is missing: give a .pth file, or a folder this package has written")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # its text advises to switch the check off
        raise ConversionError(
            f"{path} is damaged, or holds more than tensors, plain values and argparse.Namespace; it is not loaded"
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError, TypeError, IndexError) as error:
        # What torch raises for pickles that are cut off or end in the wrong place.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConversionError(f"{path} is damaged or not a checkpoint: {reason}") from error
    for name in _WEIGHTS:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(name), dict):
            checkpoint = checkpoint[name]
            break
    if not isinstance(checkpoint, dict) or not checkpoint or not all(map(torch.is_tensor, checkpoint.values())):
        raise ConversionError(f"{path} holds no named tensors, by themselves or under {' or '.join(_WEIGHTS)}")
    tensors = {}
    for key, tensor in checkpoint.items():
        name = str(key)
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        if name in tensors:
            raise ConversionError(f"{path} holds {name} twice, with and without a wrapper's prefix")
        # A view that repeats a few stored numbers can claim any size.
        if tensor.is_sparse or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConversionError(
                f"{path}: {name} claims {tuple(tensor.shape)} and has not so many numbers in the file"
            )
        tensors[name] = tensor
    return tensors


def convert_videomamba(
    source: str | Path,
    output: str | Path,
    *,
    num_frames: int | None = None,
    tubelet_size: int | None = None,
    image_size: int | None = None,
    num_labels: int | None = None,
    sampling: str | None = None,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> dict:
    """Convert a checkpoint; save model and processor.

    Args:
        source: a published `.pth`, or a folder that this package has written.
        num_frames: frames of a clip. For an image checkpoint: make it a clip model, with temporal positions at 0 and
            without its head; for a clip checkpoint of other length: interpolate the positions linearly. None keeps
            what the checkpoint has.
        tubelet_size: frames of a patch, for image checkpoints: the kernel goes to the middle frame. None keeps it.
        image_size: in pixels; spatial positions are interpolated (bicubic). None keeps it.
        num_labels: a new head of so many classes, where the checkpoint has none or another number. None keeps the
            head; without one an encoder is saved.
        sampling: for the processor, one of `clip_sampling.SAMPLING_RULES`; None: a folder's own, "middle" for
            multi-modal checkpoints, "ssv2" where the file's name says so, else "sparse".
        dtype: of the new weights (A_log, D and step biases stay fp32); None keeps that of the checkpoint.
        seed: of a new head.

    Returns:
        The report of every key, also written as `conversion_report.json`.

    Raises:
        ConversionError: an unknown key, a wrong shape, a missing tensor, sizes that do not fit.
    """
    tensors = read_checkpoint(source)
    is_multi_modal = any(key.startswith(_MULTI_MODAL) for key in tensors)
    encoder, outside = split_multi_modal(tensors, source) if is_multi_modal else (tensors, {})
    config = read_encoder_config(encoder, source)
    _compare_with_name(source, config)
    if Path(source).is_dir():
        config = VideoMambaConfig.from_pretrained(source)  # labels, scans and means are in no tensor
    head = encoder.get("head.weight")
    keeps_head = head is not None and num_labels in (None, len(head))
    if config.num_frames is None and num_frames is not None:
        keeps_head = False  # a head for images is none for clips
    set_sizes(config, num_frames, tubelet_size, image_size, source)
    with torch.device("meta"):
        if keeps_head or num_labels is not None:
            if config.num_labels != (len(head) if keeps_head else num_labels):
                config.num_labels = len(head) if keeps_head else num_labels
            is_video = config.num_frames is not None
            model = (VideoMambaForVideoClassification if is_video else VideoMambaForImageClassification)(config)
        else:
            model = VideoMambaModel(config)
    ledger = KeyLedger({name: tensor.shape for name, tensor in model.state_dict().items()})
    prefix = "" if isinstance(model, VideoMambaModel) else "videomamba."
    take_encoder(ledger, encoder, config, prefix, _MULTI_MODAL if is_multi_modal else "", keeps_head)
    for key, reason in outside.items():
        ledger.leave_out(key, reason)
    if num_labels is not None and not keeps_head:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(num_labels, config.hidden_size)
        torch.nn.init.trunc_normal_(weight, std=config.initializer_range, generator=generator)
        ledger.add_new("head.weight", weight, f"new head of {num_labels} classes, to be trained")
        ledger.add_new("head.bias", torch.zeros(num_labels), f"new head of {num_labels} classes, to be trained")
    report = load_and_save(model, ledger, output, dtype or encoder["patch_embed.proj.weight"].dtype)
    # Only here does this folder need its sibling; files that go to the Hub do not.
    from .processing.processing_videomamba import VideoMambaProcessor

    VideoMambaProcessor(image_processor_for(config, source, sampling, is_multi_modal)).save_pretrained(output)
    return report


def take_encoder(
    ledger: KeyLedger,
    tensors: dict[str, torch.Tensor],
    config: VideoMambaConfig,
    target: str = "",
    source: str = "",
    keeps_head: bool = False,
) -> None:
    """Enter an encoder's tensors, under their published names, into the ledger of a model with this config.

    Args:
        target: prefix of the encoder's names in the new model. source: prefix of the keys in the report.
        keeps_head: take `head.*` as well, as `head.*`.
    """
    for name, tensor in tensors.items():
        key = source + name
        reason = next((text for start, text in _LEFT_OUT.items() if name.startswith(start)), None)
        if reason is not None:
            ledger.leave_out(key, reason)
        elif name.startswith("head.") and not keeps_head:
            ledger.leave_out(key, "head of other classes")
        elif name.startswith("head."):
            ledger.take(key, name, tensor)
        elif name == "norm.weight":
            # Classifiers call it norm_f; the public fine-tuning leaves it out and starts at 1, which it still is.
            ledger.take(key, f"{target}norm_f.weight", tensor)
        elif name == "pos_embed":
            side = config.image_size // config.patch_size
            ledger.take(key, target + name, resize_spatial_positions(tensor, side))
        elif name == "temporal_pos_embedding":
            ledger.take(key, target + name, resize_temporal_positions(tensor, config.temporal_positions))
        elif name == "patch_embed.proj.weight":
            ledger.take(key, target + name, inflate_patches(tensor, config.tubelet_size))
        else:
            ledger.take(key, target + name, tensor)
    if config.num_frames is not None and "temporal_pos_embedding" not in tensors:
        positions = torch.zeros(1, config.temporal_positions, config.hidden_size)
        name = f"{target}temporal_pos_embedding"
        ledger.add_new(name, positions.to(tensors["pos_embed"].dtype), "image weights have none; training starts at 0")


def resize_spatial_positions(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Interpolate spatial positions to another square grid, bicubic: (1, 1 + S, D) -> (1, 1 + side^2, D).

    The class token's position, the first, stays as it is.
    """
    old = math.isqrt(positions.shape[1] - 1)
    if old == side:
        return positions
    grid = positions[:, 1:].mT.unflatten(2, (old, old)).float()  # (1, S, D) -> (1, D, old, old)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).mT.to(positions.dtype)], dim=1)


def resize_temporal_positions(positions: torch.Tensor, frames: int) -> torch.Tensor:
    """Interpolate temporal positions to another number of frames, linearly: (1, T, D) -> (1, frames, D)."""
    if positions.shape[1] == frames:
        return positions
    resized = F.interpolate(positions.mT.float(), size=frames, mode="linear", align_corners=False)
    return resized.mT.to(positions.dtype)


def inflate_patches(weight: torch.Tensor, tubelet_size: int) -> torch.Tensor:
    """Give an image model's patch kernel a time axis, zero but in its middle: (D, 3, p, p) -> (D, 3, t, p, p)."""
    if weight.ndim == 5:
        return weight
    inflated = weight.new_zeros(*weight.shape[:2], tubelet_size, *weight.shape[2:])
    inflated[:, :, tubelet_size // 2] = weight
    return inflated


def split_multi_modal(tensors, source):
    """Return the vision encoder's tensors, and the keys outside with the reason why they stay there."""
    encoder = {k.removeprefix(_MULTI_MODAL): t for k, t in tensors.items() if k.startswith(_MULTI_MODAL)}
    outside = {key: "not part of the vision encoder" for key in tensors if not key.startswith(_MULTI_MODAL)}
    if unknown := [key for key in outside if not _OUTSIDE_ENCODER.match(key)]:
        raise ConversionError(f"{source} holds {unknown[0]}, which is no part of a multi-modal VideoMamba")
    return encoder, outside


def read_encoder_config(tensors, source):
    """Return the config that the shapes of the encoder's tensors tell."""
    for name, ndim in (("cls_token", 3), ("pos_embed", 3), ("patch_embed.proj.weight", 0)):
        if name not in tensors or tensors[name].ndim != (ndim or tensors[name].ndim):
            raise ConversionError(f"{source} has no {name}, or one of another kind: not a VideoMamba checkpoint")
    patch, positions = tensors["patch_embed.proj.weight"], tensors["pos_embed"]
    temporal = tensors.get("temporal_pos_embedding")
    if patch.ndim not in (4, 5) or patch.shape[-1] != patch.shape[-2] or patch.shape[1] != 3:
        raise ConversionError(f"{source}: patch_embed.proj.weight is {tuple(patch.shape)}, no squares of 3 colours")
    side = math.isqrt(max(0, positions.shape[1] - 1))
    if side < 1 or 1 + side * side != positions.shape[1]:
        raise ConversionError(f"{source}: {positions.shape[1]} spatial positions are no square grid and a class token")
    blocks = {int(found[1]) for key in tensors if (found := re.match(r"layers\.(\d{1,4})\.", key))}
    if not blocks or blocks != set(range(len(blocks))):
        raise ConversionError(f"{source} has blocks {sorted(blocks)[:3]}...: a checkpoint has them from 0 on, all")
    mixer = {name: tensors.get(f"layers.0.mixer.{name}") for name in ("A_log", "conv1d.weight")}
    if any(tensor is None or tensor.ndim < 2 for tensor in mixer.values()):
        raise ConversionError(f"{source}: the first block has no mixer.A_log or mixer.conv1d.weight")
    tubelet = patch.shape[2] if patch.ndim == 5 else 1
    return VideoMambaConfig(
        hidden_size=tensors["cls_token"].shape[-1],
        num_hidden_layers=len(blocks),
        state_size=mixer["A_log"].shape[1],
        expand=mixer["A_log"].shape[0] // tensors["cls_token"].shape[-1],
        conv_kernel=mixer["conv1d.weight"].shape[-1],
        patch_size=patch.shape[-1],
        image_size=side * patch.shape[-1],
        num_frames=None if temporal is None else temporal.shape[1] * tubelet,
        tubelet_size=tubelet,
    )


def set_sizes(config, num_frames, tubelet_size, image_size, source):
    """Change the config to the sizes that are wanted."""
    if tubelet_size is not None and tubelet_size != config.tubelet_size:
        if config.num_frames is not None:
            raise ConversionError(f"{source} has patches of {config.tubelet_size} frames, which cannot be changed")
        if num_frames is None:
            raise ConversionError(f"tubelet_size={tubelet_size} needs num_frames: it makes a clip model")
    config.num_frames = config.num_frames if num_frames is None else num_frames
    config.tubelet_size = config.tubelet_size if tubelet_size is None else tubelet_size
    config.image_size = config.image_size if image_size is None else image_size
    try:
        config.validate_architecture()
    except ValueError as error:
        raise ConversionError(str(error)) from error


def _compare_with_name(source, config):
    """Warn where a published name says other than the file: one link of the model zoo leads to another model."""
    found = _FILE_NAME.fullmatch(Path(source).name)
    if found is None:
        return
    size, frames, side = {"t": "ti"}.get(found[1], found[1]), found[2], found[3]
    named = {**PRESETS[size], "image_size": int(side)}
    if frames is not None:
        named["num_frames"] = int(frames)
    for name, value in named.items():
        if getattr(config, name) != value:
            logger.warning(
                "%s: its name says %s=%s, its contents %s; going by the contents",
                source, name, value, getattr(config, name),
            )  # fmt: skip


def image_processor_for(config, source, sampling, is_multi_modal):
    """Return the image processor that suits a converted model."""
    from .processing.image_processing_videomamba import VideoMambaImageProcessor

    fields = {}
    if (Path(source) / "processor_config.json").is_file():
        before = VideoMambaImageProcessor.from_pretrained(source)
        fields = {name: getattr(before, name) for name in ("frame_fit", "crop_ratio", "resample", "sampling")}
    elif is_multi_modal:
        fields = {"frame_fit": "stretch", "sampling": "middle"}
    elif config.num_frames is not None:
        rule = "ssv2" if "ssv2" in Path(source).name else "sparse"
        fields = {"crop_ratio": 1.0, "resample": "bilinear", "sampling": rule}
    if sampling is not None:
        fields["sampling"] = sampling
    fields |= {"size": config.image_size, "num_frames": config.num_frames}
    return VideoMambaImageProcessor(**fields)
