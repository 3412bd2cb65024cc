"""Find a model's files: the embedded one, a folder, a weights file, or a name on the Hub.

Out: a `ModelFiles`, local paths only.  The Hub is reached through huggingface_hub, which the
tokenizers package brings along; it keeps its cache and obeys its settings (HF_HUB_OFFLINE, HF_HOME,
HF_TOKEN, HF_HUB_ETAG_TIMEOUT).  Small files come first: what config.json says cannot be run is
refused before its weights are fetched.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minibert.checkpoints.kinds import NO_WEIGHTS, kind_on_hub, other_kind
from minibert.checkpoints.safetensors import shard_names
from minibert.config import BertConfig
from minibert.errors import CheckpointError, InputError, ModelNotFoundError
from minibert.files import open_file, present
from minibert.options import check_path, expanded, path_text
from minibert.reprs import shown

EMBEDDED = Path(__file__).parents[1] / "models" / "minilm-l12-squad2"

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# What checkpoints were before safetensors.
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SAFETENSORS = ("*.safetensors",)
# Formats that `convert` reads: of torch.save, and of TensorFlow.
OTHER_FORMATS = (("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json"), ("*.ckpt*.index",))
# The settings first: where they are not in the Hub's cache, the rest is not either.
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "special_tokens_map.json",
    "added_tokens.json",
)

# How long the Hub is waited for.  Where its cache would do, not long; HF_HUB_ETAG_TIMEOUT sets
# another time for both.  Without a network, nobody waits: there is an error at once.
SECONDS_IF_CACHED = 1.2
SECONDS = 10.0

# organisation/name or name, of the characters and as long as the Hub allows.
HUB_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies."""

    folder: Path  # config.json and the tokenizer's files
    weights: Path  # a .safetensors file, or the index of a sharded one

    def parts(self) -> list[Path]:
        """The files that hold the weights: one, or all shards.

        Raises:
            ModelNotFoundError: the index of the shards is not there any more.
            CheckpointError: it is damaged.
        """
        if not self.weights.name.endswith(".index.json"):
            return [self.weights]
        return [self.weights.parent / name for name in shard_names(self.weights)]

    @property
    def size(self) -> int:
        """Of the weights, in bytes.

        Raises:
            MinibertError: as of `parts`.
        """
        return sum(path.stat().st_size for path in self.parts() if path.is_file())

    def digest(self) -> str:
        """SHA-256 of the files that a model's answers depend on.

        Raises:
            MinibertError: weights are not there any more, or a file cannot be read.
        """
        parts, total = self.parts(), hashlib.sha256()
        # Nothing of small files that are not there: a newer minibert looks for more of them.
        small = [self.folder / name for name in ("config.json", *TOKENIZER_FILES)]
        for path in [*(path for path in small if os.path.isfile(path)), *parts]:
            try:
                with open_file(path) as file:
                    total.update(f"{path.name} {os.fstat(file.fileno()).st_size}\n".encode())
                    while block := file.read(1 << 20):
                        total.update(block)
            except OSError as error:
                raise ModelNotFoundError(
                    f"{path}: cannot be read any more: {error.strerror}"
                ) from None
        return total.hexdigest()


def find_model(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    accept_pickles: bool = False,
    check: Callable[[Path], object] | None = None,
) -> ModelFiles:
    """Find a model.

    Args:
        model: None or "embedded" for the embedded one ("./embedded" is a folder); a folder; a
            .safetensors file (config.json and the tokenizer lie beside it); or a name on the
            Hugging Face Hub.
        revision: branch, tag or commit on the Hub.
        token: for private models on the Hub; True for the one that is logged in.
        cache_dir: where the Hub's files are kept.
        accept_pickles: take files of other formats too, which only `convert` can read.
        check: called with the folder of a model on the Hub when config.json and the tokenizer's
            files are there; what it raises refuses the model before its weights are fetched.

    Raises:
        ModelNotFoundError: nothing is there, or the Hub cannot be reached.
        ConfigError: the model is on the Hub, and its config.json is not that of a model to run.
        InputError: `model` is no path and no name.
    """
    names = (*WEIGHTS, *PICKLES) if accept_pickles else WEIGHTS
    path = _local("model", model)
    if path is None:
        return _on_hub(HubModel(path_text(model) or "", revision, token, cache_dir), names, check)
    if path.is_dir():
        return _in_folder(path, names)
    if accept_pickles or path.name.endswith((".safetensors", ".safetensors.index.json")):
        return ModelFiles(path.parent, path)
    raise ModelNotFoundError(
        f"{path}: is not a safetensors file. A model is a folder, a .safetensors file or a "
        "name on the Hub; `minibert convert` makes safetensors of an old pytorch_model.bin."
    )


