"""Self-distillation: a smaller, trained VideoMamba teaches a larger one (arXiv 2403.06977, section 3.3).

    loss = loss of the labels + mean over clips and tokens of |student - teacher|^2

Both are outputs of the final norm for all tokens, the class token included, each divided by its L2 norm; the student's
pass a norm and a linear layer to the teacher's width first. On unit vectors that is 2 - 2 <student, teacher>. The
paper does it on images; here clips are taken alike. The projection is trained with the student and not kept.

Dims: B clips, L tokens, D student's width, d teacher's width.
"""

import torch
from torch import nn
from torch.nn import functional as F

from modeling_video_ma2mba.configuration_videomamba import VideoMambaConfig
from modeling_video_ma2mba.modeling_videomamba import (
    VideoMambaForImageClassification,
    VideoMambaForVideoClassification,
    VideoMambaModel,
)
from modeling_video_ma2mba.norms import Ma2mbaRMSNorm


class _Student:
    """What is added to a classifier: `distill_head`, under the name it has in published checkpoints."""

    _auto_class = None  # checkpoints of a run; the trained model is saved without this class

    def __init__(self, config: VideoMambaConfig, teacher_width: int):
        super().__init__(config)
        width = config.hidden_size
        self.distill_head = nn.Sequential(
            Ma2mbaRMSNorm(width, config.layer_norm_epsilon), nn.Linear(width, teacher_width)
        )
        self.distill_head.apply(self._init_weights)

    def forward(self, *args, teacher_features: torch.Tensor | None = None, **kwargs):
        """As the classifier's; with `teacher_features` (B, L, d) the loss has the distance to them added."""
        if teacher_features is None:
            return super().forward(*args, **kwargs)
        outputs = super().forward(*args, output_hidden_states=True, **kwargs)
        projected = self.distill_head(outputs.hidden_states[-1])  # (B, L, D) -> (B, L, d)
        outputs.hidden_states = None
        outputs.loss = outputs.loss + feature_distance(projected, teacher_features)
        return outputs


class VideoMambaStudentForImageClassification(_Student, VideoMambaForImageClassification):
    """An image classifier that has a teacher."""


class VideoMambaStudentForVideoClassification(_Student, VideoMambaForVideoClassification):
    """A clip classifier that has a teacher."""


def feature_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the squared L2 distance of unit vectors, a mean over clips and tokens: (B, L, d) twice -> () fp32."""
    student, teacher = F.normalize(student.float(), dim=-1), F.normalize(teacher.float(), dim=-1)
    return (student - teacher).square().sum(-1).mean()


@torch.no_grad()
def teacher_features(teacher: VideoMambaModel, inputs: dict) -> torch.Tensor:
    """Return the teacher's final features of all tokens, (B, L, d)."""
    return teacher(**{name: value for name, value in inputs.items() if name.startswith("pixel_values")})[0]


def load_teacher(folder: str, config: VideoMambaConfig) -> VideoMambaModel:
    """Return the encoder of a trained model, frozen and in eval mode.

    Raises:
        ValueError: its tokens are not those of a student with `config`. OSError: it cannot be loaded.
    """
    teacher = VideoMambaModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    for name in ("num_frames", "tubelet_size", "image_size", "patch_size", "image_mean", "image_std"):
        ours, theirs = getattr(config, name), getattr(teacher.config, name)
        if ours != theirs:
            raise ValueError(
                f"--teacher {folder}: its {name} is {theirs}, the student's {ours}; features are compared token by "
                "token, so both must read the same"
            )
    return teacher


def without_teacher(student: nn.Module) -> nn.Module:
    """Return the classifier that a student has become, without the projection."""
    is_video = isinstance(student, VideoMambaForVideoClassification)
    kind = VideoMambaForVideoClassification if is_video else VideoMambaForImageClassification
    model = kind(student.config)
    model.load_state_dict({k: v for k, v in student.state_dict().items() if not k.startswith("distill_head.")})
    return model
