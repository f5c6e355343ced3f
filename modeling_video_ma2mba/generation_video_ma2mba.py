"""Generation: the state as cache, one prefill for all beams, and the paper's repetition stop.

`generate` first reads the prompt but its last token in segments (vision included, each prompt once, whatever the
number of beams), then lets transformers decode from that state.
"""

import torch
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, StoppingCriteria

from .state import RecurrentState

VISUAL_INPUTS = ("pixel_values", "pixel_values_videos")


class RepetitionStop(StoppingCriteria):
    """Stops a row once its last `n` generated tokens appeared before in what it generated (paper, section 4: n = 5).

    Overlap counts: six equal tokens stop a row with n = 5.

    Args:
        prompt_length: columns of `input_ids` that are prompt; 0 when generating from `inputs_embeds`.

    Example: `model.generate(**inputs, stopping_criteria=[RepetitionStop(inputs["input_ids"].shape[1])])`
    """

    def __init__(self, prompt_length: int, n: int = 5):
        if n < 1 or prompt_length < 0:
            raise ValueError(f"RepetitionStop needs n >= 1 and prompt_length >= 0, given n={n}, {prompt_length=}")
        self.prompt_length = prompt_length
        self.n = n

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor | None = None, **kwargs) -> torch.BoolTensor:
        """Return (rows,) booleans for ids (rows, length)."""
        generated = input_ids[:, self.prompt_length :]
        if generated.shape[1] <= self.n:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        windows = generated.unfold(1, self.n, 1)  # (rows, windows, n)
        return (windows[:, :-1] == windows[:, -1:]).all(dim=-1).any(dim=-1)


class NoPlaceholders(LogitsProcessor):
    """Never generates the ids that stand for visual tokens. (A class of its own: it adds to `suppress_tokens`.)"""

    def __init__(self, token_ids: list[int]):
        self.token_ids = token_ids

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor(self.token_ids, device=scores.device), -torch.inf)


