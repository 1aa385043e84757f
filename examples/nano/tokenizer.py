"""
The tokenizer of the family: byte-level BPE over the tasks' own words, single digits, and the chat template.

    cd examples && python -m nano.tokenizer

Writes the package's tokenizer folder, which Hugging Face's AutoTokenizer loads. The split is GPT-2's, so that llama.cpp, which knows
splits by name, makes the same tokens. Knows the tasks' words; knows no model.
"""

import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from nano.paths import TOKENIZER
from nano.tasks import DIFFICULTIES, TASKS, draw

VOCABULARY = 512
END, PAD, GOOD, BAD = "<|end|>", "<|pad|>", "<|good|>", "<|bad|>"
SPECIAL = [END, PAD, GOOD, BAD, "<|spawn|>", "<|join|>", "<|user|>", "<|assistant|>"]
# GPT-2's split, but for numbers: there it takes a whole number, here one digit with the space before it. No merge then joins
# digits, and with GPT-2's own split, which every engine knows by name, a number is still one token a digit.
LEARNED_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# One fact a line, as solutions write them: the one whom a fact is about is then another token (`Ben`) than those whom it
# mentions (` Ben`), and finding the fact about someone, the skill on which everything hangs, takes one layer less.
TEMPLATE = (
    "{%- set asked = messages | selectattr('role', 'equalto', 'user') | list -%}"
    "{%- if not asked -%}{{ raise_exception('a chat needs a user message') }}{%- endif -%}"
    "{{- '<|user|>' + asked[-1]['content'] | trim | replace('. ', '.\\n') + '<|assistant|>' -}}"
    "{%- if messages[-1]['role'] == 'assistant' -%}"
    "{{- messages[-1]['content'] -}}"
    "{%- endif -%}"
)


def prompt_of(question: str) -> str:
    """The chat template's text for one question."""
    return f"<|user|>{_spread(question)}<|assistant|>"


def train() -> PreTrainedTokenizerFast:
    """Learns the merges from 20 000 training problems of each task."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LEARNED_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    drawn = (
        draw(task, i, difficulty=rng.choice(DIFFICULTIES[task]))
        for i in range(20_000)
        for task in TASKS
    )
    tokenizer.train_from_iterator(
        (f"{_spread(p.question)}\n{p.solution}" for p in drawn),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _spread(question: str) -> str:
    return question.strip().replace(". ", ".\n")


if __name__ == "__main__":
    train().save_pretrained(TOKENIZER)
