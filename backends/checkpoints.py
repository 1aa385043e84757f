"""
Where a model's files are, and whether they are whole: a folder, or a Hugging Face hub id that ends as a folder.

Knows file names, the safetensors header and the hub's cache. Loads no weights. A local path never touches the network; a hub id is
looked for in the cache first, and then asked for once, with a short timeout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from langchain_pareto.errors import ModelLoadError, SettingError

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
_HUB_SECONDS = 5.0  # until a hub that does not answer is given up
_HUB_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")


def find_folder(model: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder with the files of `model`, downloaded if need be; `weights=False` is content with a tokenizer.

    Raises ModelLoadError.
    """
    path = Path(model).expanduser()
    if path.exists():
        if revision is not None:
            msg = (
                f"a revision ({revision!r}) is for models of the hub, and {path} is on this machine"
            )
            raise SettingError(msg)
        return _local(path, weights)
    if isinstance(model, Path) or not _HUB_ID.fullmatch(model):
        msg = f"there is no model at {path}: the path does not exist"
        raise ModelLoadError(msg, hint="Check the path, or name a model of the Hugging Face hub.")
    return _from_hub(model, revision, weights)


def check_weights(folder: Path) -> int:
    """Bytes of the weights in `folder`; raises ModelLoadError where some are missing or cut off."""
    files = list(_weight_files(folder))
    if not files:
        gguf = next(folder.glob("*.gguf"), None)
        hint = f"Name the GGUF file: {gguf}" if gguf else "Copy or download it again."
        raise ModelLoadError(f"{folder} has no weights (model.safetensors)", hint=hint)
    for file in files:
        if not file.exists():
            msg = f"{folder} lacks {file.name}, which its index of the weights names"
            raise ModelLoadError(msg, hint="Copy or download the model again.")
        if file.suffix == ".safetensors":
            _check_safetensors(file)
    return sum(file.stat().st_size for file in files)


def check_tokenizer(folder: Path) -> None:
    """Raises ModelLoadError when `folder` has no tokenizer: transformers would make up an empty one for some models."""
    if not any(next(folder.glob(pattern), None) for pattern in _TOKENIZERS):
        msg = f"{folder} has no tokenizer (tokenizer.json, or the vocabulary of an older kind)"
        hint = "Copy the tokenizer's files there, or give tokenizer= a folder or a tokenizer."
        raise ModelLoadError(msg, hint=hint)


def _local(path: Path, weights: bool) -> Path:
    if path.is_file():
        msg = f"{path} is a file: a model is a folder, or a file that ends in .gguf"
        raise ModelLoadError(msg, hint="Give the folder that it is in.")
    if weights and not (path / "config.json").exists():
        found = sorted(entry.name for entry in path.iterdir())
        has = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "") if found else "nothing"
        hint = "A model's folder has config.json, weights and a tokenizer."
        if files := [name for name in found if name.endswith(".gguf")]:
            hint = f"Name the GGUF file: {path / files[0]}"
        if "adapter_config.json" in found:
            hint = (
                "This is a PEFT adapter: load its base model with peft, and give the model itself."
            )
        raise ModelLoadError(f"{path} is no model: it has no config.json ({has} in it)", hint=hint)
    return path.resolve()


def _weight_files(folder: Path) -> Iterator[Path]:
    """Every file of weights that transformers would read, whether it exists or not."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        if indexes := sorted(folder.glob(f"{pattern}.index.json")):
            shards = _read_json(indexes[0]).get("weight_map")
            if not isinstance(shards, dict):
                raise ModelLoadError(f"{indexes[0]} has no weight_map", hint="Download it again.")
            yield from (folder / str(name) for name in sorted(set(shards.values())))
            return
        if files := sorted(folder.glob(pattern)):
            yield from files
            return


def _check_safetensors(file: Path) -> None:
    """Compares a file's length with what its header promises (https://github.com/huggingface/safetensors#format)."""
    size = file.stat().st_size
    hint = "Copy or download the file again."
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            msg = f"{file} is not the weights but a pointer of git-lfs to them"
            raise ModelLoadError(msg, hint="Run `git lfs pull` in its folder.")
        length = int.from_bytes(start, "little")
        if size < 8 or length > size - 8:
            raise ModelLoadError(
                f"{file} is cut off or no safetensors file ({size} bytes)", hint=hint
            )
        try:
            header = json.loads(stream.read(length))
            ends = [
                entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"
            ]
            promised = 8 + length + max(ends, default=0)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            msg = f"{file} is damaged: its header cannot be read"
            raise ModelLoadError(msg, hint=hint) from error
    if size != promised:
        msg = f"{file} is cut off or damaged: it has {size} bytes and should have {promised}"
        raise ModelLoadError(msg, hint=hint)


def _read_json(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"{file} cannot be read: {error}", hint="Download it again."
        ) from error
    return content if isinstance(content, dict) else {}


def _from_hub(name: str, revision: str | None, weights: bool) -> Path:
    import huggingface_hub as hub

    folder: Path | None = None
    with suppress(Exception):  # whatever the cache lacks, the hub may have
        folder = Path(hub.snapshot_download(name, revision=revision, local_files_only=True))
        _check_whole(folder, weights)
        check_tokenizer(folder)
        return folder
    try:
        info = hub.HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
        files = [sibling.rfilename for sibling in info.siblings or ()]
        kind = "*.safetensors" if any(f.endswith(".safetensors") for f in files) else "*.bin"
        folder = Path(
            hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=[*_HUB_FILES, kind] if weights else _HUB_FILES,
                ignore_patterns=["*/*"],  # other formats, and the files of other frameworks
                etag_timeout=_HUB_SECONDS,
            )
        )
    except Exception as error:
        with suppress(Exception):
            if folder is not None:  # all but a tokenizer, which may come from elsewhere
                _check_whole(folder, weights)
                return folder
        raise _unavailable(name, revision, error) from error
    return folder


def _check_whole(folder: Path, weights: bool) -> None:
    _local(folder, weights)
    if weights:
        check_weights(folder)


def _unavailable(name: str, revision: str | None, error: Exception) -> ModelLoadError:
    """The error for a hub id that is neither cached nor served."""
    from huggingface_hub import errors

    at = "" if revision is None else f" at revision {revision!r}"
    hint = "Check the name, or give the path of a folder."
    if isinstance(error, errors.GatedRepoError):
        why, hint = (
            "is gated",
            f"Accept its terms at https://huggingface.co/{name} and log in (HF_TOKEN).",
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        why, hint = "has no such revision", "Check the revision's name."
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = "is no folder here, and no public model of the Hugging Face hub"
    else:
        why = f"is no folder here, not in the hub's cache, and the hub cannot be asked ({type(error).__name__}: {error})"
        hint = "Download it where there is a network (`hf download`), or give the path of a folder."
    return ModelLoadError(f"{name}{at} {why}", hint=hint)
