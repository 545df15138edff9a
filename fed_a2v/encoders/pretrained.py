"""Loading pretrained models with transformers, from a local folder or from the Hugging Face hub at a revision.

The audio encoders and the text models use this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fed_a2v.errors import UserError
from fed_a2v.install import install_hint

if TYPE_CHECKING:
    import torch


class ModelError(UserError, ValueError):
    """A pretrained model cannot be used: transformers or the model is missing, or the model is of another type."""


@dataclass(frozen=True)
class Pretrained:
    """Location of a pretrained model.

    Attributes:
        model: a local folder, or the name of a repository on the hub.
        revision: commit, tag or branch of the repository; None: its main branch. Unused with a folder.
        subfolder: subfolder of the folder or repository, e.g. `text_encoder` of an image pipeline; "" for none.
        key: key of the settings that name the model, for messages: "encoder", "targets.clip", ...
    """

    model: str
    revision: str | None
    subfolder: str
    key: str

    @property
    def folder(self) -> Path | None:
        """The local folder of the files; None for a repository on the hub."""
        root = Path(self.model).expanduser()
        return root / self.subfolder if root.is_dir() else None

    def read(self, name: str, subfolder: str | None = None, **options: Any) -> Any:
        """Call `from_pretrained` of the class `name` of transformers.

        Args:
            name: the class, e.g. "AutoConfig".
            subfolder: None: that of this model.
            options: further arguments of `from_pretrained`.

        Raises:
            ModelError: transformers is not installed, or the files are missing or of another type.
        """
        try:
            import transformers
        except ImportError as error:
            raise ModelError(
                f"{self.key}.model={self.model} needs the package transformers: {install_hint('hf')}"
            ) from error
        root = Path(self.model).expanduser()
        if not root.is_dir() and (root.is_absolute() or self.model.startswith((".", "~"))):
            raise ModelError(f"{self.key}.model={self.model}: no such folder; set a folder or a repository OWNER/NAME")
        try:
            with quiet(transformers):
                return getattr(transformers, name).from_pretrained(
                    str(root) if root.is_dir() else self.model,
                    revision=self.revision,
                    subfolder=self.subfolder if subfolder is None else subfolder,
                    **options,
                )
        except Exception as error:  # damaged files make transformers and safetensors raise any type of error
            raise ModelError(self._explanation(error, root.is_dir())) from error

    def network(self, name: str, dtype: torch.dtype, device: torch.device) -> Any:
        """The network of class `name` in evaluation mode on `device`, with frozen weights.

        Raises:
            ModelError: see `read`; or the files lack some of the weights, which transformers would initialise randomly.
        """
        network, report = self.read(name, dtype=dtype, output_loading_info=True)
        if missing := sorted(report["missing_keys"]):
            raise ModelError(
                f"{self.key}.model={self.model} has no weights for {len(missing)} parts of {name} ({missing[0]}, ...): "
                "it is another type of model; name one with these weights"
            )
        return network.eval().requires_grad_(False).to(device)

    def identity(self) -> str:
        """Identifies the model on every machine, without a path: the repository's commit, or a hash of the files."""
        if self.folder is not None:
            digest = hashlib.sha256()
            for path in _files(self.folder):
                with path.open("rb") as file:
                    digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
            return digest.hexdigest()
        commit = self.revision
        if commit is None or not re.fullmatch("[0-9a-f]{40}", commit):  # a branch or a tag: resolve it to a commit
            commit = self.read("AutoConfig")._commit_hash or commit
        return f"{self.model}@{commit} {self.subfolder}".strip()

    def version_key(self) -> tuple[object, ...]:
        """Like `identity`, but for this machine only: file sizes and times instead of a hash of several GB."""
        if self.folder is None:
            return (self.identity(),)
        stats = [(path, path.stat()) for path in _files(self.folder)]
        return tuple((path.name, stat.st_size, stat.st_mtime_ns) for path, stat in stats)

    def _explanation(self, error: Exception, local: bool) -> str:
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, ImportError):
            return (
                f"{self.key}.model={self.model} needs a package that is not installed ({reason}): {install_hint('hf')}"
            )
        if local:
            hint = ""
            if not self.subfolder and (Path(self.model).expanduser() / "model_index.json").is_file():
                hint = f"; it is an image pipeline: set {self.key}.subfolder=text_encoder or text_encoder_2"
            return f"{self.key}.model={self.model} cannot be read{hint}: {reason}"
        revision = f" --revision {self.revision}" if self.revision else ""
        only = f" --include '{self.subfolder}/*' --include 'tokenizer*'" if self.subfolder else ""
        return (
            f"{self.key}.model={self.model} is not on this machine and cannot be downloaded: run "
            f"`hf download {self.model}{revision}{only}` with a network connection, or set {self.key}.model to a "
            f"folder with the model ({reason})"
        )


def pick_device(name: str) -> torch.device:
    """The device `name`; "auto" is the first GPU if there is one, else the CPU.

    Raises:
        ModelError: the device does not exist.
    """
    import torch  # imported here because it takes a second, which callers that only read a configuration do not need

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device={name}: {str(error).splitlines()[0]}; use cpu or auto") from error
    return device


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


@contextlib.contextmanager
def quiet(library: ModuleType) -> Iterator[None]:
    """Hide transformers' progress bars and its reports of unused weights; errors are raised as usual."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
