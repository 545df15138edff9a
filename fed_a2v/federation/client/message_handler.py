"""Handles the messages of a node: reads the instruction, runs the site's work, and encodes the reply."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from flwr.common import Config, NDArray, NDArrays, Scalar
from torch import Tensor

from fed_a2v.core.adapters import Adapters
from fed_a2v.core.gaussian_release import Normals, secure_normals, seeded_normals
from fed_a2v.core.public_space import ORTHONORMAL, PublicSpace, is_orthonormal
from fed_a2v.core.seeding import seed_for, torch_generator
from fed_a2v.core.training import TrainingTask
from fed_a2v.data.errors import DataError
from fed_a2v.encoders.pretrained import ModelError
from fed_a2v.encoders.text import TargetsError
from fed_a2v.errors import ConfigError
from fed_a2v.federation.client.ledger import Ledger
from fed_a2v.federation.client.local_training import Site, check_columns
from fed_a2v.federation.client.node_config import NodeConfigError, read_node_config
from fed_a2v.federation.client.privacy_ledger import PrivacyLedger
from fed_a2v.federation.client.privacy_policy import (
    PolicyViolationError,
    check_noise_sites,
    check_privacy,
    settings_here,
)
from fed_a2v.federation.client.private_releases import PrivateReleases
from fed_a2v.federation.client.time_limit import DeadlineError, within
from fed_a2v.federation.factory import release_noise
from fed_a2v.federation.memory import limit_memory
from fed_a2v.federation.protocol import (
    MASKED_TASKS,
    REGISTRATION,
    SUMS_TASKS,
    VALIDATION,
    WEIGHT,
    InvalidReplyError,
    MaskedTask,
    Scores,
    Task,
    TrainReply,
    beside_training,
    decode_weights,
    encode_scores,
    encode_withdrawal,
    pack_reply,
    split_arrays,
)
from fed_a2v.federation.protocol.instruction import Instruction, InvalidInstructionError, read_instruction
from fed_a2v.federation.protocol.prompt_check import OtherPromptsError, check_same_prompts

log = logging.getLogger("fed_a2v")

Reply = TypeVar("Reply")

# Errors that the server may see unchanged: they only contain text of its own message, keys, and limits of the node.
REPORTED_ERRORS = (
    InvalidReplyError,
    PolicyViolationError,
    DeadlineError,
    NodeConfigError,
    InvalidInstructionError,
    OtherPromptsError,
)
# Other errors may quote a file, so that the server only receives their subject.
SUBJECTS = {
    DataError: "its data cannot be used",
    ModelError: "its models cannot be used",
    TargetsError: "its class prompts cannot be used",
    ConfigError: "its configuration does not fit the run's settings",
    MemoryError: "it has too little memory",
    OSError: "a file cannot be read or written",
}


class SiteError(RuntimeError):
    """A site cannot do its task; the message only contains the subject of the cause."""


class Prepared(NamedTuple):
    """A site that is ready to train.

    Attributes:
        instruction: the server's instruction.
        site: the site.
        task: what it trains on.
        received: the arrays of the global adapters in the message.
        start: when its work began, by `time.perf_counter`.
    """

    instruction: Instruction
    site: Site
    task: TrainingTask
    received: NDArrays
    start: float

    def reply(self, losses: dict[str, float]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """What `MessageHandler.fit` returns after the training.

        Args:
            losses: losses of the training, see `train_epochs`.
        """
        held = self.instruction.held
        reply = self.site.trained(self.instruction.round, self.task, losses, held, self.start)
        return _packed(reply, self.site, self.received)


class MessageHandler:
    """Handles the messages of one node.

    Each message contains settings and class names, so that a node needs only its data. In a simulation a node may
    represent several sites; the message names the site.

    Args:
        node_config: see `A2VClient`.
        deployed: see `A2VClient`.

    Raises:
        NodeConfigError: a key or a value of `node_config` is wrong, or a key that a deployed node needs is missing.
    """

    def __init__(self, node_config: dict[str, Scalar], deployed: bool = False) -> None:
        self.node_config = read_node_config(node_config)
        self.deployed = deployed
        if deployed:
            self.node_config.check_deployed()

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Register the site, or train the adapters in `parameters` on its clips.

        A training message may also ask for the scores of its adapters, which are those after the round before, and for
        scores of the CLIP side before that round's server step, whose weights then come first; see `evaluate`.

        Raises:
            InvalidInstructionError: the message is invalid.
            InvalidReplyError: the arrays of the message are invalid.
            PolicyViolationError: the run requests more than the site's owner allows.
            DeadlineError: the work exceeds `federation.site_timeout` or the time limit of the owner.
            SiteError: deployed: any other error; the node's log has the cause. A node that is not deployed raises the
                cause itself: `DataError`, `TargetsError`, ...
        """
        instruction = read_instruction(config, *REGISTRATION, "train")
        if (instruction.task in SUMS_TASKS) != (instruction.task != "train" and instruction.settings.shares_sums):
            raise InvalidInstructionError(
                f"the server's message: task {instruction.task} with share={instruction.settings.share.kind}"
            )
        if instruction.models and not (instruction.task == "train" and instruction.settings.sends_adapters):
            raise InvalidInstructionError(
                f"the server's message: task {instruction.task} asks for scores of adapters, which it does not carry"
            )
        if self.node_config.withdraw:
            return [], 0, self._withdrawal(instruction)
        return self._in_time(instruction, lambda: self._fit(parameters, instruction))

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, dict[str, Scalar]]:
        """Score the models in `parameters` on the site's test clips, and the last model also on the validation clips.

        The models are the CLIP side of the adapters before the server step, if `models` requests it, and the adapters
        after the step. The gain of the step is measured on CLIP. T5, which is most of the bytes, is only sent after it.

        Raises:
            Exception: as in `fit`.
        """
        instruction = read_instruction(config, "evaluate")
        if self.node_config.withdraw:
            return 0.0, 0, self._withdrawal(instruction)
        return self._in_time(instruction, lambda: self._evaluate(parameters, instruction))

    def _fit(self, parameters: NDArrays, instruction: Instruction) -> tuple[NDArrays, int, dict[str, Scalar]]:
        site = self._site(instruction)
        if instruction.task in MASKED_TASKS:
            return self._masked(parameters, instruction, site)
        if instruction.task == "register":
            reply = site.register(instruction.round)
        elif instruction.task == "centre":
            reply = site.centre(_public_space(split_arrays(parameters, 2), site, is_centred=False))
        elif instruction.task == "sums":
            reply = site.send_sums("sums", _public_space(split_arrays(parameters, 2), site, is_centred=True))
        elif instruction.task == "counts":
            reply = site.counts()
        elif not site.settings.sends_adapters:
            space = _public_space(split_arrays(parameters, 2), site, is_centred=True)
            reply = site.send_sums("train", space, instruction.round, instruction.held)
        else:
            return self._train(parameters, instruction, site)
        return _packed(reply, site)

    def _train(
        self, parameters: NDArrays, instruction: Instruction, site: Site
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train the adapters in a message; before that they are scored if the message asks for it."""
        adapters = site.new_adapters()
        size = _count_arrays(adapters)
        arrays = split_arrays(parameters, 2 * size if instruction.models else size)
        scores = self._scores_before_training(arrays, adapters, instruction, site) if instruction.models else {}
        _load(adapters, arrays[-size:], site.device)
        reply = site.train(instruction.round, adapters, instruction.held)
        parts, clips, metrics = _packed(reply, site, arrays[-size:])
        return parts, clips, metrics | scores

    def _scores_before_training(
        self, arrays: NDArrays, adapters: Adapters, instruction: Instruction, site: Site
    ) -> dict[str, Scalar]:
        """The scores that a training message asks for, of the round before; none if the site's owner allows none."""
        try:
            self._admit(site, instruction, "evaluate")
        except PolicyViolationError as error:
            log.warning("%s trains, and sends no scores: %s", site.name, error)
            return {}
        try:
            scores = self._scores(arrays, adapters, instruction, site)
        except Exception:  # whatever it is, the training may go well, as it would after an evaluation of its own
            log.warning("%s trains, and could not score the adapters:", site.name, exc_info=True)
            return {}
        return beside_training(encode_scores(site.name, instruction.round - 1, scores))

    def prepare_training(self, parameters: NDArrays, config: Config, like: Prepared | None = None) -> Prepared:
        """What a site is to train, for the training of several sites in one process.

        Args:
            parameters: the global adapters.
            config: the instruction of a training message that asks for no scores.
            like: what another site was to train with the same global adapters, which are then not decoded again.

        Raises:
            Exception: as in `fit`; no limit on time and memory applies.
        """
        start, instruction = time.perf_counter(), read_instruction(config, "train")
        site = self._site(instruction)
        adapters = site.new_adapters()
        if like is None:
            received = split_arrays(parameters, _count_arrays(adapters))
            _load(adapters, received, site.device)
        else:
            received = like.received
            adapters.adopt(like.task.adapters.weights(), like.task.adapters.fixed())
        return Prepared(instruction, site, site.training_task(instruction.round, adapters), received, start)

    def _masked(
        self, parameters: NDArrays, instruction: Instruction, site: Site
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """The vector of a masked task, which the client mod masks before it leaves."""
        task = cast(MaskedTask, instruction.task)
        arrays = split_arrays(parameters, 3)
        size = 1 if task == "masked_centre" else len(site.classes) + 1
        (scales,) = decode_weights(arrays[-1:], [(size,)])
        space = _public_space(arrays[:-1], site, is_centred=task == "masked_sums")
        reply, vector = site.masked(task, space, scales)
        if not self.deployed:
            # The mod rounds at random with numpy's global generator; a simulation must repeat it.
            np.random.seed(seed_for(site.settings.seed, "quantisation", task, site.name) % 2**32)
        _, metrics = pack_reply(reply, site.settings.share.float_dtype)
        return [vector], WEIGHT, metrics

    def _evaluate(self, parameters: NDArrays, instruction: Instruction) -> tuple[float, int, dict[str, Scalar]]:
        site = self._site(instruction)
        adapters = site.new_adapters()
        arrays = split_arrays(parameters, 2 * _count_arrays(adapters))
        scores = self._scores(arrays, adapters, instruction, site)
        final = scores[next(name for name in reversed(instruction.models) if name != VALIDATION)]
        return float(final.loss), int(final.clips), encode_scores(site.name, instruction.round, scores)

    def _scores(self, arrays: NDArrays, adapters: Adapters, instruction: Instruction, site: Site) -> dict[str, Scores]:
        """The scores of the models in `arrays`, which are loaded into `adapters` one after the other."""
        names = [name for name in instruction.models if name != VALIDATION]
        size = _count_arrays(adapters)
        before, last = arrays[:-size], arrays[-size:]
        # Of the adapters before the server step only the CLIP side was sent; the rest is the last model's, unscored.
        models = {names[0]: before + last[len(before) :], names[-1]: last}
        unchanged = len(models) > 1 and all(map(_same, before, last))  # the server step trained nothing
        if unchanged:
            del models[names[0]]
        scores: dict[str, Scores] = {}
        right: Tensor | None = None
        for name, model in models.items():
            _load(adapters, model, site.device)
            is_last = name == names[-1]
            confusion = instruction.confusion and is_last
            # The clips on which the two differ are counted here: only the counts leave the site.
            scores[name], right = site.evaluate(adapters, instruction.calibration, confusion, t5=is_last, before=right)
        if unchanged:
            scores |= zip((names[0], names[-1]), scores[names[-1]].unchanged(), strict=True)
        if VALIDATION in instruction.models:
            scores[VALIDATION] = site.evaluate(adapters, clips=site.data.validation, t5=False).scores
        return scores

    def _site(self, instruction: Instruction) -> Site:
        own = self.node_config
        check_privacy(instruction.settings, own, self.deployed, instruction.task)
        settings = settings_here(instruction.settings, own, self.deployed)
        _check_secure_sums(instruction.task, settings.has_secure_sums)
        torch.set_num_threads(settings.threads)
        site = Site(
            settings,
            instruction.classes,
            instruction.number,
            own.data_dir or None,
            name=self._site_name(instruction),
            min_clips=own.min_clips or 0,
            releases=self._releases(instruction),
        )
        check_same_prompts(site.prompts, instruction.prompts)
        self._admit(site, instruction, instruction.task)
        return site

    def _admit(self, site: Site, instruction: Instruction, task: Task | Literal["evaluate"]) -> None:
        """Check that the owner allows what a task sends, and enter it into the ledger of averages.

        Raises:
            PolicyViolationError: the owner does not.
        """
        own = self.node_config
        check_privacy(instruction.settings, own, self.deployed, task)
        # The server chooses the noise. Only if the owner limits epsilon does no difference of noisy sums reveal a clip.
        is_noisy = site.releases is not None and own.max_epsilon is not None and task != "evaluate"
        if own.ledger and not is_noisy:
            # Before the work, so that a task counts even if its reply is lost: it may have reached the server.
            Ledger(Path(own.ledger), own.min_clips or 1).admit(site.averaged(task))

    def _withdrawal(self, instruction: Instruction) -> dict[str, Scalar]:
        """The answer of a site whose owner takes it out of the run; its data is not read."""
        site = self._site_name(instruction)
        log.info("%s withdraws from the run (withdraw in this node's configuration)", site)
        return encode_withdrawal(site, instruction.round)

    def _releases(self, instruction: Instruction) -> Callable[[str], PrivateReleases] | None:
        """What makes the noisy releases of the site with a name; None without `privacy=dp`."""
        own, settings = self.node_config, instruction.settings
        noise = release_noise(settings.privacy, settings.secure_sums)
        if noise is None:
            return None
        ledger, sites = None, None
        if own.privacy_ledger:
            ledger = PrivacyLedger(Path(own.privacy_ledger), own.max_epsilon, own.max_delta)
        if settings.has_secure_sums:
            sites = max(1, instruction.sites)
            if self.deployed:
                check_noise_sites(own, sites)

        def normals(name: str, key: str) -> Normals:
            if self.deployed:
                return secure_normals
            return seeded_normals(torch_generator(settings.seed, "privacy", name, key))

        return lambda name: PrivateReleases(settings.privacy, noise, partial(normals, name), ledger, sites)

    def _site_name(self, instruction: Instruction) -> str:
        """The server's name for the site; if every node is a site, the name that its operator has set, if any."""
        own = self.node_config.name if instruction.settings.partition.kind == "own" else None
        return instruction.site if own is None else f"site-{own}"

    def _in_time(self, instruction: Instruction, work: Callable[[], Reply]) -> Reply:
        """Run the work with the limits on time and memory, and hide the details of errors from the server."""
        seconds = instruction.settings.federation.site_seconds
        key, own = "federation.site_timeout", self.node_config
        if own.max_seconds is not None and own.max_seconds < seconds:
            key, seconds = "max-seconds", own.max_seconds
        try:
            with limit_memory(own.max_memory):
                return within(seconds, f"the task {instruction.task} of {self._site_name(instruction)}", work, key)
        except REPORTED_ERRORS:
            raise
        except Exception as error:
            if not self.deployed:
                raise
            # torch raises a RuntimeError if it cannot allocate memory.
            kinds = SUBJECTS | ({RuntimeError: SUBJECTS[MemoryError]} if "memory" in str(error) else {})
            subject = next((text for kind, text in kinds.items() if isinstance(error, kind)), "it cannot do this task")
            reason = f"{subject} ({type(error).__name__}); see the log of this site's SuperNode"
            raise SiteError(reason) from error


def _packed(reply: TrainReply, site: Site, received: Sequence[NDArray] = ()) -> tuple[NDArrays, int, dict[str, Scalar]]:
    """A reply for Flower; its weights may be differences from those that the site has received."""
    share = site.settings.share
    start = list(received[: len(reply.weights)]) if share.sends_differences else []
    parts, metrics = pack_reply(reply, share.float_dtype, start)
    return parts, reply.num_examples, metrics


def _count_arrays(adapters: Adapters) -> int:
    """Number of arrays of global adapters: the weights, then what is not trained."""
    return len(adapters.weights()) + len(adapters.fixed())


def _same(left: NDArray, right: NDArray) -> bool:
    # Bytes are compared because numpy compares float16 number by number, which takes as long as a small evaluation.
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def _load(adapters: Adapters, arrays: NDArrays, device: torch.device) -> None:
    """Load the global adapters that the server sent into `adapters`, on this device."""
    weights, fixed = adapters.weights(), adapters.fixed()
    tensors = decode_weights(arrays, [tuple(tensor.shape) for tensor in weights + fixed])
    tensors = [tensor.to(device) for tensor in tensors]
    adapters.adopt(tensors[: len(weights)], tensors[len(weights) :])
    if adapters.space is not None:
        _check_space(adapters.space)


def _check_secure_sums(task: str, secure: bool) -> None:
    """Check that sums leave in the way that the settings say: behind a mask, or not."""
    if secure and task in ("register", "centre", "sums"):
        raise PolicyViolationError(f"the task {task} sends sums in the clear, and the run has secure_sums=secagg")
    if not secure and task in ("counts", *MASKED_TASKS):
        raise PolicyViolationError(f"the task {task} needs secure_sums=secagg")


def _public_space(arrays: NDArrays, site: Site, is_centred: bool) -> PublicSpace:
    """The public space that the server sent: its matrix and, once it is known, its centre."""
    width, columns = site.data.train.embeddings.shape[-1], site.settings.projection.columns
    check_columns(columns, width)
    shapes: list[tuple[int, ...]] = [(width, columns), (columns,)]
    space = PublicSpace(*decode_weights(arrays, shapes if is_centred else shapes[:1]))
    _check_space(space)
    return space


def _check_space(space: PublicSpace) -> None:
    """Check that no clip can count for more than another in sums over this space."""
    if not is_orthonormal(space.matrix):
        raise InvalidReplyError("the columns of the public space are not orthonormal")
    # The mean of rows of length 1. A longer one would shift all rows to one place, where rounding decides.
    if space.centre is not None and not space.centre.double().norm() <= 1 + ORTHONORMAL:
        raise InvalidReplyError("the centre of the public space is longer than 1")
