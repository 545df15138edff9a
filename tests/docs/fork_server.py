"""`fed-a2v` for the blocks of the documentation: each command is a fork of a process that has imported all it needs.

Importing takes longer than what most blocks do. `python fork_server.py SOCKET` serves; the text of `CLIENT`, with the
socket's path put in, is the command. Exit code, output, folder and environment are the command's own. `COMMAND -c TEXT`
runs a text as `python -c TEXT` does.
"""

import gc
import json
import os
import signal
import socket
import sys

CLIENT = """#!{python} -ES
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    socket.send_fds(server, [b"x"], [0, 1, 2])
    server.sendall(json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16) or b"1"))
"""


def serve(path):
    """Answer until the process is ended."""
    import plotly.graph_objects
    import scipy.fft  # noqa: F401
    import sklearn.cluster  # noqa: F401

    from fed_a2v.commands import job  # noqa: F401
    from fed_a2v.federation import simulation  # noqa: F401
    from fed_a2v.report import page  # noqa: F401

    plotly.graph_objects.Figure()  # Plotly imports the rest with the first figure

    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                sys.exit(answer(connection))
            connection.close()


def answer(connection):
    """Run one command in a further process, which ends as a command does, and tell its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as said:
        argv, folder, environment = json.load(said)
    command = os.fork()
    if command:
        status = os.waitpid(command, 0)[1]
        connection.sendall(str(os.waitstatus_to_exitcode(status) & 0xFF).encode())
        os._exit(0)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    if argv[1:2] == ["-c"]:
        exec(compile(argv[2], "<string>", "exec"), {"__name__": "__main__"})
        return 0
    from fed_a2v.cli import main

    return main()


if __name__ == "__main__":
    serve(sys.argv[1])
