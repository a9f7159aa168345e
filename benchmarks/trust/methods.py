"""Every method of the trust benchmark: from a task and a starting seed to a learning rate.

Each peer is used as its own documentation shows, with its own defaults; what is trained, the data
order and the initial weights are those of the starting seed. A method answers with None where it
gives no rate.
"""

from __future__ import annotations

import itertools
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tasks import Task
from torch import nn

import etascope as es
from etascope.plan import Plan
from etascope.problems.problem import Problem
from etascope.randomness import seed_everything
from etascope.records import TrialId
from etascope.trial import Trial

LOWEST, HIGHEST = 1e-5, 10.0  # of every search
STUDIES = Path("studies/trust/find")
RUNGS = (1 / 16, 1 / 4, 1.0)  # at which Optuna and Ray Tune may stop a training


class Answer(NamedTuple):
    """A rate (None where there is none), what it cost in full trainings, and more of `find`."""

    lr: float | None
    cost: float
    finding: dict[str, Any] | None = None


class Wrapped(nn.Module):
    """The problem's loss as a module of a batch: peers ask for a model and a criterion."""

    def __init__(self, problem: Problem, model: nn.Module) -> None:
        super().__init__()
        self.model, self.problem = model, problem

    def forward(self, batch: Any) -> torch.Tensor:
        return self.problem.loss(self.model, batch)


class Batches(torch.utils.data.IterableDataset[Any]):
    """The training batches of a seed without end, each with a target that nobody reads."""

    def __init__(self, problem: Problem, seed: int, length: int) -> None:
        self.problem, self.seed, self.length = problem, seed, length

    def __iter__(self) -> Iterator[Any]:
        for epoch in itertools.count():
            for batch in self.problem.batches(self.seed, epoch):
                yield batch, torch.zeros(())

    def __len__(self) -> int:
        return self.length


def _plan(task: Task, rungs: tuple[float, ...] = (1.0,)) -> Plan:
    steps = tuple(max(1, round(share * task.steps)) for share in rungs)
    return Plan(**task.plan, rungs=steps)


def _model(problem: Problem, seed: int) -> Wrapped:
    model = Wrapped(problem, problem.make_model(seed))
    seed_everything(torch.device("cpu"), seed, "peer")
    return model


def _loader(problem: Problem, seed: int) -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(Batches(problem, seed, 10_000), batch_size=None)


# etascope ---------------------------------------------------------------------------------------


def find(budget: float) -> Callable[[Task, int], Answer]:
    """etascope find, at a budget of so many trainings.

    All budgets of a task and a seed share a study, as they would for a user: what is trained is
    not trained again, and what a race of its own would have cost is counted all the same.
    """

    def method(task: Task, seed: int) -> Answer:
        out = STUDIES / f"{task.name}-{seed}"
        found = es.find(
            task.problem, budget=budget, seed=10 * seed, engine="serial", out=out, **task.plan
        )
        return Answer(found.lr, found.cost, found.to_dict())

    return method


# Range tests ------------------------------------------------------------------------------------


def torch_lr_finder(task: Task, seed: int) -> Answer:
    """torch-lr-finder's steepest gradient, from 1e-7 to 10 in 100 steps."""
    import matplotlib

    matplotlib.use("Agg")
    from torch_lr_finder import LRFinder

    problem = es.get_problem(task.problem)
    model = _model(problem, seed)
    optimizer = _plan(task).make_optimizer(model, 1e-7)
    finder = LRFinder(model, optimizer, lambda loss, _: loss, device="cpu")
    finder.range_test(_loader(problem, seed), end_lr=10, num_iter=100)
    cost = len(finder.history["lr"]) / task.steps
    answer = finder.plot(suggest_lr=True)
    return Answer(float(answer[1]) if isinstance(answer, tuple) else None, cost)


