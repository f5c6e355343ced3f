"""A judge through transformers: the model's own chat template, greedy, the same alone and in a batch."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling_video_ma2mba.eval.judge import JudgeRequest
from modeling_video_ma2mba.eval.local_judges import LocalJudge

WORDS = ["<end>", "<unk>", "<s>", "system", "user", "assistant", *"abcdefghijklmnopqrstuvwxyz"]
TEMPLATE = (
    "<s>{% for message in messages %} {{ message['role'] }} {{ message['content'] }} <end>{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<s>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5, eos_token_id=0, bos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("judge")
    LlamaForCausalLM(config).save_pretrained(path)
    fast.save_pretrained(path)
    return path


def request(user, most=6):
    return JudgeRequest(system="b e", user=user, max_new_tokens=most)


def test_replies_are_greedy_behind_the_template(folder):
    judge = LocalJudge(str(folder))
    users = ["a b c", "d", "e f g h i j", "k l", "z y x"]
    batched = judge.reply([request(user) for user in users])
    assert all(reply.error is None for reply in batched) and len({reply.text for reply in batched}) > 2
    for user, reply in zip(users, batched):
        ids = judge.tokenizer(f"<s> system b e <end> user {user} <end> assistant", return_tensors="pt")["input_ids"]
        out = judge.model.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0)
        assert reply.text == judge.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert LocalJudge(str(folder), batch_size=1).reply([request(user) for user in users]) == batched


def test_it_says_which_model_it_is(folder):
    judge = LocalJudge(str(folder))
    assert judge.label == f"local {folder}"
    assert {"kind": "local", "model": str(folder), "dtype": "float32"}.items() <= judge.describe().items()


def test_a_model_without_a_template_is_no_judge(folder, tmp_path):
    judge = LocalJudge(str(folder))
    judge.model.save_pretrained(tmp_path)
    judge.tokenizer.chat_template = None
    judge.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        LocalJudge(str(tmp_path))
    with pytest.raises(ValueError, match="batch_size=0"):
        LocalJudge(str(folder), batch_size=0)
