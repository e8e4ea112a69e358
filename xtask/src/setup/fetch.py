"""Fetches one wheel from the package index that pip is set up for, going on where a broken download stopped.

    fetch.py NAME VERSION FILE BYTES PARTIAL PLATFORM...

pip knows the index, mirrors, proxy, certificates and login: its own session is used, so that nothing has to be
said twice and no address stands here. pip's inside is not a stable interface; the exit code 10 says that it has
changed, and the caller falls back on `pip download`.

Exit codes: 0 fetched; 10 another pip inside; 11 no such file or no index; 12 connection lost; 28 disk full.
The last line on stderr is the reason.
"""

import errno
import logging
import os
import re
import shutil
import sys
import threading
import time
from contextlib import ExitStack

CHUNK = 1 << 18
ATTEMPTS_WITHOUT_PROGRESS = 5


def stop(code, reason):
    print(reason, file=sys.stderr, flush=True)
    os._exit(code)


def end_with_parent():
    """The parent holds our stdin open: when it is killed, this ends too, and never writes beside a second try."""
    os.read(0, 1)  # not sys.stdin: its lock would stand in the way of a clean exit
    os._exit(13)


def brief(reason):
    """The host and the cause out of the many words of an HTTP library."""
    host = re.search(r"host='([^']+)'", reason)
    cause = re.sub(r"<[^>]*>: |\)$", "", reason.split("(Caused by ")[-1])
    return "{}: {}".format(host.group(1), cause) if host else cause


class Unreachable(logging.Handler):
    """Keeps pip's words about an index that it could not read; pip itself goes on without them."""

    reasons = []

    def emit(self, record):
        message = record.getMessage()
        if message.startswith("Could not fetch URL"):
            # "Could not fetch URL <url>: connection error: <many words> - skipping"
            self.reasons.append(brief(message.split(": ", 1)[-1].rsplit(" - ", 1)[0]))


def open_index(stack, name, version, platforms):
    from pip._internal.cli.cmdoptions import make_target_python
    from pip._internal.commands import create_command

    collector = logging.getLogger("pip._internal.index.collector")
    collector.setLevel(logging.DEBUG)
    collector.addHandler(Unreachable())
    collector.propagate = False

    command = create_command("download")
    words = ["--no-deps", "--no-input", "--no-cache-dir", "--only-binary=:all:"]
    words += ["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"]
    words += [word for platform in platforms for word in ("--platform", platform)]
    options, _ = command.parse_args(words + ["{}=={}".format(name, version)])
    stack.enter_context(command.main_context())
    session = command.get_default_session(options)
    finder = command._build_package_finder(
        options=options, session=session, target_python=make_target_python(options)
    )
    return session, finder.find_all_candidates


def find(candidates, file):
    for candidate in candidates:
        if candidate.link.filename == file:
            return candidate.link
    if Unreachable.reasons:
        stop(11, "the package index did not answer: " + Unreachable.reasons[-1])
    stop(11, "the package index pip is set up for does not offer " + file)


def fetch(session, link, partial, size):
    """Appends to `partial` until it has `size` bytes; a lost connection is tried again from where it stopped."""
    failures = 0
    while True:
        done = os.path.getsize(partial) if os.path.exists(partial) else 0
        if done >= size:
            return
        reason = "the connection was closed early"
        try:
            append(session, link, partial, done)
        except OSError as error:
            # requests' exceptions are OSErrors too, without a number.
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                stop(28, "the disk is full")
            reason = brief(str(error))
        except Exception as error:  # urllib3 has its own family, in a place that moves between versions of pip
            reason = brief(str(error))
        now = os.path.getsize(partial) if os.path.exists(partial) else 0
        if now > done:
            failures = 0
        elif failures + 1 == ATTEMPTS_WITHOUT_PROGRESS:
            stop(12, reason)
        else:
            failures += 1
            time.sleep(2 ** (failures - 1))


def append(session, link, partial, done):
    headers = {"Accept-Encoding": "identity", "Range": "bytes={}-".format(done)}
    response = session.get(link.url.split("#")[0], headers=headers, stream=True)
    response.raise_for_status()
    # A server that ignores the range sends the whole file again.
    mode = "ab" if response.status_code == 206 else "wb"
    with open(partial, mode) as out:
        for chunk in response.raw.stream(CHUNK, decode_content=False):
            out.write(chunk)
            out.flush()


def main(stack):
    name, version, file, size, partial = sys.argv[1:6]
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        session, candidates_of = open_index(stack, name, version, sys.argv[6:])
        candidates = candidates_of(name)
    except (Exception, SystemExit) as error:
        stop(10, "this pip cannot be asked: {!r}".format(error))
    link = find(candidates, file)
    if link.is_file:
        try:
            shutil.copyfile(link.file_path, partial)
        except OSError as error:
            stop(28 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 12, str(error))
    else:
        fetch(session, link, partial, int(size))


try:
    with ExitStack() as stack:
        main(stack)
except KeyboardInterrupt:
    os._exit(130)
