"""Tuned PyTorch loops in as many processes as there are cores, one thread each, and nothing else.

The rates are dealt out beforehand and the processes only meet at the start and at the end: this is
the floor against which the overhead of anything that trains in processes is measured.
"""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection

import torch
from protocol import Experiment, Prepared, Repeat, batches, serve, training_data
from torch_loop import facts, starter


def train(connection: Connection, experiment: Experiment) -> None:
    """Be one process: at each message warm every rate up, at the next train them all."""
    torch.set_num_threads(1)
    data = training_data()
    starters = [starter(variant="tuned", **experiment.options) for _ in experiment.lrs]
    starters[0](experiment.lrs[0])(*next(batches(*data, experiment.batch)))
    connection.send(time.time())
    while told(connection):
        trainings = []
        for start, lr in zip(starters, experiment.lrs, strict=True):
            step, stream = start(lr), batches(*data, experiment.batch)
            for _ in range(experiment.warm_up):
                step(*next(stream))
            trainings.append((step, stream))
        connection.send("warm")
        told(connection)
        losses = []
        for step, stream in trainings:
            for _ in range(experiment.steps):
                loss = step(*next(stream))
            losses.append(loss)
        connection.send(losses)


def told(connection: Connection) -> bool:
    """Wait for the next message; false once there will be none."""
    try:
        return bool(connection.recv())
    except EOFError:
        return False


def prepare(experiment: Experiment) -> Prepared:
    """Start the processes; they end with this one."""
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    connections = []
    for first in range(cores):
        ours, theirs = context.Pipe()
        part = experiment._replace(lrs=experiment.lrs[first::cores])
        context.Process(target=train, args=(theirs, part), daemon=True).start()
        connections.append(ours)

    def everyone(message: str | None) -> list:
        for connection in connections if message else ():
            connection.send(message)
        return [connection.recv() for connection in connections]

    first_step = min(everyone(None))

    def repeat() -> Repeat:
        everyone("prepare")
        began = time.perf_counter()
        losses = [loss for part in everyone("train") for loss in part]
        seconds = time.perf_counter() - began
        return Repeat(seconds, experiment.steps * len(experiment.lrs), losses)

    return Prepared(repeat, {**facts(), "threads": 1, "processes": cores}, first_step)


if __name__ == "__main__":
    serve(prepare)
