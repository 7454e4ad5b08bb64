"""ActionCodec: against numpy as OpenVLA calls it, id by id."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from logpi import ActionCodec, token_log_probs

numpy = pytest.importorskip("numpy")

LOW, HIGH = [-0.7454732114076613, -0.6616071462631226, -1.0], [0.94, 0.86, 1.0]
MASK = [True, True, False]
STATISTICS = {
    "libero": {
        "action": {"q01": LOW, "q99": HIGH, "min": [-1.5, -2, 0], "max": [1, 2, 3], "mask": MASK},
        "num_transitions": 10,
    },
    "bridge": {"action": {"q01": [0.0], "q99": [1.0]}},
}
CODECS = [ActionCodec(), ActionCodec(num_bins=2, vocab_size=2), ActionCodec(64, 151936)]


def official_encode(codec: ActionCodec, actions: numpy.ndarray) -> numpy.ndarray:
    bins = numpy.linspace(-1, 1, codec.num_bins)
    return codec.vocab_size - numpy.digitize(numpy.clip(actions, -1, 1), bins)


def official_decode(codec: ActionCodec, ids: numpy.ndarray) -> numpy.ndarray:
    bins = numpy.linspace(-1, 1, codec.num_bins)
    centres = (bins[:-1] + bins[1:]) / 2.0
    return centres[numpy.clip(codec.vocab_size - ids - 1, 0, len(centres) - 1)]


@pytest.mark.parametrize(
    ("action", "token_id", "centre"),
    [
        (-1.3, 31999, -0.9960784),
        (-0.5, 31936, -0.5019608),
        (0.0, 31872, 0.0),
        (0.3, 31834, 0.2980392),
        (1.0, 31744, 0.9960784),
        (-1.0, 31999, -0.9960784),
        (math.inf, 31744, 0.9960784),
        (-math.inf, 31999, -0.9960784),
    ],
)
def test_known_actions(action: float, token_id: int, centre: float) -> None:
    for dtype in (torch.float32, torch.float64):
        ids = ActionCodec().encode(torch.tensor([action], dtype=dtype))
        assert ids.tolist() == [token_id]
    assert ActionCodec().decode(ids).dtype == torch.float32
    assert ActionCodec().decode(ids).item() == pytest.approx(centre, abs=5e-8)


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{c.num_bins}-{c.vocab_size}")
def test_every_id(codec: ActionCodec) -> None:
    ids = torch.arange(codec.support.start, codec.support.stop)
    assert len(ids) == codec.num_bins
    centres = codec.decode(ids, dtype=torch.float64)
    assert centres.tolist() == official_decode(codec, ids.numpy()).tolist()
    back = codec.encode(centres)
    assert back.tolist() == [max(i, codec.support.start + 1) for i in ids.tolist()]  # the alias
    assert centres[0] == centres[1]
    assert torch.equal(codec.table(ids.device), centres.float()[None])


@pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{c.num_bins}-{c.vocab_size}")
def test_edges_and_their_neighbours(codec: ActionCodec) -> None:
    """Where a bin begins, in float64 and in the float32 that actions come in."""
    edges = numpy.linspace(-1, 1, codec.num_bins)
    for dtype in (numpy.float64, numpy.float32):
        x = edges.astype(dtype)
        x = numpy.concatenate([x, numpy.nextafter(x, dtype(-9)), numpy.nextafter(x, dtype(9))])
        assert codec.encode(torch.from_numpy(x)).tolist() == official_encode(codec, x).tolist()


def test_random_actions_of_every_dtype() -> None:
    codec, x = ActionCodec(), torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        expected = official_encode(codec, x.to(dtype).double().numpy())
        assert codec.encode(x.to(dtype)).tolist() == expected.tolist()


def test_nan_is_no_action() -> None:
    """numpy calls it the highest one, which a robot would carry out."""
    ids = ActionCodec().encode(torch.tensor([0.0, math.nan]))
    assert ids.tolist() == [31872, -1]
    with pytest.raises(ValueError, match="-1"):
        token_log_probs(torch.zeros(2, 32064), ids)
    assert math.isnan(ActionCodec(low=[0.0], high=[1.0]).unnormalize(torch.tensor([math.nan])))


def test_ids_outside_are_the_nearest_end() -> None:
    codec, ids = ActionCodec(), torch.tensor([0, 31743, 32000, 32063, -5])
    assert codec.decode(ids).tolist() == official_decode(codec, ids.numpy()).astype("f4").tolist()
    assert torch.equal(codec.decode(ids.int()), codec.decode(ids))


@pytest.mark.parametrize("epsilon", [1e-8, 0.0])
def test_unnormalize(epsilon: float) -> None:
    codec = ActionCodec(low=LOW, high=HIGH, mask=MASK, epsilon=epsilon)
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    steps = x.numpy().reshape(4, 2, 3)  # a chunk of two steps, flat
    low, high, mask = numpy.array(LOW), numpy.array(HIGH), numpy.array(MASK)
    expected = numpy.where(mask, 0.5 * (steps + 1) * (high - low + epsilon) + low, steps)
    assert codec.unnormalize(x).tolist() == expected.reshape(4, 6).tolist()
    assert torch.equal(codec.unnormalize(x.float()), codec.unnormalize(x.float().double()).float())
    assert codec.unnormalize(x.float()).dtype == torch.float32
    assert (codec.normalize(codec.unnormalize(x)) - x).abs().max() < 1e-14


def test_normalize_clips_where_it_stretches() -> None:
    codec = ActionCodec(low=[0, 2, 0], high=[1, 2, 1], mask=[True, True, False])
    x = torch.tensor([[9.0, 9.0, 9.0], [-9.0, 2.0, -9.0], [0.25, 2.0, 0.25]])
    expected = [[1, 0, 9], [-1, 0, -9], [-0.5, 0, 0.25]]
    assert codec.normalize(x).tolist() == [pytest.approx(row) for row in expected]
    assert codec.unnormalize(codec.normalize(x))[:, 1].tolist() == [2, 2, 2]


def test_the_table_is_decode_and_unnormalize() -> None:
    codec = ActionCodec(low=LOW, high=HIGH, mask=MASK)
    ids = torch.arange(31744, 32000)
    actions = codec.decode(ids, dtype=torch.float64)[:, None].expand(-1, 3)
    table = codec.table(torch.device("cpu"))
    assert torch.equal(table, codec.unnormalize(actions).float().T)
    assert codec.table(torch.device("cpu")) is table
    assert codec.action_dim == 3


def test_without_statistics_nothing_is_stretched() -> None:
    x = torch.tensor([0.25, -3.0])
    assert torch.equal(ActionCodec().unnormalize(x), x)
    assert torch.equal(ActionCodec().normalize(x), x)
    assert ActionCodec().action_dim is None
    assert ActionCodec().support == slice(31744, 32000)


def test_equal_codecs_are_equal() -> None:
    a = ActionCodec(low=LOW, high=HIGH)
    a.table(torch.device("cpu"))
    assert a == ActionCodec(low=tuple(LOW), high=torch.tensor(HIGH, dtype=torch.float64))
    assert hash(a) == hash(ActionCodec(low=LOW, high=HIGH, mask=[True] * 3))
    assert a != ActionCodec(low=LOW, high=HIGH, mask=MASK)


def test_from_dataset_statistics(tmp_path: Path) -> None:
    file = tmp_path / "dataset_statistics.json"
    file.write_text(json.dumps(STATISTICS))
    expected = ActionCodec(low=LOW, high=HIGH, mask=MASK)
    for given in (file, str(file), tmp_path, STATISTICS):
        assert ActionCodec.from_dataset_statistics(given, "libero") == expected
    minmax = ActionCodec.from_dataset_statistics(STATISTICS, "libero", "minmax", epsilon=0.0)
    assert minmax == ActionCodec(low=[-1.5, -2, 0], high=[1, 2, 3], mask=MASK, epsilon=0)
    only = ActionCodec.from_dataset_statistics({"bridge": STATISTICS["bridge"]}, num_bins=8)
    assert only == ActionCodec(num_bins=8, low=[0], high=[1], mask=[True])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s(STATISTICS, "aloha"), r"key: expected one of 'libero', 'bridge' .* 'aloha'"),
        (lambda s: s(STATISTICS), r"key: expected one of 'libero', 'bridge' .* got None"),
        (lambda s: s(STATISTICS, "bridge", "minmax"), r"one of 'q01', 'q99' .*bridge.* got 'min'"),
        (lambda s: s({"x": {}}, "x"), r"statistics: expected one of  in .*'x'.*, got 'action'"),
        (lambda s: s({"x": 3}, "x"), r"statistics: expected an object at .*'x'.*, got int"),
        (lambda s: s(STATISTICS, "libero", "q99"), r"normalization: .*'quantile' or 'minmax'"),
    ],
)
def test_statistics_name_what_is_missing_and_what_is_there(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(ActionCodec.from_dataset_statistics)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_bins": 1}, ValueError, "num_bins: expected at least 2, got 1"),
        ({"vocab_size": 255}, ValueError, "vocab_size: expected at least 256, got 255"),
        ({"low": [0.0]}, ValueError, "low: expected None without low and high"),
        ({"mask": [True]}, ValueError, "mask: expected None without low and high"),
        ({"low": [0, 0], "high": [1]}, ValueError, "high: expected 2 values as in low, got 1"),
        ({"low": [0], "high": [1], "mask": [True] * 2}, ValueError, "mask: expected 1 values"),
        ({"low": [0, 2], "high": [1, 1]}, ValueError, "high: .* 2.0, got 1.0 in dimension 1"),
        ({"low": [math.nan], "high": [1]}, ValueError, r"low\[0\]: expected a finite number"),
        ({"low": 0, "high": 1}, TypeError, "low: expected a number a dimension, got 0"),
        ({"low": [0], "high": [1], "mask": [1]}, TypeError, r"mask\[0\]: expected a bool, got int"),
        ({"epsilon": -1.0}, ValueError, "epsilon: expected a number of at least 0"),
    ],
)
def test_bad_codecs(arguments, error, message: str) -> None:
    with pytest.raises(error, match=message):
        ActionCodec(**arguments)


def test_bad_tensors() -> None:
    codec = ActionCodec(low=LOW, high=HIGH)
    with pytest.raises(TypeError, match=r"actions: expected float32 or .*, got int64"):
        codec.encode(torch.tensor([1]))
    with pytest.raises(TypeError, match="token_ids: expected int64 or int32, got float32"):
        codec.decode(torch.tensor([1.0]))
    for shape in [(), (4,), (2, 0)]:
        with pytest.raises(ValueError, match="actions: expected a last dimension of 3 or a mult"):
            codec.unnormalize(torch.zeros(shape))


def test_a_codec_compiles() -> None:
    codec = ActionCodec(low=LOW, high=HIGH, mask=MASK)
    x = torch.linspace(-1.2, 1.2, 12).view(4, 3)

    @torch.compile(fullgraph=True, backend="eager")
    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        return codec.unnormalize(codec.decode(codec.encode(x)))

    assert torch.equal(there_and_back(x), codec.unnormalize(codec.decode(codec.encode(x))))
