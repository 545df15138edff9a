"""The command `fed-a2v` in this process, which has imported what it needs; a few tests start it as a user does."""

import io
import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout

from fed_a2v.cli import main


def fed_a2v(*words, cwd):
    """Run the command in a folder; returns its exit code and output, as `subprocess.run` does."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    with chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
