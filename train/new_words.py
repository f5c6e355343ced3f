"""Words of the training data that a tokenizer of whole words does not know become tokens of their own.

The small shipped model knows some eighty words; without this, a user's own answers would all be the unknown word.
Tokenizers of pieces or bytes know everything, and nothing happens.
"""

from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from modeling_video_ma2mba.train.samples import Sample, Text

MOST_WORDS = 20_000  # what a language of questions and captions needs; rarer ones stay unknown


def unknown_words(tokenizer: PreTrainedTokenizerFast, samples: Iterable[Sample]) -> list[str]:
    """Return the words that come out as the unknown token, the most frequent first, at most `MOST_WORDS`."""
    if tokenizer.unk_token_id is None:
        return []
    vocabulary = tokenizer.get_vocab()
    counts: Counter[str] = Counter()
    for sample in samples:
        for piece in sample.pieces:
            if not isinstance(piece, Text):
                continue
            if tokenizer.unk_token_id in tokenizer(piece.text, add_special_tokens=False)["input_ids"]:
                words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(piece.text)
                counts.update(word for word, _ in words if word not in vocabulary)
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_WORDS]]


def learn_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, words: list[str]) -> None:
    """Add words to the tokenizer and rows to the model's embedding, both in place."""
    # As whole words only: "cat" must not be found in "catalogue".
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=False) for word in words])
    model.resize_token_embeddings(len(tokenizer))
