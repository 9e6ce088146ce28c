"""Push the kernels beside this script to Kaggle, each after the kernels whose output it takes.

    python push_all.py [--poll SECONDS] [--kaggle COMMAND] [--no-run]

Needs Python 3.9 and the kaggle command line. Its state is kept in push_state.json: stopped at any
time and started again, it continues there, and pushes failed kernels again. The result of a push is
read from the command line's output, since its exit code is 0 even if Kaggle refuses. At most two
GPU sessions run at once. With --no-run it saves a version of each kernel that has not run, and runs
none.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

GPU_SESSIONS = 2
MAX_FAILURES = 10  # unclear answers in a row, of the network or Kaggle, before it stops
# As version 2.2.5 prints; the optional parts are of 2.2.4 and before.
PUSHED = re.compile(r"Kernel version (?:\d+ )?successfully pushed")
SAVED = re.compile(r"Kernel version (?:\d+ )?successfully saved without running")
OUTDATED = re.compile(r"unrecognized arguments|invalid choice|no such option", re.IGNORECASE)
INVALID = re.compile(r"^.*\bnot valid\b.*$", re.MULTILINE | re.IGNORECASE)
STATUS = re.compile(r'has status "(?:\w+\.)?(\w+)"')
BUSY = re.compile(r"maximum (?:batch )?GPU session", re.IGNORECASE)  # all sessions are in use: wait
# Kaggle answers 403 for a kernel that it does not know; for a status, a 401 gives the same text.
ABSENT = re.compile(
    r"\b40[34]\b|not found|forbidden|cannot access kernel|don't have access", re.IGNORECASE
)
NOT_LOGGED_IN = re.compile(
    r"\b401\b|unauthorized|could not find kaggle.json|authenticate|authentication required",
    re.IGNORECASE,
)
COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
LOG_LINES = 20  # of a failed kernel, the last ones
UNFINISHED = ("queued", "running", "new_script", "newscript")


class PushError(Exception):
    """A kernel cannot be pushed or has failed; no other is pushed."""


class NoAnswerError(Exception):
    """No clear answer: ask again."""


class BusyError(Exception):
    """This account already runs as many GPU sessions as Kaggle allows."""


class State:
    """The state of each kernel, kept in a file: waiting, pushing, pushed, complete, failed."""

    def __init__(self, path: Path, slugs: list[str]) -> None:
        self.path = path
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.of = {slug: kept.get(slug, "waiting") for slug in slugs}

    def set(self, slug: str, state: str) -> None:
        """Write the state atomically, so that nothing is lost if this process is killed."""
        self.of[slug] = state
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.of, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)
        print(f"{time.strftime('%H:%M:%S')} {slug}: {state}", flush=True)


def call(command: list[str], *arguments: str, checked: bool = False) -> str:
    """Return stdout and stderr of the command line; with `checked`, stdout of a success only.

    Raises: NoAnswerError if it does not end, or with `checked` fails; PushError without a login.
    """
    try:
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=600, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{' '.join(arguments)}: no answer in 10 minutes") from None
    answer = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode and NOT_LOGGED_IN.search(answer):
        first = answer.splitlines()[0]
        raise PushError(f"the kaggle command line is not logged in, run kaggle auth login: {first}")
    if checked and done.returncode:
        raise NoAnswerError(last_line(answer))
    return done.stdout if checked else answer


def push(command: list[str], folder: Path, run: bool = True) -> None:
    """Push a kernel; without `run`, save a version that does not run.

    Raises: PushError with Kaggle's answer; BusyError or NoAnswerError if it may be tried again.
    """
    answer = call(command, "kernels", "push", "-p", str(folder), *([] if run else ["--no-run"]))
    if not run and OUTDATED.search(answer):
        raise PushError("this kaggle has no --no-run, which 2.2.5 has: pip install -U kaggle")
    invalid = INVALID.findall(answer)
    if invalid:  # Kaggle reports success too, and the kernel runs without them
        cancel = ", cancel the run on Kaggle" * run
        raise PushError(f"sources were refused{cancel}: {'; '.join(invalid)}")
    pushed, saved = PUSHED.search(answer), SAVED.search(answer)
    if pushed if run else saved:
        return
    if pushed or saved:
        result = "only saved, it does not run" if run else "pushed, and it runs on Kaggle"
        raise PushError(f"{result}: {answer}")
    if BUSY.search(answer):
        raise BusyError
    if "push error" in answer.lower() or ABSENT.search(answer):
        raise PushError(answer)
    raise NoAnswerError(last_line(answer))


def status(command: list[str], kernel_id: str) -> tuple[str, str]:
    """Return Kaggle's status of a kernel in lower case, or 'absent', and the complete answer."""
    answer = call(command, "kernels", "status", kernel_id)
    if match := STATUS.search(answer):
        return match[1].lower(), answer
    if ABSENT.search(answer):
        return "absent", answer
    raise NoAnswerError(last_line(answer))


def update(command: list[str], kernel: dict, state: State) -> None:
    """Update the state of a pushed kernel.

    Raises: PushError if it failed on Kaggle, NoAnswerError if Kaggle does not show it.
    """
    slug = kernel["slug"]
    current, answer = status(command, kernel["id"])
    if current == "complete":
        state.set(slug, "complete")
    elif current == "absent":  # it may be running: an expired login gets the same answer
        raise NoAnswerError(
            f"{slug} was pushed, and Kaggle shows this login no such kernel: run kaggle auth "
            f"login, or, if it was deleted, remove its line from {state.path.name}"
        )
    elif current not in UNFINISHED:
        state.set(slug, "failed")
        raise PushError(
            f"{slug} is {current} on Kaggle: {answer}\n{log_end(command, kernel['id'])}"
        )


