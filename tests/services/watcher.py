"""End a test run's server when the run itself was killed and could not.

Started with the server's folder; each line of the standard input is the process id of a server
that was started. When the input ends, whatever of it still runs is killed, and the folder removed.
"""

import shutil
import sys

import psutil


def main() -> None:
    watched: list[psutil.Process] = []
    for line in sys.stdin:
        try:
            watched.append(psutil.Process(int(line)))
        except psutil.NoSuchProcess:
            continue
    for server in watched:
        try:
            tree = [server, *server.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(tree, timeout=10)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
