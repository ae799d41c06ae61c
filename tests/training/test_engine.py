"""The training loop on a model of two layers: resuming, schedule, averaging, refusals."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from pyposeext.errors import InputError
from pyposeext.training.average import MovingAverage
from pyposeext.training.data import Batch
from pyposeext.training.engine import Progress, Settings, Trainer, read_average, start_distributed


class Toy(nn.Module):
    """Fits the mean colour of an image, with a random weight per call as detectors' samplers have."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        output = self.head(self.norm(self.trunk(images)).relu().mean((2, 3)))
        error = (output - torch.stack([target["colour"] for target in targets])) ** 2
        return {"loss_colour": (error * torch.rand_like(error)).mean()}


def data(first: int) -> Iterator[Batch]:
    number = first
    while True:
        generator = torch.Generator().manual_seed(number)
        images = torch.rand(4, 3, 8, 8, generator=generator)
        yield images, [{"colour": image.mean((1, 2))} for image in images]
        number += 1


def trainer(directory: Path, inputs: dict[str, object] | None = None, **changes: object) -> Trainer:
    torch.manual_seed(1)
    arguments = {"steps": 12, "log_every": 1, "learning_rate": 0.01, **changes}
    return Trainer(Toy(), Settings(**arguments), directory, "trunk.", inputs)  # type: ignore[arg-type]


def losses(directory: Path) -> list[float]:
    return [json.loads(line)["losses"]["loss_colour"] for line in (directory / "log.jsonl").read_text().splitlines()]


