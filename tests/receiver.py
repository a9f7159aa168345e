"""A process that unpacks problems and draws pictures of what they hold, for test_handover.py.

It is started as `python receiver.py DESCRIPTOR`, the descriptor being a connection on which it is
sent the word "here" and a problem in a memory file, or "elsewhere" and one in a single buffer.
"""

import sys
import warnings
from multiprocessing.connection import Connection

import numpy as np
from nested import picture

from etascope.engines.handover import receive_problem, unpickle_problem
from etascope.engines.ray_memory import split


def serve(connection: Connection) -> None:
    while True:
        where = connection.recv()
        if where == "here":
            problem, _ = receive_problem(connection)
        else:
            places, witness = connection.recv()
            data = connection.recv_bytes()
            room = np.empty(len(data) + 64, np.uint8)
            first = -room.ctypes.data % 64  # where the object store puts it
            whole = room[first : first + len(data)]
            whole[:] = np.frombuffer(data, np.uint8)
            problem, _ = unpickle_problem(split(whole, places), witness)
        connection.send(picture(problem.loss.keywords["data"]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    try:
        serve(Connection(int(sys.argv[1])))
    except EOFError:
        sys.exit(0)