def find_tokenizer(
    tokenizer: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Find the folder of a tokenizer; on the Hub, only its own files are fetched, no weights.

    Args:
        tokenizer: as `model` of find_model.
        revision: branch, tag or commit on the Hub.
        token: for private models on the Hub.
        cache_dir: where the Hub's files are kept.

    Raises:
        ModelNotFoundError: nothing is there, or the Hub cannot be reached.
        InputError: `tokenizer` is no path and no name.
    """
    path = _local("tokenizer", tokenizer)
    if path is not None:
        return path if path.is_dir() else path.parent
    hub = HubModel(path_text(tokenizer) or "", revision, token, cache_dir)
    _, *vocabularies = [hub.fetch(file) for file in TOKENIZER_FILES]
    for path in vocabularies:
        if path is not None:
            return path.parent
    raise hub.lacks("tokenizer.json, vocab.txt, vocab.json or SentencePiece model")


def _local(kind: str, name: object) -> Path | None:
    """The folder or file here that a model's or a tokenizer's name means; None: it is on the Hub.

    Raises:
        ModelNotFoundError: there is none, and it is no name for the Hub.
        InputError: it is neither a path nor a name.
    """
    if not isinstance(name, str | os.PathLike | None):
        raise InputError(
            f"a {kind} is a folder, a file or a name, got {type(name).__name__}: {shown(name)}"
        )
    if name is None or (isinstance(name, str) and name == "embedded"):
        return EMBEDDED  # whatever lies in the current folder
    text = path_text(name)  # the path of an object may be bytes
    if text is None:
        raise InputError(f"the {kind}'s name must be a text, {shown(name)} gives none")
    if not text:
        raise ModelNotFoundError(f"the {kind}'s name is empty; leave it out for the embedded model")
    path = Path(expanded(text))
    if os.path.exists(path):  # unlike Path.exists, False for a name longer than the system allows
        return path
    if not HUB_NAME.fullmatch(text) or text.startswith("."):
        raise ModelNotFoundError(f"{text}: there is no such folder or file")
    return None


def _in_folder(folder: Path, names: tuple[str, ...]) -> ModelFiles:
    """The weights in a folder: the first of `names`, or else the only file of its kind."""
    for name in names:
        if present(folder / name):
            return ModelFiles(folder, folder / name)
    found = [weights_among(folder, patterns) for patterns in (SAFETENSORS, *OTHER_FORMATS)]
    usable = found if PICKLES[0] in names else found[:1]
    for files in usable:
        if len(files) == 1:
            return ModelFiles(folder, folder / files[0])
    if several := next(filter(None, usable), None):
        hint = f"; name one of {', '.join(several)}"
    elif others := next(filter(None, found), None):
        hint = f", only {others[0]}. Run `minibert convert {folder} NEW_FOLDER` and use NEW_FOLDER."
    elif other := other_kind(names_below(folder), str(folder)):
        hint = f". {other}"
    else:
        hint = ". A model's folder holds it, config.json and tokenizer.json or vocab.txt."
    raise ModelNotFoundError(f"{folder}: holds no model.safetensors{hint}")


def weights_among(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """The files of a format in a folder that are whole models, as far as names tell."""
    names = {path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(
        name for name in names if not any(fnmatch.fnmatch(name, each) for each in NO_WEIGHTS)
    )


def names_below(folder: Path) -> list[str]:
    """The names of the files and folders in a folder, and of those in its folders."""
    return [
        path.relative_to(folder).as_posix()
        for pattern in ("*", "*/*")
        for path in sorted(folder.glob(pattern))
    ]


def _on_hub(
    hub: HubModel, weights: tuple[str, ...], check: Callable[[Path], object] | None
) -> ModelFiles:
    """Fetch config, tokenizer and weights of a model on the Hub, or find them in its cache."""
    config = hub.fetch("config.json")
    if config is None:
        raise hub.lacks("config.json")
    BertConfig.from_json(config)  # a model that cannot be run is refused here
    for file in TOKENIZER_FILES:
        hub.fetch(file)
    if check is not None:
        check(config.parent)
    for file in weights:
        path = hub.fetch(file)
        if path is None:
            continue
        files = ModelFiles(config.parent, path)
        try:
            others = [part.relative_to(path.parent) for part in files.parts() if part != path]
        except CheckpointError as error:
            raise ModelNotFoundError(f"{hub.at}: {error}") from None
        for part in others:
            if hub.fetch(part.as_posix()) is None:
                raise hub.lacks(part.as_posix())
        return files
    hint = ""
    if pickle := next((file for file in PICKLES if hub.has(file)), None):
        hint = f", only {pickle}. Run `minibert convert {hub.name} NEW_FOLDER` and use NEW_FOLDER."
    elif other := kind_on_hub(hub.has, hub.name):
        hint = f". {other}"
    raise hub.lacks("model.safetensors", hint)


class HubModel:
    """A model on the Hub; or, where the Hub cannot be reached, what its cache holds of the model.

    Whether it can be reached is asked once, without huggingface_hub's retries, which take 24 s for
    each file, and not at all where the cache knows all files of a commit.  Downloads then have
    them; where they fail, the rest is looked for in the cache.

    Args:
        name: organisation/name, or name.
        revision: branch, tag or commit; None: the usual branch.
        token: for private models; True for the one that is logged in.
        cache_dir: where the Hub's files are kept.

    Raises:
        ModelNotFoundError: the Hub does not allow such a name.
        InputError: an argument is of another kind.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        if not isinstance(revision, str | None):
            raise InputError(f"revision must be a branch, tag or commit, got {shown(revision)}")
        if not isinstance(token, str | bool | None):
            raise InputError(f"token must be a text, True or False, got {type(token).__name__}")
        if cache_dir is not None:
            cache_dir = check_path("cache_dir", cache_dir)
        # Imported here: it takes longer than everything else, and most runs do not need it.
        from huggingface_hub import hf_hub_url

        self.name, self.revision, self.token, self.cache_dir = name, revision, token, cache_dir
        self.at = f"{name}, revision {revision}" if revision else name
        self.folder: Path | None = None  # in the cache; known once a file is there
        self.offline = ""  # why the Hub cannot be reached
        self.waited = 0.0  # seconds that it was given to answer; 0: it was not asked
        try:
            self.url = hf_hub_url(name, "config.json", revision=revision)
        except ValueError as error:
            raise ModelNotFoundError(f"{self.at}: is no name of a model: {error}") from None

    def fetch(self, file: str) -> Path | None:
        """The local copy of a file; None if the model has none, or the cache has none offline.

        All files come from the commit that the first one came from.

        Raises:
            ModelNotFoundError: the Hub does not give it.
        """
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

        revision = self.folder.name if self.folder else self.revision
        try:
            # A path; a mark that there is no such file; or None: the cache does not know.
            path = try_to_load_from_cache(self.name, file, self.cache_dir, revision)
            final = path is not None and COMMIT.fullmatch(revision or "")
            if not final and self.answers(isinstance(path, str)):
                path = hf_hub_download(
                    self.name, file, revision=revision, token=self.token, cache_dir=self.cache_dir
                )
        except LocalEntryNotFoundError as error:  # after all retries
            self.offline, self.waited = first_line(error.__cause__ or error), math.inf
            return None
        except EntryNotFoundError:
            return None
        except hub_errors() as error:  # no such model or revision, not allowed
            raise ModelNotFoundError(
                f"{self.at}: the Hub does not give this model: {first_line(error)}"
            ) from None
        if not isinstance(path, str):
            return None
        if self.folder is None:
            self.folder = Path(path).parent
        return Path(path)

    def answers(self, cached: bool) -> bool:
        """Whether the Hub can be reached; asked again where it is given more time than before.

        Args:
            cached: the Hub's cache holds what is wanted, perhaps in an older version.
        """
        from huggingface_hub import constants

        seconds = getattr(constants, "HF_HUB_ETAG_TIMEOUT", SECONDS)  # old versions have none
        if cached and not os.environ.get("HF_HUB_ETAG_TIMEOUT"):
            seconds = SECONDS_IF_CACHED
        if not self.waited or (self.offline and self.waited < seconds):
            self.offline, self.waited = why_unreachable(self.url, seconds), seconds
        return not self.offline

    def has(self, file: str) -> bool:
        """Whether the model has a file, which is not fetched."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        if not self.answers(cached=False):
            return self.folder is not None and (self.folder / file).is_file()
        try:
            url = hf_hub_url(self.name, file, revision=self.revision)
            get_hf_file_metadata(url, token=self.token)
        except hub_errors():
            return False
        return True

    def lacks(self, file: str, hint: str = "") -> ModelNotFoundError:
        """The error where a file that is needed is not there."""
        if not self.offline:
            return ModelNotFoundError(f"{self.at}: this model on the Hub has no {file}{hint}")
        if self.folder is None:
            return ModelNotFoundError(
                f"{self.at}: is not a folder here, is not in the Hub's cache, and the Hub cannot "
                f"be reached ({self.offline}). Check the name, or go online once."
            )
        return ModelNotFoundError(
            f"{self.at}: the Hub cannot be reached ({self.offline}), and what its cache holds of "
            f"this model has no {file}{hint}"
        )


def why_unreachable(url: str, seconds: float) -> str:
    """Why the Hub cannot be reached; '' if it answers, whatever it says.

    Args:
        url: of a file on the Hub, whose head is asked for.
        seconds: for which its answer is waited for.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:  # which old versions do not heed in all requests
        return "HF_HUB_OFFLINE is set"
    reasons = [f"no answer within {seconds:g} s; HF_HUB_ETAG_TIMEOUT=30 waits longer"]
    failures = hub_errors()

    def ask() -> None:
        """Empty `reasons`, or put the right one there."""
        try:
            # Without a token: to be told that one is needed is an answer.
            get_session().head(url, timeout=seconds)
        except failures as error:
            reasons[:] = [first_line(error)]
            return
        reasons.clear()

    # Beside this thread, because no timeout covers the search for an address, or several addresses.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return "".join(reasons)


def hub_errors() -> tuple[type[BaseException], ...]:
    """What huggingface_hub raises where a request fails or cannot be made.

    OSErrors, ValueErrors, and the errors of its HTTP library, whichever that is: one of its own
    classes is derived from them.
    """
    from huggingface_hub.utils import HfHubHTTPError

    return (OSError, ValueError, *HfHubHTTPError.__bases__)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return str(error).strip().split("\n")[0] or type(error).__name__
