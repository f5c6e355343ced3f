"""Judges without a network: any instruction model through transformers, and a fixed rule for tests.

Neither is the judge of any paper: their labels stand beside the scores, and summaries never mix them with others.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from modeling_video_ma2mba.eval.judge import JudgeReply, JudgeRequest
from modeling_video_ma2mba.processing.load_model import check_name

_FIELDS = re.compile(r"^(Correct Answer|Predicted Answer[^:\n]*): (.*)$", re.MULTILINE)
_ARTICLES = {"a", "an", "the"}


class LocalJudge:
    """A causal language model with a chat template; greedy.

    Args:
        model: folder or Hub name. batch_size: requests at a time.
        device, dtype: "auto": a GPU in bfloat16, else a CPU in float32.

    Raises:
        OSError, ValueError: there is no such model, or it has no chat template. Weights that cannot be loaded raise
            when they are first needed.
    """

    def __init__(self, model: str, batch_size: int = 8, device: str = "auto", dtype: str = "auto") -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be 1 or more")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "bfloat16" if device.startswith("cuda") else "float32"
        check_name(model, shipped=())
        logging.disable_progress_bar()
        self.label = f"local {model}"
        self.name, self.batch_size = model, batch_size
        self.tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        if not self.tokenizer.chat_template:
            raise ValueError(f"{model} has no chat template: a judge is an instruction model; choose one that has")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._place = (device, getattr(torch, dtype))

    @cached_property
    def model(self):
        """The weights, loaded when they are first needed: of several processes one judges."""
        device, dtype = self._place
        return AutoModelForCausalLM.from_pretrained(self.name, dtype=dtype).to(device).eval()

    def reply(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Return the replies; requests of similar length share a batch."""
        replies = [JudgeReply()] * len(requests)
        order = sorted(range(len(requests)), key=lambda index: -len(requests[index].user))
        with tqdm(total=len(requests), desc=self.label, unit=" replies") as bar:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for index, text in zip(batch, self._generate([requests[index] for index in batch])):
                    replies[index] = JudgeReply(text=text)
                bar.update(len(batch))
        return replies

    def describe(self) -> dict[str, Any]:
        """Return name, revision where it is known, dtype and device."""
        return {
            "kind": "local",
            "model": self.name,
            "revision": getattr(self.model.config, "_commit_hash", None),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
        }

    @torch.no_grad()
    def _generate(self, requests: Sequence[JudgeRequest]) -> list[str]:
        prompts = [
            self.tokenizer.apply_chat_template(
                [{"role": "system", "content": one.system}, {"role": "user", "content": one.user}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for one in requests
        ]
        # The template has written the special tokens.
        inputs = self.tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
        inputs = {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        sequences = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=max(one.max_new_tokens for one in requests),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        length = inputs["input_ids"].shape[1]
        return [text.strip() for text in self.tokenizer.batch_decode(sequences[:, length:], skip_special_tokens=True)]


class OfflineJudge:
    """No model: compares words, the same way every time. For tests, and to try a run before paying for it.

    The score is 5 times the F1 of the words of prediction and right answer, rounded; yes from 3 on. Of two predictions
    the worse one counts.
    """

    label = "offline word overlap (no judge model)"

    def reply(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Return dictionaries as the prompts ask for them."""
        return [JudgeReply(text=self._verdict(one)) for one in requests]

    def describe(self) -> dict[str, Any]:
        return {"kind": "offline", "rule": "5 x F1 of words, rounded; yes from 3 on"}

    def _verdict(self, request: JudgeRequest) -> str:
        fields = _FIELDS.findall(request.user)
        right = next((text for name, text in fields if name == "Correct Answer"), "")
        predictions = [text for name, text in fields if name != "Correct Answer"]
        score = min(round(5 * _overlap(text, right)) for text in predictions) if predictions else 0
        if "'pred'" in request.user:
            return f"{{'pred': '{'yes' if score >= 3 else 'no'}', 'score': {score}}}"
        return f"{{'score': {score}}}"


def _overlap(given: str, right: str) -> float:
    """Return the F1 of two bags of words, 0 to 1, without case, signs and articles."""
    bags = [
        Counter(word for word in re.findall(r"\w+", text.lower()) if word not in _ARTICLES) for text in (given, right)
    ]
    shared = (bags[0] & bags[1]).total()
    return 2 * shared / total if (total := bags[0].total() + bags[1].total()) else 0.0