def lightning(task: Task, seed: int) -> Answer:
    """Lightning's Tuner.lr_find at its defaults: 1e-8 to 1 in 100 steps."""
    import lightning.pytorch as pl
    from lightning.pytorch.tuner import Tuner

    problem, plan = es.get_problem(task.problem), _plan(task)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr, self.seen = _model(problem, seed), 1e-3, 0

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            self.seen += 1
            return self.model(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return plan.make_optimizer(self.model, self.lr)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Module()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=task.steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        found = Tuner(trainer).lr_find(module, train_dataloaders=_loader(problem, seed))
    return Answer(None if found is None else found.suggestion(), module.seen / task.steps)


def fastai(task: Task, seed: int) -> Answer:
    """fastai's Learner.lr_find with its valley rule: 1e-7 to 10 in 100 steps."""
    from fastai.callback.schedule import valley
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    problem, plan = es.get_problem(task.problem), _plan(task)
    loader = _loader(problem, seed)
    model = _model(problem, seed)
    learner = Learner(
        DataLoaders(loader, loader),
        model,
        loss_func=lambda loss, _: loss,
        opt_func=lambda _, lr, **__: OptimWrapper(opt=plan.make_optimizer(model, 1e-3)),
    )
    with learner.no_bar(), learner.no_logging():
        found = learner.lr_find(suggest_funcs=(valley,), show_plot=False)
    return Answer(float(found.valley), len(learner.recorder.losses) / task.steps)


# Searches ---------------------------------------------------------------------------------------


class _Course:
    """One training of a search, rung by rung."""

    def __init__(self, task: Task, lr: float, seed: int) -> None:
        self.plan = _plan(task, RUNGS)
        self.trial = Trial(es.get_problem(task.problem), self.plan, TrialId(lr, seed))

    def losses(self) -> Iterator[tuple[int, float]]:
        """The step and the held-out loss at each rung; infinite where it ended."""
        for step in self.plan.rungs:
            burst = self.trial.advance(step)
            if burst.failure is not None:
                yield step, math.inf
                return
            yield step, next(e.loss for e in burst.evaluations if e.split == "valid")


def optuna_hyperband(task: Task, seed: int) -> Answer:
    """Optuna's TPE sampler with its Hyperband pruner, until four trainings are spent."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spent = 0.0

    def objective(trial: optuna.Trial) -> float:
        nonlocal spent
        course = _Course(task, trial.suggest_float("lr", LOWEST, HIGHEST, log=True), seed)
        loss = math.inf
        try:
            for step, loss in course.losses():
                trial.report(min(loss, 1e30), step)
                if trial.should_prune():
                    raise optuna.TrialPruned
        finally:
            spent += course.trial.step / task.steps
            if spent >= 4:
                study.stop()
        return min(loss, 1e30)

    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.HyperbandPruner(
            min_resource=max(1, task.steps // 16), max_resource=task.steps, reduction_factor=4
        ),
    )
    study.optimize(objective)
    done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    return Answer(study.best_trial.params["lr"] if done else None, spent)


def ray_asha(task: Task, seed: int) -> Answer:
    """Ray Tune's ASHA over 12 random rates, one at a time, which costs about four trainings."""
    import random

    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    draw = random.Random(seed)
    low, high = math.log(LOWEST), math.log(HIGHEST)
    rates = [math.exp(draw.uniform(low, high)) for _ in range(12)]

    def trainable(config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        course = _Course(task, config["lr"], seed)
        for step, loss in course.losses():
            reached = course.trial.step
            tune.report({"loss": min(loss, 1e30), "step": step, "reached": reached})

    if not ray.is_initialized():
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            trainable,
            param_space={"lr": tune.grid_search(rates)},
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                scheduler=ASHAScheduler(
                    time_attr="step",
                    max_t=task.steps,
                    grace_period=max(1, task.steps // 16),
                    reduction_factor=4,
                ),
                max_concurrent_trials=1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
    spent = sum(r.metrics.get("reached", 0) for r in results if r.metrics) / task.steps
    whole = [r for r in results if r.metrics and r.metrics.get("step") == task.steps]
    best = min(whole, key=lambda r: r.metrics["loss"], default=None)
    return Answer(None if best is None else best.config["lr"], spent)


def grid(task: Task, seed: int) -> Answer:
    """Four trainings in full: 1e-4, 1e-3, 1e-2 and 1e-1."""
    ends = {}
    spent = 0.0
    for lr in (1e-4, 1e-3, 1e-2, 1e-1):
        course = _Course(task, lr, seed)
        for _, loss in course.losses():
            ends[lr] = loss
        spent += course.trial.step / task.steps
    return Answer(min(ends, key=lambda lr: ends[lr]), spent)


def default(task: Task, seed: int) -> Answer:
    """The rate that most code is shipped with."""
    return Answer(1e-3, 0.0)


METHODS: dict[str, Callable[[Task, int], Answer]] = {
    "etascope find, budget 2": find(2),
    "etascope find, budget 4": find(4),
    "etascope find, budget 8": find(8),
    "etascope find, budget 12": find(12),
    "torch-lr-finder, steepest": torch_lr_finder,
    "Lightning lr_find": lightning,
    "fastai lr_find, valley": fastai,
    "Optuna TPE + Hyperband": optuna_hyperband,
    "Ray Tune ASHA": ray_asha,
    "grid of 4": grid,
    "default 1e-3": default,
}
warnings.filterwarnings("ignore")
