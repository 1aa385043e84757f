"""
Chat messages to prompt text, by a model's own Jinja template.

Knows the template's text and nothing else of the model, so that one renderer serves Hugging Face and GGUF tokenizers. Rendering
is transformers' sandboxed one. What a template refuses is mended where the meaning stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import cast

from langchain_pareto.errors import SettingError

Message = Mapping[str, object]

NO_KWARGS: Mapping[str, object] = MappingProxyType({})

_PLAIN_KEYS = frozenset({"role", "content"})
_SYSTEM_ROLES = frozenset({"system", "developer"})


def render_template(
    template: str | None,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, object]] | None = None,
    template_kwargs: Mapping[str, object] = NO_KWARGS,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
) -> str:
    """The prompt that `template` makes of `messages`; `template_kwargs` are further names the template reads.

    Without a template it is the messages' contents, a line each, and tools are refused.
    When the template refuses the messages, these are tried in turn, least change first: neighbours of one role are joined by a
    blank line; system messages move to the front of the next user message; an empty user message goes before an assistant who
    speaks first. If it refuses all of them, SettingError quotes what it said of the messages as given.
    """
    if template is None:
        if tools:
            raise SettingError("tools need a chat template, and this model has none")
        return render_plain(messages)
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    # Annotated there as `-> str`, and each further name as one of its own options.
    render = cast("Callable[..., tuple[list[str], object]]", render_jinja_template)
    names = {"bos_token": bos_token, "eos_token": eos_token, **template_kwargs}
    refusal: Exception | None = None
    for attempt in _mends(messages):
        try:
            rendered, _ = render(
                conversations=[attempt],
                tools=[dict(tool) for tool in tools] if tools else None,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **names,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            refusal = refusal or error
        else:
            return rendered[0]
    raise SettingError(
        f"the model's chat template cannot render these messages: {refusal}",
        hint=f"roles were {[message.get('role') for message in messages]}; "
        "change them, or give the model another chat template",
    ) from refusal


def render_plain(messages: Sequence[Message]) -> str:
    """The contents of `messages`, a line each: the prompt of a model that has no template."""
    return "".join(f"{_text(message)}\n" for message in messages)


def _mends(messages: Sequence[Message]) -> Iterator[list[dict[str, object]]]:
    given = [dict(message) for message in messages]
    merged, folded = _merge(given), _fold(given)
    tried: list[list[dict[str, object]]] = []
    for attempt in (given, merged, folded, _merge(folded), _open(merged), _open(_merge(folded))):
        if attempt not in tried:
            tried.append(attempt)
            yield attempt


def _merge(messages: list[dict[str, object]]) -> list[dict[str, object]]:
    merged: list[dict[str, object]] = []
    for message in messages:
        last = merged[-1] if merged else None
        plain = last is not None and last.keys() <= _PLAIN_KEYS and message.keys() <= _PLAIN_KEYS
        if last is not None and plain and last["role"] == message["role"] != "tool":
            merged[-1] = last | {"content": _join(_text(last), _text(message))}
        else:
            merged.append(message)
    return merged


def _fold(messages: list[dict[str, object]]) -> list[dict[str, object]]:
    folded: list[dict[str, object]] = []
    system = ""
    for message in messages:
        if message["role"] in _SYSTEM_ROLES:
            system = _join(system, _text(message))
            continue
        if system and message["role"] == "user":
            folded.append(message | {"content": _join(system, _text(message))})
        elif system:
            folded += [{"role": "user", "content": system}, message]
        else:
            folded.append(message)
        system = ""
    return [*folded, {"role": "user", "content": system}] if system else folded


def _open(messages: list[dict[str, object]]) -> list[dict[str, object]]:
    roles = [message["role"] for message in messages]
    head = next((i for i, role in enumerate(roles) if role not in _SYSTEM_ROLES), len(roles))
    if head < len(roles) and roles[head] == "assistant":
        return [*messages[:head], {"role": "user", "content": ""}, *messages[head:]]
    return messages


def _join(above: str, below: str) -> str:
    return "\n\n".join(text for text in (above, below) if text)


def _text(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""
