"""Verifiers that a worker process can import; tests put this folder on sys.path."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def is_four(question: str, answer: str) -> bool:
    """Accept "4", whatever the question."""
    return answer == "4"


def act(question: str, answer: str) -> object:
    """Do what the answer says."""
    match answer.split():
        case ["hang"]:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                pass
        case ["crash"]:
            os._exit(3)
        case ["raise"]:
            message = "bad answer"
            raise ValueError(message)
        case ["exit"]:
            sys.exit("enough")
        case ["nan"]:
            return math.nan
        case ["words"]:
            return "yes"
        case ["child", path]:  # a hung program, as a code verifier would start it
            program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            Path(path).write_text(str(program.pid), encoding="utf-8")
            program.wait()
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case ["take", megabytes]:
            return float(len(bytes(int(megabytes) * 10**6)))
        case [
            "child-take",
            megabytes,
        ]:  # and a program that it starts, which tells by its exit code
            code = f"bytes({megabytes} * 10**6)"
            done = subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.PIPE)
            return done.returncode == 0
        case ["pid"]:
            return os.getpid()
    return 1.0


def torch_is_absent(question: str, answer: str) -> bool:
    """Say whether the worker was spared torch and LangChain."""
    return not {"torch", "langchain_core"} & set(sys.modules)
