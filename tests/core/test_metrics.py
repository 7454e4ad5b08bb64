"""A loss's metrics: a mapping over one tensor."""

from __future__ import annotations

import pickle

import pytest
import torch

import logpi
from logpi import Metrics


def test_is_a_mapping_of_0d_tensors() -> None:
    metrics = Metrics(torch.tensor([0.0, 1.5, -2.0]), {"kl": 2, "ratio": 1})
    assert list(metrics) == ["kl", "ratio"]
    assert len(metrics) == 2
    assert {name: value.item() for name, value in metrics.items()} == {"kl": -2.0, "ratio": 1.5}
    assert metrics["kl"].shape == ()
    assert "entropy" not in metrics
    with pytest.raises(KeyError, match="entropy"):
        metrics["entropy"]
    assert dict(metrics) | {"entropy": 1} == {**metrics, "entropy": 1}
    with pytest.raises(TypeError, match="item assignment"):
        metrics["kl"] = torch.tensor(0.0)  # type: ignore[index]


def test_expects_a_tensor_and_places_or_a_mapping() -> None:
    for given in ((torch.zeros(2),), ([1.0], {"a": 0}), ({"a": torch.zeros(())}, {"a": 0})):
        with pytest.raises(TypeError, match="values: expected a tensor and places, or a mapping"):
            Metrics(*given)  # type: ignore[arg-type]


def test_floats_are_one_copy() -> None:
    calls = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    metrics = Metrics({"a": torch.tensor(1.25), "b": torch.tensor(-3.0)})
    with Seen():
        floats = metrics.floats()
    assert floats == {"a": 1.25, "b": -3.0}
    assert all(type(value) is float for value in floats.values())
    assert not any("select" in call or "item" in call or "local_scalar" in call for call in calls)
    assert repr(metrics) == "Metrics({'a': 1.25, 'b': -3.0})"


def test_survives_a_pickle() -> None:
    """As a trainer's workers send it."""
    metrics = Metrics({"a": torch.tensor(1.25)})
    assert pickle.loads(pickle.dumps(metrics)).floats() == {"a": 1.25}


@pytest.mark.frameworks
def test_passes_through_accelerate() -> None:
    """Which makes a new mapping from the old one's type, as transformers does."""
    operations = pytest.importorskip("accelerate.utils.operations")
    metrics = Metrics({"a": torch.tensor(1.25), "b": torch.tensor(-3.0)})
    found = operations.recursively_apply(lambda x: 2 * x, metrics)
    assert isinstance(found, Metrics)
    assert found.floats() == {"a": 2.5, "b": -6.0}


def test_losses_agree_with_the_definition_about_their_metrics() -> None:
    """A kernel's places and the definition's order are of the same names."""
    torch.manual_seed(0)
    tensors = [torch.randn(3, 5) for _ in range(3)]
    mask = torch.ones(3, 5, dtype=torch.bool)
    rewards, log_z = torch.randn(3), torch.randn(3)
    for op, args in (
        (logpi.flow_balance_loss, (*tensors, rewards, log_z, mask)),
        (logpi.policy_loss, (*tensors, mask)),
    ):
        ours, theirs = (op(*args, backend=row).metrics.floats() for row in ("cpu", "torch"))
        assert list(ours) == list(theirs)
        assert ours == pytest.approx(theirs, rel=2**-22)