class Ma2mbaGenerationMixin(GenerationMixin):
    """`generate` for models whose cache is a `RecurrentState`."""

    @torch.no_grad()
    def generate(self, inputs=None, generation_config=None, logits_processor=None, **kwargs):
        """As transformers' `generate`; differences:

        - prompts may be padded on either side or inside; a masked position never matters
        - `prefill_chunk_size` sets the piece length of the prefill, with videos too; the result does not depend on it
        - `past_key_values` is a `RecurrentState` and is left as it was (the one after the answer is in the output with
          `return_dict_in_generate=True`); give the whole ids, or the new ones alone. The attention mask tells which:
          as long as the ids, or as what was seen and the new ids together. While the new ids are no more than what was
          seen, their own mask or none will do
        - placeholders of visual tokens are never generated
        """
        input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        placeholders = self._placeholder_ids()
        if placeholders:
            logits_processor = LogitsProcessorList([*(logits_processor or []), NoPlaceholders(placeholders)])
        options = {"generation_config": generation_config, "logits_processor": logits_processor}
        settings = generation_config if generation_config is not None else self.generation_config
        use_cache = kwargs.get("use_cache", settings.use_cache)
        if input_ids is None or "inputs_embeds" in kwargs or use_cache is False:
            if isinstance(state := kwargs.get("past_key_values"), RecurrentState):
                kwargs["past_key_values"] = state.fork()
            return super().generate(input_ids, **options, **kwargs)

        input_ids = input_ids.to(self.device)
        prompt, mask, state, read = self._prompt_to_read(
            input_ids, kwargs.pop("attention_mask", None), kwargs.pop("past_key_values", None)
        )
        unread = prompt.shape[1] - read
        last_is_visual = bool(torch.isin(prompt[:, -1], torch.tensor(placeholders, device=self.device)).any())
        if unread > 1 and not last_is_visual:
            # The last token is left to transformers: its output starts the answer.
            visuals = {name: kwargs.pop(name) for name in VISUAL_INPUTS if name in kwargs}
            state = self(
                input_ids=prompt[:, read:-1],
                attention_mask=mask[:, read:-1],
                past_key_values=state,
                use_cache=True,
                logits_to_keep=1,
                segment_length=kwargs.get("prefill_chunk_size", settings.prefill_chunk_size),
                **visuals,
            ).past_key_values
        elif last_is_visual and self._rows_per_prompt(settings, kwargs) > 1:
            raise ValueError(
                "beams or several answers need a prompt that ends with text, this one ends with an image or video: "
                "add text behind it (apply_chat_template(..., add_generation_prompt=True) does)"
            )
        kwargs["prefill_chunk_size"] = None
        seen_before = 0
        if state is not None:
            # transformers compares what the state has seen with the ids it is given, which may be the new ones alone.
            in_ids = prompt.shape[1] - (1 if unread > 1 and not last_is_visual else unread)
            seen_before, state.seen_tokens = state.seen_tokens - in_ids, in_ids
        out = super().generate(prompt, attention_mask=mask, past_key_values=state, **options, **kwargs)
        sequences = out if torch.is_tensor(out) else out.sequences
        sequences[:, : input_ids.shape[1]] = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
        if not torch.is_tensor(out) and out.past_key_values is not None:
            out.past_key_values.seen_tokens += seen_before
        return out

    def _placeholder_ids(self) -> list[int]:
        """Ids that stand for visual tokens; a text model has none."""
        return []

    def _rows_per_prompt(self, settings, kwargs) -> int:
        beams = kwargs.get("num_beams", settings.num_beams) or 1
        return max(beams, kwargs.get("num_return_sequences", settings.num_return_sequences) or 1)

    def _prompt_to_read(self, input_ids, mask, state):
        """Return ids and mask with each row's last unread real token last, a fork of the state, and the columns read.

        When continuing, `input_ids` (B, T) are the whole prompt or only what follows the state.
        """
        seen, length = 0, input_ids.shape[1]
        if state is not None:
            if not isinstance(state, RecurrentState):
                raise TypeError(
                    f"past_key_values is a {type(state).__name__}; pass the RecurrentState of an earlier output"
                )
            state, seen = state.fork(), state.seen_tokens
        if mask is None and 0 < seen < length:
            raise ValueError(
                f"{length} ids after a state of {seen} tokens may be the whole prompt or new ids alone: pass an "
                f"attention_mask of {length} columns if they are the whole, of {length + seen} if they are new"
            )
        if mask is not None and mask.shape[1] == length <= seen:
            # Too short to hold what was seen: a mask over the new ids alone.
            mask = torch.nn.functional.pad(mask, (seen, 0), value=1)
        total = mask.shape[1] if mask is not None else length + seen
        if total not in (length, length + seen) or total <= seen:
            raise ValueError(
                f"{length} ids with an attention_mask of {total} columns do not continue a state of {seen} tokens: "
                "give the whole ids and mask, or the new ids with a mask over old and new"
            )
        read = seen if total == length else 0
        if mask is None:
            return input_ids, torch.ones_like(input_ids), state, read
        mask = mask[:, -length:].to(self.device)
        if not bool(mask[:, -1].all()):
            order = torch.argsort(mask[:, read:].bool(), dim=1, stable=True)  # padding first, tokens keep their order
            input_ids = torch.cat([input_ids[:, :read], input_ids[:, read:].gather(1, order)], dim=1)
            mask = torch.cat([mask[:, :read], mask[:, read:].gather(1, order)], dim=1)
        return input_ids, mask, state, read

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        if generation_config.cache_implementation is not None:
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r}: this model has one cache, its "
                "RecurrentState of fixed size; leave the option out"
            )
        # Without a state the first forward makes one.

    def prepare_inputs_for_generation(
        self, input_ids, attention_mask=None, is_first_iteration=False, inputs_embeds=None, **kwargs
    ):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            attention_mask=attention_mask,
            is_first_iteration=is_first_iteration,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if not is_first_iteration and model_inputs.get("past_key_values") is not None:
            # Generated tokens are never masked; asking the device whether they are would cost a wait per token.
            model_inputs.pop("attention_mask", None)
        return model_inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        state = model_kwargs.get("past_key_values")
        if state is not None and expand_size > 1:
            model_kwargs["past_key_values"] = state.repeat(expand_size)
        return super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
