"""TRL's per-token log-probs and entropies, computed by logpi.

SFT, DPO, KTO, GRPO and RLOO trainers of TRL all score tokens through one function of its fused
LM head. `use_logpi` puts `linear_log_probs` in its place for the length of a `with` block.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from logpi.core.backends import AUTO
from logpi.ops.linear_log_probs import linear_log_probs

_SERVED = ">=1.15,<1.17"  # the versions the tests ran against
_HOOK = "_ChunkedLogProbFunction"  # of trl.trainer.utils, looked up at every call of the head
_HOOK_PARAMETERS = (
    "hidden",
    "weight",
    "bias",
    "targets",
    "temperature",
    "chunk_size",
    "final_logit_softcapping",
    "logit_scale",
    "outputs",
)
_OPTIONAL_OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def use_logpi(*, backend: str = AUTO) -> AbstractContextManager[LogProbHead]:
    """While it is entered, TRL's trainers take log-probs and entropies from `linear_log_probs`.

        with use_logpi() as head:
            trainer.train()
        head.calls  # how often a trainer asked

    One attribute of `trl.trainer.utils` is replaced, for the whole process, and put back on
    exit, also after an exception. Blocks nest: the innermost serves. Trainers may be made before
    or inside the block. TRL 1.15, which trains on GPUs only, then trains on a CPU as well.

    Args:
        backend: `"auto"`, or the name of a row of `linear_log_probs`. A named row serves or
            raises; it never falls back.

    Returns:
        A context manager. It gives the `LogProbHead` that stands in for TRL's function.

    Raises:
        ImportError: on entry, without TRL.
        RuntimeError: on entry, a version of TRL that was not tested, or one whose function is
            missing or takes other arguments, or this context twice; on exit, something else in
            the place it took. Nothing is replaced then.

    Memory: that of `linear_log_probs`; logits are never whole.
    Source: TRL 1.16, trl/kernels/chunked_logprob.py. Differs: bf16 logits are rounded once, bias
        included; float64 stays float64; a target outside the vocabulary raises on a CPU;
        logit_scale <= 0 and softcap 0 raise; DeepSpeed ZeRO-3 is refused.
    """
    return _Patch(LogProbHead(backend))


class LogProbHead:
    """Stands in for TRL's `ChunkedLogProbFunction`: the same `apply`, the same five outputs.

    Attributes:
        backend: the row asked for.
        calls: how many times `apply` was called.
    """

    def __init__(self, backend: str = AUTO) -> None:
        self.backend = backend
        self.calls = 0

    def apply(
        self,
        hidden: Tensor,  # [.., D]
        weight: Tensor,  # [V, D]
        bias: Tensor | None,  # [V]
        targets: Tensor,  # [..]
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = _OPTIONAL_OUTPUTS,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """(log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1); None if not in `outputs`.

        Gradient flows from the first two to hidden, weight and bias. `chunk_size`, the width of
        TRL's tiles, has nothing to set here.
        """
        self.calls += 1
        # TRL's dtype of the products, whatever that of the weight; float64 stays what it is
        autocast = torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64
        out = linear_log_probs(
            hidden,
            weight,
            targets,
            bias=bias,
            temperature=temperature,
            softcap=final_logit_softcapping,
            logit_scale=logit_scale,
            return_entropy="entropy" in outputs,
            return_collision="log_sum_sq_probs" in outputs,
            return_mean_logit="mean_logits" in outputs,
            return_top1="is_top1" in outputs,
            logits_dtype=None if autocast else hidden.dtype,
            backend=self.backend,
        )
        log_sum_sq_probs = None if out.collision is None else out.collision.log()
        return out.log_probs, out.entropy, log_sum_sq_probs, out.mean_logit, out.top1


class _Patch(AbstractContextManager[LogProbHead]):
    def __init__(self, head: LogProbHead) -> None:
        self._head = head
        self._utils: ModuleType | None = None
        self._found: Any = None

    def __enter__(self) -> LogProbHead:
        if self._utils is not None:
            raise RuntimeError(
                "use_logpi: this context is already entered; call use_logpi() again to nest blocks"
            )
        utils = _served_utils()
        self._utils, self._found = utils, getattr(utils, _HOOK)
        setattr(utils, _HOOK, self._head)
        return self._head

    def __exit__(self, *_: object) -> None:
        utils, self._utils = self._utils, None
        found = getattr(utils, _HOOK)
        if found is not self._head:
            raise RuntimeError(
                f"use_logpi: expected its own head in trl.trainer.utils.{_HOOK} on exit, found "
                f"{found!r}, and left it there; contexts must be left in the reverse order"
            )
        setattr(utils, _HOOK, self._found)


def _served_utils() -> ModuleType:
    """`trl.trainer.utils`, once its version and its hook are what this file was tested against."""
    try:
        import trl
    except ModuleNotFoundError as error:
        if error.name != "trl":
            raise  # TRL is there and misses something of its own: its message says what
        raise ImportError(
            "logpi.integrations.trl needs TRL, which is not installed: pip install logpi[trl]"
        ) from error
    from packaging.specifiers import SpecifierSet

    version = trl.__version__
    if not SpecifierSet(_SERVED).contains(version, prereleases=True):
        raise RuntimeError(f"logpi.integrations.trl serves TRL {_SERVED}, found TRL {version}")
    from trl.trainer import utils

    if not hasattr(utils, _HOOK):
        raise RuntimeError(
            f"logpi.integrations.trl serves TRL {_SERVED} by replacing trl.trainer.utils.{_HOOK}, "
            f"and the installed TRL {version} has no such attribute"
        )
    hook = getattr(utils, _HOOK)
    if hook is None or isinstance(hook, LogProbHead):
        return utils  # None: TRL 1.15 without Triton, which has no function of its own
    forward = getattr(hook, "forward", None)
    parameters = tuple(inspect.signature(forward).parameters)[1:] if callable(forward) else None
    if parameters != _HOOK_PARAMETERS:
        raise RuntimeError(
            f"logpi.integrations.trl serves TRL {_SERVED}, whose {_HOOK} takes "
            f"{', '.join(_HOOK_PARAMETERS)}; that of the installed TRL {version} takes "
            f"{'something else' if parameters is None else ', '.join(parameters)}"
        )
    return utils
