"""Answers from a `VideoMemory`: `answer` (any number of prompts in one pass) and `VideoChat` (turns that remember)."""

import torch

from .generation_video_ma2mba import RepetitionStop
from .pipeline_video_qa import DEFAULT_MAX_NEW_TOKENS, pad_left
from .state import RecurrentState
from .video_memory import VideoMemory


def conversation(system: str | None, question: str) -> list[dict]:
    """Return chat messages: a question about one video."""
    content = [{"type": "video"}, {"type": "text", "text": question}]
    start = [] if system is None else [{"role": "system", "content": system}]
    return [*start, {"role": "user", "content": content}]


def ids_after_frames(memory: VideoMemory, processor, messages: list[dict]) -> list[int]:
    """Return the token ids of a conversation that follow the frames.

    Raises:
        ValueError: this processor would have begun the prompt in another way than the memory was.
    """
    before, after = processor.split_prompt(messages)
    if tuple(before) != memory.prompt_ids:
        raise ValueError(
            "this processor's tokenizer or chat template begins the prompt in another way than the memory was begun; "
            "use the processor that the video was watched with"
        )
    return after


@torch.no_grad()
def answer(
    model, state: RecurrentState, prompts: list[list[int]], processor, stop_on_repetition: bool, generate_kwargs: dict
) -> list[str]:
    """Generate behind a state of one row: each prompt on a fork of its own, all in one batch."""
    settings = dict(generate_kwargs)
    if settings.setdefault("use_cache", True) is not True:
        raise ValueError("use_cache=False: answers go on from the memory's state, which is the cache; leave it out")
    limits = {"max_new_tokens", "max_length", "generation_config"} & set(settings)
    if not limits and model.generation_config.max_new_tokens is None:
        settings["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS
    ids, mask = pad_left([torch.tensor(ids) for ids in prompts], model.config.get_text_config().pad_token_id)
    if stop_on_repetition:
        settings["stopping_criteria"] = [*settings.get("stopping_criteria", []), RepetitionStop(ids.shape[1])]
    state = state.to(model.device)
    # `generate` makes masks as long as what was seen: nothing here may depend on the length of the video.
    state.seen_tokens = 0
    out = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        past_key_values=state if len(prompts) == 1 else state.repeat(len(prompts)),
        **settings,
    )
    sequences = out if torch.is_tensor(out) else out.sequences
    if len(sequences) != len(prompts):
        raise ValueError("num_return_sequences: there is one answer to a question; ask it several times")
    texts = (processor.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in sequences)
    return [text.strip() for text in texts]


class VideoChat:
    """A conversation about a memory, which stays as it was; made by `model.chat`.

    Attributes:
        messages: the turns so far, as chat messages.
    """

    def __init__(self, model, memory: VideoMemory, processor):
        memory.check_model(model)
        self.model, self.memory, self.processor = model, memory, processor
        self.messages: list[dict] = []
        self._state, self._read = memory.state, []  # the ids after the frames that the state has read

    def ask(self, text: str, stop_on_repetition: bool = False, **generate_kwargs) -> str:
        """Answer, with all earlier turns in mind; arguments as in `model.ask`. After an error nothing was said."""
        if not isinstance(text, str):
            raise TypeError(f"a turn is text, given {type(text).__name__}")
        turn = [{"role": "user", "content": text}] if self.messages else conversation(self.memory.system, text)
        messages = [*self.messages, *turn]
        ids = ids_after_frames(self.memory, self.processor, messages)
        state, read = self._state, self._read
        if ids[: len(read)] != read or len(ids) == len(read):  # a template that rewrites earlier turns
            state, read = self.memory.state, []
        state = self._read_on(state, ids[len(read) : -1])
        (said,) = answer(self.model, state, [ids[-1:]], self.processor, stop_on_repetition, generate_kwargs)
        self._state, self._read = state, ids[:-1]
        self.messages = [*messages, {"role": "assistant", "content": said}]
        return said

    @torch.no_grad()
    def _read_on(self, state: RecurrentState, ids: list[int]) -> RecurrentState:
        if not ids:
            return state
        ids = torch.tensor([ids], device=self.model.device)
        state = state.to(self.model.device)
        return self.model(input_ids=ids, past_key_values=state, use_cache=True, logits_to_keep=1).past_key_values


__all__ = ["VideoChat"]
