"""What an entropy curve says of a run: the next step's change, and the ceiling of its reward.

    dH = -eta Cov(log pi, pi A)  or  -eta Cov(log pi, A)        before the step is taken
    R  = -a e^H + b                                             after many of them

Both are of arXiv:2505.22617; docs/diagnostics.md derives the one and says what the other's
intervals assume. The fit needs the extra `logpi[diagnostics]`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logpi.core import checks

Numbers = Tensor | Sequence[float]
Interval = tuple[float, float]


def entropy_change(
    log_probs: Tensor,  # [.., V]
    advantages: Tensor,  # [.., V]
    learning_rate: float,
    *,
    natural: bool = False,
) -> Tensor:  # [..]
    """The change of a softmax policy's entropy in one step of gradient ascent, to first order.

        logits += eta p (A - E A):  dH = -eta Cov_p(log p, p (A - E A))     the policy gradient
        logits += eta A:            dH = -eta Cov_p(log p, A)               the natural one

    Args:
        log_probs: `[.., V]` float, of every action. -inf (an impossible action) is legal.
        advantages: `[.., V]` float, of every action; a constant added to them changes nothing.
        learning_rate: eta, of the logits themselves: a network moves them by a step of its own.
        natural: the natural gradient, whose covariance is what Clip-Cov and KL-Cov look at.

    Returns:
        `[..]` in nats, in the dtype of the log-probs. What is left out is of the order eta^2.
    """
    checks.dtype("log_probs", log_probs, *checks.FLOATS)
    checks.dtype("advantages", advantages, *checks.FLOATS)
    checks.shape("advantages", advantages, log_probs.shape)
    checks.device("advantages", advantages, log_probs.device)
    checks.positive("learning_rate", learning_rate)
    wide = log_probs.double()
    p = wide.exp()
    log_p = wide.where(p > 0, 0.0)
    gain = _centered(advantages.double().where(p > 0, 0.0), p)
    if not natural:
        gain = p * gain
    covariance = (p * _centered(log_p, p) * gain).sum(-1)
    return (-learning_rate * covariance).to(log_probs.dtype)


def sampled_entropy_change(
    log_probs: Tensor,  # [..]
    advantages: Tensor,  # [..]
    loss_mask: Tensor,  # [..]
    learning_rate: float,
    *,
    natural: bool = True,
) -> Tensor:  # 0-d
    """The same from the tokens that were drawn, as a trainer has them: covariances over all tokens
    of the mask, as if they came from one distribution.

    The natural form's sign is what to watch: tokens that are likely and good, on the average, mean
    that entropy is about to fall. Fewer than two tokens: 0.
    """
    checks.dtype("log_probs", log_probs, *checks.FLOATS)
    checks.dtype("advantages", advantages, *checks.FLOATS)
    checks.tensor("loss_mask", loss_mask)
    for name, x in (("advantages", advantages), ("loss_mask", loss_mask)):
        checks.shape(name, x, log_probs.shape)
        checks.device(name, x, log_probs.device)
    checks.positive("learning_rate", learning_rate)
    mask = loss_mask.bool()
    weight = mask.double().flatten() / mask.sum().clamp(min=1)
    log_p = log_probs.detach().double().where(mask, 0.0).flatten()
    gain = _centered(advantages.detach().double().where(mask, 0.0).flatten(), weight)
    if not natural:
        gain = log_p.exp() * gain
    covariance = (weight * _centered(log_p, weight) * gain).sum()
    return (-learning_rate * covariance).to(log_probs.dtype)


def _centered(x: Tensor, weight: Tensor) -> Tensor:
    return x - (weight * x).sum(-1, keepdim=True)


# ---- R = -a e^H + b -----------------------------------------------------------------------------


@dataclass(frozen=True)
class EntropyLaw:
    """A fit of R = -a e^H + b by least squares; intervals by Student's t, n - 2 degrees of freedom.

    Attributes:
        a, b, ceiling: estimates; the ceiling b - a is the reward at entropy 0.
        a_interval, b_interval, ceiling_interval: at `confidence`.
        confidence: of each interval alone, not of the three together.
        entropy, rewards: what was fitted.
        residuals: R - (-a e^H + b), in the order of the points.
        deviation: sqrt(sum of squared residuals / (n - 2)).
        r_squared: the share of the rewards' variance that the fit explains; NaN for equal rewards.
        autocorrelation: of each residual with the next. Intervals take it for 0; far above, as
            along a smoothed curve, they are too narrow.
    """

    a: float
    b: float
    ceiling: float
    a_interval: Interval
    b_interval: Interval
    ceiling_interval: Interval
    confidence: float
    entropy: tuple[float, ...]
    rewards: tuple[float, ...]
    residuals: tuple[float, ...]
    deviation: float
    r_squared: float
    autocorrelation: float

    def predict(self, entropy: float) -> float:
        """The reward at an entropy."""
        return self.b - self.a * math.exp(entropy)


def fit_entropy_law(entropy: Numbers, rewards: Numbers, *, confidence: float = 0.95) -> EntropyLaw:
    """Fits R = -a e^H + b to the points of a run.

    Args:
        entropy: mean token entropy at each point, in nats, at least 0; three points or more, not
            all at the same entropy.
        rewards: mean reward, or accuracy, at the same points.
        confidence: of the intervals, in (0, 1).

    Raises:
        ValueError, TypeError: what was expected of which argument.
        ImportError: scipy is not installed.
    """
    stats = _needed("scipy.stats")
    h, r = _points("entropy", entropy), _points("rewards", rewards)
    checks.shape("rewards", r, h.shape)
    n = len(h)
    if n < 3:
        raise ValueError(f"entropy: expected at least 3 points, got {n}")
    if h.min() < 0:
        raise ValueError(f"entropy: expected nats of at least 0, got {h.min().item():g}")
    checks.number("confidence", confidence)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence}")
    x = h.exp()
    if not x.isfinite().all():
        raise ValueError(f"entropy: expected nats of which e^H is finite, got {h.max().item():g}")
    spread = (x - x.mean()).square().sum()
    if spread <= n * (torch.finfo(torch.float64).eps * x.max()).square():
        raise ValueError(f"entropy: expected points at different ones, got {h[0].item():g} alone")

    slope = ((x - x.mean()) * (r - r.mean())).sum() / spread
    b = r.mean() - slope * x.mean()
    residuals = r - (b + slope * x)
    squares = residuals.square().sum()
    deviation = (squares / (n - 2)).sqrt()
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 2)) * deviation

    def interval(at: Tensor, error: Tensor) -> Interval:
        return (at - reach * error).item(), (at + reach * error).item()

    def error_at(x0: float) -> Tensor:  # of the fitted line at x = x0, in deviations
        return (1 / n + (x.mean() - x0).square() / spread).sqrt()

    total = (r - r.mean()).square().sum()
    nearly = squares <= n * (4 * torch.finfo(torch.float64).eps * r.abs().max()).square()
    next_to = (residuals[1:] * residuals[:-1]).sum() / squares
    return EntropyLaw(
        a=-slope.item(),
        b=b.item(),
        ceiling=(b + slope).item(),
        a_interval=interval(-slope, spread.rsqrt()),
        b_interval=interval(b, error_at(0.0)),
        ceiling_interval=interval(b + slope, error_at(1.0)),
        confidence=confidence,
        entropy=tuple(h.tolist()),
        rewards=tuple(r.tolist()),
        residuals=tuple(residuals.tolist()),
        deviation=deviation.item(),
        r_squared=(1 - squares / total).item() if total > 0 else math.nan,
        autocorrelation=0.0 if nearly else next_to.item(),
    )


def plot_entropy_law(law: EntropyLaw, path: str | Path) -> Path:
    """Draws points, fit, ceiling and its interval, and the residuals below, as a PNG at `path`."""
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"path: expected one that ends with .png, got {str(path)!r}")
    figures = _needed("matplotlib.figure")
    figure = figures.Figure(figsize=(6.0, 5.5), layout="constrained")  # no backend, no state
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    highest = max(law.entropy)
    along = [highest * step / 200 for step in range(201)]
    low, high = law.ceiling_interval
    top.axhspan(low, high, color="tab:orange", alpha=0.2)
    label = f"ceiling {law.ceiling:.3g} [{low:.3g}, {high:.3g}], {law.confidence:.0%}"
    top.axhline(law.ceiling, color="tab:orange", label=label)
    fit = f"R = {-law.a:.3g} exp(H) + {law.b:.3g}"
    top.plot(along, [law.predict(h) for h in along], color="tab:blue", label=fit)
    top.plot(law.entropy, law.rewards, ".", color="black")
    top.set_ylabel("reward")
    top.legend()
    bottom.axhline(0.0, color="tab:blue")
    bottom.plot(law.entropy, law.residuals, ".", color="black")
    bottom.set_xlabel("entropy, nats a token")
    bottom.set_ylabel("residual")
    figure.savefig(target, dpi=150)
    return target


def _needed(module: str) -> Any:
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"logpi.diagnostics needs {package}: pip install 'logpi[diagnostics]'"
        ) from error


def _points(name: str, values: Numbers) -> Tensor:
    try:
        points = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected numbers, got {type(values).__name__}") from error
    if points.dim() != 1:
        raise ValueError(f"{name}: expected one number a point, got shape {tuple(points.shape)}")
    if not points.isfinite().all():
        at = int((~points.isfinite()).int().argmax())
        raise ValueError(f"{name}: expected finite numbers, got {points[at].item()} at point {at}")
    return points