def log_end(command: list[str], kernel_id: str) -> str:
    """Return the last lines of a kernel's log below a heading, or why there are none."""
    try:
        answer = call(command, "kernels", "logs", kernel_id, checked=True)
    except (NoAnswerError, PushError) as reason:
        newer = "; pip install -U kaggle" * bool(OUTDATED.search(str(reason)))
        return f"its log could not be read: {reason}{newer}"
    lines = [line for line in log_text(answer).splitlines() if line.strip()]
    if not lines:
        return "its log is empty"
    shown = lines[-LOG_LINES:]
    more = f"the last {len(shown)} of {len(lines)} lines" if len(lines) > len(shown) else "all"
    return "\n".join([f"its log, {more}:", *(f"  {line}" for line in shown)])


def log_text(answer: str) -> str:
    """Return a log as text: Kaggle gives a JSON list of pieces, or an older log as it is."""
    text = answer
    start = re.search(r"^\[\s*(?:\{|\]\s*\Z)", answer, re.MULTILINE)  # a warning may precede
    if start:
        try:
            pieces, _ = json.JSONDecoder().raw_decode(answer[start.start() :])
            text = "".join(str(piece["data"]) for piece in pieces if piece.get("data"))
        except (ValueError, AttributeError, KeyError, TypeError):
            pass
    return COLOUR_CODES.sub("", text)


def resume(command: list[str], kernel: dict, state: State) -> None:
    """Ask Kaggle whether an interrupted push arrived, and set the state accordingly."""
    if state.of[kernel["slug"]] == "pushing":
        current, _ = status(command, kernel["id"])
        # Complete or failed may be the status of an older version: push again.
        state.set(kernel["slug"], "pushed" if current in UNFINISHED else "waiting")


def step(command: list[str], folder: Path, kernels: list[dict], state: State) -> None:
    """Update the kernels that run, then push those whose sources are complete."""
    for kernel in kernels:
        if state.of[kernel["slug"]] == "pushed":
            update(command, kernel, state)
    for kernel in kernels:
        slug = kernel["slug"]
        if state.of[slug] != "waiting":
            continue
        if any(state.of[source] != "complete" for source in kernel["sources"]):
            continue
        running = sum(k["gpu"] and state.of[k["slug"]] == "pushed" for k in kernels)
        if kernel["gpu"] and running >= GPU_SESSIONS:
            continue
        state.set(slug, "pushing")
        try:
            push(command, folder / slug)
        except PushError as failure:
            state.set(slug, "failed")
            raise PushError(f"{slug}: {failure}") from None
        except BusyError:
            state.set(slug, "waiting")
            return
        except NoAnswerError:
            resume(command, kernel, state)
            raise
        state.set(slug, "pushed")


def save(command: list[str], folder: Path, kernels: list[dict], state: State) -> None:
    """Save a version of each kernel that has not run; it would hide the output of one that has.

    Raises: PushError with Kaggle's answer.
    """
    for kernel in kernels:
        slug = kernel["slug"]
        if state.of[slug] not in ("waiting", "failed"):
            print(f"{slug}: {state.of[slug]}, left as it is", flush=True)
            continue
        try:
            push(command, folder / slug, run=False)
        except (PushError, NoAnswerError) as failure:
            raise PushError(f"{slug}: {failure}") from None
        except BusyError:
            raise PushError(f"{slug}: Kaggle counts it as a session; try again later") from None
        print(f"{time.strftime('%H:%M:%S')} {slug}: saved without running", flush=True)


def main() -> int:
    """Push all kernels; return 0 once all are complete, 1 if one failed, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--poll", type=float, default=60.0, help="seconds between two rounds")
    parser.add_argument("--kaggle", default="kaggle", help="the command line to call")
    parser.add_argument("--no-run", action="store_true", help="save the kernels, and run none")
    options = parser.parse_args()
    folder, command = Path(__file__).resolve().parent, shlex.split(options.kaggle)
    kernels = json.loads((folder / "graph.json").read_text(encoding="utf-8"))["kernels"]
    state = State(folder / "push_state.json", [kernel["slug"] for kernel in kernels])
    failures = 0
    try:
        if options.no_run:
            save(command, folder, kernels, state)
            return 0
        for kernel in kernels:
            if state.of[kernel["slug"]] == "failed":
                state.set(kernel["slug"], "waiting")
        while any(each != "complete" for each in state.of.values()):
            try:
                for kernel in kernels:
                    resume(command, kernel, state)
                step(command, folder, kernels, state)
                failures = 0
            except NoAnswerError as failure:
                failures += 1
                print(f"no clear answer ({failures} of {MAX_FAILURES}): {failure}", flush=True)
                if failures >= MAX_FAILURES:
                    raise PushError(
                        "no clear answer for too long; start this script again later"
                    ) from None
            if any(each != "complete" for each in state.of.values()):
                time.sleep(options.poll)
    except PushError as failure:
        print(f"stopped: {failure}\nfix it and start this again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; pushed kernels keep running; start this again to continue", file=sys.stderr)
        return 130
    except FileNotFoundError as error:
        print(f"stopped: {error}; pip install kaggle", file=sys.stderr)
        return 1
    print(f"all {len(kernels)} kernels are complete")
    return 0


def last_line(text: str) -> str:
    """Return the last line of an answer."""
    return text.splitlines()[-1] if text else "an empty answer"


if __name__ == "__main__":
    sys.exit(main())