def test_a_run_resumed_after_ctrl_c_gives_the_losses_of_an_unbroken_one(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.fit(data(0))

    broken = trainer(tmp_path / "broken")
    source = data(0)

    def interrupted() -> Iterator[Batch]:
        for number in range(12):
            if number == 4:
                signal.raise_signal(signal.SIGINT)
            yield next(source)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(interrupted())
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = trainer(tmp_path / "broken")
    assert resumed.step == 5
    resumed.fit(data(resumed.step))

    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 12
    stored = read_average(tmp_path / "broken/checkpoint.pt")
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name
        assert torch.equal(value, stored[name]), name


def lines_of(directory: Path) -> list[tuple[int, dict[str, float]]]:
    lines = map(json.loads, (directory / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["losses"]) for line in lines]


class KilledError(Exception):
    """Stands for the end of a process that could write nothing more."""


def killed(first: int, steps: int) -> Iterator[Batch]:
    for _, batch in zip(range(steps), data(first), strict=False):
        yield batch
    raise KilledError


def test_a_run_broken_off_inside_an_interval_of_the_log_logs_as_an_unbroken_one(tmp_path: Path) -> None:
    trainer(tmp_path / "whole", log_every=3).fit(data(0))
    assert [step for step, _ in lines_of(tmp_path / "whole")] == [3, 6, 9, 12]

    broken = trainer(tmp_path / "broken", log_every=3)
    with pytest.raises(KilledError):
        broken.fit(killed(0, 4))
    broken.save()
    # The next part logs steps 6 and 9, the latter cut short, and is killed before it can save them.
    with pytest.raises(KilledError):
        trainer(tmp_path / "broken", log_every=3).fit(killed(4, 6))
    log = tmp_path / "broken/log.jsonl"
    assert [step for step, _ in lines_of(tmp_path / "broken")] == [3, 6, 9]
    log.write_text(log.read_text()[:-20])
    resumed = trainer(tmp_path / "broken", log_every=3)
    assert resumed.step == 4
    resumed.fit(data(4))
    assert lines_of(tmp_path / "broken") == lines_of(tmp_path / "whole")


def test_a_run_killed_before_its_first_checkpoint_leaves_no_lines_to_the_next(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        trainer(tmp_path).fit(killed(0, 5))
    trainer(tmp_path).fit(data(0))
    assert [step for step, _ in lines_of(tmp_path)] == list(range(1, 13))


def test_training_lowers_the_loss_and_tells_its_progress(tmp_path: Path) -> None:
    lines: list[Progress] = []
    run = trainer(tmp_path, steps=150, log_every=10, learning_rate=0.02)
    run.fit(data(0), lines.append)
    assert [line.step for line in lines] == list(range(10, 151, 10))
    assert lines[-1].fraction == 1
    assert lines[-1].losses["total"] < 0.3 * lines[0].losses["total"]
    assert not list(tmp_path.glob("*.part"))


def test_one_cycle_and_the_trunk_share(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=100, warmup=0.1, trunk_rate=0.25)
    rates = []
    for run.step in range(101):
        rates.append(run.learning_rate())
    assert rates[0] == pytest.approx(0.01 * 0.02)
    assert rates[5] == pytest.approx(0.005)
    assert max(rates) == rates[10] == pytest.approx(0.01)
    assert rates[55] == pytest.approx(0.01 * 0.505)
    assert rates[100] == pytest.approx(0.0001)
    shares = {group["share"] for group in run.optimizer.param_groups}
    assert shares == {0.25, 1.0}
    assert {group["weight_decay"] for group in run.optimizer.param_groups} == {0.0, 0.02}


def test_steps_and_their_warm_up(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=210, schedule="steps", milestones=(170 / 210, 200 / 210), warmup_steps=10)
    rates = []
    for run.step in range(210):
        rates.append(run.learning_rate())
    # From a thousandth in a straight line: torchvision's LinearLR.
    assert rates[0] == pytest.approx(0.01 * 0.001)
    assert rates[5] == pytest.approx(0.01 * (0.001 + 0.999 * 5 / 10))
    assert set(rates[10:170]) == {0.01}
    assert rates[169:171] == pytest.approx([0.01, 0.001])
    assert rates[199:201] == pytest.approx([0.001, 0.0001])


@pytest.mark.parametrize(
    ("name", "kind", "decays"), [("adamw", "AdamW", {0.0, 0.5}), ("adam", "Adam", {0.5}), ("sgd", "SGD", {0.5})]
)
def test_optimizers(tmp_path: Path, name: str, kind: str, decays: set[float]) -> None:
    run = trainer(tmp_path, optimizer=name, weight_decay=0.5, momentum=0.8)
    assert type(run.optimizer).__name__ == kind
    assert {group["weight_decay"] for group in run.optimizer.param_groups} == decays
    assert {group.get("momentum", 0.8) for group in run.optimizer.param_groups} == {0.8}
    run.fit(data(0))
    assert len(losses(tmp_path)) == 12


def test_one_step_of_sgd_by_hand(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=1, optimizer="sgd", clip=None, weight_decay=0.1, trunk_rate=1.0, average_decay=0.0)
    twin = Toy()
    twin.load_state_dict(run.model.state_dict())
    run.settings = replace(run.settings, schedule="steps")
    run.fit(data(0))
    torch.manual_seed(0)
    images, targets = next(data(0))
    twin(images, targets)["loss_colour"].backward()
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        expected = parameter - 0.01 * (parameter.grad + 0.1 * parameter)
        assert torch.allclose(run.model.get_parameter(name), expected, rtol=1e-5, atol=1e-7), name


class Plain(nn.Module):
    """A mean over the batch without statistics and random numbers, so that halves of a batch add up to it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 3)

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        output = self.head(images.flatten(1))
        return {"loss_colour": ((output - torch.stack([target["colour"] for target in targets])) ** 2).mean()}


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    def halves() -> Iterator[Batch]:
        for images, targets in data(0):
            yield images[:2], targets[:2]
            yield images[2:], targets[2:]

    models = []
    for accumulate, source in ((1, data(0)), (2, halves())):
        torch.manual_seed(1)
        models.append(Plain())
        directory = tmp_path / str(accumulate)
        run = Trainer(models[-1], Settings(steps=4, accumulate=accumulate, log_every=1), directory)
        run.fit(source)
        assert run.next_batch == 4 * accumulate
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)
    for whole, parts in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-6)


def test_without_an_average_the_weights_are_given_as_they_are(tmp_path: Path) -> None:
    run = trainer(tmp_path, average_decay=0.0)
    run.fit(data(0))
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, run.average.state_dict()[name]), name


def test_a_run_from_before_a_setting_existed_goes_on_with_its_default(tmp_path: Path) -> None:
    trainer(tmp_path).fit(data(0))
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    for name in ("optimizer", "schedule", "momentum", "milestones", "warmup_steps", "accumulate"):
        del state["settings"][name]
    del state["inputs"], state["interval"]
    torch.save(state, path)
    run = trainer(tmp_path, {"data": ["a"]}, steps=14)
    assert run.step == 12
    run.fit(data(run.next_batch))
    with pytest.raises(InputError, match="was trained with optimizer adamw, asked for is sgd"):
        trainer(tmp_path, optimizer="sgd")


def test_a_run_by_time_ends_and_frozen_parameters_stay(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Toy()
    model.trunk.requires_grad_(False)
    before = model.trunk.weight.clone()
    run = Trainer(model, Settings(minutes=0.01, learning_rate=0.01), tmp_path)
    run.fit(data(0))
    assert run.fraction == 1
    assert run.step > 0
    assert torch.equal(model.trunk.weight, before)


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    trainer(tmp_path).fit(data(0))
    with pytest.raises(InputError, match=r"was trained with learning_rate 0\.01, asked for is 0\.5"):
        trainer(tmp_path, learning_rate=0.5)
    assert trainer(tmp_path, steps=20, log_every=3).step == 12


def test_other_inputs_do_not_resume(tmp_path: Path) -> None:
    trainer(tmp_path, {"data": ("a", "b"), "batch_size": 2}).fit(data(0))
    assert trainer(tmp_path, {"data": ("a", "b"), "batch_size": 2, "new": 1}).step == 12
    with pytest.raises(InputError, match=r"was trained with data \['a', 'b'\], asked for is \['a'\]: give the same"):
        trainer(tmp_path, {"data": ("a",), "batch_size": 3})
    with pytest.raises(InputError, match=r"was trained with batch_size 2, asked for is 3"):
        trainer(tmp_path, {"data": ("a", "b"), "batch_size": 3})


def test_another_model_does_not_resume(tmp_path: Path) -> None:
    trainer(tmp_path).fit(data(0))
    settings = Settings(steps=12, log_every=1, learning_rate=0.01)
    with pytest.raises(InputError, match=r"checkpoint\.pt is of a run of another model: head\.weight is \[3, 4\], not"):
        Trainer(_changed("head", nn.Linear(4, 5)), settings, tmp_path, "trunk.")
    with pytest.raises(InputError, match=r"of another model: more\.weight is missing; give the same model"):
        Trainer(_changed("more", nn.Linear(1, 1)), settings, tmp_path, "trunk.")
    with pytest.raises(InputError, match="of another model: other parameters of it were trained"):
        Trainer(_changed("trunk", Toy().trunk.requires_grad_(False)), settings, tmp_path, "trunk.")


def _changed(name: str, part: nn.Module) -> Toy:
    model = Toy()
    setattr(model, name, part)
    return model


def test_a_second_ctrl_c_is_not_held_back(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Batch]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        yield from data(0)

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).fit(interrupted())
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).fit(data(0))
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-100], b"text"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"checkpoint\.pt of a training run: damaged, cut short"):
            read_average(path)
        with pytest.raises(InputError, match=r"checkpoint\.pt of a training run: damaged, cut short"):
            trainer(tmp_path)
    torch.save({"average": {}}, path)
    with pytest.raises(InputError, match="its weights or settings are missing"):
        read_average(path)


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda:1", "nccl")])
def test_the_process_group_suits_the_device(monkeypatch: pytest.MonkeyPatch, device: str, backend: str) -> None:
    asked: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed, "init_process_group", asked.append)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    assert start_distributed(torch.device(device)) == (1, 2)
    assert asked == [backend]


def test_settings_are_checked() -> None:
    for wrong in ({}, {"steps": 3, "minutes": 1.0}):
        with pytest.raises(InputError, match="exactly one of steps and minutes"):
            Settings(**wrong)  # type: ignore[arg-type]
    for settings, message in (
        ({"learning_rate": 0}, "learning_rate must be positive, got 0"),
        ({"accumulate": 0}, "accumulate must be positive, got 0"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw, adam, sgd, got 'lion'"),
        ({"schedule": "flat"}, "schedule must be one of one_cycle, steps, got 'flat'"),
        ({"precision": "int8"}, "precision must be one of float32, bfloat16, float16, got 'int8'"),
        ({"log_every": 0}, "log_every must be positive, got 0"),
        ({"accumulate": 1.5}, r"accumulate must be a whole number, got 1\.5"),
        ({"average_decay": 2.0}, r"average_decay must be from 0 to below 1, got 2\.0"),
        ({"average_decay": -0.1}, r"average_decay must be from 0 to below 1, got -0\.1"),
        ({"warmup": 1.0}, r"warmup must be from 0 to below 1, got 1\.0"),
        ({"trunk_rate": -1}, "trunk_rate must not be negative, got -1"),
        ({"momentum": float("nan")}, "momentum must not be negative, got nan"),
        ({"milestones": (0.5, 1.5)}, "milestones must be rising shares of the run between 0 and 1"),
    ):
        with pytest.raises(InputError, match=message):
            Settings(steps=3, **settings)  # type: ignore[arg-type]


def test_float16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="float16 needs a GPU"):
        trainer(tmp_path, precision="float16")


def test_bfloat16_trains(tmp_path: Path) -> None:
    trainer(tmp_path, precision="bfloat16").fit(data(0))
    assert len(losses(tmp_path)) == 12


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    def broken() -> Iterator[Batch]:
        for images, targets in data(0):
            yield images * float("nan"), targets

    with pytest.raises(FloatingPointError, match="not finite at step 1"):
        trainer(tmp_path).fit(broken())


def test_average() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = MovingAverage(model, decay=0.9)
    nn.init.ones_(model.weight)
    average.update(model, 1)
    assert float(average.state_dict()["weight"]) == pytest.approx(1 - 2 / 11)
    for step in range(2, 500):
        average.update(model, step)
    assert float(average.state_dict()["weight"]) == pytest.approx(1)
